# SPDX-License-Identifier: Apache-2.0
"""`Ema`: where has it been lately?"""

from __future__ import annotations

import functools
import numbers
from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from tallax import _limbs
from tallax._errors import InvalidValueError, compose
from tallax._placement import is_traced, unsplit
from tallax._replicas import AxisName, axes_to_combine, count_over, sum_over
from tallax._variables import Buffer, as_shape
from tallax.statistics import _digits
from tallax.statistics._base import Statistic, current_state, leading_axes

if TYPE_CHECKING:
    from tallax._limbs import Limbs

_SUM, _WEIGHT = range(2)  # the first columns of the state; four digits follow


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class EmaResult:
    """What an `Ema` has come to; arrays of its shape where it has one.

    Attributes:
        value: the average as a float (float32 in arrays); 0.0 where nothing was seen, which `weight == 0` tells.
        weight: how much of an average the updates make up: 1 - decay**n after n of them, n of 1 for merged ones.
        nonfinite: how many entries were left out because they, or the sum of their update, were NaN or infinite in
            float32. A Python int or uint64 outside a trace; int32, saturated, inside one.
    """

    value: Any
    weight: Any
    nonfinite: Any


class Ema(Statistic):
    """An exponential moving average of each update's mean: a loss, a gate's load, the size of a gradient.

    The n-th update with mean m makes it `decay * ema + (1 - decay) * m`. That starts at 0, so it is biased towards 0 at
    first; with `debias` the value is divided by its weight, 1 - decay**n, as in Adam. An update weighs the same however
    many entries it has. NaN and infinities are left out of the mean and counted; an element without any finite entry
    under the mask stays as it was.

    | field | shape | dtype | reset value | how copies combine |
    |---|---|---|---|---|
    | state[..., 0] | shape: the weighted sum of the means | float32 | 0 | sum |
    | state[..., 1] | shape: the sum of their weights | float32 | 0 | sum |
    | state[..., 2:] | (*shape, 4): nonfinite, an exact count in 16-bit digits, lowest first | float32 | 0 | sum |

    An average that forgets depends on the order of its updates, so two of them can't be made into the one of both
    streams, one after the other: `merge` pools them. Sums and weights add, so the value becomes the weighted mean of
    both. This is associative (up to rounding) and commutative, and further updates let the weight return to 1. Replicas
    that keep a share each took their steps together, so `tallax.combine_replicas` takes the mean of their averages: up
    to rounding that of the whole batch, where every replica had as many finite entries.

    Args:
        decay: how much of the average an update leaves, in [0, 1); about 1 / (1 - decay) updates are remembered.
        debias: whether `compute` divides by the weight also while it is below 1.
        shape: one average for each head, expert, ...: the last axes of what `update` takes; the mean is taken over the
            axes before.
        axis_name: see `Statistic`. The mean is that of all replicas' entries.

    Means and the average are computed in float32 whatever the dtype fed. Rounding leaves a relative error of up to
    about 1e-7 / (1 - decay). Inside `shard_map` an update takes two all-reduces, for counts and for the sum.

    Raises:
        InvalidValueError: `decay` is not a number in [0, 1), or `shape` is no shape.

    Example:
        >>> import jax.numpy as jnp, tallax
        >>> loss = tallax.statistics.Ema(decay=0.5)
        >>> loss.update(jnp.array([4.0, 2.0]))
        >>> loss.update(jnp.array([6.0, jnp.nan]))
        >>> loss.compute()
        EmaResult(value=5.0, weight=0.75, nonfinite=1)
    """

    def __init__(
        self,
        decay: float,
        *,
        debias: bool = True,
        shape: int | tuple[int, ...] = (),
        axis_name: AxisName | None = None,
    ):
        super().__init__(axis_name=axis_name)
        if not (isinstance(decay, numbers.Real) and 0 <= decay < 1):
            raise InvalidValueError(
                compose(
                    "Ema",
                    "decay is how much of the average an update leaves.",
                    got=f"decay={decay!r}",
                    expected="a number in [0, 1)",
                    fix="Ema(0.99), which remembers about 100 updates",
                )
            )
        self.decay: float = float(decay)
        self.debias: bool = bool(debias)
        self.shape: tuple[int, ...] = as_shape(shape, item="Ema")
        self.state: Buffer = Buffer(np.zeros((*self.shape, 2 + _digits.WIDTH), np.float32))

    def compute(self) -> EmaResult:
        """Returns the average, its weight, and how many entries were left out, each of the declared shape."""
        return self.read(current_state(self.state))

    def read(self, state: Any) -> EmaResult:
        """Returns the record of a state; see `Statistic.read`."""
        if is_traced(state):
            return EmaResult(self._value(state, jnp), state[..., _WEIGHT], _limbs.to_int32(_nonfinite(state)))
        parts = self._value(state, np), state[..., _WEIGHT], _digits.to_uint64(state[..., _WEIGHT + 1 :])
        if state.ndim == 1:
            parts = [np.asarray(part).item() for part in parts]
        return EmaResult(*parts)

    def reset(self) -> None:
        """Forgets everything that was fed."""
        self.state[...] = 0.0

    def _value(self, state: Any, numpy: Any) -> Any:
        """Returns the average; on the host and in a trace by the same float32 arithmetic."""
        total, weight = state[..., _SUM], state[..., _WEIGHT]
        one = np.float32(1)
        if self.debias:
            return total / numpy.where(weight == 0, one, weight)
        return total / numpy.maximum(weight, one)  # a weight beyond 1 comes from merging

    def _accumulate(self, x: jax.Array, where: jax.Array | None) -> None:
        axes = leading_axes(x, self.shape, self)
        state = self.state.stored()
        replicas = axes_to_combine(x, where, state=self.state, axis_name=self.axis_name)
        self.state[...] = _updated(state, x, where, 1.0 - self.decay, axes, replicas)

    def _merge(self, other: Ema) -> None:
        self.state[...] = _pooled(self.state.stored(), other.state.stored())

    # Replicas took the same steps, so theirs are averaged, where `merge` would pool two streams one after the other.
    def _begin_share(self) -> None:
        self.state[..., _WEIGHT + 1 :] = 0.0

    def _join(self, share: Ema, number: Any) -> None:
        state, other = self.state.stored(), share.state.stored()
        mean = state + (other - state) / (number + 1).astype(jnp.float32)
        nonfinite = _limbs.add(_nonfinite(state), _nonfinite(other))
        self.state[...] = _packed(mean[..., _SUM], mean[..., _WEIGHT], nonfinite)

    def _configuration(self) -> dict[str, Any]:
        return {"decay": self.decay, "shape": self.shape}


