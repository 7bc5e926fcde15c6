# SPDX-License-Identifier: Apache-2.0
"""Files as the rules see them: text and syntax tree, of Python files and of notebooks."""

from __future__ import annotations

import ast
import dataclasses


@dataclasses.dataclass
class Source:
    """A file that was read.

    Attributes:
        path: As it was named or found, with `/` between folders.
        text: Its code; of a notebook, the code of all cells, one below the other.
        tree: The syntax tree of `text`; None as long as nobody asked for it, see `parsed`.
    """

    path: str
    text: str
    tree: ast.Module | None = None

    def parse(self) -> ast.Module | None:
        if self.tree is None:
            import warnings
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                try:
                    self.tree = ast.parse(self.text)
                except (SyntaxError, ValueError):
                    return None
        return self.tree


def read(path: str) -> Source | None:
    try:
        return Source(path, open(path, encoding="utf-8").read())
    except (OSError, ValueError):
        return None
