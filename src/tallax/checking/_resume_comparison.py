# SPDX-License-Identifier: Apache-2.0
"""Compares the runs of `resumecheck`, and turns the differences into findings: causes first, consequences counted."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from tallax.checking._job_runs import Ended
from tallax.checking._job_state import GLOBAL_GENERATORS, Value, Values
from tallax.checking._report import Cell, Finding, Outcome
from tallax.checking._resume_causes import (
    Cause,
    Evidence,
    cause_at_end,
    cause_at_restore,
    differences,
    records_in,
    same,
    tails,
)
from tallax.checking._resume_remedies import remedy

_APART = 8  # paths with one fault that get findings of their own; more are one finding with all paths
_STATEFUL = {"random", "position"}


def loop_steps(straight: Ended, first: Ended, run: Ended, steps: int) -> int | None:
    """Returns how many steps a run took; None if the training loop is not in the user's files.

    A line of the loop runs `steps` times more in the uninterrupted run than in the first half; if it also runs before
    the loop, as the line of a `for` does once, that part is constant. Of all such lines, the one that ran least counts:
    a job may draw the first batches again to get to its position.
    """
    counts = []
    for line, count in straight.lines.items():
        more, before = count - first.lines.get(line, 0), first.lines.get(line, 0)
        if more > 0 and more % steps == 0 and before >= more:
            constant = before - more
            counts.append(max(0, run.lines.get(line, 0) - constant) * steps // more)
    return min(counts, default=None)


class Comparison:
    """The differences between the uninterrupted run and the second half.

    Args:
        ended: the runs `straight`, `first`, `initial`, `second` and `restored`.
        steps: of a half.
        tolerance: for floats at the end; 0 for equal to the bit.
    """

    def __init__(self, ended: Mapping[str, Ended], steps: int, tolerance: float):
        if loop_steps(ended["straight"], ended["first"], ended["initial"], steps) not in (None, 0):
            ended = {**ended, "initial": dataclasses.replace(ended["initial"], values={}, hints={})}  # it took a step
        self._runs, self._steps, self._tolerance = ended, steps, tolerance
        straight, second = ended["straight"].values, ended["second"].values
        self._records = records_in(straight, second)
        self._differing = [
            path for path in differences(straight, second, tolerance=tolerance) if path not in self._records
        ]
        self._late = {path: step for path in self._records if (step := self._first_late(path)) is not None}
        taken = loop_steps(ended["straight"], ended["first"], ended["restored"], steps)
        self._is_restored_known = ended["restored"].is_good and taken in (None, 0)
        self._unstable: set[str] = set()

    @property
    def is_different(self) -> bool:
        """Whether anything differs."""
        return bool(self._differing or self._late or not self._changed())

    def use_repeat(self, again: Ended) -> None:
        """Notes the values that differ between two uninterrupted runs."""
        if again.is_good:
            self._unstable = set(differences(self._runs["straight"].values, again.values, tolerance=self._tolerance))

    def cells(self) -> list[Cell]:
        """Returns the rows of the report."""
        values = self._runs["straight"].values
        compared = len(values) - len(self._records)
        how = f"floats to {self._tolerance:g} of the largest" if self._tolerance else "to the bit"
        note = f"{compared} compared {how}" + (f", {len(self._differing)} differ" if self._differing else "")
        found = [Cell("values", "", Outcome.FAILED if self._differing else Outcome.PASSED, note)]
        for path in self._records:
            step = self._late.get(path)
            note = (
                f"those of the second half, {how}" if step is None else f"the first that differs is that of step {step}"
            )
            found.append(Cell(path, "", Outcome.PASSED if step is None else Outcome.FAILED, note))
        return found

    def findings(self) -> list[Finding]:
        """Returns a finding for each cause; if no cause is found, one that lists the differences."""
        if not self._changed():
            return [self._unchanged()]
        if not self._differing and not self._late:
            return []
        causes = {**self._causes_in_values(), **self._causes_in_hints()}
        unstable = [path for path in (*self._differing, *self._late) if path in self._unstable]
        found = self._grouped(causes)
        if unstable:
            found.insert(0, self._not_reproducible(unstable))
        return found or self._repeated() or [self._unexplained()]

    def _repeated(self) -> list[Finding]:
        """Returns a finding if the second half took more steps than a half has, and that alone explains the end."""
        taken = loop_steps(self._runs["straight"], self._runs["first"], self._runs["second"], self._steps)
        if taken is None or taken <= self._steps:
            return []
        more, start = taken - self._steps, 2 * self._steps - taken
        return [
            Finding(
                "doubled",
                self._runs["second"].run.name,
                f"takes steps twice: it continues at step {start}, with a state that is not that of step {start}.",
                (*self._late, *self._differing),
                got=f"{taken} steps, {more} of them again",
                expected=f"{self._steps} steps",
                fix="loop from the step of the restored state: for n in range(start, steps)",
            )
        ]

    def _changed(self) -> bool:
        first, straight = self._runs["first"].values, self._runs["straight"].values
        return bool(differences(straight, first))

    def _first_late(self, path: str) -> int | None:
        """Returns the first step of the second half at which a record differs; None if there is none."""
        straight, second = (self._runs[name].values[path] for name in ("straight", "second"))
        expected, got, step = tails(straight, second, self._steps)
        for number in range(len(expected.array)):
            pair = [Value(np.asarray(each.array[number]), "record") for each in (expected, got)]
            if differences({"": pair[0]}, {"": pair[1]}, tolerance=self._tolerance):
                return step + number
        return None

    def _evidence(self, path: str, which: str) -> Evidence:
        names = ("initial", "first", "restored", "straight", "second")
        values: dict[str, Values] = {name: getattr(self._runs[name], which) for name in names}
        initial, saved, restored, expected, got = (each.get(path) for each in values.values())
        return Evidence(path, initial, saved, restored, expected, got, self._is_restored_known)

    def _causes_in_values(self) -> dict[str, Cause]:
        saved = self._runs["first"].values
        found: dict[str, Cause] = {}
        for path in self._differing:
            if (cause := cause_at_restore(self._evidence(path, "values"), saved)) is not None:
                found[path] = cause
        roots = {path.split("/")[0] for path in found}
        for path in self._differing:
            if path.split("/")[0] not in roots and path not in self._unstable:
                if (cause := cause_at_end(self._evidence(path, "values"))) is not None:
                    found[path] = cause
        return found

    def _causes_in_hints(self) -> dict[str, Cause]:
        """Returns the faults of state that the job keeps and does not return.

        Only their restored values count, since at the end they may differ as a consequence; and plain numbers only if
        nothing else explains the differences: a job may count for itself what a call did.
        """
        strong: dict[str, Cause] = {}
        weak: dict[str, Cause] = {}
        for path, saved in self._runs["first"].hints.items():
            evidence = self._evidence(path, "hints")
            if saved.kind == "record" or evidence.expected is None or evidence.got is None:
                continue
            if evidence.initial is None and evidence.restored is None and saved.kind == "position":
                if (
                    self._is_restored_known
                    and self._runs["initial"].is_good
                    and not same(evidence.expected, evidence.got)
                ):
                    # A generator without a first value has no variables yet.
                    message = "starts again from its beginning. The job keeps it and does not return it."
                    strong[path] = Cause("reset", message, "no first value yet", str(saved))
                continue
            if evidence.restored is None or evidence.initial is None:
                continue
            if same(evidence.expected, evidence.got) or same(evidence.initial, saved):
                continue
            if any(same(saved, value) for value in self._runs["first"].values.values()):
                continue  # a copy of something that is compared, such as the dict that was saved
            cause = cause_at_restore(evidence, {})
            if cause is None and not self._is_restored_known and saved.kind in _STATEFUL:
                cause = cause_at_end(evidence)
            if cause is None or cause.rule == "differs":
                continue
            is_same_start = same(evidence.initial, evidence.restored)
            if saved.kind == "random" and not is_same_start and (path in GLOBAL_GENERATORS or self._unstable):
                continue  # seeded by Python or by the clock in each process: no fault of the restore
            message = f"{cause.message} The job keeps it and does not return it."
            is_strong = saved.kind in _STATEFUL or saved.kind not in ("plain", "record", "attribute")
            (strong if is_strong else weak)[path] = Cause(cause.rule, message, cause.got, cause.expected)
        return strong or ({} if self._causes_in_values() else weak)

    def _grouped(self, causes: Mapping[str, Cause]) -> list[Finding]:
        groups: dict[tuple[str, str, str], list[str]] = {}
        for path, cause in causes.items():
            groups.setdefault((cause.rule, cause.message, path.split("/")[0]), []).append(path)
        found = []
        for paths in groups.values():
            if len(paths) > _APART:
                found.append(self._finding(_common(paths), paths, causes[paths[0]]))
            else:
                found += [self._finding(path, (), causes[path]) for path in paths]
        return found

    def _finding(self, path: str, paths: Sequence[str], cause: Cause) -> Finding:
        key = paths[0] if paths else path
        first = self._runs["first"]
        value = first.values.get(key) or first.hints.get(key)
        fix = remedy(cause.rule, key, value, message=cause.message)
        return Finding(cause.rule, path, cause.message, tuple(paths), got=cause.got, expected=cause.expected, fix=fix)

    def _not_reproducible(self, paths: Sequence[str]) -> Finding:
        return Finding(
            "not-reproducible",
            paths[0],
            "differs between two uninterrupted runs, so that no resume can be exact.",
            tuple(paths),
            fix="look for seeds from the clock, unordered sets, threads, and files that a run before left",
        )

    def _unexplained(self) -> Finding:
        paths = [*self._late, *self._differing]
        path = paths[0]
        straight, second = (self._runs[name].values for name in ("straight", "second"))
        if self._is_restored_known and not differences(self._runs["first"].values, self._runs["restored"].values):
            message = (
                "differs, although everything that the job returns was restored exactly: something that it does not "
                "return was not."
            )
        else:
            message = "differs at the end of the second half."
        step = self._late.get(path)
        return Finding(
            "differs",
            path,
            message if step is None else f"{message[:-1]}, from step {step} on.",
            tuple(paths),
            got=_shown(second.get(path)),
            expected=_shown(straight.get(path)),
            fix="return the data iterator, the random keys and the counts of the loop too, so that they are compared; "
            "then save them with the rest",
        )

    def _unchanged(self) -> Finding:
        return Finding(
            "not-trained",
            self._runs["straight"].run.name,
            "nothing that the job returns changes in the second half.",
            fix="train until the global step is `steps`, and return the objects that are trained",
        )


def _shown(value: Value | None) -> str:
    return "nothing" if value is None else str(value)


def _common(paths: Iterable[str]) -> str:
    parts = [path.split("/") for path in paths]
    common = []
    for names in zip(*parts, strict=False):
        if len(set(names)) > 1:
            break
        common.append(names[0])
    return "/".join(common)
