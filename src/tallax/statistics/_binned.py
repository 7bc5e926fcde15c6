# SPDX-License-Identifier: Apache-2.0
"""The common part of both histograms and of their results: stacks, plots, and the bins that are drawn."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, ClassVar, Self

import numpy as np

from tallax import _uint64
from tallax._errors import InvalidValueError, MissingExtraError
from tallax.runs._record import Bins
from tallax.statistics._counts import Counts
from tallax.statistics._statistic import unboxed


class BinnedResult:
    """The counts of one histogram, or of a stack of them, with the leading axes of the stack.

    A subclass is a dataclass. It names its field with the counts of all bins, and those with a count of each histogram.
    """

    _binned: ClassVar[str]
    _apart: ClassVar[tuple[str, ...]]

    @abc.abstractmethod
    def _finite_bins(self) -> Bins:
        """Returns the bins of a single histogram that are drawn."""

    def __getitem__(self, index: Any) -> Self:
        """Returns one result of a stack.

        Raises:
            InvalidValueError: This is the result of a single histogram.
        """
        counts = vars(self)[self._binned]
        if counts.ndim == 1:
            raise InvalidValueError(
                type(self).__name__,
                "only the result of a stack of histograms, such as one for each layer, can be indexed.",
                got="the result of a single histogram",
                fix="the result itself, without [...]",
            )
        return self._with(counts[index], *unboxed(*(vars(self)[name][index] for name in self._apart)))

    def together(self) -> Self:
        """Returns the sum of the results of a stack. The result of a single histogram is returned unchanged."""
        counts = vars(self)[self._binned]
        if not isinstance(counts, np.ndarray) or counts.ndim == 1:
            return self
        apart = (int(_sum(np.ravel(vars(self)[name])[:, None])[0]) for name in self._apart)
        return self._with(_sum(counts), *apart)

    def _with(self, counts: Any, *apart: Any) -> Self:
        values = dict(zip(self._apart, apart, strict=True))
        return dataclasses.replace(self, **{self._binned: counts}, **values)  # pyright: ignore[reportArgumentType]

    def _shape_of_stack(self) -> str:
        """Returns the number of histograms in a stack as text for a printed result; empty for a single histogram."""
        shape = vars(self)[self._binned].shape[:-1]
        return f"{' x '.join(map(str, shape))} together: " if shape else ""


class Binned(Counts):
    """A histogram: counts whose results are a `BinnedResult`."""

    def plot(self, ax: Any = None) -> Any:
        """Draws the counts so far; see the method `plot` of the result."""
        return self.compute().plot(ax)

    def _bins(self, result: BinnedResult) -> Bins:
        return result.together()._finite_bins()


def plot_bars(counts: np.ndarray, edges: np.ndarray, apart: dict[str, Any], ax: Any) -> Any:
    """Draws counts over their bins on matplotlib axes, new ones if None is given, and returns the axes.

    Args:
        counts: The counts.
        edges: The edges of the bins.
        apart: Counts by name that the bars do not show. The title has those that are not zero.
        ax: The axes.

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
    ax.set_title(", ".join(f"{int(count):,} {name}" for name, count in apart.items() if count), fontsize="small")
    return ax


def _sum(counts: np.ndarray) -> np.ndarray:
    """Returns the counts of a whole stack, uint64 of the last axis, exact and saturated at 2**64 - 1."""
    return _uint64.sum_uint64(counts.reshape(-1, counts.shape[-1]), (0,))
