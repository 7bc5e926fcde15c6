# SPDX-License-Identifier: Apache-2.0
"""Turns the values of variables and statistics into numbers and bins, the only values that sinks accept."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from tallax.logging._omissions import Omission, described
from tallax.reading import Unreadable
from tallax.runs import Bins
from tallax.statistics import HistogramResult, LogHistogramResult

ENTRIES = 32  # An array with more entries is written as its extremes, its mean and a histogram.
_BINS = 256  # A LogHistogram has thousands of buckets, so neighbours are merged.
_QUANTILES = {"p01": 0.01, "median": 0.5, "p99": 0.99}


class Numbers:
    """Collects numbers and bins by name.

    Attributes:
        scalars: Ints, which are exact, and floats by name.
        histograms: Bins by name.
        omissions: The values that cannot be written as numbers or bins.
    """

    def __init__(self) -> None:
        self.scalars: dict[str, int | float] = {}
        self.histograms: dict[str, Bins] = {}
        self.omissions: list[Omission] = []

    def update(self, values: Mapping[str, Any]) -> None:
        """Adds values by name. Most are numbers, so these are checked first."""
        for name, value in values.items():
            if value.__class__ is int or value.__class__ is float:
                self.scalars[name] = value
            else:
                self.add(name, value)

    def add(self, name: str, value: Any) -> None:
        """Adds a value: a number, an array, or the result of a statistic, each field under its own name.

        Counts of rare values in a histogram, such as NaN, are left out while they are 0.
        """
        if isinstance(value, np.ndarray) and value.dtype == np.uint64 and value.ndim == 1 and len(value):
            # The counts of a Counter, for example of each expert. The bins are the indices.
            self.histograms[name] = Bins(np.arange(len(value) + 1) - 0.5, value)
        self._add(name, value)

    def _add(self, name: str, value: Any) -> None:
        """Adds a value, or an omission if the value raises, so that all other values are added."""
        try:
            if value.__class__ is Unreadable:
                raise value.error
            self._add_parts(name, value)
        except Exception as error:
            self.omissions.append(Omission.of_error(name, error))

    def _add_parts(self, name: str, value: Any) -> None:
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
            case np.ndarray() | np.generic():
                self._add_array(name, _native(value))
            case complex():
                self._add_array(name, np.asarray(complex(value)))
            case int():
                self.scalars[name] = int(value)  # also subclasses: bool, an enum
            case float():
                self.scalars[name] = float(value)
            case Mapping():
                for part, number in value.items():
                    self._add(f"{name}/{part}", number)
            case _ if dataclasses.is_dataclass(value):
                for field in dataclasses.fields(value):
                    self._add(f"{name}/{field.name}", getattr(value, field.name))
            case _:
                self.omissions.append(no_number(name, described(value)))

    def _add_seen(self, name: str, counts: dict[str, Any]) -> None:
        self.scalars.update((f"{name}/{what}", int(count)) for what, count in counts.items() if count)

    def _add_stack(self, name: str, value: Any, shape: tuple[int, ...]) -> None:
        """Adds each histogram of a stack, or the sum of the stack if there are many."""
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
        if array.dtype.kind not in "biufc":
            self.omissions.append(no_number(name, described(array)))
        elif array.dtype.kind == "c":
            self._add_array(f"{name}/real", np.real(array))
            self._add_array(f"{name}/imag", np.imag(array))
        elif not array.ndim:
            self.scalars[name] = int(array) if array.dtype == np.bool_ else array.item()
        elif array.dtype == np.bool_:
            self.scalars[name] = int(array.sum())  # the number of true entries, for example of dead units
        elif array.size <= ENTRIES:
            for place, entry in zip(np.ndindex(array.shape), array.ravel().tolist(), strict=True):
                self.scalars[f"{name}/{','.join(map(str, place))}"] = entry
        else:
            numbers = np.asarray(array, np.float64)
            with np.errstate(all="ignore"):
                extremes = {f"{name}/min": array.min().item(), f"{name}/max": array.max().item()}
                self.scalars |= extremes | {f"{name}/mean": numbers.mean().item()}
            finite = numbers[np.isfinite(numbers)]
            self._add_seen(name, {"nonfinite": numbers.size - finite.size})
            if name not in self.histograms and finite.size:
                self.histograms[name] = _distribution(finite)


def no_number(name: str, got: str) -> Omission:
    """Returns the omission for a value that is neither a number nor an array of numbers."""
    return Omission(
        name,
        "a Logger writes numbers and arrays of numbers, and leaves this value out of the records.",
        got,
        "a number; Logger(..., exclude=...) with this name leaves it out without a warning",
    )


def _native(value: Any) -> np.ndarray:
    """Returns an array with one of NumPy's own dtypes, because bfloat16 and int4 lack some operations used here."""
    array = np.asarray(value)
    if jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.kind != "f":
        return array.astype(np.float32)
    if jnp.issubdtype(array.dtype, jnp.integer) and array.dtype.kind not in "iu":
        return array.astype(np.int64)
    if array.dtype.kind in "fc" and array.dtype.itemsize > 8 << (array.dtype.kind == "c"):  # long double
        return array.astype(np.float64 if array.dtype.kind == "f" else np.complex128)
    return array


def _distribution(numbers: np.ndarray) -> Bins:
    """Returns the distribution of finite numbers, in bins of equal width if doubles are dense enough."""
    with np.errstate(all="ignore"):
        try:
            heights, edges = np.histogram(numbers, bins=ENTRIES)
        except ValueError:  # the numbers are large and nearly equal, or as far apart as doubles can be
            heights = edges = np.zeros(0)
        if not edges.size or not np.isfinite(edges).all() or (np.diff(edges) <= 0).any():
            edges = _edges(numbers.min(), numbers.max())
            heights, _ = np.histogram(numbers, bins=edges)
    return Bins(np.asarray(edges, np.float64), heights.astype(np.uint64))


def _edges(low: np.float64, high: np.float64) -> np.ndarray:
    """Returns up to 33 different doubles from one number to another. If they are equal, returns the neighbours."""
    if low == high:
        around = np.array([np.nextafter(low, -np.inf), low, np.nextafter(high, np.inf)])
        around = around[np.isfinite(around)]
        return around[[0, -1]]
    between = np.linspace(low / 2, high / 2, ENTRIES + 1)[1:-1] * 2
    return np.unique([low, *np.clip(between, low, high), high])


def _without_gaps(counts: np.ndarray, edges: np.ndarray) -> Bins | None:
    """Returns bins from the first value to the last, with empty neighbours merged, or None if all bins are empty."""
    seen = np.flatnonzero(counts)
    if not seen.size:
        return None
    starts = np.union1d(seen, seen[:-1] + 1)
    return Bins(edges[[*starts, seen[-1] + 1]], counts[starts])
