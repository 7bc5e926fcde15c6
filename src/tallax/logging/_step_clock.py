# SPDX-License-Identifier: Apache-2.0
"""`StepClock`: the steps of a run as the host knows them, without waiting for the device."""

from __future__ import annotations

import weakref
from typing import Any

from tallax.compiling import CompiledStep


class StepClock:
    """Counts the steps of a run on the host, and says whether a record is due.

    The clock shows `start + elapsed`. What has elapsed is the number of steps that the compiled steps of this clock
    have run, or the number of calls. The start is 0 until `start_at` sets it, once, from the run's step counter: from
    then on the clock shows what the counter has, as long as both count the same steps.

    A record is due at the first call, and then at each call at which the clock has reached or passed a multiple of
    `every` since the last record: one record, however many multiples it has passed.

    Args:
        every: how many steps lie between two records.
        subject: the step counter, or the first bound object of a compiled step that has none.
    """

    def __init__(self, every: int, subject: Any = None):
        self._every = every
        # A Counter can't be referred to weakly. It is small, unlike a model.
        self._subject = weakref.ref(subject) if hasattr(subject, "__weakref__") else lambda: subject
        # A Logger may live longer than a compiled step, which keeps its programs. What it ran stays in `_elapsed`.
        self._seen: weakref.WeakKeyDictionary[CompiledStep, int] = weakref.WeakKeyDictionary()
        self._start = self._elapsed = 0
        self._next: int | None = None  # the step of the next record; None: the next call is due

    def is_of(self, subject: Any) -> bool:
        """Returns whether the clock counts the steps of this counter or object."""
        return self._subject() is subject

    def follow(self, step: CompiledStep) -> None:
        """Counts the steps that a compiled step has run and is going to run."""
        self._seen.setdefault(step, 0)

    def set_elapsed(self, calls: int) -> None:
        """Has as many steps elapsed as there were calls."""
        self._elapsed = calls

    def set(self, step: int) -> None:
        """Sets the clock. If that is back, the next call is due, as at the start of a run."""
        if step < self.now:
            self._next = None
        self._start = step - self._elapsed

    def start_at(self, step: int, elapsed: int) -> None:
        """Sets the clock to have shown `step` when `elapsed` steps had elapsed."""
        self._start = step - elapsed

    @property
    def elapsed(self) -> int:
        """The steps so far, without the start."""
        for step, before in self._seen.items():
            if step.steps != before:
                self._elapsed += step.steps - before
                self._seen[step] = step.steps
        return self._elapsed

    @property
    def now(self) -> int:
        """The step that the clock shows."""
        return self._start + self.elapsed

    @property
    def has_started(self) -> bool:
        """True after the first record."""
        return self._next is not None

    def is_due(self, step: int) -> bool:
        """Returns whether a record is due when the clock shows this step."""
        return self._next is None or step >= self._next

    def has_logged(self, step: int) -> None:
        """Notes that there is a record of this step."""
        self._next = (step // self._every + 1) * self._every

    @property
    def left(self) -> int:
        """The number of steps until a record is due."""
        return 0 if self._next is None else self._next - self.now

    @property
    def only(self) -> CompiledStep | None:
        """The compiled step whose steps the clock counts, unless it counts those of several."""
        return next(iter(self._seen)) if len(self._seen) == 1 else None
