# SPDX-License-Identifier: Apache-2.0
"""Histograms and sparklines in one line of text."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tallax.runs._histogram_axis import Axis
from tallax.runs._number_format import short
from tallax.runs._record import Bins

_BLOCKS = " ▁▂▃▄▅▆▇█"
_NO_NUMBER = "?"
_LEAST = 8  # if fewer bars fit, the ends are left out


def one_line(counts: np.ndarray, *, width: int = 24, trim: bool = True) -> str:
    """Returns the shape of a histogram in at most `width` characters.

    The bar of a count that is not 0 is at least one eighth high, so a lone outlier is visible. If `trim`, the line
    begins at the first count that is not 0 and ends at the last.
    """
    seen = np.flatnonzero(counts)
    if not seen.size:
        return "" if trim else _BLOCKS[0] * min(width, len(counts))
    shown = np.asarray(counts[seen[0] : seen[-1] + 1] if trim else counts, np.float64)
    parts = np.array_split(shown, min(width, shown.size))
    heights = np.array([part.sum() / part.size for part in parts])
    levels = np.ceil(heights / heights.max() * (len(_BLOCKS) - 1)).astype(int)
    return "".join(_BLOCKS[level] for level in levels)


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
        _BLOCKS[_level(value, low, high)] if isinstance(value, int) or math.isfinite(value) else _beyond(value)
        for value in values
    )


def _level(value: int | float, low: int | float, high: int | float) -> int:
    highest = len(_BLOCKS) - 1
    if low == high:
        return highest // 2
    if isinstance(value, int) and isinstance(low, int) and isinstance(high, int):
        return 1 + (value - low) * (highest - 1) // (high - low)  # exact, however large
    half = 1 if high - low < math.inf else 2  # the difference of two floats may be infinite
    share = (value / half - low / half) / (high / half - low / half)
    return 1 + min(highest - 1, int(share * highest))


def _beyond(value: int | float) -> str:
    return _NO_NUMBER if math.isnan(value) else "↑" if value > 0 else "↓"
