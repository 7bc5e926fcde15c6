# SPDX-License-Identifier: Apache-2.0
"""`Logger`: decides which calls are logged, and passes them to the writer."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import sys
import threading
from collections.abc import Sequence
from typing import Any, Literal, Self

import jax

from tallax._errors import InvalidTypeError, InvalidValueError, SinkError, describe
from tallax.compiling import CompiledStep
from tallax.logging._capture import Capture, Captured
from tallax.logging._omissions import Exclusion
from tallax.logging._step_clock import RunClocks, StepClock
from tallax.logging._writer import Writer
from tallax.sinks import Sink, as_sink

_LOOK = -sys.maxsize


class Logger:
    """Logs the state of a model, and scalars alongside it, every `every` steps, without waiting for the device.

    The first call is logged. After that, a call is logged if the run has reached or passed a multiple of `every` since
    the last record. If a call passes several multiples, it gives one record. Every other call costs a comparison. A
    call that is logged starts a copy of the state to the host and returns. A thread waits for the copy and passes a
    record to each sink: immediately, or several at a time if there are more than ten per second.

    A clock on the host counts the steps of the run. If the call has `step=`, the clock shows it. Otherwise it counts
    the steps that the compiled step has run (`CompiledStep.steps`), or the calls if there is no compiled step. It
    starts from the run's step counter: the `Counter` named `step` with the shortest path, for example that of a
    `tallax.StepCounter`. So a run that resumes from a checkpoint continues its curves and replaces the records that are
    later than the checkpoint. To read the counter, the first call waits for the first step; no other call waits.
    Compiled steps that share a counter share a clock, and those of different models have different clocks.

    The step of a record is `step=` or the counter's value, which is read together with the other values. If there is
    neither, it is the step that the clock shows.

    A value is written as a number. A statistic gives one number for each field of its result (`gate/fired/rate`), and
    a histogram keeps its own bins. An array of up to 32 entries is written entry by entry (`load/3`); a larger one as
    its extremes, its mean and a histogram; complex numbers as `name/real` and `name/imag`. Counts of rare events, such
    as NaN, are left out while they are 0. If a value cannot be written, a warning names it once, and the record is
    written without it.

    Calls may come from several threads. If a program has several processes, call the Logger in all of them, because
    reading is a program that all of them must run. Process 0 writes.

    Args:
        *sinks: Sinks from `tallax.sinks`; the folder of the run, which stands for `tallax.sinks.Jsonl(folder)`; your
            own objects with `write(record)` and `close()`; or metrax's logging backends.
        every: The number of steps between two records.
        exclude: Shell patterns of names to leave out, one or several, such as `"*/freqs"`. A pattern also matches
            everything below the name: `"gate"` matches `gate/fired`.
        step: The name of the Counter that counts the steps. If omitted, the Logger finds it as described above.
        capacity: The number of records that may wait for the sinks.
        overflow: The behavior if more records wait. If "wait", the loop waits for the sinks. If "drop", the record is
            dropped, and each record contains the number dropped so far as `logger/dropped_records`.
        all_processes: Whether every process writes. If False, only process 0 does.

    Raises:
        InvalidTypeError: A sink has no `write` or `close`, or `exclude` is neither a str nor a sequence of them.
        InvalidValueError: `every` or `capacity` is below 1, or `overflow` is neither "wait" nor "drop".

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
                    "Logger",
                    f"{name}= must be an int of at least 1.",
                    got=describe(value),
                    fix=f"Logger({name}=100)",
                )
        if overflow not in ("wait", "drop"):
            raise InvalidValueError(
                "Logger", "overflow= must be 'wait' or 'drop'.", got=describe(overflow), fix="overflow='drop'"
            )
        self._sinks: list[Sink] = [as_sink(sink) for sink in sinks]
        self._every = every
        self._capacity, self._drops, self._all = capacity, overflow == "drop", all_processes
        self._exclusion = Exclusion(exclude)
        self._capture = Capture(step, self._exclusion)
        self._writer: Writer | None = None
        self._closed = False
        self._lock = threading.RLock()
        self._explicit: bool | None = None  # whether calls pass step=; None before the first record
        self._clocks = RunClocks(every)
        # A call that is not due returns after one comparison with a threshold. There is one for each kind of call. A
        # threshold of `_LOOK` makes the next call of this kind call `_look`.
        self._source: Any = None  # the compiled step of the last call, if no other one advances its clock
        self._due_steps = _LOOK
        self._last = 0  # the step of the last call without a compiled step: its step=, or one more than before
        self._due_step = _LOOK  # for calls with step=
        self._due_call = _LOOK  # for others

    def __call__(self, *objects: Any, step: int | None = None, **scalars: Any) -> None:
        """Logs if a record is due.

        Args:
            *objects: Compiled steps, and modules such as the model. Pass the same ones to each call.
            step: The step of the run, in place of the step counter. If it is less than in the previous call, the run
                has gone back, and the call is logged as a first call is.
            **scalars: Numbers to log alongside the state, including JAX arrays. Slashes group them:
                `**{"train/loss": loss}`.

        Raises:
            SinkError: Since the last call, a sink failed or the device could not be read. The values of this call are
                logged all the same, and the sinks continue to get records.
            InvalidTypeError: An object is not a module, or `step` is not an int.
            InvalidValueError: Two objects have state of the same name; some calls pass `step=` and others do not; no
                Counter has the name that the Logger was given, or several Counters match.
            TracedReadError: The call is inside a trace.

        Warns:
            UserWarning: A value could not be written. The warning gives its name and the reason, once for each.
        """
        if step is not None:
            now = step if step.__class__ is int else self._as_step(step)
            if self._last <= now < self._due_step:
                self._last = now
                return
            with self._lock:
                self._look(objects, now, scalars)
        elif objects and objects[0] is self._source:
            if self._source.steps >= self._due_steps:
                with self._lock:
                    self._look(objects, None, scalars)
        elif any(isinstance(thing, CompiledStep) for thing in objects):
            with self._lock:
                self._look(objects, None, scalars)
        else:
            with self._lock:  # without it, calls of two threads might be counted as one
                now = self._last + 1
                if now < self._due_call:
                    self._last = now
                else:
                    self._look(objects, None, scalars)

    def now(self, *objects: Any, step: int | None = None, **scalars: Any) -> None:
        """Logs at any step, for example the result of an evaluation or the end of a run. It does not count as a call.

        Args:
            *objects: Compiled steps, and modules such as the model.
            step: The step of the run, in place of the step counter.
            **scalars: Numbers to log alongside the state, including JAX arrays.

        Raises:
            SinkError: Since the last call, a sink failed or the device could not be read.
            InvalidTypeError: An object is not a module, or `step` is not an int.
            InvalidValueError: As for a call of the Logger: names, `step=` or the step counter are ambiguous.
            TracedReadError: The call is inside a trace.
        """
        with self._lock:
            self._require_open()
            self._require_same_kind(explicit=step is not None)
            step = None if step is None else self._as_step(step)
            self._log(objects, step, scalars, self._clock_of(objects, step), is_call=False)
            self._last = self._clocks.host.now
            self._report()

    def flush(self) -> None:
        """Waits until all sinks have written everything that was logged.

        Raises:
            SinkError: A sink could not write it.
        """
        if self._writer is not None:
            self._writer.flush()
        self._report()

    def close(self) -> None:
        """Waits until all sinks have written everything that was logged, then closes them. A second call does nothing.

        Ctrl-C during the wait gives up. The exception then has a note with the number of records that are not written.

        Raises:
            SinkError: A sink could not write or not close.
        """
        with self._lock:
            writer, self._writer = self._writer, None
            self._closed = True
            self._wake()  # later calls then call `_look`, and raise
        if writer is None:
            return
        atexit.unregister(self.close)
        try:
            writer.close()
        except BaseException as error:
            error.add_note(f"tallax.Logger gave up: {writer.unwritten} records are not written.")
            raise
        writer.report(self._exclusion.unused())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: Any, error: BaseException | None, __: Any) -> None:
        try:
            self.close()
        except (SinkError, UserWarning) as failure:
            if error is None:
                raise
            error.add_note(str(failure))  # the user should see the exception that ended the loop

    def __repr__(self) -> str:
        return f"Logger({', '.join(map(repr, self._sinks))}, every={self._every})"

    def _look(self, objects: Sequence[Any], step: int | None, scalars: dict[str, Any]) -> None:
        """Logs if a record is due, sets the threshold of the next look, and reports failures since the last look."""
        self._require_open()
        self._require_same_kind(explicit=step is not None)
        host, clock = self._clocks.host, self._clock_of(objects, step)
        if clock is host:
            self._last = self._last + 1 if step is None else step
            host.set(self._last)
        if clock is None or clock.is_due(clock.now):
            clock = self._log(objects, step, scalars, clock, is_call=True)
        if clock is host:
            self._last, due = host.now, host.now + host.left
            self._due_call, self._due_step = (due, _LOOK) if step is None else (_LOOK, due)
        elif objects[0] is clock.only:
            self._source, self._due_steps = objects[0], objects[0].steps + clock.left
        else:
            self._source = None
        self._report()

    def _clock_of(self, objects: Sequence[Any], step: int | None) -> StepClock | None:
        """Returns the clock of a call, or None if its compiled step is new."""
        self._clocks.host.start_at(self._last)  # calls that were not due did not move the clock
        return self._clocks.of(objects) if step is None else self._clocks.host

    def _log(
        self,
        objects: Sequence[Any],
        step: int | None,
        scalars: dict[str, Any],
        clock: StepClock | None,
        *,
        is_call: bool,
    ) -> StepClock:
        """Logs a call or `now`, and returns its clock, which is created here for a new compiled step.

        A compiled step may be new in the middle of a run, for example one for batches of another shape. Only the step
        counter shows how far that run is, so a call waits for it once, and may then turn out not to be due.
        """
        captured = self._capture.capture(objects, scalars, explicit=step is not None)
        self._explicit = step is not None
        is_new = clock is None
        if clock is None:
            clock = self._clocks.new(objects, *captured.step_counter())
        is_first = not clock.has_started and (is_call or (step is None and len(objects) > 0))
        if (is_first or is_new) and captured.counter is not None:
            with contextlib.suppress(Exception):  # the program that computes it failed: the record reports that
                clock.start_at(captured.count())
        is_logged = is_first or not is_call or clock.is_due(clock.now)
        if is_first or (is_logged and is_call):
            clock.has_logged(clock.now)
        if is_logged:
            self._put(dataclasses.replace(captured, step=self._clocks.shown(clock) if step is None else step))
        return clock

    def _put(self, captured: Captured) -> None:
        # All processes read, since that may run a program that all of them must run. Only some write.
        if jax.process_index() != 0 and not self._all:
            return
        if self._writer is None:
            self._writer = Writer(
                self._sinks, jax.process_index(), self._capacity, drops=self._drops, on_failure=self._wake
            )
            atexit.register(self.close)  # if the program neither closes the Logger nor uses a with block
        self._writer.put(captured)

    def _wake(self) -> None:
        """Makes the next call of each kind call `_look`, which reports failures."""
        self._due_step = self._due_steps = self._due_call = _LOOK

    def _report(self) -> None:
        if self._writer is not None:
            self._writer.report()

    def _require_open(self) -> None:
        if self._closed:
            raise InvalidValueError(
                "Logger", "has been closed.", got="a call after that", fix="call it within the with block"
            )

    def _require_same_kind(self, *, explicit: bool) -> None:
        if self._explicit not in (None, explicit):
            raise InvalidValueError(
                "Logger",
                "either every call passes step=, or none does.",
                got="a call with step=" if explicit else "a call without step=",
                fix="log(model, step=step) everywhere; or nowhere, with a tallax.StepCounter on the model",
            )

    def _as_step(self, step: Any) -> int:
        if isinstance(step, bool | jax.Array) or not hasattr(step, "__index__"):
            raise InvalidTypeError(
                "Logger",
                "step= must be an int.",
                got=describe(step),
                fix="log(model) without it, which reads the step counter without stopping the device; or an int",
            )
        return step.__index__()
