# SPDX-License-Identifier: Apache-2.0
"""`Moments`: mean, variance, skewness and kurtosis of all entries so far."""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from tallax import _uint64
from tallax._arrays import is_traced, unsplit
from tallax._mesh_axes import AxisName, Combination, count_over, marked, max_over, on_first, sum_over, varying_axes
from tallax.statistics import _moments_state
from tallax.statistics._counts import CountsAndBuffer
from tallax.statistics._power_sums import count_finite, power_sums, rough_sum_and_range
from tallax.statistics._statistic import exact_or_traced, unboxed
from tallax.variables import Buffer, Counter, as_shape


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class MomentsResult:
    """The counts and moments of a `Moments`: scalars, or arrays of its shape if it has one.

    Python numbers, uint64 and float64 arrays outside a trace; int32, saturated, and float32 inside one. No field is
    NaN: a moment that is undefined, because there are too few entries, is 0.0.

    Attributes:
        count: The number of finite entries.
        mean: The mean of the finite entries, or 0.0 without any.
        variance: The mean squared deviation, like `numpy.var`, or 0.0 if there are no finite entries.
        skewness: The skewness, like `scipy.stats.skew`, or 0.0 if the variance is 0.
        kurtosis: The excess kurtosis, like `scipy.stats.kurtosis`: 0.0 for normal data, and if the variance is 0.
        nonfinite: The number of NaN or infinite entries; all other fields exclude them.
    """

    count: Any
    mean: Any
    variance: Any
    skewness: Any
    kurtosis: Any
    nonfinite: Any


