# SPDX-License-Identifier: Apache-2.0
"""What makes sinks of other libraries' writers: `Backend` of metrax's, `Clu` of clu's. It imports neither."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from tallax.runs import Bins, Record
from tallax.sinks._partial_writes import write_one_by_one

_QUANTILES = {"p01": 0.01, "median": 0.5, "p99": 0.99}
# What TensorBoard knows a histogram by, serialized: SummaryMetadata(plugin_data=PluginData(plugin_name="histograms")).
_HISTOGRAMS = b"\x0a\x0c\x0a\x0ahistograms"


@runtime_checkable
class LoggingBackend(Protocol):
    """What `metrax.logging.LoggingBackend` asks for."""

    def log_scalar(self, event: str, value: float, **kwargs: Any) -> None:
        """Logs a scalar, with `step=`."""
        ...

    def close(self) -> None:
        """Writes what is still to be written."""
        ...


class Backend:
    """A sink that hands each number to one of metrax's logging backends, under its name and with its step.

    A backend takes numbers only. Of a histogram it gets `name/count`, which is exact, and `name/mean`, `name/p01`,
    `name/median` and `name/p99`, which are as exact as the bins are narrow; where the record has such a number itself,
    that one. Integers come as ints, and it is the backend that keeps them exact or not: metrax's `TensorboardBackend`
    writes single precision, which is exact below 2**24.

    A backend is made before the Logger knows where the run goes on, and has no way to replace what is there: steps from
    before a crash are shown twice. One that has `flush()` is flushed after each record, but metrax's own are not: a
    program that is killed loses what they hold back.
    """

    def __init__(self, backend: LoggingBackend):
        self._backend = backend

    def write(self, record: Record) -> dict[str, Exception]:
        prefix = f"process-{record.process}/" if record.process else ""
        numbers = dataclasses.replace(record, scalars={**_drawn_as_numbers(record), **record.scalars}, histograms={})

        def log(part: Record) -> None:
            for name, value in part.scalars.items():
                self._backend.log_scalar(prefix + name, value, step=record.step)

        errors = write_one_by_one(numbers, log)
        flush = getattr(self._backend, "flush", None)
        if callable(flush):
            flush()
        return errors

    def close(self) -> None:
        self._backend.close()

    def __repr__(self) -> str:
        return type(self._backend).__name__


class Clu:
    """A sink that hands records to one of clu's metric writers, and has it flush after each.

    Scalars go to `write_scalars`. A histogram goes to `write_summaries`, as the table of bins that TensorBoard reads:
    clu's `SummaryWriter` writes it so, with exact counts below 2**53, and others say or pass over it. For these there
    are numbers besides: `name/count`, which is exact, and `name/mean`, `name/p01`, `name/median` and `name/p99`, which
    are as exact as the bins are narrow. (clu's `write_histograms` takes raw values and makes bins of its own, so what
    it wrote of counted values would be made up.)

    What a writer does with integers is its own: `SummaryWriter` writes single precision, `LoggingWriter` all digits.
    Resuming is the writer's as well; clu's have no way to replace what is there, so give a run that goes on a new
    folder, or accept that steps from before a crash are shown twice.

    Args:
        writer: a `clu.metric_writers.MetricWriter`, which is closed with the Logger.
    """

    def __init__(self, writer: Any):
        self._writer = writer

    def write(self, record: Record) -> dict[str, Exception]:
        numbers = dataclasses.replace(record, scalars={**_drawn_as_numbers(record), **record.scalars})
        try:
            self._write(numbers)
            errors: dict[str, Exception] = {}
        except Exception:  # of some of its values, or of all
            errors = write_one_by_one(numbers, self._write)
        self._writer.flush()
        return errors

    def close(self) -> None:
        self._writer.close()

    def __repr__(self) -> str:
        return f"Clu({type(self._writer).__name__})"

    def _write(self, record: Record) -> None:
        prefix = f"process-{record.process}/" if record.process else ""
        if record.scalars:
            self._writer.write_scalars(record.step, {prefix + name: value for name, value in record.scalars.items()})
        if record.histograms:
            tables = {prefix + name: _table(bins) for name, bins in record.histograms.items()}
            self._writer.write_summaries(record.step, tables, metadata=dict.fromkeys(tables, _HISTOGRAMS))


def _drawn_as_numbers(record: Record) -> Mapping[str, int | float]:
    numbers: dict[str, int | float] = {}
    for name, bins in record.histograms.items():
        numbers |= {f"{name}/{what}": value for what, value in summary(bins).items()}
    return numbers


def summary(bins: Bins) -> dict[str, int | float]:
    """Returns the numbers that say most of a histogram: `count`, and if that is not 0 `mean`, `p01`, `median`, `p99`.

    A mean takes values to lie in the middles of their bins; a quantile, evenly within its bin.
    """
    total = bins.total
    if not total:
        return {"count": 0}
    shares = np.asarray(bins.counts, np.float64) / total
    below = np.concatenate([[0.0], np.cumsum(shares)])
    numbers: dict[str, int | float] = {"count": total, "mean": (shares @ bins.middles).item()}
    return numbers | {what: np.interp(share, below, bins.edges).item() for what, share in _QUANTILES.items()}


def _table(bins: Bins) -> np.ndarray:
    """Returns float64[n, 3]: the left edge, the right edge and the count of each bin."""
    return np.stack([bins.edges[:-1], bins.edges[1:], bins.counts.astype(np.float64)], axis=1)
