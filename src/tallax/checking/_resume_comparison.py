# SPDX-License-Identifier: Apache-2.0
"""Compares the runs of `resumecheck`, and turns the differences into findings: causes first, consequences counted."""

from __future__ import annotations

import dataclasses
import posixpath
from collections.abc import Callable, Iterator, Mapping

from tallax.checking._job_runs import Run
from tallax.checking._job_state import GLOBAL_GENERATORS
from tallax.checking._job_values import Value, differences, first_late, records_in, same, shown
from tallax.checking._report import Cell, Finding, Outcome
from tallax.checking._resume_causes import Evidence, cause_at_end, cause_at_restore

_APART = 8  # paths with one fault that get findings of their own; more are one finding with all paths
_STATEFUL = {"random", "position"}
_KEPT = "The job keeps it and does not return it."


def loop_steps(runs: Mapping[str, Run], name: str, steps: int) -> int | None:
    """Returns how many steps a run took; None if the training loop is not in the user's files.

    A line of the loop runs `steps` times more in the uninterrupted run than in the first half; if it also runs before
    the loop, as the line of a `for` does once, that part is constant. Of all such lines, the one that ran least counts:
    a job may draw the first batches again to get to its position.
    """
    counts = []
    for line, count in runs["straight"].lines.items():
        before = runs["first"].lines.get(line, 0)
        more = count - before
        if more > 0 and more % steps == 0 and before >= more:
            counts.append(max(0, runs[name].lines.get(line, 0) - (before - more)) * steps // more)
    return min(counts, default=None)


class Comparison:
    """The differences between the uninterrupted run and the second half.

    Args:
        runs: The runs `straight`, `first`, `initial`, `second` and `restored`, ended.
        steps: The number of steps of a half.
        tolerance: The tolerance for floats at the end; 0 for equal to the bit.
    """

    def __init__(self, runs: Mapping[str, Run], steps: int, tolerance: float):
        if loop_steps(runs, "initial", steps) not in (None, 0):
            runs = {**runs, "initial": dataclasses.replace(runs["initial"], values={}, hints={})}  # it took a step
        self._runs, self._steps, self._tolerance = runs, steps, tolerance
        self._straight, second = runs["straight"].values, runs["second"].values
        self._records = records_in(self._straight, second)
        differing = differences(self._straight, second, tolerance=tolerance)
        self._differing = [path for path in differing if path not in self._records]
        late = {path: first_late(self._straight[path], second[path], steps, tolerance) for path in self._records}
        self._late = {path: step for path, step in late.items() if step is not None}
        is_before_a_step = loop_steps(runs, "restored", steps) in (None, 0)
        self._is_restored_known = runs["restored"].is_good and is_before_a_step
        self._unstable: list[str] = []

    def results(self, repeat: Callable[[], Run]) -> Iterator[Cell | Finding]:
        """Yields the rows of the report, and a finding for each cause.

        Args:
            repeat: A function that runs the job uninterrupted once more. Values that differ then are not reproducible.
        """
        how = f"floats to {self._tolerance:g} of the largest" if self._tolerance else "to the bit"
        differ = f", {len(self._differing)} differ" if self._differing else ""
        yield _row("values", f"{len(self._straight) - len(self._records)} compared {how}{differ}", not differ)
        for path in self._records:
            step = self._late.get(path)
            late = f"the first that differs is that of step {step}"
            yield _row(path, f"those of the second half, {how}" if step is None else late, step is None)
        if not differences(self._straight, self._runs["first"].values):
            message = "nothing that the job returns changes in the second half."
            fix = "train until the global step is `steps`, and return the objects that are trained"
            yield Finding("not-trained", self._runs["straight"].name, message, fix=fix)
        elif self._differing or self._late:
            yield from self._explained(repeat())

    def _explained(self, again: Run) -> Iterator[Finding]:
        """Yields a finding for each cause; if no cause is found, one that lists the differences."""
        if again.is_good:
            self._unstable = differences(self._straight, again.values, tolerance=self._tolerance)
        in_values = self._causes_in_values()
        causes = {**in_values, **self._causes_in_hints(are_numbers_wanted=not in_values)}
        unstable = tuple(path for path in (*self._differing, *self._late) if path in self._unstable)
        if unstable:
            yield Finding(
                "not-reproducible",
                unstable[0],
                "differs between two uninterrupted runs, so that no resume can be exact.",
                unstable,
                fix="look for seeds from the clock, unordered sets, threads, and files that a run before left",
            )
        groups: dict[tuple[str, str, str], list[Finding]] = {}
        for path, cause in causes.items():
            groups.setdefault((cause.rule, cause.message, path.split("/")[0]), []).append(cause)
        for group in groups.values():
            paths = tuple(cause.path for cause in group)
            if len(group) > _APART:
                yield dataclasses.replace(group[0], path=posixpath.commonpath(paths), where=paths)
            else:
                yield from group
        if not causes and not unstable:
            yield self._repeated() or self._unexplained()

    def _evidence(self, path: str, which: str) -> Evidence:
        names = ("initial", "first", "restored", "straight", "second")
        initial, saved, restored, expected, got = (getattr(self._runs[name], which).get(path) for name in names)
        return Evidence(path, initial, saved, restored, expected, got, self._is_restored_known)

    def _causes_in_values(self) -> dict[str, Finding]:
        evidence = {path: self._evidence(path, "values") for path in self._differing}
        saved = self._runs["first"].values
        found = {path: cause_at_restore(each, saved) for path, each in evidence.items()}
        # A root with a fault at its restore has only consequences at the end.
        roots = {path.split("/")[0] for path, cause in found.items() if cause is not None}
        for path, each in evidence.items():
            if path.split("/")[0] not in roots and path not in self._unstable:
                found[path] = cause_at_end(each)
        return {path: cause for path, cause in found.items() if cause is not None}

    def _causes_in_hints(self, *, are_numbers_wanted: bool) -> dict[str, Finding]:
        """Returns the faults of state that the job keeps and does not return.

        Only their restored values count, since at the end they may differ as a consequence; and plain numbers only if
        nothing else explains the differences: a job may count for itself what a call did.
        """
        strong: dict[str, Finding] = {}
        weak: dict[str, Finding] = {}
        for path, saved in self._runs["first"].hints.items():
            evidence = self._evidence(path, "hints")
            if saved.kind == "record" or None in (evidence.expected, evidence.got):
                continue
            if same(evidence.expected, evidence.got) or (cause := self._cause_in_hint(evidence, saved)) is None:
                continue
            is_strong = saved.kind in _STATEFUL or saved.kind not in ("plain", "record", "attribute")
            (strong if is_strong else weak)[path] = dataclasses.replace(cause, message=f"{cause.message} {_KEPT}")
        return strong or (weak if are_numbers_wanted else {})

    def _cause_in_hint(self, evidence: Evidence, saved: Value) -> Finding | None:
        initial, restored = evidence.initial, evidence.restored
        if initial is None and restored is None and saved.kind == "position":
            # A generator without a first value has no variables yet.
            is_anew = self._is_restored_known and self._runs["initial"].is_good
            fault = evidence.finding(("reset", "starts again from its beginning."), None, saved)
            return dataclasses.replace(fault, got="no first value yet") if is_anew else None
        if initial is None or restored is None or same(initial, saved):
            return None
        if any(same(saved, value) for value in self._runs["first"].values.values()):
            return None  # a copy of something that is compared, such as the dict that was saved
        cause = cause_at_restore(evidence, {})
        if cause is None and not self._is_restored_known and saved.kind in _STATEFUL:
            cause = cause_at_end(evidence)
        is_seeded_anew = saved.kind == "random" and not same(initial, restored)
        if is_seeded_anew and (evidence.path in GLOBAL_GENERATORS or self._unstable):
            return None  # seeded by Python or by the clock in each process: no fault of the restore
        return None if cause is None or cause.rule == "differs" else cause

    def _repeated(self) -> Finding | None:
        """Returns a finding if the second half took more steps than a half has, and that alone explains the end."""
        taken = loop_steps(self._runs, "second", self._steps)
        if taken is None or taken <= self._steps:
            return None
        start = 2 * self._steps - taken
        return Finding(
            "doubled",
            self._runs["second"].name,
            f"takes steps twice: it continues at step {start}, with a state that is not that of step {start}.",
            (*self._late, *self._differing),
            got=f"{taken} steps, {taken - self._steps} of them again",
            expected=f"{self._steps} steps",
            fix="loop from the step of the restored state: for n in range(start, steps)",
        )

    def _unexplained(self) -> Finding:
        paths = (*self._late, *self._differing)
        path, step = paths[0], self._late.get(paths[0])
        message = "differs at the end of the second half."
        if self._is_restored_known and not differences(self._runs["first"].values, self._runs["restored"].values):
            message = (
                "differs, although everything that the job returns was restored exactly: something that it does not "
                "return was not."
            )
        return Finding(
            "differs",
            path,
            message if step is None else f"{message[:-1]}, from step {step} on.",
            paths,
            got=shown(self._runs["second"].values.get(path)),
            expected=shown(self._straight.get(path)),
            fix="return the data iterator, the random keys and the counts of the loop too, so that they are compared; "
            "then save them with the rest",
        )


def _row(name: str, note: str, is_equal: bool) -> Cell:
    return Cell(name, "", Outcome.PASSED if is_equal else Outcome.FAILED, note)
