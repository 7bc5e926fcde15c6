# SPDX-License-Identifier: Apache-2.0
"""What a check found: `Finding` and `Report`, in plain text and as rich tables."""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass
from typing import Any

from tallax._errors import CheckFailedError


class Outcome(enum.Enum):
    """How a check ended."""

    PASSED = "✓"
    FAILED = "✗"
    WARNED = "!"
    SKIPPED = "-"


@dataclass(frozen=True)
class Cell:
    """One check: a row of the report's table, and its column where the row has several.

    Attributes:
        check: the row: a transformation, or what was looked at.
        mode: the column: `graph`, `graph_updates=False`, `tree` or `split/merge`; empty where there is one column.
        outcome: how it ended.
        note: why it was skipped, or how often it ran.
    """

    check: str
    mode: str
    outcome: Outcome
    note: str = ""


# Every rule, and what it says of the model. `tallax lint` calls the same faults by the same names.
RULES = {
    "not-reproducible": "two models from the factory start or behave differently",
    "replaced-variable": "an attribute that held a Variable holds an array or a number after a call",
    "python-counter": "a plain Python attribute changes from call to call",
    "host-sync": "a value is read on the host in the middle of a call",
    "lost-update": "an update that a call writes is missing after the call",
    "counted-twice": "one call changes the state as often as several calls",
    "frozen-value": "later calls use a value of the first call",
    "param-state": "a parameter that the model itself writes, that is not a float, or that has trainable=False",
    "eval-mode": "state changes after model.eval()",
    "narrow-counter": "a count that sticks or wraps at the edge of its dtype",
    "shared-variable": "one Variable has two names, which tree mode refuses",
    "shared-array": "two Variables start with the same array, which cannot be donated twice",
    "retrace": "the types of the state change from call to call, so each call may compile again",
    "round-trip": "a copy or a checkpoint differs from the model, or behaves differently",
    "host-callback": "a call runs Python on the host",
    "differs": "compiled calls and plain calls give different results",
    "raises": "a transformation raises an error, but plain calls do not",
    "deprecated-value": "a Variable is read or written as `.value`, which Flax deprecates (exercise only)",
    "exercise": "a solution of the exercise does not meet its specification",
}


@dataclass(frozen=True)
class Finding:
    """One fault, wherever it shows.

    Attributes:
        rule: the kind of fault, one of `RULES`.
        path: the attribute, slash-joined; `output` for what the model returns; empty where none can be named.
        message: the fault in a sentence.
        where: the transformations and modes in which it shows, or what else was being done.
        got: what came out.
        expected: what should have.
        fix: the remedy.
        source: `file.py:12: self.count = self.count + 1`; empty where it can't be told.
        is_warning: whether it may be meant so, or lies with the way a model is used rather than with the model.
    """

    rule: str
    path: str
    message: str
    where: tuple[str, ...] = ()
    got: str = ""
    expected: str = ""
    fix: str = ""
    source: str = ""
    is_warning: bool = False

    def __str__(self) -> str:
        lines = [f"  {label + ':':<10}{text}" for label, text in self.details()]
        return "\n".join((self.headline(), *lines))

    def headline(self) -> str:
        """Returns the fault in a sentence: `count: keeps its old value: the update is lost. [lost-update]`."""
        return f"{self.path or 'the model'}: {self.message} [{self.rule}]"

    def details(self) -> list[tuple[str, str]]:
        """Returns what else there is to say, labelled."""
        where = "; ".join(self.where[:6]) + (f"; and {len(self.where) - 6} more" if len(self.where) > 6 else "")
        labelled = {
            "where": where,
            "got": self.got,
            "expected": self.expected,
            "source": self.source,
            "fix": self.fix,
        }
        return [(label, text) for label, text in labelled.items() if text]


