# SPDX-License-Identifier: Apache-2.0
"""The thread that turns what was taken into records, and hands them to the sinks."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tallax.logging._taking import Taken
from tallax.sinks import Sink

_DROPPED = "logger/dropped_records"
_END = object()


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
    error: Exception


class Writer:
    """Hands records to sinks, in a thread of its own, in order.

    Args:
        sinks: each gets every record, whatever becomes of the others.
        process: the number of this process.
        capacity: how many records may wait.
        drops: whether one that finds no place is dropped and counted, or waited for.
        on_failure: called in the thread after each failure.
    """

    def __init__(
        self, sinks: Sequence[Sink], process: int, capacity: int, *, drops: bool, on_failure: Callable[[], None]
    ):
        self._sinks, self._process, self._drops, self._on_failure = sinks, process, drops, on_failure
        self._queue: queue.Queue[Any] = queue.Queue(capacity)
        self._failures: list[Failure] = []
        self._lock = threading.Lock()
        self._ending = 0  # 1 once the thread was told to end
        self._dropped = 0
        self._told = 0  # of these, in a record
        self._last: Taken | None = None  # that was dropped
        self._thread = threading.Thread(target=self._run, name="tallax.Logger", daemon=True)
        self._thread.start()

    def put(self, taken: Taken) -> None:
        """Hands over what was taken; where there is no place for it, waits for one or drops it."""
        if not self._drops:
            self._queue.put(taken)
            return
        try:
            self._queue.put_nowait(taken)
        except queue.Full:
            self._dropped += 1
            self._last = taken

    def flush(self) -> None:
        """Waits until everything that was handed over is written."""
        self._queue.join()

    def close(self) -> None:
        """Waits until everything is written and all sinks are closed."""
        if self._thread.is_alive():
            self._queue.put(_END)
            self._ending = 1
            self._thread.join()

    def failures(self) -> list[Failure]:
        """Returns what has failed since this was last asked."""
        with self._lock:
            failures, self._failures = self._failures, []
        return failures

    @property
    def waiting(self) -> int:
        """How many records are not written yet."""
        return self._queue.unfinished_tasks - self._ending

    def _run(self) -> None:
        while True:
            taken = self._queue.get()
            try:
                if taken is _END:
                    if self._dropped > self._told and self._last is not None:
                        self._write(self._last)  # it says how many were dropped
                    break
                self._write(taken)
            finally:
                self._queue.task_done()
        for sink in self._sinks:
            try:
                sink.close()
            except Exception as error:
                self._fail(Failure(repr(sink), "closing", error))

    def _write(self, taken: Taken) -> None:
        try:
            record = taken.record(self._process)
        except Exception as error:
            self._fail(Failure("what was logged", f"reading step {taken.step}", error))
            return
        if self._drops:
            self._told = self._dropped
            record.scalars[_DROPPED] = self._told  # pyright: ignore[reportIndexIssue]
        for sink in self._sinks:
            try:
                sink.write(record)
            except Exception as error:
                self._fail(Failure(repr(sink), f"writing step {record.step}", error))

    def _fail(self, failure: Failure) -> None:
        with self._lock:
            self._failures.append(failure)
        self._on_failure()
