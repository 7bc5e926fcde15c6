# SPDX-License-Identifier: Apache-2.0
"""The results of a check as they come, and the report of those there are at any time."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import TypeAlias

import flax
import jax

from tallax.checking._report import Cell, Finding, Outcome, Report

Results: TypeAlias = Iterator[Cell | Finding]

# A finding of one tier explains those of the tiers below it at the same path, so these are not reported as well.
_TIERS = (
    {"not-reproducible"},
    {"replaced-variable", "python-counter", "host-sync"},
    {"lost-update", "counted-twice", "frozen-value", "param-state", "eval-mode", "narrow-counter", "shared-variable"},
    {"retrace", "round-trip"},
    {"differs"},
    {"raises"},
)
_TIER = {rule: tier for tier, rules in enumerate(_TIERS) for rule in rules}


def _ignore(told: object) -> None:
    pass


class Collected:
    """Cells and findings in the order in which they come.

    Attributes:
        name: The name of the checked object, as the report gives it.
        at: The check that runs now.
        cells: Every cell so far.
        findings: Every finding so far, before those that say the same are joined.
    """

    def __init__(
        self,
        name: str,
        *,
        on_progress: Callable[[str], None] | None = None,
        on_result: Callable[[Cell | Finding], None] | None = None,
        limit_seconds: float | None = None,
    ):
        self.name = name
        self.at = "start"
        self.cells: list[Cell] = []
        self.findings: list[Finding] = []
        self._began = time.perf_counter()
        self._on_progress = on_progress or _ignore
        self._on_result = on_result or _ignore
        self._limit_seconds = limit_seconds

    def notify(self, check: str) -> None:
        """Notes that a check begins."""
        self.at = check
        self._on_progress(check)

    def add(self, *results: Cell | Finding) -> None:
        """Adds results."""
        for result in results:
            if isinstance(result, Cell):
                self.cells.append(result)
            elif result not in self.findings:
                self.findings.append(result)
            self._on_result(result)

    @property
    def is_out_of_time(self) -> bool:
        """Whether the limit has passed."""
        return self._limit_seconds is not None and time.perf_counter() - self._began > self._limit_seconds

    def report(self, incomplete: str = "") -> Report:
        """Returns the report of the results so far; `incomplete` says why there are no more."""
        return Report(
            self.name,
            tuple(self.cells),
            tuple(condensed(self.findings)),
            time.perf_counter() - self._began,
            f"flax {flax.__version__}, jax {jax.__version__}",
            incomplete,
        )


def condensed(findings: list[Finding]) -> list[Finding]:
    """Returns one finding for each rule and path, with all its places; without those that another one explains."""
    merged: dict[tuple[str, str, bool, str], Finding] = {}
    for finding in findings:
        key = (finding.rule, finding.path, finding.is_warning, finding.message if finding.rule == "exercise" else "")
        known = merged.get(key)
        if known is None:
            merged[key] = finding
        else:
            where = tuple(dict.fromkeys((*known.where, *finding.where)))
            merged[key] = dataclasses.replace(known, where=where)
    best: dict[str, int] = {}
    for finding in merged.values():
        if not finding.is_warning:
            best[finding.path] = min(best.get(finding.path, len(_TIERS)), _tier(finding))
    explained = min(best.values(), default=len(_TIERS)) < _TIER["retrace"]
    kept = [
        finding
        for finding in merged.values()
        if finding.is_warning
        or finding.rule == "exercise"
        or not (
            (_TIER["retrace"] <= _tier(finding) and best[finding.path] < _tier(finding))
            or (_tier(finding) >= _TIER["retrace"] and explained and finding.path in ("", "output"))
            or (_tier(finding) == _TIER["raises"] and min(best.values()) < _TIER["raises"])
        )
    ]
    return sorted(kept, key=lambda finding: (finding.is_warning, _tier(finding)))


def _tier(finding: Finding) -> int:
    return _TIER.get(finding.rule, len(_TIERS) - 1)


def outcome_of(findings: list[Finding]) -> Outcome:
    """Returns how a check with these findings ended."""
    if any(not finding.is_warning for finding in findings):
        return Outcome.FAILED
    return Outcome.WARNED if findings else Outcome.PASSED


def reported(check: str, findings: list[Finding], note: str = "") -> Results:
    """Yields the cell of a check that has no modes, and its findings."""
    yield Cell(check, "", outcome_of(findings), note)
    yield from findings
