# SPDX-License-Identifier: Apache-2.0
"""`Logger`: from a training loop to the sinks."""

from __future__ import annotations

import atexit
import dataclasses
import sys
import threading
import weakref
from collections.abc import Sequence
from typing import Any, Literal, Self

import jax

from tallax._errors import InvalidTypeError, InvalidValueError, SinkError, compose, describe
from tallax.compiling import CompiledStep
from tallax.logging._capture import Taken, Taker
from tallax.logging._omissions import Exclusion, Omission, said, warn
from tallax.logging._step_clock import StepClock
from tallax.logging._writer import Failure, Writer
from tallax.sinks import Sink, as_sink

_LOOK = -sys.maxsize


class Logger:
    """Logs the items of a model, and scalars beside them, every so many steps, without stopping the device.

    A record is due at the first call, and then at each call at which the run has reached or passed a multiple of
    `every` since the last record. A call that passes several multiples gives one record. Any other call costs a
    comparison. A call that is logged starts a copy of all items to the host and returns. A thread waits for the copy
    and hands a record to each sink: at once, or several at a time if there are more than ten a second.

    A clock on the host says how far the run is. It shows `step=` if the call has one; else the number of steps that the
    compiled step has run (`CompiledStep.steps`); else the number of calls without a compiled step. It starts from the
    run's step counter, which is the `Counter` called `step` with the shortest path, such as that of a
    `tallax.StepCounter`. So a run that goes on from a checkpoint goes on with its curves, and records past that
    checkpoint are replaced. To read the counter, the second call waits for the first step; no other call waits.
    Compiled steps that share the counter share a clock; those of other models have their own.

    The step of a record is `step=`, or else the counter's value, which is read together with the other values. Without
    either it is the clock's.

    Each item is written as a number, or for a statistic as one number for each field of its result
    (`gate/fired/rate`); a histogram with its own bins. An array of up to 32 entries is written entry by entry
    (`load/3`), a larger one as its extremes, its mean and a histogram, and complex numbers as `name/real` and
    `name/imag`. Counts of rare events, such as NaN, are left out while they are 0. If a value cannot be written, a
    warning names it once, and the record is written without it.

    Calls may come from several threads. A program of several processes logs in all of them, since reading is a program
    that all run; process 0 writes.

    Args:
        *sinks: from `tallax.sinks`; the folder of the run, for `tallax.sinks.Jsonl(folder)`; objects of your own with
            `write(record)` and `close()`; or metrax's logging backends.
        every: how many steps lie between two records.
        exclude: the names of items and scalars to leave out, as a shell matches them: `"*/freqs"`; one or several. A
            pattern means what lies below it, too: `"gate"` is `gate/fired` as well.
        step: the name of the Counter that counts the steps, where it is not the one described.
        capacity: how many records may wait for the sinks.
        overflow: what happens when there are more. "wait": the loop waits for the sinks. "drop": the record is dropped,
            and each record has the number of those dropped so far, as `logger/dropped_records`.
        all_processes: whether every process writes, rather than process 0 alone.

    Raises:
        InvalidTypeError: what should be a sink is none; or `exclude` is not a str, or several.
        InvalidValueError: `every` or `capacity` is below 1, or `overflow` another word.

    Example:
        >>> import tempfile, tallax
        >>> from flax import nnx
        >>> model = nnx.Dict(step=tallax.Counter())
        >>> folder = tempfile.mkdtemp()
        >>> with tallax.Logger(tallax.sinks.Jsonl(folder), every=2) as log:
        ...     for _ in range(4):
        ...         model.step += 1
        ...         log(model, loss=0.5)
        >>> tallax.Run(folder).scalars["step"].values
        [1, 2, 4]
    """

    def __init__(
        self,
        *sinks: Any,
        every: int = 100,
        exclude: str | Sequence[str] | None = None,
        step: str | None = None,
        capacity: int = 64,
        overflow: Literal["wait", "drop"] = "wait",
        all_processes: bool = False,
    ):
        for name, value in (("every", every), ("capacity", capacity)):
            if not isinstance(value, int) or value < 1:
                raise InvalidValueError(
                    compose("Logger", f"{name}= is a number from 1 on.", got=describe(value), fix=f"Logger({name}=100)")
                )
        if overflow not in ("wait", "drop"):
            raise InvalidValueError(
                compose("Logger", "overflow= is 'wait' or 'drop'.", got=describe(overflow), fix="overflow='drop'")
            )
        self._sinks: list[Sink] = [as_sink(sink) for sink in sinks]
        self._every = every
        self._capacity, self._drops, self._all = capacity, overflow == "drop", all_processes
        self._exclusion = Exclusion(exclude)
        self._taker = Taker(step, self._exclusion)
        self._writer: Writer | None = None
        self._closed = False
        self._lock = threading.RLock()
        self._explicit: bool | None = None  # whether calls say their step
        self._told = StepClock(every)  # for calls that do
        self._called = StepClock(every)  # for calls with no compiled step
        self._clocks: weakref.WeakKeyDictionary[CompiledStep, StepClock] = weakref.WeakKeyDictionary()  # for the others
        self._runs: list[StepClock] = []  # these, each once
        self._run: StepClock | None = None  # that of the last call
        # A counter that a clock is to start from, in what was taken at a call, how much had elapsed then, and whether
        # there is a record of that call. It is waited for at the next call, with a further step under way.
        self._asked: tuple[Taken, StepClock, int, bool] | None = None
        # What makes a call that is not due return at once, for each kind of calls. Below `_LOOK` the next call looks.
        self._calls = 0  # with no compiled step
        self._due_calls = _LOOK
        self._source: Any = None  # the compiled step of the last call with one, if its clock counts no other
        self._due_steps = _LOOK
        self._at = 0  # the step that the last call said
        self._due_at = _LOOK

    def __call__(self, *objects: Any, step: int | None = None, **scalars: Any) -> None:
        """Logs, if it is time to.

        Args:
            *objects: compiled steps, and modules, such as the model. Give each call the same.
            step: the step of the run, instead of its step counter. If it is less than at the call before, the run has
                gone back, and the call is logged as the first one is.
            **scalars: numbers to log beside the items, jax arrays among them. Slashes group: `**{"train/loss": loss}`.

        Raises:
            SinkError: a sink, or reading the device, failed since the last call. What this call was given is taken all
                the same, and the sinks go on getting records.
            InvalidTypeError: an object is no module, or `step` no int.
            InvalidValueError: two objects have items of one name; `step` is given by one call and not by the next; no
                Counter has the name that the Logger was given, or several could be the one.
            TracedReadError: inside a trace.

        Warns:
            UserWarning: records are written without a value: its name, and why, once for each.
        """
        if step is not None:
            now = step if step.__class__ is int else self._as_step(step)
            if self._at <= now < self._due_at:
                self._at = now
                return
            with self._lock:
                self._told.set(self._at)  # which calls that returned above went past
                self._at = now
                self._look(objects, now, scalars)
        elif objects and objects[0] is self._source:
            if self._source.steps >= self._due_steps:
                with self._lock:
                    self._look(objects, None, scalars)
        else:
            for thing in objects:
                if isinstance(thing, CompiledStep):
                    with self._lock:
                        self._look(objects, None, scalars)
                    return
            with self._lock:  # or calls of two threads might be counted as one
                self._calls += 1
                if self._calls >= self._due_calls:
                    self._look(objects, None, scalars)

    def now(self, *objects: Any, step: int | None = None, **scalars: Any) -> None:
        """Logs, whatever the step: what an evaluation found, or the end of a run. Not counted as a call.

        Args and Raises: as of a call.
        """
        with self._lock:
            self._check_open()
            self._settle()
            if step is None:
                self._called.set_elapsed(self._calls)
                self._log(objects, None, scalars, self._clock_of(objects), is_call=False)
            else:
                self._log(objects, self._as_step(step), scalars, self._told, is_call=False)
            self._tell()

    def flush(self) -> None:
        """Waits until all sinks have written all that was taken.

        Raises:
            SinkError: one could not.
        """
        with self._lock:
            self._settle()
        if self._writer is not None:
            self._writer.flush()
        self._tell()

    def close(self) -> None:
        """Waits until all sinks have written all that was taken, and closes them. A second time does nothing.

        Ctrl-C while it waits gives up: the error then has a note that says how many records are not written.

        Raises:
            SinkError: a sink could not write, or not close.
        """
        with self._lock:
            self._settle()
            writer, self._writer = self._writer, None
            self._closed = True
            self._wake()  # a call from now on looks, and raises
        if writer is None:
            return
        atexit.unregister(self.close)
        try:
            writer.close()
        except BaseException as error:
            error.add_note(f"tallax.Logger gave up: {writer.unwritten} records are not written.")
            raise
        _tell_all(writer, self._exclusion.unused())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: Any, error: BaseException | None, __: Any) -> None:
        try:
            self.close()
        except (SinkError, UserWarning) as failure:
            if error is None:
                raise
            error.add_note(str(failure))  # what went wrong first is what counts

    def __repr__(self) -> str:
        return f"Logger({', '.join(map(repr, self._sinks))}, every={self._every})"

    # --- inside -----------------------------------------------------------------------------------------------------

    def _look(self, objects: Sequence[Any], step: int | None, scalars: dict[str, Any]) -> None:
        """Logs if it is time to, and says what has failed since the last look."""
        self._check_open()
        self._settle()
        if step is None:
            clock = self._clock_of(objects)
            self._called.set_elapsed(self._calls)
        else:
            self._check_kind(explicit=True)
            clock = self._told
            clock.set(step)
        if clock is None or clock.is_due(clock.now):
            clock = self._log(objects, step, scalars, clock, is_call=True)
        if self._asked is not None:
            self._wake()
        elif clock is self._told:
            self._due_at = clock.now + clock.left
        elif clock is self._called:
            self._due_calls = self._calls + clock.left
        elif objects[0] is clock.only:
            self._source, self._due_steps = objects[0], objects[0].steps + clock.left
        else:
            self._source = None
        self._tell()

    def _clock_of(self, objects: Sequence[Any]) -> StepClock | None:
        """Returns the clock for a call with these objects; None if its compiled step is new."""
        for thing in objects:
            if isinstance(thing, CompiledStep):
                clock = self._clocks.get(thing)
                if clock is not None:
                    self._run = clock
                return clock
        return self._called

    def _new_clock(self, objects: Sequence[Any], taken: Taken) -> StepClock:
        """Returns the clock of a run for a compiled step that is new: there may be one, of another of its steps."""
        steps = [thing for thing in objects if isinstance(thing, CompiledStep)]
        step, subject = steps[0], steps[0].objects[0]
        if taken.counter is not None:
            subject = taken.known.counters[taken.counter]
            number = taken.known.names[taken.counter]
            step = steps[number] if number < len(steps) else step
        clock = next((clock for clock in self._runs if clock.is_of(subject)), None)
        if clock is None:
            clock = StepClock(self._every, subject)
            self._runs.append(clock)
        clock.follow(step)
        self._run = self._clocks[steps[0]] = clock
        return clock

    def _log(
        self,
        objects: Sequence[Any],
        step: int | None,
        scalars: dict[str, Any],
        clock: StepClock | None,
        *,
        is_call: bool,
    ) -> StepClock:
        """Logs what a call or `now` was given; returns the clock, which a compiled step that is new has from here on.

        A compiled step may be new in the middle of a run, such as the one for batches of another shape. Where its clock
        stands then, only the counter tells, so it is for the next call to decide whether this one was due.
        """
        self._check_kind(explicit=step is not None)
        shown = step if step is not None else self._shown(clock)
        taken = self._taker.take(objects, scalars, shown, explicit=step is not None)
        self._explicit = step is not None
        is_new = clock is None
        if clock is None:
            clock = self._new_clock(objects, taken)
            taken = dataclasses.replace(taken, step=clock.now)
        is_first = not clock.has_started and (is_call or (step is None and len(objects) > 0))
        is_logged = is_first or not is_call or not is_new or (taken.counter is None and clock.is_due(clock.now))
        if is_first or (is_logged and is_call):
            clock.has_logged(clock.now)
        if (is_first or is_new) and taken.counter is not None:
            self._asked = taken, clock, clock.elapsed, is_logged
        if is_logged:
            self._put(taken)
        return clock

    def _shown(self, clock: StepClock | None) -> int:
        """Returns the step of a record with no counter."""
        if clock is self._called and self._run is not None:
            clock = self._run  # the steps of a run say more than how many such calls there were
        return 0 if clock is None else clock.now

    def _settle(self) -> None:
        """Has a clock start from the counter that it is to start from; waits for the device."""
        if self._asked is None:
            return
        taken, clock, elapsed, is_logged = self._asked
        try:
            step: int | None = taken.counted()
        except Exception:  # the program that was to compute it failed: the record says so, and the clock goes on
            step = None
        self._asked = None
        if step is not None:
            clock.start_at(step, elapsed)
            if is_logged:
                clock.has_logged(step)
            elif clock.is_due(step):
                clock.has_logged(step)
                self._put(taken)

    def _put(self, taken: Taken) -> None:
        # All processes read, since that may take a program that all have to run.
        if jax.process_index() == 0 or self._all:
            self._started().put(taken)

    def _check_open(self) -> None:
        if self._closed:
            raise InvalidValueError(
                compose("Logger", "has been closed.", got="a call after that", fix="call it within the with block")
            )

    def _check_kind(self, *, explicit: bool) -> None:
        if self._explicit not in (None, explicit):
            raise InvalidValueError(
                compose(
                    "Logger",
                    "either every call says its step, or none does.",
                    got="a call with step=" if explicit else "a call without step=",
                    fix="log(model, step=step) everywhere; or nowhere, with a tallax.StepCounter on the model",
                )
            )

    def _as_step(self, step: Any) -> int:
        if isinstance(step, bool | jax.Array) or not hasattr(step, "__index__"):
            raise InvalidTypeError(
                compose(
                    "Logger",
                    "step= is an int.",
                    got=describe(step),
                    fix="log(model) without it, which reads the step counter without stopping the device; or an int",
                )
            )
        return step.__index__()

    def _started(self) -> Writer:
        if self._writer is None:
            self._writer = Writer(
                self._sinks, jax.process_index(), self._capacity, drops=self._drops, on_failure=self._wake
            )
            atexit.register(self.close)  # for those who neither close it nor use a with block
        return self._writer

    def _wake(self) -> None:
        """Has the next call look, which then says what failed."""
        self._due_calls = self._due_steps = self._due_at = _LOOK

    def _tell(self) -> None:
        """Warns of what records were written without, and raises what failed."""
        if self._writer is not None:
            _tell_all(self._writer, ())


def _tell_all(writer: Writer, further: Sequence[Omission]) -> None:
    try:
        omitted = [*writer.omitted(), *further]
        if omitted:
            warn(omitted)
    finally:
        _raise(writer.failures())


def _raise(failures: Sequence[Failure]) -> None:
    if not failures:
        return
    texts = [f"{failure.where}, {failure.doing}: {said(failure.error)}" for failure in failures]
    raise SinkError(
        compose(
            failures[0].where,
            f"failed in {failures[0].doing}." if len(failures) == 1 else f"failed, {len(failures)} times in all.",
            got="; ".join(texts) if len(failures) > 1 else said(failures[0].error),
            fix="mend what the error says; other sinks have their records, and a loop that catches this goes on",
        )
    ) from failures[0].error
