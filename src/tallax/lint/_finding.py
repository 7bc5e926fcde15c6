# SPDX-License-Identifier: Apache-2.0
"""The reports of the rules: a place, a sentence and, if it is safe, the edits that fix it."""

from __future__ import annotations

from typing import NamedTuple


class Edit(NamedTuple):
    """Replaces a range of source by `text`.

    Lines count from 1 and columns from 0 in UTF-8 bytes, as in `ast`.
    """

    line: int
    column: int
    end_line: int
    end_column: int
    text: str


class Finding(NamedTuple):
    """One place that a rule reports.

    Attributes:
        path: The file, as it was named or found.
        line: Counted from 1; in a notebook, from the start of all its code (`Source.place` names the cell).
        column: Counted from 1, in UTF-8 bytes.
        code: The rule's, `TLX001`.
        slug: The rule's, `param-state`.
        message: The mistake at this place and the remedy, in one line.
        edits: The edits that `--fix` makes; empty if only a person can decide.
        end_line: The last line of the place, counted like `line`; for a function or class, the line of its name. 0 if
            it is not known.
        end_column: The column after the last one, counted from 1, in UTF-8 bytes.
    """

    path: str
    line: int
    column: int
    code: str
    slug: str
    message: str
    edits: tuple[Edit, ...] = ()
    end_line: int = 0
    end_column: int = 0

    @property
    def fixable(self) -> bool:
        """Whether `--fix` changes it."""
        return bool(self.edits)
