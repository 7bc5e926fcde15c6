# SPDX-License-Identifier: Apache-2.0
"""How a distribution looks as a plot; `tallax_runs` draws it in one line of text."""

from __future__ import annotations

from typing import Any

import numpy as np

from tallax._errors import MissingExtraError


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
