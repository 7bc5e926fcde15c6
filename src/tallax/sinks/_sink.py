# SPDX-License-Identifier: Apache-2.0
"""`Sink`: the protocol of objects that write the records of a run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from tallax._errors import InvalidTypeError, describe
from tallax.runs import Record
from tallax.sinks._adapters import Backend, LoggingBackend
from tallax.sinks._jsonl import Jsonl


@runtime_checkable
class Sink(Protocol):
    """An object that writes the records of a run. The Logger calls it in one thread, in order of the steps.

    A sink opens its file or run when it gets its first record. If there are records from an earlier start, those of the
    first record's step and of later steps are replaced.

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
        """Writes a record. When this returns, the record survives if the program is killed.

        Returns:
            The errors of values that could not be written, by name; the Logger warns of them. None if all values were
            written.

        Raises:
            Exception: Nothing of the record could be written.
        """
        ...

    def close(self) -> None:
        """Writes everything that is still pending, and releases all resources."""
        ...


def as_sink(sink: Any) -> Sink:
    """Returns a sink: the argument itself, an adapter of one of metrax's logging backends, or `Jsonl` of a path.

    Raises:
        InvalidTypeError: The argument is none of these.
    """
    if isinstance(sink, str | os.PathLike):
        return Jsonl(sink)
    if not isinstance(sink, type):
        if isinstance(sink, Sink):
            return sink
        if isinstance(sink, LoggingBackend):
            return Backend(sink)
    raise InvalidTypeError(
        "Logger",
        "a sink must have the methods write(record) and close(), or be the folder of the run.",
        got=describe(sink),
        fix="Logger('runs/1'), tallax.sinks.TensorBoard('runs/1'), or one of your own",
    )
