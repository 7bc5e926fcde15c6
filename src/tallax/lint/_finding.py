# SPDX-License-Identifier: Apache-2.0
"""What a rule reports: a place, a sentence, and where it is safe the edits that mend it."""

from __future__ import annotations

from typing import NamedTuple


class Edit(NamedTuple):
    """Puts `text` in place of a stretch of source.

    Lines count from 1 and columns from 0 in UTF-8 bytes, as in `ast`.
    """

    line: int
    column: int
    end_line: int
    end_column: int
    text: str


class Finding(NamedTuple):
    """One place that a rule speaks of.

    Attributes:
        path: The file, as it was named or found.
        line: Counted from 1; in a notebook, from the start of all its code (`Source.place` names the cell).
        column: Counted from 1, in UTF-8 bytes.
        code: The rule's, `TLX001`.
        slug: The rule's, `param-state`.
        message: What is wrong with this very place and what to write instead, in one line.
        edits: What `--fix` does; none where only a person can decide.
    """

    path: str
    line: int
    column: int
    code: str
    slug: str
    message: str
    edits: tuple[Edit, ...] = ()

    @property
    def fixable(self) -> bool:
        """Returns whether `--fix` mends it."""
        return bool(self.edits)
