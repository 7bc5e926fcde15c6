# SPDX-License-Identifier: Apache-2.0
"""`RestoreReport`: what came of each name."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class RestoreReport:
    """What a checkpoint and some objects have in common, and what became of it.

    Attributes:
        restored: names whose value is that of the checkpoint now.
        missing: names that the checkpoint lacks; they kept the value that they had.
        unexpected: names in the checkpoint that nothing in the objects has; they were not read.
        reset: names of items with `persistent=False`, which are at their reset value now.
        kept: names of what has `persistent=False` and no reset value, such as a `Buffer`; they kept what they had.
        converted: what was stored in another form, and what it is now: an old counter that became exact, a number.
        warnings: where the old form may have lost something before it was saved.
        mismatched: what fits by its name and not by its kind, shape or dtype; only in the report of an error.
        renamed: pairs of a name in the checkpoint and what `rename` made of it, where that is another.
        step: the number under which `Checkpoints` saved it; None for others.
        extra: what was saved as `extra=`.
    """

    restored: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    reset: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    converted: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    step: int | None = None
    extra: Any = None

    def __str__(self) -> str:
        """Returns the number of restored arrays, and a line for each other name; one for all below a renamed level."""
        lines = [f"restored: {len(self.restored)}" + (f", from step {self.step}" if self.step is not None else "")]
        renamed = tuple(dict.fromkeys(_without_common_end(old, new) for old, new in self.renamed))
        kinds = (
            ("missing, kept as it was", self.missing),
            ("unexpected, not read", self.unexpected),
            ("reset", self.reset),
            ("not saved, kept as it was", self.kept),
            ("mismatched", self.mismatched),
            ("renamed", renamed),
            ("converted", self.converted),
            ("warning", self.warnings),
        )
        lines += [f"{label}: {name}" for label, names in kinds for name in names]
        return "\n".join(lines)


def _without_common_end(old: str, new: str) -> str:
    before, after = old.split("/"), new.split("/")
    while before and len(after) > 1 and before[-1] == after[-1]:
        del before[-1], after[-1]
    return f"{'/'.join(before) or 'the top level'} -> {'/'.join(after)}"
