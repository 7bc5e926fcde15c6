# SPDX-License-Identifier: Apache-2.0
"""`Record`: one step of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np


@dataclass(frozen=True, eq=False)
class Bins:
    """A histogram: edges, and the counts between them.

    Attributes:
        edges: float64[n + 1], increasing. Bin i is between `edges[i]` and `edges[i + 1]`.
        counts: uint64[n], exact.
    """

    edges: np.ndarray
    counts: np.ndarray

    @property
    def total(self) -> int:
        """The number of values in all bins."""
        return sum(self.counts.tolist())

    @property
    def middles(self) -> np.ndarray:
        """float64[n]: the middle of each bin."""
        return self.edges[1:] / 2 + self.edges[:-1] / 2  # the sum of two edges may overflow

    @property
    def are_entries(self) -> bool:
        """True if the bins are the entries of an array of counts: bin i contains only the integer i."""
        return bool(np.array_equal(self.edges, np.arange(len(self.counts) + 1) - 0.5))

    def at_most(self, n: int) -> Bins:
        """Returns at most `n` bins. Neighbours are merged and none is split, so counts stay exact."""
        size = -(-len(self.counts) // n)
        if size <= 1:
            return self
        starts = np.arange(0, len(self.counts), size)
        return Bins(self.edges[[*starts, -1]], np.add.reduceat(self.counts, starts))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Bins):
            return NotImplemented
        return np.array_equal(self.edges, other.edges) and np.array_equal(self.counts, other.counts)

    __hash__: ClassVar[None] = None  # pyright: ignore[reportIncompatibleMethodOverride]


@dataclass(frozen=True)
class StateInfo:
    """Describes a tallax variable or a statistic, without its value.

    Attributes:
        kind: The name of its class: Counter, Buffer, ScheduledValue, Rate, Histogram, ...
        shape: The shape of its array, or of its counts if it is a Counter, which stores two words for each.
        dtype: The dtype of the stored array.
        nbytes: Its size on the device and in a checkpoint, in bytes.
        persistent: Whether checkpoints keep it.
    """

    kind: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    persistent: bool

    @property
    def type_text(self) -> str:
        """The dtype and the shape, such as `float32[8,4]`."""
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Record:
    """One step of a run, as every sink gets it.

    Attributes:
        step: The step of the run.
        time: The time at which the values were captured, in seconds since the epoch.
        process: The number of the process that captured them.
        scalars: Numbers by name; slashes separate the parts of a name. Counts are ints, exact however large.
        histograms: Bins by name.
        state: A description of each variable and statistic that the numbers come from, by name. For example,
            `gate/fired` is a statistic, and `gate/fired/rate` is one of its scalars.
    """

    step: int
    time: float
    process: int = 0
    scalars: Mapping[str, int | float] = field(default_factory=dict)
    histograms: Mapping[str, Bins] = field(default_factory=dict)
    state: Mapping[str, StateInfo] = field(default_factory=dict)
