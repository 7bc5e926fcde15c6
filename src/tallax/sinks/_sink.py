# SPDX-License-Identifier: Apache-2.0
"""`Sink`: what takes the records of a run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from tallax._errors import InvalidTypeError, compose, describe
from tallax.runs import Record
from tallax.sinks._adapters import Backend, LoggingBackend
from tallax.sinks._jsonl import Jsonl


@runtime_checkable
class Sink(Protocol):
    """What takes the records of a run, in order of their steps, in a thread of its own beside the training loop.

    A sink opens what it writes to when it gets its first record. That record tells where the run begins or, where
    there is something from before, goes on: what is there of its step and of later ones is replaced.

    Example:
        >>> import tallax
        >>> class Printer:
        ...     def write(self, record):
        ...         print(record.step, dict(record.scalars))
        ...     def close(self):
        ...         print("done")
        >>> with tallax.Logger(Printer(), every=2) as log:
        ...     for step in range(1, 5):
        ...         log(step=step, loss=1 / step)
        1 {'loss': 1.0}
        2 {'loss': 0.5}
        4 {'loss': 0.25}
        done
    """

    def write(self, record: Record) -> Mapping[str, Exception] | None:
        """Writes a record so that, once this returns, it outlasts the program; raises if it can write nothing of it.

        Returns:
            The errors of the values that it could not write, by name: the Logger warns of them. None if there are none.
        """
        ...

    def close(self) -> None:
        """Writes what is still to be written, and lets go of everything."""
        ...


def as_sink(sink: Any) -> Sink:
    """Returns a sink as it is, one of metrax's logging backends as a sink, and of a path the `Jsonl` that writes there.

    Raises:
        InvalidTypeError: it is none of these.
    """
    if isinstance(sink, str | os.PathLike):
        return Jsonl(sink)
    if not isinstance(sink, type):
        if isinstance(sink, Sink):
            return sink
        if isinstance(sink, LoggingBackend):
            return Backend(sink)
    raise InvalidTypeError(
        compose(
            "Logger",
            "takes sinks, which have the methods write(record) and close(), or the folder of the run.",
            got=describe(sink),
            fix="Logger('runs/1'), tallax.sinks.TensorBoard('runs/1'), or one of your own",
        )
    )