class Moments(CountsAndBuffer):
    """The first four moments of a stream, accurate even if float32 sums and 32-bit counts are not.

    NaN and infinities are counted separately, so `count + nonfinite` is the number of all entries. Entries are
    converted to float32. Variance and higher moments of a batch are computed from float32 sums about a pivot near its
    mean, and merged into the state in pairs of float32, so neither a large mean nor a long stream costs precision.

    | field | shape | dtype | reset value | reduction |
    |---|---|---|---|---|
    | counts | (*shape, 2): finite entries, and others | an exact `Counter` | 0 | sum |
    | moments[..., 0] | shape: the unit, a power of two near the largest entry | float32 | 0 | max |
    | moments[..., 1:3] | (*shape, 2): the mean, high + low, in units | float32 | 0 | Chan's and Pebay's update |
    | moments[..., 3:9] | (*shape, 6): sums of powers of (x - mean), high + low | float32 | 0 | Pebay's update |

    The unit keeps fourth powers in the range of float32 for data of any scale.

    Args:
        shape: The shape of each moment, for example one for each head or unit. It must match the last axes of the
            values passed to `update`. The moments are taken over the leading axes.
        axis_name: The mapped axis or axes over which each update is combined. It is required under `vmap`, `pmap` and
            `shard_map(check_vma=False)`; otherwise the axes are inferred from the values.
        persistent: Whether checkpoints save the state.

    An update needs one pass over the data, with the current mean as the pivot. If this pivot is more than two standard
    deviations from the mean of the batch, as in the first update, two more passes find a better pivot. Inside
    `shard_map` an update needs two all-reduces, three with `where`, and four more if it has to find a better pivot.

    Raises:
        InvalidValueError: `shape` is not a valid shape.

    Example:
        >>> import jax.numpy as jnp, tallax
        >>> loss = tallax.statistics.Moments()
        >>> loss.update(1e6 + jnp.array([1.0, 2.0, 3.0, jnp.nan]))
        >>> loss.update(1e6 + jnp.array([4.0, 5.0]))
        >>> result = loss.compute()
        >>> result.count, result.nonfinite, result.mean, round(result.variance, 6)
        (5, 1, 1000003.0, 2.0)

    References:
        Chan, Golub and LeVeque, Algorithms for computing the sample variance, The American Statistician 37, 1983.
        Pebay, Formulas for robust, one-pass parallel computation of covariances and arbitrary-order statistical
        moments, Sandia report SAND2008-6212, 2008: equations 2.1 to 2.9.
    """

    _buffer_name = "moments"
    _dtypes: ClassVar[Mapping[str, Any]] = {"moments": np.dtype(np.float32)}

    def __init__(
        self, shape: int | tuple[int, ...] = (), *, axis_name: AxisName | None = None, persistent: bool = True
    ):
        super().__init__(axis_name=axis_name)
        self.shape: tuple[int, ...] = as_shape(shape, item="Moments")
        self.counts: Counter = Counter(shape=(*self.shape, 2), persistent=persistent)
        self.moments: Buffer = Buffer(self._initial_buffer(), persistent=persistent)

    def compute(self) -> MomentsResult:
        """Returns the counts and moments, each of the statistic's shape."""
        return self.read(self.state_here())

    def read(self, state: Mapping[str, Any]) -> MomentsResult:
        """Returns the record of a state; see `Statistic.read`."""
        words, moments = state["counts"], state["moments"]
        counts, count = exact_or_traced(words), words[..., 0, :]
        if is_traced(words):
            numpy, count, moments = jnp, _uint64.to_float32(count), jax.lax.stop_gradient(moments)
        else:
            numpy, count, moments = np, _uint64.to_uint64(count).astype(np.float64), moments.astype(np.float64)
        sums = [moments[..., k] + moments[..., k + 1] for k in (1, 3, 5, 7)]
        standardized = _standardized(numpy, count, moments[..., 0], *sums)
        return MomentsResult(*unboxed(counts[..., 0], *standardized, counts[..., 1]))

    def _initial_buffer(self) -> np.ndarray:
        return np.zeros((*self.shape, _moments_state.FIELDS), np.float32)

    def _accumulate(self, x: jax.Array, where: jax.Array | None) -> None:
        self._axes_of(x)  # raises if the shape does not fit, also for an empty batch
        if x.size:
            super()._accumulate(x, where)

    @staticmethod
    @functools.partial(jax.jit, static_argnums=(4, 5), inline=True)
    def _updated(
        words: jax.Array, moments: jax.Array, x: jax.Array, where: Any, axes: tuple[int, ...], how: Combination
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        combined = how.over
        before = _moments_state.unpack(words[..., 0, :], moments)
        values = x.astype(jnp.float32)
        unit, pivot = jnp.where(before.unit > 0, before.unit, 1.0), before.mean[0]
        fed = jnp.full(x.shape[len(axes) :], math.prod(x.shape[axis] for axis in axes), jnp.uint32)

        def total(taken: jax.Array) -> jax.Array:
            return _uint64.to_float32(count_over(_uint64.pair(taken), combined))

        def sums_about(pivot: jax.Array, unit: jax.Array) -> tuple[jax.Array, jax.Array]:
            taken, *sums = power_sums(values, where, axes, pivot, unit)
            return unsplit(taken), sum_over(unsplit(jnp.stack(sums)), combined)

        if where is None:
            # First without a check for finite entries: if an entry is not finite, neither is the sum of fourth powers.
            sums = unsplit(jnp.stack(power_sums(values, None, axes, pivot, unit, are_finite=True)))
            taken, sums = fed, sum_over(sums, combined)
            entries = fed.astype(jnp.float32) * math.prod(jax.lax.axis_size(axis) for axis in combined)
        else:
            fed = unsplit(where.sum(axes, dtype=jnp.uint32))
            taken, sums = sums_about(pivot, unit)
            entries = total(taken)

        def alike(taken: jax.Array, *values: jax.Array) -> tuple[jax.Array, ...]:
            like = tuple(varying_axes(sums))
            return marked(taken, tuple(varying_axes(x))), *(marked(value, like) for value in values)

        def again() -> tuple[jax.Array, ...]:
            taken = unsplit(count_finite(values, where, axes))
            pivot, unit = _pivot_and_unit(values, where, axes, combined, total(taken))
            return alike(taken, sums_about(pivot, unit)[1], pivot, unit)

        # The pivot is near enough, and fourth powers are in range. Comparisons with NaN are false.
        near = (before.unit > 0) & (sums[0] ** 2 <= 0.8 * entries * sums[1]) & (sums[3] <= 2.0**24 * entries)
        good = (near | (entries == 0)).all()
        taken, sums, pivot, unit = jax.lax.cond(good, lambda: alike(taken, sums, pivot, unit), again)
        counts = count_over(_uint64.pair(jnp.stack([taken, fed - taken], -1)), combined)
        union = _moments_state.union(before, _moments_state.of_batch(counts[..., 0, :], unit, pivot, sums))
        counts = on_first(counts, how.once)
        return _uint64.add(words, counts), counts, on_first(_moments_state.pack(union), how.once, otherwise=moments)

    @staticmethod
    @functools.partial(jax.jit, static_argnums=4, inline=True)
    def _merged(words: Any, buffer: Any, other_words: Any, other: Any, once: tuple[Hashable, ...]) -> jax.Array:
        own = _moments_state.unpack(words[..., 0, :], buffer)
        both = _moments_state.union(own, _moments_state.unpack(other_words[..., 0, :], other))
        return on_first(_moments_state.pack(both), once, otherwise=buffer)

    def _configuration(self) -> dict[str, Any]:
        return {"shape": self.shape}


def _pivot_and_unit(
    x: jax.Array, where: jax.Array | None, axes: tuple[int, ...], combined: tuple[Hashable, ...], entries: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns a pivot near the mean, and its unit. If all entries are equal, the pivot is their value."""
    rough, low, high = rough_sum_and_range(x, where, axes)
    rough = sum_over(unsplit(rough), combined)
    low, high = max_over(unsplit(jnp.stack([low, high])), combined)
    bits = jax.lax.bitcast_convert_type(jnp.maximum(low, high), jnp.uint32) & jnp.uint32(0x7F800000)
    unit = jax.lax.bitcast_convert_type(bits, jnp.float32)  # the power of two at or below it
    unit = jnp.where(entries > 0, jnp.clip(unit, 2.0**-126, 2.0**126), 1.0)
    mean = rough / jnp.maximum(entries, 1.0) * 2.0**32
    return jnp.where(entries > 0, jnp.clip(mean, -low, high) / unit, 0.0), unit


def _standardized(xp: Any, count: Any, unit: Any, mean: Any, m2: Any, m3: Any, m4: Any) -> tuple[Any, Any, Any, Any]:
    """Returns mean, variance, skewness and excess kurtosis, computed with NumPy or JAX."""
    n = xp.maximum(count, 1.0)
    variance = xp.maximum(m2, 0.0) / n
    spread = variance > 0
    divisor = xp.where(spread, variance, 1.0)
    skewness = xp.where(spread, m3 / n / divisor / xp.sqrt(divisor), 0.0)
    kurtosis = xp.where(spread, m4 / n / divisor / divisor - 3.0, 0.0)
    return mean * unit, variance * unit * unit, skewness, kurtosis
