# SPDX-License-Identifier: Apache-2.0
"""Histograms and series in one line of text, and `Axis`: a common linear or logarithmic scale if edges differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tallax.runs._number_format import short
from tallax.runs._record import Bins

BLOCKS = " ▁▂▃▄▅▆▇█"
_LEAST = 8  # if fewer bars fit, the ends are left out
_WIDE = 16.0  # a bin is put on a logarithm if its ends differ by at most this factor
_FEW = 0.005  # the fraction of values that the linear part around zero may contain


def one_line(counts: np.ndarray, *, width: int = 24, trim: bool = True) -> str:
    """Returns the shape of a histogram in at most `width` characters.

    The bar of a count that is not 0 is at least one eighth high, so a lone outlier is visible. If `trim`, the line
    begins at the first count that is not 0 and ends at the last.
    """
    seen = np.flatnonzero(counts)
    if not seen.size:
        return "" if trim else BLOCKS[0] * min(width, len(counts))
    shown = np.asarray(counts[seen[0] : seen[-1] + 1] if trim else counts, np.float64)
    parts = np.array_split(shown, min(width, shown.size))
    heights = np.array([part.sum() / part.size for part in parts])
    levels = np.ceil(heights / heights.max() * (len(BLOCKS) - 1)).astype(int)
    return "".join(BLOCKS[level] for level in levels)


def sparkline(values: Sequence[int | float], *, width: int = 24) -> str:
    """Returns the last `width` values as bars, from the lowest value, `▁`, to the highest, `█`.

    If all values are equal, the bars have half the height. NaN is `?`, and the infinities are `↑` and `↓`.
    """
    values = values[-width:]
    finite = [value for value in values if isinstance(value, int) or math.isfinite(value)]
    if not finite:
        return "".join(map(_beyond, values))
    low, high = min(finite), max(finite)
    return "".join(
        BLOCKS[_level(value, low, high)] if isinstance(value, int) or math.isfinite(value) else _beyond(value)
        for value in values
    )


def _level(value: int | float, low: int | float, high: int | float) -> int:
    highest = len(BLOCKS) - 1
    if low == high:
        return highest // 2
    if isinstance(value, int) and isinstance(low, int) and isinstance(high, int):
        return 1 + (value - low) * (highest - 1) // (high - low)  # exact, however large
    half = 1 if high - low < math.inf else 2  # the difference of two floats may be infinite
    share = (value / half - low / half) / (high / half - low / half)
    return 1 + min(highest - 1, int(share * highest))


def _beyond(value: int | float) -> str:
    return "?" if math.isnan(value) else "↑" if value > 0 else "↓"


def bars_of(bins: Bins, width: int, *, ends: bool = True) -> str:
    """Returns a histogram in one line: its lower end, bars, and its upper end."""
    axis = Axis.of([bins])
    # Bins that are the entries of an array are labelled with the numbers of the entries.
    low, high = (0, len(bins.counts) - 1) if bins.are_entries else (axis.low, axis.high)
    left, right = (f"{short(low)} ", f" {short(high)}") if ends else ("", "")
    room = width - len(left) - len(right)
    if room < _LEAST and ends:
        return bars_of(bins, width, ends=False)
    n = max(1, min(room, len(bins.counts)) if axis.threshold is None else room)
    counts = bins.at_most(n).counts if axis.threshold is None and len(bins.counts) <= n else axis.spread(bins, n)
    return left + one_line(counts, width=n, trim=False) + right


@dataclass(frozen=True)
class Axis:
    """A range of values: linear, or linear around zero and logarithmic from `threshold` on to both sides.

    Attributes:
        low: The lower end.
        high: The upper end.
        threshold: The half width of the linear part; None if the whole axis is linear.
    """

    low: float
    high: float
    threshold: float | None = None

    @classmethod
    def of(cls, many: Sequence[Bins]) -> Axis:
        """Returns the axis that shows all values of some histograms. It is linear if all bins are equally wide."""
        even = all(_is_even(bins.edges) for bins in many)
        taken = np.concatenate([_taken(bins) for bins in many] or [np.empty((0, 3))])
        if even or not len(taken):
            ends = [end for bins in many for end in (bins.edges[0].item(), bins.edges[-1].item())] or [0.0]
            low, high = min(ends), max(ends)
            return cls(low, high if high > low else low + 1.0)
        low, high = taken[:, 0].min().item(), taken[:, 1].max().item()
        # Neither a bin around zero nor the near end of a wide bin next to it can be placed on a logarithmic axis.
        near, far = np.sort(np.abs(taken[:, :2]), 1).T
        around = (taken[:, 0] < 0) & (taken[:, 1] > 0)
        begins = np.where(near * _WIDE >= far, near, far)
        if around.all():
            threshold = far.min().item()
        elif low > 0 or high < 0:
            threshold = begins.min().item()
        else:  # the linear part contains the few values nearest to zero
            order = np.argsort(begins[~around])
            below = np.cumsum(taken[~around, 2][order])
            threshold = begins[~around][order][np.searchsorted(below, _FEW * below[-1], side="right")].item()
        low, high = (0.0 if abs(end) < threshold else end for end in (low, high))
        return cls(low, high if high > low else low + threshold, threshold)

    def place(self, values: Any) -> np.ndarray:
        """Returns the positions of values. On the logarithmic part, one unit is a decade."""
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
        """Returns the values at positions: the inverse of `place`."""
        if self.threshold is None:
            return places
        outside = np.sign(places) * 10.0 ** (np.abs(places) - 1 + np.log10(self.threshold))
        return np.where(np.abs(places) < 1, places * self.threshold, outside)

    def edges(self, n: int) -> np.ndarray:
        """Returns float64[n + 1]: the edges of `n` bins of equal width on the axis."""
        first, last = self.place([self.low, self.high])
        edges = self.value(np.linspace(first, last, n + 1))
        edges[0], edges[-1] = self.low, self.high
        return edges

    def spread(self, bins: Bins, n: int) -> np.ndarray:
        """Returns float64[n]: the number of values in each of `n` bins of equal width on the axis.

        The values of one bin are spread evenly over it. Values beyond the ends count in the outermost bins.
        """
        below = np.concatenate([[0.0], np.cumsum(bins.counts, dtype=np.float64)])
        places, known = self.place(self.edges(n)), self.place(bins.edges)
        if self.threshold is not None and bins.edges[0] < 0 < bins.edges[-1]:
            # The values of the bin around zero are mostly zeros, and it may have been merged with its neighbors.
            k = int(np.searchsorted(bins.edges, 0.0))
            known = np.insert(known, k, [-1e-9, 1e-9])
            below = np.insert(below, k, [below[k - 1], below[k]])
        found = np.interp(places, known, below)
        found[0], found[-1] = 0.0, below[-1]
        return np.maximum(np.diff(found), 0.0)


def _taken(bins: Bins) -> np.ndarray:
    """Returns float64[m, 3]: the edges and the count of each bin that is not empty."""
    seen = np.flatnonzero(bins.counts)
    return np.stack([bins.edges[seen], bins.edges[seen + 1], bins.counts[seen].astype(np.float64)], 1)


def _is_even(edges: np.ndarray) -> bool:
    widths = np.diff(edges)
    return bool(widths.max() <= 1.01 * widths.min())
