# SPDX-License-Identifier: Apache-2.0
"""`StepClock`: counts the steps of a run on the host, without waiting for the device."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

from tallax.compiling import CompiledStep
from tallax.variables import Counter


class StepClock:
    """Counts the steps of a run on the host, and decides whether a record is due.

    The clock shows `start + elapsed`. The steps that have elapsed are those that the compiled steps of this clock have
    run. The start is 0 until `start_at` sets it, once, from the run's step counter. From then on the clock shows the
    counter's value, as long as both count the same steps. Without compiled steps, the Logger sets the clock.

    The first call is due. After that, a call is due if the clock has reached or passed a multiple of `every` since the
    last record. If it has passed several multiples, they give one record.
    """

    def __init__(self, every: int, subject: Any = None):
        self._every = every
        # A Counter cannot be referred to weakly. It is small, unlike a model.
        self._subject = weakref.ref(subject) if hasattr(subject, "__weakref__") else lambda: subject
        # A Logger may outlive a compiled step, which owns compiled programs, so the reference is weak. The steps that
        # it ran stay in `_elapsed`.
        self._seen: weakref.WeakKeyDictionary[CompiledStep, int] = weakref.WeakKeyDictionary()
        self._start = self._elapsed = 0
        self._next: int | None = None  # the step of the next record; None: the next call is due

    def is_of(self, subject: Any) -> bool:
        """Returns whether the clock counts the steps of this counter or object."""
        return self._subject() is subject

    def follow(self, step: CompiledStep) -> None:
        """Counts the steps of this compiled step, both past and future ones."""
        self._seen.setdefault(step, 0)

    def set(self, step: int) -> None:
        """Sets the clock. If it goes back, the next call is due, as at the start of a run."""
        if step < self.now:
            self._next = None
        self.start_at(step)

    def start_at(self, step: int) -> None:
        """Sets the start such that the clock shows this step."""
        self._start = step - self._counted()

    def _counted(self) -> int:
        """Returns the steps so far, without the start."""
        for step, before in self._seen.items():
            if step.steps != before:
                self._elapsed += step.steps - before
                self._seen[step] = step.steps
        return self._elapsed

    @property
    def now(self) -> int:
        """The step that the clock shows."""
        return self._start + self._counted()

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
        """The one compiled step that advances the clock; None if there are several or none."""
        return next(iter(self._seen)) if len(self._seen) == 1 else None


class RunClocks:
    """The clocks of one Logger.

    Attributes:
        host: The clock of calls without a compiled step: it shows their `step=`, or counts them.
    """

    def __init__(self, every: int):
        self._every = every
        self.host = StepClock(every)
        self._by_step: weakref.WeakKeyDictionary[CompiledStep, StepClock] = weakref.WeakKeyDictionary()
        self._runs: list[StepClock] = []  # the values of `_by_step`, each once
        self._last: StepClock | None = None  # the clock of the last call with a compiled step

    def of(self, objects: Sequence[Any]) -> StepClock | None:
        """Returns the clock of a call with these objects, or None if its compiled step is new."""
        for thing in objects:
            if isinstance(thing, CompiledStep):
                clock = self._by_step.get(thing)
                if clock is not None:
                    self._last = clock
                return clock
        return self.host

    def new(self, objects: Sequence[Any], counter: Counter | None, index: int) -> StepClock:
        """Returns the clock for a compiled step that is new. If the counter has a clock already, it is shared."""
        steps = [thing for thing in objects if isinstance(thing, CompiledStep)]
        advancing = steps[index] if index < len(steps) else steps[0]
        subject = steps[0].objects[0] if counter is None else counter
        clock = next((clock for clock in self._runs if clock.is_of(subject)), None)
        if clock is None:
            clock = StepClock(self._every, subject)
            self._runs.append(clock)
        clock.follow(advancing)
        self._last = self._by_step[steps[0]] = clock
        return clock

    def shown(self, clock: StepClock | None) -> int:
        """Returns the step of a record without step counter. The clock of a run is preferred to a number of calls."""
        if clock is self.host and self._last is not None:
            clock = self._last
        return 0 if clock is None else clock.now
