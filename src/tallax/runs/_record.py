# SPDX-License-Identifier: Apache-2.0
"""`Record`: what a run says about one step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np


@dataclass(frozen=True, eq=False)
class Bins:
    """How many values lie between edges.

    Attributes:
        edges: float64[n + 1], rising. Bin i is what lies between `edges[i]` and `edges[i + 1]`.
        counts: uint64[n], exact.
    """

    edges: np.ndarray
    counts: np.ndarray

    @property
    def total(self) -> int:
        """How many values lie in any bin."""
        return sum(self.counts.tolist())

    @property
    def middles(self) -> np.ndarray:
        """float64[n]: the middle of each bin."""
        return self.edges[1:] / 2 + self.edges[:-1] / 2  # the sum of two may be more than a double holds

    @property
    def are_entries(self) -> bool:
        """Whether these are the entries of an array of counts: each bin is one integer, from 0 on."""
        return bool(np.array_equal(self.edges, np.arange(len(self.counts) + 1) - 0.5))

    def at_most(self, n: int) -> Bins:
        """Returns bins no more than `n`, made of neighbours; none is cut, so counts stay exact."""
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
    """What an item of a model is, whatever its value.

    Attributes:
        kind: the name of its class: Counter, Buffer, Scheduled, Rate, Histogram, ...
        shape: of its array; of a Counter's counts, each of which is two words.
        dtype: of what is stored.
        nbytes: what it takes up on the device, and in a checkpoint.
        persistent: whether checkpoints keep it.
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
    """What a run says about one step: all that a sink is given.

    Attributes:
        step: which step, as the run counts them.
        time: when it was taken, in seconds since the epoch.
        process: the number of the process that took it.
        scalars: numbers by name, parts of a name separated by slashes. Counts are ints, exact however large.
        histograms: bins by name.
        state: what the state is that the numbers come from, by name. `gate/fired` is an item, and `gate/fired/rate`
            one of its scalars.
    """

    step: int
    time: float
    process: int = 0
    scalars: Mapping[str, int | float] = field(default_factory=dict)
    histograms: Mapping[str, Bins] = field(default_factory=dict)
    state: Mapping[str, StateInfo] = field(default_factory=dict)
