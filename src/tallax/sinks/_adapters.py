# SPDX-License-Identifier: Apache-2.0
"""Adapters of other libraries' writers: `Backend` for metrax, `Clu` for clu. This module imports neither."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from tallax.runs import Bins, Record
from tallax.sinks._partial_writes import write_one_by_one

_QUANTILES = {"p01": 0.01, "median": 0.5, "p99": 0.99}
# The metadata that marks a histogram for TensorBoard:
# SummaryMetadata(plugin_data=PluginData(plugin_name="histograms")), serialized.
_HISTOGRAMS = b"\x0a\x0c\x0a\x0ahistograms"


@runtime_checkable
class LoggingBackend(Protocol):
    """The protocol `metrax.logging.LoggingBackend`."""

    def log_scalar(self, event: str, value: float, **kwargs: Any) -> None:
        """Logs a scalar, with `step=`."""
        ...

    def close(self) -> None:
        """Writes everything that is still pending."""
        ...


class Backend:
    """A sink that passes each number to one of metrax's logging backends, with its name and step.

    A backend accepts only numbers. A histogram is passed as `name/count`, which is exact, and as `name/mean`,
    `name/p01`, `name/median` and `name/p99`, whose precision is the width of the bins. If the record contains a number
    of this name, that number is passed. Integers are passed as ints. The precision depends on the backend: metrax's
    `TensorboardBackend` writes single precision, which is exact below 2**24.

    A backend cannot replace existing records, so after a crash and a restart some steps are shown twice. If a backend
    has `flush()`, it is called after each record. metrax's own backends have none, so a program that is killed loses
    the values that they buffer.
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
    """A sink that passes records to one of clu's metric writers, and flushes it after each record.

    Scalars go to `write_scalars`. A histogram goes to `write_summaries`, as the table of bins that TensorBoard reads:
    clu's `SummaryWriter` writes it with exact counts below 2**53, and other writers print or ignore it. For those, the
    record also has the numbers `name/count`, which is exact, and `name/mean`, `name/p01`, `name/median` and `name/p99`,
    whose precision is the width of the bins. (clu's `write_histograms` is not used: it accepts raw values and bins them
    itself, so it would need invented values.)

    The precision of integers depends on the writer: `SummaryWriter` writes single precision, `LoggingWriter` all
    digits. clu's writers cannot replace existing records. If a run resumes, pass a new folder, or some steps are shown
    twice.

    Args:
        writer: A `clu.metric_writers.MetricWriter`. It is closed with the Logger.
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
    """Returns a histogram as numbers: `count` and, if that is not 0, `mean`, `p01`, `median` and `p99`.

    The mean assumes that values are in the middles of their bins; a quantile assumes that they are spread evenly.
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