@functools.partial(jax.jit, static_argnums=(3, 4, 5), inline=True)
def _updated(
    state: jax.Array,
    x: jax.Array,
    where: jax.Array | None,
    share: float,
    axes: tuple[int, ...],
    replicas: tuple[Hashable, ...],
) -> jax.Array:
    """Returns the state after an update that makes up `share` of the average."""
    share32 = jnp.float32(share)
    x = x.astype(jnp.float32)
    finite = jnp.isfinite(x)
    bad = ~finite
    if where is not None:
        finite, bad = finite & where, bad & where
    counts = jnp.stack([kind.sum(axes, dtype=jnp.uint32) for kind in (finite, bad)], -1)
    counts = count_over(_limbs.pair(counts), replicas)
    entries, nonfinite = counts[..., 0, :], counts[..., 1, :]
    total = sum_over(unsplit(jnp.where(finite, x, 0).sum(axes)), replicas)
    mean = total / jnp.maximum(_limbs.to_float32(entries), 1)
    total, weight = state[..., _SUM], state[..., _WEIGHT]
    # Rests where mean and average agree, which `decay * total + share * mean` need not.
    new_total = total + share32 * (mean - total)
    new_weight = weight + share32 * (1 - weight)
    some = (entries > 0).any(-1)
    fits = jnp.isfinite(new_total)  # an infinity would stay for ever
    nonfinite = _limbs.add(nonfinite, jnp.where(fits[..., None], jnp.uint32(0), entries))
    total = jnp.where(some & fits, new_total, total)
    weight = jnp.where(some & fits, new_weight, weight)
    return _packed(total, weight, _limbs.add(_nonfinite(state), nonfinite))


@functools.partial(jax.jit, inline=True)
def _pooled(left: jax.Array, right: jax.Array) -> jax.Array:
    nonfinite = _limbs.add(_nonfinite(left), _nonfinite(right))
    return _packed(left[..., _SUM] + right[..., _SUM], left[..., _WEIGHT] + right[..., _WEIGHT], nonfinite)


def _packed(total: jax.Array, weight: jax.Array, nonfinite: Limbs) -> jax.Array:
    return jnp.concatenate([jnp.stack([total, weight], -1), _digits.from_limbs(nonfinite)], -1)


def _nonfinite(state: jax.Array) -> Limbs:
    return _digits.to_limbs(state[..., _WEIGHT + 1 :])
