# SPDX-License-Identifier: Apache-2.0
"""The results of a check: `Finding` and `Report`, as plain text and in colour."""

from __future__ import annotations

import dataclasses
import enum
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tallax._errors import CheckFailedError


class Outcome(enum.Enum):
    """The outcome of a check."""

    PASSED = "✓"
    FAILED = "✗"
    WARNED = "!"
    SKIPPED = "-"


@dataclass(frozen=True)
class Cell:
    """One check: a row of the report's table, or one column of a row that has several.

    Attributes:
        check: The name of the row, such as a transformation.
        mode: The column: `graph`, `graph_updates=False`, `tree` or `split/merge`. Empty if the row has one column.
        outcome: The outcome of the check.
        note: The reason why the check was skipped, or the number of runs.
    """

    check: str
    mode: str
    outcome: Outcome
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Returns the cell as strings, ready for JSON."""
        return {**dataclasses.asdict(self), "outcome": self.outcome.name}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Cell:
        """Returns the cell from the dict that `to_dict` returned."""
        return cls(**{**data, "outcome": Outcome[data["outcome"]]})


# Every rule, with the finding in words. `tallax lint` uses the same names for the same faults.
RULES = {
    "not-reproducible": "two models from the factory start or behave differently",
    "replaced-variable": "a call replaces a Variable by an array or a number",
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


# The styles of a terminal, by patterns of the text.
_STYLES = {
    "✓": "green",
    "✗": "bold red",
    r"(?<= )!(?= |$)": "yellow",
    r"^Failed:$": "bold red",
    r"^Warnings:$": "bold yellow",
    r"^\S.* \[[a-z-]+\]$": "bold",
    r"^  (where|got|expected|source|fix): +": "dim",
}


@dataclass(frozen=True)
class Finding:
    """One fault, with all the transformations in which it occurs.

    Attributes:
        rule: The kind of fault, a key of `RULES`.
        path: The path of the attribute, such as `experts/1/step`. `output` stands for the output of the model. Empty if
            the attribute is unknown.
        message: The fault in a sentence.
        where: The transformations and modes in which it occurs, or the names of other operations.
        got: The value found.
        expected: The expected value.
        fix: The fix.
        source: The source line, such as `file.py:12: self.count = self.count + 1`. Empty if it is unknown.
        is_warning: True if it may be intended, or if it depends on the use of the model.
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
        """Returns the other fields that are not empty, each with its label."""
        where = "; ".join(self.where[:6]) + (f"; and {len(self.where) - 6} more" if len(self.where) > 6 else "")
        labelled = {
            "where": where,
            "got": self.got,
            "expected": self.expected,
            "source": self.source,
            "fix": self.fix,
        }
        return [(label, text) for label, text in labelled.items() if text]

    def to_dict(self) -> dict[str, Any]:
        """Returns the finding as strings and lists, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Finding:
        """Returns the finding from the dict that `to_dict` returned."""
        return cls(**{**data, "where": tuple(data["where"])})


@dataclass(frozen=True)
class Report:
    """The result of `statecheck` or `resumecheck`.

    Attributes:
        name: The name of the checked object.
        cells: Every check with its outcome.
        findings: The faults, worst first, warnings last.
        seconds: The duration.
        versions: The versions of Flax and JAX, such as "flax 0.12.8, jax 0.10.2".
        incomplete: The reason why some checks did not run, such as "interrupted at: scan tree". Empty if all checks
            ran.
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
        """The findings that may be intended, or that depend on the use of the model."""
        return tuple(finding for finding in self.findings if finding.is_warning)

    @property
    def passed(self) -> bool:
        """True if every check ran and nothing failed."""
        return not self.failures and not self.incomplete

    def raise_on_failure(self) -> Report:
        """Returns the report itself if every check ran and nothing failed.

        Raises:
            CheckFailedError: A check failed or did not run. It is also an `AssertionError`, and its text has every
                failure.
        """
        __tracebackhide__ = True  # pytest then shows the test instead of the whole report as `self`
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
        """Returns the modes, and for each check with modes its cells in the same order."""
        modes = list(dict.fromkeys(cell.mode for cell in self.cells if cell.mode))
        rows: dict[str, list[Cell | None]] = {}
        for cell in self.cells:
            if cell.mode:
                rows.setdefault(cell.check, [None] * len(modes))[modes.index(cell.mode)] = cell
        return modes, rows

    def __str__(self) -> str:
        modes, rows = self.matrix()
        lines = [f"{'':<24}" + "  ".join(modes)] if modes else []
        for check, cells in rows.items():
            marks = (
                f"{cell.outcome.value if cell else '':<{len(mode)}}" for mode, cell in zip(modes, cells, strict=True)
            )
            lines.append(f"{check:<24}{'  '.join(marks)}".rstrip())
        lines += [f"{cell.check:<24}{cell.outcome.value}  {cell.note}".rstrip() for cell in self.cells if not cell.mode]
        for title, findings in (("Failed:", self.failures), ("Warnings:", self.warnings)):
            if findings:
                lines += ["", title, *(f"\n{finding}" for finding in findings)]
        return "\n".join([*lines, "", self.summary()])

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as dicts, lists, strings and numbers, ready for JSON."""
        return {**dataclasses.asdict(self), "cells": [cell.to_dict() for cell in self.cells]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Report:
        """Returns the report from the dict that `to_dict` returned."""
        cells = tuple(Cell.from_dict(cell) for cell in data["cells"])
        findings = tuple(Finding.from_dict(finding) for finding in data["findings"])
        return cls(**{**data, "cells": cells, "findings": findings})

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        """Yields the lines of the text in colour, wrapped to the right of their labels."""
        from rich.text import Text

        *lines, last = str(self).splitlines()
        for line in lines:
            indent = " " * 12 if line.startswith("  ") else ""
            wrapped = textwrap.wrap(line, options.max_width, subsequent_indent=indent, break_on_hyphens=False)
            for text in map(Text, wrapped or [""]):
                for pattern, style in _STYLES.items():
                    text.highlight_regex(pattern, style)
                yield text
        yield Text(last, "bold green" if self.passed else "bold red")
