# SPDX-License-Identifier: Apache-2.0
"""`Histogram`: counts in bins of equal width, and counts of values outside the bins."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tallax._errors import InvalidValueError
from tallax._mesh_axes import AxisName
from tallax.runs._bars import one_line
from tallax.runs._record import Bins
from tallax.statistics._bincount import count_slots
from tallax.statistics._binned import Binned, BinnedResult, plot_bars
from tallax.statistics._conversions import as_number
from tallax.statistics._statistic import exact_or_traced, unboxed
from tallax.variables import Counter

_MOST_BINS = 65_536
_OUTSIDE = ("underflow", "overflow", "nan", "posinf", "neginf")


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class HistogramResult(BinnedResult):
    """The counts of a `Histogram`. Counts are exact outside a trace; int32, saturated, inside one.

    If the histogram is a stack, for example one per layer made by `vmap`, each count has the leading axes of the stack,
    and `result[k]` is the result of layer k. Printing and plotting use the sum of the counts of the stack.

    Attributes:
        counts: The entries per bin, uint64[bins]. Bin i counts `edges[i] <= x < edges[i + 1]`. The last bin includes
            its upper edge.
        edges: The edges of the bins, float32[bins + 1].
        underflow: The number of finite entries below the first edge.
        overflow: The number of finite entries above the last edge.
        nan: The number of NaN entries.
        posinf: The number of +inf entries.
        neginf: The number of -inf entries.
    """

    _binned, _apart = "counts", _OUTSIDE

    counts: Any
    edges: Any
    underflow: Any
    overflow: Any
    nan: Any
    posinf: Any
    neginf: Any

    def __repr__(self) -> str:
        whole, low, high = self.together(), self.edges[0], self.edges[-1]
        outside = ", ".join(f"{name}={getattr(whole, name)}" for name in _OUTSIDE)
        if not isinstance(whole.counts, np.ndarray):
            return f"HistogramResult({low:g} |counts={self.counts}| {high:g}, {outside})"
        looks = one_line(whole.counts, trim=False)
        return f"HistogramResult({self._shape_of_stack()}{low:g} |{looks}| {high:g}, {outside})"

    def plot(self, ax: Any = None) -> Any:
        """Draws the bins on matplotlib axes, new ones if None is given, and returns the axes.

        Raises:
            MissingExtraError: Matplotlib is not installed.
        """
        whole = self.together()
        return plot_bars(whole.counts, self.edges, {name: getattr(whole, name) for name in _OUTSIDE}, ax)

    def _finite_bins(self) -> Bins:
        return Bins(np.asarray(self.edges, np.float64), self.counts)


class Histogram(Binned):
    """Counts values in bins of equal width, and separately values outside the bins, NaN and infinities.

    Every entry is counted exactly once, so the sum of all counts is the number of entries. The edges, and the rule for
    a value on an edge, are those of `numpy.histogram` for float32 input.

    | field | shape | dtype | reset value | reduction |
    |---|---|---|---|---|
    | counts | (bins + 5,): the bins, then underflow, overflow, NaN, +inf, -inf | an exact `Counter` | 0 | sum |

    Args:
        low: The first edge.
        high: The last edge.
        bins: The number of bins, at most 65,536.
        axis_name: The mapped axis or axes over which each update is combined. It is required under `vmap`, `pmap` and
            `shard_map(check_vma=False)`; otherwise the axes are inferred from the values.
        persistent: Whether checkpoints save the state.

    Values may have any shape. They are compared in float32, or in float64 if x64 is enabled and the values are float64.
    XLA flushes subnormal numbers, so they count as zeros.

    Raises:
        InvalidValueError: `low` or `high` is not a number, `bins` not an integer in [1, 65,536], the range is empty or
            not finite, or two edges are equal in float32.

    Example:
        >>> import jax.numpy as jnp, tallax
        >>> histogram = tallax.statistics.Histogram(0.0, 1.0, bins=4)
        >>> histogram.update(jnp.array([0.1, 0.25, 0.9, 1.0, 7.0, jnp.nan]))
        >>> result = histogram.compute()
        >>> result.counts.tolist(), result.overflow, result.nan
        ([1, 1, 0, 2], 1, 1)
    """

    _rounding = "largest"  # a number beyond float32 is outside the edges, but not infinite

    def __init__(
        self, low: float, high: float, bins: int = 64, *, axis_name: AxisName | None = None, persistent: bool = True
    ):
        super().__init__(axis_name=axis_name)
        ends = as_number(low), as_number(high)
        is_count = isinstance(bins, int | np.integer) and not isinstance(bins, bool) and 1 <= bins <= _MOST_BINS
        self.low: float = math.nan if ends[0] is None else ends[0]
        self.high: float = math.nan if ends[1] is None else ends[1]
        self.bins: int = int(bins) if is_count else 1
        in_order = -(2.0**127) < self.low < self.high < 2.0**127  # false for NaN
        if not (is_count and in_order) or np.any(np.diff(self.edges) <= 0):
            raise InvalidValueError(
                "Histogram",
                "the edges must increase, and differ in float32.",
                got=f"low={low!r}, high={high!r}, bins={bins!r}",
                expected="low < high, both finite and below 2**127, and 1 to 65536 bins",
                fix="Histogram(-5.0, 5.0, bins=64)",
            )
        self.counts: Counter = Counter(shape=self.bins + len(_OUTSIDE), persistent=persistent)

    @property
    def edges(self) -> np.ndarray:
        """float32[bins + 1]: the edges of the bins, evenly spaced."""
        return edges_of(self.low, self.high, self.bins)

    def compute(self) -> HistogramResult:
        """Returns the counts of the bins, and of the values outside the bins."""
        return self.read(self.state_here())

    def read(self, state: Mapping[str, Any]) -> HistogramResult:
        """Returns the record of a state; see `Statistic.read`."""
        counts = exact_or_traced(state["counts"])
        outside = unboxed(*(counts[..., self.bins + k] for k in range(len(_OUTSIDE))))
        return HistogramResult(counts[..., : self.bins], self.edges, *outside)

    def _counted(self, x: jax.Array, where: jax.Array | None, axes: tuple[int, ...]) -> jax.Array:
        del axes  # all
        return _count_bins(x, where, self.low, self.high, self.bins)

    def _configuration(self) -> dict[str, Any]:
        return {"low": self.low, "high": self.high, "bins": self.bins}


# Not `inline=True`: a step with many histograms traces and lowers the function once for each shape, and XLA inlines it.
@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _count_bins(x: jax.Array, where: jax.Array | None, low: float, high: float, bins: int) -> jax.Array:
    """Returns uint32[bins + 5]: the number of values in each bin, then underflow, overflow, NaN, +inf and -inf."""
    slot_of = functools.partial(_slot_of, low=low, high=high, bins=bins)
    return count_slots(slot_of, x, where, length=bins + len(_OUTSIDE))


def _slot_of(x: jax.Array, *, low: float, high: float, bins: int) -> jax.Array:
    """Returns the number of the bin, or `bins` for an underflow, and then overflow, NaN, +inf and -inf.

    One multiplication guesses the edge nearest to the value. The rounding error of the guess is far below half a bin,
    so the value is in the bin below or above that edge. One comparison with the edge decides exactly. For a value
    outside the edges the guess is meaningless, so it is replaced at the end. To clamp it first would take four more
    operations, and XLA's time to compile a step with many histograms is proportional to their number.
    """
    x = x.astype(jnp.float64 if x.dtype == jnp.float64 else jnp.float32)
    edges = edges_of(low, high, bins)
    first, second, last = edges[[0, 1, -1]].astype(x.dtype)
    nearest = ((x - first) * x.dtype.type(bins / (high - low)) + x.dtype.type(0.5)).astype(jnp.int32)
    if _evenly_spaced(edges):
        edge = first + nearest.astype(x.dtype) * (second - first)
    else:
        edge = jnp.asarray(edges, x.dtype).at[jnp.clip(nearest, 0, bins)].get(mode="promise_in_bounds")
    slot = jnp.minimum(nearest - (x < edge).astype(jnp.int32), bins - 1)  # the last bin includes its upper edge
    # The counts of the slots are the result as they are. If they had to be reordered, this would cost three kernels.
    slot = jnp.where(x < first, bins, jnp.where(x > last, bins + 1, slot))
    apart = jnp.where(x > 0, bins + 3, jnp.where(x < 0, bins + 4, bins + 2))
    return jnp.where(jnp.isfinite(x), slot, apart)


@functools.lru_cache(maxsize=1024)
def edges_of(low: float, high: float, bins: int) -> np.ndarray:
    """Returns float32[bins + 1], the edges that `numpy.histogram` uses for float32 input."""
    edges = np.linspace(low, high, bins + 1, dtype=np.float32)
    edges.flags.writeable = False  # every caller gets the same array
    return edges


def _evenly_spaced(edges: np.ndarray) -> bool:
    """Returns whether float32 arithmetic computes every edge exactly, fused or not, so that no table is needed."""
    width = edges[1] - edges[0]
    numbers = np.arange(len(edges))
    exact = numbers * np.float64(width)
    return bool(np.all(exact == exact.astype(np.float32)) and np.all(exact + edges[0] == edges))
