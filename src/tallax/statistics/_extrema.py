# SPDX-License-Identifier: Apache-2.0
"""`Extrema`: the smallest and the largest value, and the times at which they came."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from tallax import _uint64
from tallax._arrays import unsplit
from tallax._mesh_axes import AxisName, Combination, count_over, min_over, on_first
from tallax.statistics._counts import CountsAndBuffer, both
from tallax.statistics._statistic import exact_or_traced, unboxed
from tallax.variables import Buffer, Counter, as_shape

_COUNT, _NAN = range(2)
# The rows of the extremes. An empty statistic has the largest `at`, so that it loses every comparison; `at` reads as 0.
_MIN_AT, _MAX_AT, _VALUES = range(3)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class ExtremaResult:
    """The extremes of an `Extrema`, and the counts at which they came: scalars, or arrays of its shape if it has one.

    Counts are Python ints or uint64 outside a trace; int32, saturated, inside one.

    Attributes:
        min: The smallest entry as a float; inf if nothing was seen (`count == 0`).
        max: The largest entry as a float; -inf if nothing was seen.
        min_at: The `count` after the update that first had `min`; 0 if nothing was seen.
        max_at: The `count` after the update that first had `max`; 0 if nothing was seen.
        count: The number of entries, including infinities and excluding NaN.
        nan: The number of NaN entries. `count + nan` is the number of all entries.
    """

    min: Any
    max: Any
    min_at: Any
    max_at: Any
    count: Any
    nan: Any


class Extrema(CountsAndBuffer):
    """The smallest and the largest value, and the time of each: logits that grow, a gate that saturates.

    An infinity is an extreme like any other, and NaN is counted separately. If a stream is fed in parts, or to several
    statistics that are merged, the extremes and counts are exactly those of the whole stream.

    | field | shape | dtype | reset value | reduction |
    |---|---|---|---|---|
    | counts | (*shape, 2): entries, and NaN | an exact `Counter` | 0 | sum |
    | extremes[..., :2, :] | (*shape, 2, 2): min_at and max_at, two words each | uint32 | 2**64 - 1 | of the extreme |
    | extremes[..., 2, :] | (*shape, 2): min and -max, the bits of float32 | uint32 | those of inf | min |

    Args:
        shape: The shape of the extremes, for example one pair for each head or expert. It must match the last axes of
            the values passed to `update`.
        axis_name: The mapped axis or axes over which each update is combined. It is required under `vmap`, `pmap` and
            `shard_map(check_vma=False)`; otherwise the axes are inferred from the values.
        persistent: Whether checkpoints save the state.

    Values are compared in float32, so integers beyond 2**24 are rounded, and so is float64 (under x64). XLA flushes
    subnormal numbers; they and -0.0 are stored as 0.0.

    `min_at` and `max_at` refer to the stream in which the extreme was seen: `merge` does not change them, and if two
    extremes are equal, it keeps the smaller one. `tallax.combine_replicas` does the same for per-replica state.

    Inside `shard_map` an update needs two all-reduces, one for the counts and one for the extremes.

    Raises:
        InvalidValueError: `shape` is not a valid shape.

    Example:
        >>> import jax.numpy as jnp, tallax
        >>> logits = tallax.statistics.Extrema()
        >>> logits.update(jnp.array([0.5, -2.0, 1.0]))
        >>> logits.update(jnp.array([7.0, jnp.nan]))
        >>> logits.compute()
        ExtremaResult(min=-2.0, max=7.0, min_at=3, max_at=4, count=4, nan=1)
    """

    _buffer_name = "extremes"
    _dtypes: ClassVar[Mapping[str, Any]] = {"extremes": np.dtype(np.uint32)}

    def __init__(
        self, shape: int | tuple[int, ...] = (), *, axis_name: AxisName | None = None, persistent: bool = True
    ):
        super().__init__(axis_name=axis_name)
        self.shape: tuple[int, ...] = as_shape(shape, item="Extrema")
        self.counts: Counter = Counter(shape=(*self.shape, 2), persistent=persistent)
        self.extremes: Buffer = Buffer(self._initial_buffer(), persistent=persistent)

    def compute(self) -> ExtremaResult:
        """Returns the extremes, the counts at which they came, and the counts, each of the declared shape."""
        return self.read(self.state_here())

    def read(self, state: Mapping[str, Any]) -> ExtremaResult:
        """Returns the record of a state; see `Statistic.read`."""
        words, extremes = state["counts"], state["extremes"]
        counts, when = exact_or_traced(words), exact_or_traced(extremes[..., :_VALUES, :])
        empty = _uint64.is_zero(words[..., _COUNT, :])
        if isinstance(words, np.ndarray):
            values, choose = np.ascontiguousarray(extremes[..., _VALUES, :]).view(np.float32), np.where
        else:
            values, choose = _values(extremes), jnp.where
        at = [choose(empty, when.dtype.type(0), when[..., row]) for row in (_MIN_AT, _MAX_AT)]
        least, most = values[..., 0], 0 - values[..., 1]  # not -x, because 0.0 would be printed as -0.0
        return ExtremaResult(*unboxed(least, most, *at, counts[..., _COUNT], counts[..., _NAN]))

    def _initial_buffer(self) -> np.ndarray:
        extremes = np.zeros((*self.shape, 3, 2), np.uint32)
        extremes[..., [_MIN_AT, _MAX_AT], :] = _uint64.from_int(_uint64.MAX)
        extremes[..., _VALUES, :] = np.float32(np.inf).view(np.uint32)
        return extremes

    @staticmethod
    @functools.partial(jax.jit, static_argnums=(4, 5), inline=True)
    def _updated(
        words: jax.Array, buffer: jax.Array, x: jax.Array, where: Any, axes: tuple[int, ...], how: Combination
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        x = x.astype(jnp.float32)
        nan, taken = both(jnp.isnan(x), where)
        counts = jnp.stack([kind.sum(axes, dtype=jnp.uint32) for kind in (taken, nan)], -1)
        counts = on_first(count_over(_uint64.pair(counts), how.over), how.once)
        least = [jnp.where(taken, signed, jnp.inf).min(axes, initial=jnp.inf) for signed in (x, -x)]
        least = min_over(unsplit(jnp.stack(least, -1)), how.over)
        least = jnp.where(least == 0, jnp.float32(0), least)  # a single zero, so that equal extremes have equal bits
        least = on_first(least, how.once, otherwise=jnp.inf)
        none = _uint64.is_zero(counts[..., _COUNT, :])[..., None]
        after = _uint64.add(words, counts)
        at = jnp.where(none, jnp.asarray(_uint64.from_int(_uint64.MAX)), after[..., _COUNT, :])
        return after, counts, _better(buffer, _packed(jnp.stack([at, at], -2), least))

    @staticmethod
    @functools.partial(jax.jit, static_argnums=4, inline=True)
    def _merged(words: Any, buffer: Any, other_words: Any, other: Any, once: tuple[Hashable, ...]) -> jax.Array:
        return _better(buffer, other)

    def _configuration(self) -> dict[str, Any]:
        return {"shape": self.shape}


def _better(left: jax.Array, right: jax.Array) -> jax.Array:
    """Returns the smaller values of two states, and the time of each; of equal values, the earlier time."""
    value, other = _values(left), _values(right)
    at, other_at = left[..., :_VALUES, :], right[..., :_VALUES, :]
    better = (other < value) | ((other == value) & _uint64.less(other_at, at))
    return _packed(jnp.where(better[..., None], other_at, at), jnp.where(better, other, value))


def _values(extremes: Any) -> jax.Array:
    """Returns float32[*shape, 2]: min and -max."""
    return jax.lax.bitcast_convert_type(extremes[..., _VALUES, :], jnp.float32)


def _packed(at: jax.Array, values: jax.Array) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(values, jnp.uint32)
    return jnp.concatenate([at, bits[..., None, :]], -2)
