# SPDX-License-Identifier: Apache-2.0
"""How a distribution looks: in one line of text, and as a plot."""

from __future__ import annotations

from typing import Any

import numpy as np

from tallax._errors import MissingExtraError

_BLOCKS = " ▁▂▃▄▅▆▇█"


def one_line(counts: np.ndarray, *, width: int = 24, trim: bool = True) -> str:
    """Returns the shape of a histogram in at most `width` characters.

    A bar that stands for anything is at least one eighth high, so a lone outlier can be seen. With `trim`, it begins at
    the first count that is not 0 and ends at the last.
    """
    seen = np.flatnonzero(counts)
    if not seen.size:
        return "" if trim else _BLOCKS[0] * min(width, len(counts))
    shown = np.asarray(counts[seen[0] : seen[-1] + 1] if trim else counts, np.float64)
    parts = np.array_split(shown, min(width, shown.size))
    heights = np.array([part.sum() / part.size for part in parts])
    levels = np.ceil(heights / heights.max() * (len(_BLOCKS) - 1)).astype(int)
    return "".join(_BLOCKS[level] for level in levels)


def plot_bars(counts: np.ndarray, edges: np.ndarray, ax: Any) -> Any:
    """Draws counts over their bins on matplotlib axes, new ones if None is given, and returns the axes.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    if ax is None:
        try:
            from matplotlib import pyplot
        except ModuleNotFoundError:
            raise MissingExtraError.of("plot()", "plot", "matplotlib") from None
        ax = pyplot.subplots(figsize=(6, 3), layout="constrained")[1]
    ax.stairs(np.asarray(counts, np.float64), edges, fill=True)
    ax.set_xlabel("value")
    ax.set_ylabel("count")
    ax.margins(x=0)
    return ax


def title_counts(axes: Any, counts: dict[str, Any]) -> None:
    """Puts what the bars do not show into the title of matplotlib axes, where there is any of it."""
    axes.set_title(", ".join(f"{int(count):,} {name}" for name, count in counts.items() if count), fontsize="small")
