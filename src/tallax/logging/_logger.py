# SPDX-License-Identifier: Apache-2.0
"""`Logger`: from a training loop to the sinks."""

from __future__ import annotations

import atexit
import dataclasses
import sys
import threading
from collections.abc import Sequence
from typing import Any, Literal, Self

import jax

from tallax._errors import InvalidTypeError, InvalidValueError, SinkError, compose, describe
from tallax.logging._taking import Taken, Taker, counter_of
from tallax.logging._writer import Failure, Writer
from tallax.sinks import Sink, as_sink


class Logger:
    """Logs the items of a model, and scalars beside them, every so many steps, without stopping the device.

    The first call is logged, and then the steps that `every` divides. Another call costs a comparison. A call that is
    logged starts a copy of all items to the host and returns; a thread waits for it, and hands a record to each sink:
    at once, or where there are more than ten a second, several at a time.

    Which step it is, a call says with `step=`, or else the run's step counter does: of all items the `Counter` called
    `step` with the shortest path, which a `tallax.StepCounter` has. So a run that goes on from a checkpoint goes on
    with its curves, and what had been logged past that checkpoint is replaced. Without such a counter, calls are
    counted. A call may be several steps, as one of `step.scan` is: it is logged where it reaches or passes a multiple.
    (To know where a run stands, and how many steps a call takes it on, the second call waits for the first step to be
    done and the third for the second; no other call waits.)

    What is written of an item: a number, or for a statistic each field of what `compute()` returns (`gate/fired/rate`);
    a histogram with its own bins. Of an array of up to 32 entries, each (`load/3`); of a larger one the extremes, the
    mean and a histogram. Counts of what is rare, such as NaN, are left out while they are 0.

    Calls may come from several threads. A program of several processes logs in all of them, since reading is a program
    that all run; process 0 writes.

    Args:
        *sinks: from `tallax.sinks`; the folder of the run, for `tallax.sinks.Jsonl(folder)`; objects of your own with
            `write(record)` and `close()`; or metrax's logging backends.
        every: how many steps lie between two records.
        step: the name of the Counter that counts the steps, where it is not the one described.
        capacity: how many records may wait for the sinks.
        overflow: what happens when there are more. "wait": the loop waits for the sinks. "drop": the record is dropped,
            and each record has the number of those dropped so far, as `logger/dropped_records`.
        all_processes: whether every process writes, rather than process 0 alone.

    Raises:
        InvalidTypeError: what should be a sink is none.
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
        self._every, self._counter = every, step
        self._capacity, self._drops, self._all = capacity, overflow == "drop", all_processes
        self._taker = Taker()
        self._writer: Writer | None = None
        self._closed = False
        self._lock = threading.RLock()
        self._calls = 0  # made without step=; the run is at step `_base + _stride * _calls`
        self._base, self._stride = 0, 1
        self._last = 0  # the step of the last call that was logged
        self._next = 0  # the step of the next
        self._due = 0  # `_next`, or less, to have a look before that
        self._explicit: bool | None = None  # whether calls say their step
        # Where the run stands its counter says at the first call, and by how many steps a call takes it on, at the
        # second. It is waited for at the next call: all processes have to know it at the same one, for to log may take
        # a program that all of them run.
        self._unknown = 2  # of these two
        self._asked: tuple[Taken, int, bool] | None = None  # what is to tell, of which call, and whether it is logged
        self._stood: tuple[int, int] | None = None  # what it told last, of which call

    def __call__(self, *objects: Any, step: int | None = None, **scalars: Any) -> None:
        """Logs, if it is time to.

        Args:
            *objects: compiled steps, and modules, such as the model. Give each call the same.
            step: which step this is, where no Counter of theirs is to tell. Never less than at the call before.
            **scalars: numbers to log beside the items, jax arrays among them. Slashes group: `**{"train/loss": loss}`.

        Raises:
            SinkError: a sink, or reading the device, failed since the last call. What this call was given is taken all
                the same, and the sinks go on getting records.
            InvalidTypeError: an object is no module, a scalar no number, or `step` no int.
            InvalidValueError: a scalar has a shape, or another's name; `step` is less than before, or given by one call
                and not by the next; no Counter has the name that the Logger was given, or several could be the one.
            TracedReadError: inside a trace.
        """
        if step is not None:
            now = step if step.__class__ is int else self._as_step(step)
            if self._last <= now < self._due:
                return
            with self._lock:
                self._look(objects, now, scalars, explicit=True)
            return
        with self._lock:  # or calls of two threads might be counted as one
            self._calls += 1
            if self._base + self._stride * self._calls >= self._due:
                self._look(objects, None, scalars, explicit=False)

    def now(self, *objects: Any, step: int | None = None, **scalars: Any) -> None:
        """Logs, whatever the step: what an evaluation found, or the end of a run. Not counted as a call.

        Args and Raises: as of a call.
        """
        with self._lock:
            self._check_open()
            self._settle()
            at = self._counted() if step is None else self._as_step(step)
            self._log(objects, at, scalars, explicit=step is not None)
            self._raise_failures()

    def flush(self) -> None:
        """Waits until all sinks have written all that was taken.

        Raises:
            SinkError: one could not.
        """
        if self._writer is not None:
            self._writer.flush()
        self._raise_failures()

    def close(self) -> None:
        """Waits until all sinks have written all that was taken, and closes them. A second time does nothing.

        Ctrl-C while it waits gives up: the error then has a note that says how many records are not written.

        Raises:
            SinkError: a sink could not write, or not close.
        """
        writer, self._writer = self._writer, None
        self._closed, self._due = True, -sys.maxsize  # a call from now on looks, and raises
        if writer is None:
            return
        atexit.unregister(self.close)
        try:
            writer.close()
        except BaseException as error:
            error.add_note(f"tallax.Logger gave up: {writer.unwritten} records are not written.")
            raise
        _raise(writer.failures())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: Any, error: BaseException | None, __: Any) -> None:
        try:
            self.close()
        except SinkError as failure:
            if error is None:
                raise
            error.add_note(str(failure))  # what went wrong first is what counts

    def __repr__(self) -> str:
        return f"Logger({', '.join(map(repr, self._sinks))}, every={self._every})"

    # --- inside -----------------------------------------------------------------------------------------------------

    def _look(self, objects: Sequence[Any], step: int | None, scalars: dict[str, Any], *, explicit: bool) -> None:
        """Logs if it is time to, and raises what has failed since the last look."""
        self._check_open()
        self._settle()
        now = self._counted() if step is None else step
        if now >= self._next or (explicit and now < self._last):
            self._log(objects, now, scalars, explicit=explicit)
            self._next = (now // self._every + 1) * self._every
        elif self._stood is not None and self._unknown:
            self._ask(self._taker.take(objects, scalars, now, self._counter), logged=False)
        self._due = now if self._asked is not None else self._next
        self._raise_failures()

    def _counted(self) -> int:
        """Returns the step of the run, by the calls so far."""
        return self._base + self._stride * self._calls

    def _ask(self, taken: Taken, *, logged: bool) -> None:
        """Has what was taken tell, at the next call, where the run stood at this one."""
        if taken.counter is None:
            self._unknown = 0
        elif self._stood is None or self._stood[1] < self._calls:
            self._asked = taken, self._calls, logged

    def _settle(self) -> None:
        """Learns what was asked."""
        asked, self._asked = self._asked, None
        if asked is None:
            return
        taken, call, logged = asked
        stood = taken.counted()
        if self._stood is not None:
            before, at = self._stood
            self._stride = max(1, (stood - before) // (call - at))
            if not logged and stood >= self._next:  # it was time to, which nobody knew
                self._put(taken)
                logged = True
        if logged:
            self._last, self._next = stood, (stood // self._every + 1) * self._every
        self._stood, self._unknown = (stood, call), self._unknown - 1
        self._base = stood - self._stride * call

    def _log(self, objects: Sequence[Any], now: int, scalars: dict[str, Any], *, explicit: bool) -> None:
        self._check(now, explicit=explicit)
        taken = self._taker.take(objects, scalars, now, None if explicit else self._counter)
        if self._explicit is None and not explicit:
            self._counter = counter_of(taken, self._counter)
            taken = dataclasses.replace(taken, counter=self._counter)
        self._explicit, self._last = explicit, now
        if self._unknown and not explicit:
            self._ask(taken, logged=True)
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

    def _check(self, now: int, *, explicit: bool) -> None:
        if self._explicit not in (None, explicit):
            raise InvalidValueError(
                compose(
                    "Logger",
                    "either every call says its step, or none does.",
                    got="a call with step=" if explicit else "a call without step=",
                    fix="log(model, step=step) everywhere; or nowhere, with a tallax.StepCounter on the model",
                )
            )
        if explicit and now < self._last:
            raise InvalidValueError(
                compose(
                    "Logger",
                    "the steps of a run never fall.",
                    got=f"step {now} after step {self._last}",
                    fix="a new Logger for what goes on from an earlier step: it replaces what was logged past that",
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
        """Has the next call look, which then raises what failed."""
        self._due = -sys.maxsize

    def _raise_failures(self) -> None:
        if self._writer is not None:
            _raise(self._writer.failures())


def _raise(failures: Sequence[Failure]) -> None:
    if not failures:
        return
    texts = [f"{failure.where}, {failure.doing}: {_said(failure.error)}" for failure in failures]
    raise SinkError(
        compose(
            failures[0].where,
            f"failed in {failures[0].doing}." if len(failures) == 1 else f"failed, {len(failures)} times in all.",
            got="; ".join(texts) if len(failures) > 1 else _said(failures[0].error),
            fix="mend what the error says; other sinks have their records, and a loop that catches this goes on",
        )
    ) from failures[0].error


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"  # the rest is in the cause of what is raised
