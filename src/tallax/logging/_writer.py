# SPDX-License-Identifier: Apache-2.0
"""The thread that converts captures to records, and passes them to the sinks."""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from tallax._errors import SinkError
from tallax.logging._capture import Captured
from tallax.logging._omissions import Omission, Omissions, error_text, warn
from tallax.sinks import Sink

_DROPPED = "logger/dropped_records"
# The thread sleeps this long after it has caught up. If a loop logs more often, several records are written together,
# which takes a fraction of the time of single records: each of those would wake the thread, and find the caches of the
# processor full of the loop's data. If a loop logs less often, each record is written immediately.
_REST = 0.1  # seconds


@dataclass(frozen=True)
class Failure:
    """A failure outside the training loop.

    Attributes:
        where: The sink that failed, or the name of another part.
        doing: The operation that failed.
        error: The error that was raised.
    """

    where: str
    doing: str
    error: BaseException


class Writer:
    """Passes records to sinks in order, in a separate thread."""

    def __init__(
        self, sinks: Sequence[Sink], process: int, capacity: int, *, drops: bool, on_failure: Callable[[], None]
    ):
        self._sinks, self._process, self._on_failure = sinks, process, on_failure
        self._capacity, self._drops = capacity, drops
        # This condition protects the attributes below.
        self._changed = threading.Condition()
        self._queue: collections.deque[Captured] = collections.deque()
        self._unwritten = 0  # the number of captures in the queue or on their way to the sinks
        self._dropped = 0
        self._flushes = 0  # the captures that are being written
        self._ending = False
        self._failures: list[Failure] = []
        self._omitted: list[Omission] = []
        self._omissions = Omissions()
        self._thread = threading.Thread(target=self._run, name="tallax.Logger", daemon=True)
        self._thread.start()

    def put(self, captured: Captured) -> None:
        """Adds a capture to the queue. If the queue is full, waits or drops the capture."""
        with self._changed:
            if self._drops and len(self._queue) >= self._capacity:
                self._dropped += 1  # a record in the queue will report the number
                return
            try:
                self._changed.wait_for(lambda: len(self._queue) < self._capacity)
            finally:  # also on Ctrl-C: the capture is written
                self._queue.append(captured)
                self._unwritten += 1
                if len(self._queue) == 1 or self._is_pressing():  # otherwise the thread sleeps
                    self._changed.notify_all()

    def flush(self) -> None:
        """Waits until every capture is written."""
        with self._changed:
            self._flushes += 1
            self._changed.notify_all()
            try:
                self._changed.wait_for(lambda: not self._unwritten)
            finally:
                self._flushes -= 1

    def close(self) -> None:
        """Waits until every capture is written and all sinks are closed."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        self._thread.join()

    def report(self, further: Sequence[Omission] = ()) -> None:
        """Warns of omitted values, and raises failures. Each is reported once.

        Raises:
            SinkError: There was a failure since the last report.
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
        """The number of records that the sinks have not received yet."""
        return self._unwritten

    def _run(self) -> None:
        rested = 0.0  # the time of the monotonic clock
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
        """Returns whether the thread must not sleep, because a call waits for it or the queue fills up."""
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
            except BaseException as error:  # the thread must not die, because the loop may be waiting for it
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
        failures[0].where,
        f"failed in {failures[0].doing}." if len(failures) == 1 else f"failed, {len(failures)} times in all.",
        got="; ".join(texts) if len(failures) > 1 else error_text(failures[0].error),
        fix="fix the cause in the error; other sinks have their records, and a loop that catches this continues",
    ) from failures[0].error
