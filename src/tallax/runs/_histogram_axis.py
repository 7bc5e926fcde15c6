# SPDX-License-Identifier: Apache-2.0
"""`Axis`: one set of places for histograms whose edges differ, evenly spaced as the eye wants them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tallax.runs._record import Bins

_WIDE = 16.0  # how many times its nearer end a bin's farther one is, at most, for it to lie on a logarithm

_FEW = 0.005  # of the values: what may lie within the linear part, so that it need not be tiny


@dataclass(frozen=True)
class Axis:
    """A range of values: linear, or linear around zero and logarithmic from `threshold` on to both sides.

    Attributes:
        low: where it begins.
        high: where it ends.
        threshold: None for a linear one.
    """

    low: float
    high: float
    threshold: float | None = None

    @classmethod
    def of(cls, many: Sequence[Bins]) -> Axis:
        """Returns the axis that shows all values of some histograms; logarithmic where the bins' widths are."""
        even = all(_is_even(bins.edges) for bins in many)
        taken = np.concatenate([_taken(bins) for bins in many] or [np.empty((0, 3))])
        if even or not len(taken):
            ends = [end for bins in many for end in (bins.edges[0].item(), bins.edges[-1].item())] or [0.0]
            low, high = min(ends), max(ends)
            return cls(low, high if high > low else low + 1.0)
        low, high = taken[:, 0].min().item(), taken[:, 1].max().item()
        # What holds zero has no place on a logarithm, nor the end of a wide bin that lies next to it.
        near, far = np.sort(np.abs(taken[:, :2]), 1).T
        around = (taken[:, 0] < 0) & (taken[:, 1] > 0)
        begins = np.where(near * _WIDE >= far, near, far)
        if around.all():
            threshold = far.min().item()
        elif low > 0 or high < 0:
            threshold = begins.min().item()
        else:  # around zero there is room for the few that are nearest to it
            order = np.argsort(begins[~around])
            below = np.cumsum(taken[~around, 2][order])
            threshold = begins[~around][order][np.searchsorted(below, _FEW * below[-1], side="right")].item()
        low, high = (0.0 if abs(end) < threshold else end for end in (low, high))
        return cls(low, high if high > low else low + threshold, threshold)

    def place(self, values: Any) -> np.ndarray:
        """Returns where values lie: one more is one decade, where it is logarithmic."""
        values = np.asarray(values, np.float64)
        if self.threshold is None:
            return values
        size = np.maximum(np.abs(values), self.threshold)
        return np.where(
            np.abs(values) < self.threshold,
            values / self.threshold,
            np.sign(values) * (1 + np.log10(size) - np.log10(self.threshold)),
        )

    def value(self, places: np.ndarray) -> np.ndarray:
        """Returns which values lie at places."""
        if self.threshold is None:
            return places
        outside = np.sign(places) * 10.0 ** (np.abs(places) - 1 + np.log10(self.threshold))
        return np.where(np.abs(places) < 1, places * self.threshold, outside)

    def edges(self, n: int) -> np.ndarray:
        """float64[n + 1]: of `n` bins that look equally wide."""
        first, last = self.place([self.low, self.high])
        edges = self.value(np.linspace(first, last, n + 1))
        edges[0], edges[-1] = self.low, self.high
        return edges

    def spread(self, bins: Bins, n: int) -> np.ndarray:
        """float64[n]: how many values lie in each of `n` such bins, those of one bin being spread evenly over it.

        What lies beyond the ends is in the outermost bins, so that nothing is left out.
        """
        below = np.concatenate([[0.0], np.cumsum(bins.counts, dtype=np.float64)])
        places, known = self.place(self.edges(n)), self.place(bins.edges)
        if self.threshold is not None and bins.edges[0] < 0 < bins.edges[-1]:
            # What is in the bin around zero is mostly zeros, and the bin may have been put together with its neighbors.
            k = int(np.searchsorted(bins.edges, 0.0))
            known = np.insert(known, k, [-1e-9, 1e-9])
            below = np.insert(below, k, [below[k - 1], below[k]])
        found = np.interp(places, known, below)
        found[0], found[-1] = 0.0, below[-1]
        return np.maximum(np.diff(found), 0.0)


def _taken(bins: Bins) -> np.ndarray:
    """float64[m, 3]: the edges of the bins that have values, and how many these are."""
    seen = np.flatnonzero(bins.counts)
    return np.stack([bins.edges[seen], bins.edges[seen + 1], bins.counts[seen].astype(np.float64)], 1)


def _is_even(edges: np.ndarray) -> bool:
    widths = np.diff(edges)
    return bool(widths.max() <= 1.01 * widths.min())