@dataclass(frozen=True)
class Report:
    """What `statecheck` found.

    Attributes:
        name: what was checked.
        cells: every check with its outcome.
        findings: the faults, worst first, warnings last.
        seconds: how long it took.
        versions: of what it ran on, as "flax 0.12.8, jax 0.10.2".
        incomplete: why it ended before all checks had run, as "interrupted at: scan tree"; empty if all did.
    """

    name: str
    cells: tuple[Cell, ...]
    findings: tuple[Finding, ...]
    seconds: float
    versions: str
    incomplete: str = ""

    @property
    def failures(self) -> tuple[Finding, ...]:
        """The findings that are faults of the model."""
        return tuple(finding for finding in self.findings if not finding.is_warning)

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """The findings that are worth knowing: they may be meant so, or depend on how the model is used."""
        return tuple(finding for finding in self.findings if finding.is_warning)

    @property
    def passed(self) -> bool:
        """Whether every check ran and there is no failure."""
        return not self.failures and not self.incomplete

    def raise_on_failure(self) -> Report:
        """Returns the report itself if every check ran and there is no failure.

        Raises:
            CheckFailedError: also an AssertionError, with the text of every failure.
        """
        __tracebackhide__ = True  # pytest then shows the test, and not the whole report as `self`
        if not self.passed:
            raise CheckFailedError("\n\n".join((self.summary(), *map(str, self.failures))))
        return self

    def summary(self) -> str:
        """Returns the result in one line."""
        ran = sum(cell.outcome is not Outcome.SKIPPED for cell in self.cells)
        result = f"{len(self.failures)} failed" if self.failures else "passed" if self.passed else "no failure so far"
        if self.incomplete:
            result = f"incomplete, {self.incomplete}; {result}"
        warned = (
            f", {len(self.warnings)} {'warning' if len(self.warnings) == 1 else 'warnings'}" if self.warnings else ""
        )
        return f"{self.name}: {result}{warned}; {ran} checks in {self.seconds:.1f} s on {self.versions}"

    def matrix(self) -> tuple[list[str], dict[str, list[Cell | None]]]:
        """Returns the modes, and for each check that has them its cells in that order."""
        modes = list(dict.fromkeys(cell.mode for cell in self.cells if cell.mode))
        rows: dict[str, list[Cell | None]] = {}
        for cell in self.cells:
            if cell.mode:
                rows.setdefault(cell.check, [None] * len(modes))[modes.index(cell.mode)] = cell
        return modes, rows

    def __str__(self) -> str:
        modes, rows = self.matrix()
        lines = [f"{'':<24}" + "".join(f"{mode:<22}" for mode in modes)] if modes else []
        for check, cells in rows.items():
            marks = "".join(f"{cell.outcome.value if cell else '':<22}" for cell in cells)
            lines.append(f"{check:<24}{marks}".rstrip())
        lines += [f"{cell.check:<24}{cell.outcome.value}  {cell.note}".rstrip() for cell in self.cells if not cell.mode]
        for title, findings in (("Failed:", self.failures), ("Warnings:", self.warnings)):
            if findings:
                lines += ["", title, *(f"\n{finding}" for finding in findings)]
        return "\n".join([*lines, "", self.summary()])

    def to_dict(self) -> dict[str, Any]:
        """Returns the report in dicts, lists, strings and numbers, as JSON takes them."""
        return {**dataclasses.asdict(self), "cells": [to_plain(cell) for cell in self.cells]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Report:
        """Returns the report that `to_dict` made the dict from."""
        cells = tuple(cell_from(cell) for cell in data["cells"])
        findings = tuple(finding_from(finding) for finding in data["findings"])
        return cls(**{**data, "cells": cells, "findings": findings})

    def __rich__(self) -> Any:
        from tallax.checking._rich_report import rendered

        return rendered(self)


def to_plain(result: Cell | Finding) -> dict[str, Any]:
    """Returns a cell or a finding in strings and lists, as JSON takes them."""
    plain = dataclasses.asdict(result)
    return {**plain, "outcome": result.outcome.name} if isinstance(result, Cell) else plain


def cell_from(data: dict[str, Any]) -> Cell:
    """Returns the cell that `to_plain` made the dict from."""
    return Cell(**{**data, "outcome": Outcome[data["outcome"]]})


def finding_from(data: dict[str, Any]) -> Finding:
    """Returns the finding that `to_plain` made the dict from."""
    return Finding(**{**data, "where": tuple(data["where"])})
