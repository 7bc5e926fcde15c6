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
