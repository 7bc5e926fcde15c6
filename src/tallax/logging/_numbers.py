# SPDX-License-Identifier: Apache-2.0
"""What the values of items are as numbers and bins, which is all that a sink can draw."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tallax._errors import InvalidTypeError, compose, describe
from tallax.statistics import HistogramResult, LogHistogramResult
from tallax_runs import Bins

ENTRIES = 32  # An array with more has its extremes and mean drawn, and how its entries are distributed.
_BINS = 256  # A LogHistogram has thousands of buckets; neighbours are put together.
_QUANTILES = {"p01": 0.01, "median": 0.5, "p99": 0.99}


class Numbers:
    """Collects numbers and bins by name.

    Attributes:
        scalars: by name, ints, exact, and floats.
        histograms: by name.
    """

    def __init__(self) -> None:
        self.scalars: dict[str, int | float] = {}
        self.histograms: dict[str, Bins] = {}

    def update(self, values: Mapping[str, Any]) -> None:
        """Adds what items have, by their names: most are numbers."""
        for name, value in values.items():
            if value.__class__ is int or value.__class__ is float:
                self.scalars[name] = value
            else:
                self.add(name, value)

    def add(self, name: str, value: Any) -> None:
        """Adds what an item has: a number, an array, or the record of a statistic, each field under its own name.

        Counts of what is rarely there, such as NaN, are left out of a histogram's while they are 0.
        """
        if isinstance(value, np.ndarray) and value.dtype == np.uint64 and value.ndim == 1 and len(value):
            # A Counter's: how much went to each expert, head or unit. Their numbers are its bins.
            self.histograms[name] = Bins(np.arange(len(value) + 1) - 0.5, value)
        self._add(name, value)

    def _add(self, name: str, value: Any) -> None:
        match value:
            case HistogramResult() if value.counts.ndim > 1:
                self._add_stack(name, value, value.counts.shape[:-1])
            case LogHistogramResult() if value.buckets.ndim > 1:
                self._add_stack(name, value, value.buckets.shape[:-1])
            case HistogramResult():
                self.histograms[name] = Bins(np.asarray(value.edges, np.float64), value.counts)
                outside = (field.name for field in dataclasses.fields(value) if field.name not in ("counts", "edges"))
                self._add_seen(name, {what: getattr(value, what) for what in outside})
            case LogHistogramResult():
                self._add_log_histogram(name, value)
            case np.ndarray() if value.ndim:
                self._add_array(name, value)
            case np.ndarray() | np.generic():
                self.scalars[name] = value.item()
            case bool():
                self.scalars[name] = int(value)
            case int() | float():
                self.scalars[name] = value
            case Mapping():
                for part, number in value.items():
                    self._add(f"{name}/{part}", number)
            case _ if dataclasses.is_dataclass(value):
                for field in dataclasses.fields(value):
                    self._add(f"{name}/{field.name}", getattr(value, field.name))
            case _:
                raise InvalidTypeError(
                    compose(
                        name,
                        "a Logger writes numbers and arrays, and dataclasses and mappings of them.",
                        got=describe(value),
                        fix="a dataclass, as what the statistic's read() returns",
                    )
                )

    def _add_seen(self, name: str, counts: dict[str, Any]) -> None:
        self.scalars.update((f"{name}/{what}", int(count)) for what, count in counts.items() if count)

    def _add_stack(self, name: str, value: Any, shape: tuple[int, ...]) -> None:
        """Adds each histogram of a stack, or what lies in all of them where there are many."""
        if math.prod(shape) > ENTRIES:
            self._add(name, value.together())
        else:
            for place in np.ndindex(shape):
                self._add(f"{name}/{','.join(map(str, place))}", value[place])

    def _add_log_histogram(self, name: str, value: LogHistogramResult) -> None:
        bins = _without_gaps(value.buckets[1:-1], value.bounds[1:-1])
        if bins is not None:
            self.histograms[name] = bins.at_most(_BINS)
        self.scalars[f"{name}/count"] = int(value.count)
        if value.count:
            self.scalars.update((f"{name}/{what}", value.quantile(q)) for what, q in _QUANTILES.items())
        ends = {"neginf": value.buckets[0], "posinf": value.buckets[-1]}
        self._add_seen(name, {"zero": value.zero, "nan": value.nan, **ends})

    def _add_array(self, name: str, array: np.ndarray) -> None:
        if array.dtype == np.bool_:
            self.scalars[name] = int(array.sum())  # how many are: dead, for one
        elif array.size <= ENTRIES:
            self.scalars.update((f"{name}/{place}", entry) for place, entry in _entries(array))
        else:
            low, high = array.min().item(), array.max().item()
            numbers = np.asarray(array, np.float64)
            self.scalars |= {f"{name}/min": low, f"{name}/mean": numbers.mean().item(), f"{name}/max": high}
            if name not in self.histograms and np.isfinite([low, high]).all():
                heights, edges = np.histogram(numbers, bins=ENTRIES)
                self.histograms[name] = Bins(np.asarray(edges, np.float64), heights.astype(np.uint64))


def _without_gaps(counts: np.ndarray, edges: np.ndarray) -> Bins | None:
    """Returns bins from the first value to the last, neighbours without any values put together; None of no values."""
    seen = np.flatnonzero(counts)
    if not seen.size:
        return None
    starts = np.union1d(seen, seen[:-1] + 1)
    return Bins(edges[[*starts, seen[-1] + 1]], counts[starts])


def _entries(array: np.ndarray) -> Iterator[tuple[str, int | float]]:
    for place, entry in zip(np.ndindex(array.shape), array.ravel().tolist(), strict=True):
        yield ",".join(map(str, place)), entry
