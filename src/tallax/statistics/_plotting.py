# SPDX-License-Identifier: Apache-2.0
"""Plots distributions, and sums stacked histograms. `tallax.runs` draws a distribution in a line of text."""

from __future__ import annotations

from typing import Any

import numpy as np

from tallax import _uint64
from tallax._errors import InvalidValueError, MissingExtraError


def plot_bars(counts: np.ndarray, edges: np.ndarray, ax: Any) -> Any:
    """Draws counts over their bins on matplotlib axes, new ones if None is given, and returns the axes.

    Raises:
        MissingExtraError: Matplotlib is not installed.
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
    """Adds nonzero counts that the bars do not show to the title of matplotlib axes."""
    axes.set_title(", ".join(f"{int(count):,} {name}" for name, count in counts.items() if count), fontsize="small")


def stacked(result: object, counts: Any) -> None:
    """Raises if a result belongs to a single histogram and cannot be indexed.

    Raises:
        InvalidValueError: The result belongs to a single histogram.
    """
    if counts.ndim == 1:
        name = type(result).__name__
        raise InvalidValueError(
            name,
            "only the result of a stack of histograms, such as one for each layer, can be indexed.",
            got="the result of a single histogram",
            fix="the result itself, without [...]",
        )


def shape_of_stack(counts: Any) -> str:
    """Returns the number of histograms in a stack as text for a printed result; empty for a single histogram."""
    return f"{' x '.join(map(str, counts.shape[:-1]))} together: " if counts.ndim > 1 else ""


def sum_of_stack(counts: np.ndarray) -> np.ndarray:
    """Returns the counts of a whole stack, uint64 of the last axis, exact and saturated at 2**64 - 1."""
    return _uint64.sum_uint64(counts.reshape(-1, counts.shape[-1]), (0,))
