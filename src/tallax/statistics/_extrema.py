# SPDX-License-Identifier: Apache-2.0
"""`Extrema`: how small and how large did it get, and when?"""

from __future__ import annotations

import functools
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tallax import _limbs
from tallax._placement import is_traced, unsplit
from tallax._replicas import AxisName, axes_to_combine, count_over, min_over
from tallax._variables import Buffer, as_shape
from tallax.statistics._base import Statistic, current_state, leading_axes

# The rows of the state. What was fed nothing has the largest `at`, so that it loses every comparison; it reads as 0.
_COUNT, _NAN, _MIN_AT, _MAX_AT, _VALUES = range(5)
_WORD = np.uint32(2**32 - 1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class ExtremaResult:
    """What an `Extrema` has seen; arrays of its shape where it has one.

    Counts are Python ints or uint64 outside a trace; int32, saturated, inside one.

    Attributes:
        min: the smallest entry as a float; inf where nothing was seen, which `count == 0` tells.
        max: the largest entry likewise; -inf where nothing was seen.
        min_at: what `count` was after the update that first brought `min`; 0 where nothing was seen.
        max_at: likewise for `max`.
        count: how many entries there were; infinities are among them, NaN is not.
        nan: how many entries were NaN; `count + nan` is what was fed.
    """

    min: Any
    max: Any
    min_at: Any
    max_at: Any
    count: Any
    nan: Any


class Extrema(Statistic):
    """The smallest and the largest value, and when each came: logits that grow, a gate that saturates.

    An infinity is an extreme like any other; NaN is counted apart. The extremes and counts of a stream that was fed in
    parts, or to several statistics that were merged, are those of the whole, exactly.

    | field | shape | dtype | reset value | how copies combine |
    |---|---|---|---|---|
    | state[..., 0, :] | (*shape, 2): count, two words | uint32 | 0 | sum |
    | state[..., 1, :] | (*shape, 2): NaN, two words | uint32 | 0 | sum |
    | state[..., 2:4, :] | (*shape, 2, 2): min_at and max_at, two words each | uint32 | 2**64 - 1 | of the extreme |
    | state[..., 4, :] | (*shape, 2): min and -max, the bits of float32 | uint32 | those of inf | min |

    Args:
        shape: one pair for each head, expert, ...: the last axes of what `update` takes; the axes before are searched.
        axis_name: see `Statistic`.

    Values are compared in float32, so integers beyond 2**24 are rounded, and float64 (under x64) is too. XLA flushes
    subnormal numbers; they and -0.0 read as 0.0.

    `min_at` and `max_at` refer to the stream in which the extreme was seen: `merge` takes them over as they are, and
    of equal extremes it keeps the smaller. So does `tallax.combine_replicas`, for replicas that keep a share each.

    An update inside `shard_map` takes two all-reduces, one for the counts and one for the extremes.

    Raises:
        InvalidValueError: `shape` is no shape.

    Example:
        >>> import jax.numpy as jnp, tallax
        >>> logits = tallax.statistics.Extrema()
        >>> logits.update(jnp.array([0.5, -2.0, 1.0]))
        >>> logits.update(jnp.array([7.0, jnp.nan]))
        >>> logits.compute()
        ExtremaResult(min=-2.0, max=7.0, min_at=3, max_at=4, count=4, nan=1)
    """

    def __init__(self, shape: int | tuple[int, ...] = (), *, axis_name: AxisName | None = None):
        super().__init__(axis_name=axis_name)
        self.shape: tuple[int, ...] = as_shape(shape, item="Extrema")
        self.state: Buffer = Buffer(_nothing(self.shape))

    def compute(self) -> ExtremaResult:
        """Returns the extremes, when they came, and the counts, each of the declared shape."""
        return self.read(current_state(self.state))

    def read(self, state: Any) -> ExtremaResult:
        """Returns the record of a state; see `Statistic.read`."""
        if is_traced(state):
            empty = (state[..., _COUNT, :] == 0).all(-1)
            counts = _limbs.to_int32(state[..., :_VALUES, :])
            values = _values(state)
            choose = jnp.where
        else:
            counts = _limbs.to_uint64(state[..., :_VALUES, :])
            empty = counts[..., _COUNT] == 0
            values = np.ascontiguousarray(state[..., _VALUES, :]).view(np.float32)
            choose = np.where
        at = [choose(empty, counts.dtype.type(0), counts[..., row]) for row in (_MIN_AT, _MAX_AT)]
        extremes = values[..., 0], 0 - values[..., 1]  # 0 - x and not -x, which of 0.0 is -0.0
        parts = (*extremes, *at, counts[..., _COUNT], counts[..., _NAN])
        if isinstance(state, np.ndarray) and state.ndim == 2:
            parts = [np.asarray(part).item() for part in parts]
        return ExtremaResult(*parts)

    def reset(self) -> None:
        """Forgets everything that was fed."""
        self.state[...] = np.broadcast_to(_nothing(self.shape), self.state.shape)

    def _accumulate(self, x: jax.Array, where: jax.Array | None) -> None:
        axes = leading_axes(x, self.shape, self)
        state = self.state.stored()
        replicas = axes_to_combine(x, where, state=self.state, axis_name=self.axis_name)
        self.state[...] = _updated(state, x, where, axes, replicas)

    def _merge(self, other: Extrema) -> None:
        self.state[...] = _merged(self.state.stored(), other.state.stored())

    def _configuration(self) -> dict[str, Any]:
        return {"shape": self.shape}


def _nothing(shape: tuple[int, ...]) -> np.ndarray:
    state = np.zeros((*shape, 5, 2), np.uint32)
    state[..., [_MIN_AT, _MAX_AT], :] = _WORD
    state[..., _VALUES, :] = np.float32(np.inf).view(np.uint32)
    return state


@functools.partial(jax.jit, static_argnums=(3, 4), inline=True)
def _updated(
    state: jax.Array, x: jax.Array, where: jax.Array | None, axes: tuple[int, ...], replicas: tuple[Hashable, ...]
) -> jax.Array:
    """Returns the state after the entries of all replicas: merged with the state that they make by themselves."""
    x = x.astype(jnp.float32)
    nan = jnp.isnan(x)
    taken = ~nan
    if where is not None:
        nan, taken = nan & where, taken & where
    counts = jnp.stack([taken.sum(axes, dtype=jnp.uint32), nan.sum(axes, dtype=jnp.uint32)], -1)
    counts = count_over(_limbs.pair(counts), replicas)
    least = [jnp.where(taken, signed, jnp.inf).min(axes, initial=jnp.inf) for signed in (x, -x)]
    least = min_over(unsplit(jnp.stack(least, -1)), replicas)
    least = jnp.where(least == 0, jnp.float32(0), least)  # one zero, so that equal extremes have equal bits
    some = (counts[..., _COUNT, :] > 0).any(-1, keepdims=True)
    at = jnp.where(some, _limbs.add(state[..., _COUNT, :], counts[..., _COUNT, :]), _WORD)
    return _merged(state, _packed(counts, jnp.stack([at, at], -2), least))


@functools.partial(jax.jit, inline=True)
def _merged(left: jax.Array, right: jax.Array) -> jax.Array:
    counts = _limbs.add(left[..., :_MIN_AT, :], right[..., :_MIN_AT, :])
    value, other = _values(left), _values(right)
    at, other_at = left[..., _MIN_AT:_VALUES, :], right[..., _MIN_AT:_VALUES, :]
    low, high, other_low, other_high = at[..., 0], at[..., 1], other_at[..., 0], other_at[..., 1]
    earlier = (other_high < high) | ((other_high == high) & (other_low < low))
    better = (other < value) | ((other == value) & earlier)
    return _packed(counts, jnp.where(better[..., None], other_at, at), jnp.where(better, other, value))


def _values(state: Any) -> jax.Array:
    """Returns float32[*shape, 2]: min and -max."""
    return jax.lax.bitcast_convert_type(state[..., _VALUES, :], jnp.float32)


def _packed(counts: jax.Array, at: jax.Array, values: jax.Array) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(values, jnp.uint32)
    return jnp.concatenate([counts, at, bits[..., None, :]], -2)
