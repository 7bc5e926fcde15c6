# SPDX-License-Identifier: Apache-2.0
"""The thread that turns what was taken into records, and hands them to the sinks."""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from tallax._errors import SinkError, compose
from tallax.logging._capture import Captured
from tallax.logging._omissions import Omission, Omissions, error_text, warn
from tallax.sinks import Sink

_DROPPED = "logger/dropped_records"
# The thread rests that long once it has caught up. Records of a loop that logs more often are written several at a
# time, which takes the interpreter a fraction of what as many single ones do: each would wake the thread, and find the
# caches of the processor full of the loop's own. Those of a loop that logs less often are written at once.
_REST = 0.1  # seconds


@dataclass(frozen=True)
class Failure:
    """What went wrong beside the loop.

    Attributes:
        where: the sink, or what else failed.
        doing: what it was to do.
        error: what it raised.
    """

    where: str
    doing: str
    error: BaseException


class Writer:
    """Hands records to sinks, in a thread of its own, in order.

    Args:
        sinks: each gets every record, whatever becomes of the others.
        process: the number of this process.
        capacity: how many records may wait.
        drops: whether one that finds no place is dropped and counted, or waited for.
        on_failure: called in the thread after each failure, and when there is something to warn of.
    """

    def __init__(
        self, sinks: Sequence[Sink], process: int, capacity: int, *, drops: bool, on_failure: Callable[[], None]
    ):
        self._sinks, self._process, self._on_failure = sinks, process, on_failure
        self._capacity, self._drops = capacity, drops
        # What follows belongs to whoever holds this.
        self._changed = threading.Condition()
        self._queue: collections.deque[Captured] = collections.deque()
        self._unwritten = 0  # in the queue, and on its way to the sinks
        self._dropped = 0
        self._flushes = 0  # under way
        self._ending = False
        self._failures: list[Failure] = []
        self._omitted: list[Omission] = []
        self._omissions = Omissions()
        self._thread = threading.Thread(target=self._run, name="tallax.Logger", daemon=True)
        self._thread.start()

    def put(self, captured: Captured) -> None:
        """Hands over what was taken; where there is no place for it, waits for one or drops it."""
        with self._changed:
            if self._drops and len(self._queue) >= self._capacity:
                self._dropped += 1  # one of those in the queue is going to tell
                return
            try:
                self._changed.wait_for(lambda: len(self._queue) < self._capacity)
            finally:  # on Ctrl-C too: what was taken is written
                self._queue.append(captured)
                self._unwritten += 1
                if len(self._queue) == 1 or self._is_pressing():  # or else the thread rests
                    self._changed.notify_all()

    def flush(self) -> None:
        """Waits until everything that was handed over is written."""
        with self._changed:
            self._flushes += 1
            self._changed.notify_all()
            try:
                self._changed.wait_for(lambda: not self._unwritten)
            finally:
                self._flushes -= 1

    def close(self) -> None:
        """Waits until everything is written and all sinks are closed."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        self._thread.join()

    def report(self, further: Sequence[Omission] = ()) -> None:
        """Warns of values that records were written without, and raises the failures, each once.

        Raises:
            SinkError: Something has failed since the last report.
        """
        with self._changed:
            failures, self._failures = self._failures, []
            omitted, self._omitted = self._omitted, []
        try:
            if omitted or further:
                warn([*omitted, *further])
        finally:
            _raise(failures)

    @property
    def unwritten(self) -> int:
        """How many records the sinks don't have yet."""
        return self._unwritten

    def _run(self) -> None:
        rested = 0.0  # when, by the monotonic clock
        while True:
            with self._changed:
                if not self._queue:
                    self._changed.wait_for(lambda: self._queue or self._ending)
                    self._changed.wait_for(self._is_pressing, rested - time.monotonic())
                if not self._queue:
                    break
                captured = self._queue.popleft()
                extra = {_DROPPED: self._dropped} if self._drops else {}
                self._changed.notify_all()
            self._write(captured, extra)
            rested = time.monotonic() + _REST
            with self._changed:
                self._unwritten -= 1
                self._changed.notify_all()
        for sink in self._sinks:
            try:
                sink.close()
            except BaseException as error:
                self._fail(Failure(repr(sink), "closing", error))

    def _is_pressing(self) -> bool:
        """Tells whether the thread is not to rest: somebody waits for it, or the queue fills up."""
        return self._ending or self._flushes > 0 or 2 * len(self._queue) >= self._capacity

    def _write(self, captured: Captured, extra: dict[str, int]) -> None:
        try:
            record, omissions = captured.record(self._process, extra)
        except Exception as error:
            self._fail(Failure("what was logged", f"reading step {captured.step}", error))
            return
        self._omit(omissions)
        for sink in self._sinks:
            try:
                left = sink.write(record)
            except BaseException as error:  # the thread has to live: the loop may be waiting for it
                self._fail(Failure(repr(sink), f"writing step {record.step}", error))
            else:
                if isinstance(left, Mapping) and left:
                    doing = f"written by {sink!r}"
                    self._omit(Omission.of_error(name, error, doing=doing) for name, error in left.items())

    def _omit(self, omissions: Iterable[Omission]) -> None:
        new = self._omissions.new(omissions)
        if new:
            with self._changed:
                self._omitted += new
            self._on_failure()

    def _fail(self, failure: Failure) -> None:
        with self._changed:
            self._failures.append(failure)
        self._on_failure()


def _raise(failures: Sequence[Failure]) -> None:
    if not failures:
        return
    texts = [f"{failure.where}, {failure.doing}: {error_text(failure.error)}" for failure in failures]
    raise SinkError(
        compose(
            failures[0].where,
            f"failed in {failures[0].doing}." if len(failures) == 1 else f"failed, {len(failures)} times in all.",
            got="; ".join(texts) if len(failures) > 1 else error_text(failures[0].error),
            fix="fix the cause in the error; other sinks have their records, and a loop that catches this continues",
        )
    ) from failures[0].error
