# SPDX-License-Identifier: Apache-2.0
"""`Ema`: an exponential moving average."""

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
from tallax._errors import InvalidValueError
from tallax._mesh_axes import AxisName, Combination, count_over, on_first, sum_over
from tallax.statistics._conversions import as_number
from tallax.statistics._counts import CountsAndBuffer, both
from tallax.statistics._statistic import exact_or_traced, unboxed
from tallax.variables import Buffer, Counter, as_shape

_SUM, _WEIGHT = range(2)  # the columns of the average


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class EmaResult:
    """The value of an `Ema`: scalars, or arrays of its shape if it has one.

    Attributes:
        value: The average as a float (float32 in arrays); 0.0 if nothing was seen (`weight == 0`).
        weight: The sum of the weights of all updates: 1 - decay**n after n updates, up to n for n merged averages.
        nonfinite: The number of entries that were excluded because they, or the sum of their update, were NaN or
            infinite in float32. A Python int or uint64 outside a trace; int32, saturated, inside one.
    """

    value: Any
    weight: Any
    nonfinite: Any


class Ema(CountsAndBuffer):
    """An exponential moving average of each update's mean: a loss, a gate's load, the size of a gradient.

    An update with mean m sets the average to `decay * ema + (1 - decay) * m`. The average starts at 0, so it is biased
    towards 0 at first. With `debias`, the value after n updates is divided by its weight, 1 - decay**n, as in Adam. All
    updates have the same weight, regardless of the number of entries. NaN and infinities are excluded from the mean and
    counted. If an element has no finite entry under the mask, it does not change.

    | field | shape | dtype | reset value | reduction |
    |---|---|---|---|---|
    | average[..., 0] | shape: the weighted sum of the means | float32 | 0 | sum |
    | average[..., 1] | shape: the sum of their weights | float32 | 0 | sum |
    | nonfinite | shape: the excluded entries | an exact `Counter` | 0 | sum |

    A moving average depends on the order of its updates, so two averages cannot be combined into the average of both
    streams in sequence. Instead, `merge` pools them: sums and weights add, so the value becomes the weighted mean of
    both. This is associative (up to rounding) and commutative, and further updates bring the weight back to 1. Replicas
    with per-replica state made their steps together, so `tallax.combine_replicas` computes the mean of their averages.
    If every replica had the same number of finite entries, this equals the average of the whole batch up to rounding.

    Args:
        decay: The fraction of the average that an update keeps, in [0, 1). The average covers about 1 / (1 - decay)
            updates.
        debias: Whether `compute` divides by the weight if it is below 1.
        shape: The shape of the averages, for example one for each head or expert. It must match the last axes of the
            values passed to `update`. The mean is taken over the leading axes.
        axis_name: The mapped axis or axes over which each update is combined. It is required under `vmap`, `pmap` and
            `shard_map(check_vma=False)`; otherwise the axes are inferred from the values.
            The mean is taken over the entries of all replicas.
        persistent: Whether checkpoints save the state.

    Means and the average are computed in float32 for every input dtype. Rounding causes a relative error of up to about
    1e-7 / (1 - decay). Inside `shard_map` an update needs two all-reduces, one for the counts and one for the sum.

    Raises:
        InvalidValueError: `decay` is not a number in [0, 1), or `shape` is not a valid shape.

    Example:
        >>> import jax.numpy as jnp, tallax
        >>> loss = tallax.statistics.Ema(decay=0.5)
        >>> loss.update(jnp.array([4.0, 2.0]))
        >>> loss.update(jnp.array([6.0, jnp.nan]))
        >>> loss.compute()
        EmaResult(value=5.0, weight=0.75, nonfinite=1)
    """

    _counter_name, _buffer_name = "nonfinite", "average"
    _dtypes: ClassVar[Mapping[str, Any]] = {"average": np.dtype(np.float32)}

    def __init__(
        self,
        decay: float,
        *,
        debias: bool = True,
        shape: int | tuple[int, ...] = (),
        axis_name: AxisName | None = None,
        persistent: bool = True,
    ):
        super().__init__(axis_name=axis_name)
        number = as_number(decay)
        if number is None or not 0 <= number < 1:
            raise InvalidValueError(
                "Ema",
                "decay must be in [0, 1): an update keeps this fraction of the average.",
                got=f"decay={decay!r}",
                expected="a number in [0, 1)",
                fix="Ema(0.99), which remembers about 100 updates",
            )
        self.decay: float = number
        self.debias: bool = bool(debias)
        self.shape: tuple[int, ...] = as_shape(shape, item="Ema")
        self.nonfinite: Counter = Counter(shape=self.shape, persistent=persistent)
        self.average: Buffer = Buffer(self._initial_buffer(), persistent=persistent)

    def compute(self) -> EmaResult:
        """Returns the average, its weight, and the number of excluded entries, each of the declared shape."""
        return self.read(self.state_here())

    def read(self, state: Mapping[str, Any]) -> EmaResult:
        """Returns the record of a state; see `Statistic.read`."""
        words, average = state["nonfinite"], state["average"]
        numpy = np if isinstance(average, np.ndarray) else jnp
        return EmaResult(*unboxed(self._value(average, numpy), average[..., _WEIGHT], exact_or_traced(words)))

    def _value(self, average: Any, numpy: Any) -> Any:
        """Returns the value, by the same float32 arithmetic on the host and in a trace."""
        total, weight = average[..., _SUM], average[..., _WEIGHT]
        one = np.float32(1)
        if self.debias:
            return total / numpy.where(weight == 0, one, weight)
        return total / numpy.maximum(weight, one)  # a weight beyond 1 comes from merging

    def _initial_buffer(self) -> np.ndarray:
        return np.zeros((*self.shape, 2), np.float32)

    @property
    def _constants(self) -> tuple[float, ...]:
        return (1.0 - self.decay,)  # the part of the average that an update makes up

    @staticmethod
    @functools.partial(jax.jit, static_argnums=(4, 5, 6), inline=True)
    def _updated(
        words: jax.Array,
        buffer: jax.Array,
        x: jax.Array,
        where: Any,
        axes: tuple[int, ...],
        how: Combination,
        share: float,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        x = x.astype(jnp.float32)
        finite, bad = both(jnp.isfinite(x), where)
        counts = jnp.stack([kind.sum(axes, dtype=jnp.uint32) for kind in (finite, bad)], -1)
        counts = count_over(_uint64.pair(counts), how.over)
        entries, nonfinite = counts[..., 0, :], counts[..., 1, :]
        total = sum_over(unsplit(jnp.where(finite, x, 0).sum(axes)), how.over)
        mean = total / jnp.maximum(_uint64.to_float32(entries), 1)
        total, weight = buffer[..., _SUM], buffer[..., _WEIGHT]
        # If mean and average are equal, this keeps the average exactly. `decay * total + share * mean` might round.
        new_total = total + jnp.float32(share) * (mean - total)
        new_weight = weight + jnp.float32(share) * (1 - weight)
        some = ~_uint64.is_zero(entries)
        fits = jnp.isfinite(new_total)  # an infinity would stay forever
        nonfinite = _uint64.add(nonfinite, jnp.where(fits[..., None], jnp.uint32(0), entries))
        total = jnp.where(some & fits, new_total, total)
        weight = jnp.where(some & fits, new_weight, weight)
        # Every replica updates its average, also if all updates are the same, because the mean of equal averages is
        # equal.
        nonfinite = on_first(nonfinite, how.once)
        return _uint64.add(words, nonfinite), nonfinite, jnp.stack([total, weight], -1)

    @staticmethod
    @functools.partial(jax.jit, static_argnums=4, inline=True)
    def _merged(words: Any, buffer: Any, other_words: Any, other: Any, once: tuple[Hashable, ...]) -> jax.Array:
        return buffer + other

    # Replicas made the same steps, so their averages are averaged. `merge` would pool them as two separate streams.
    def _begin_replica(self) -> None:
        self.nonfinite.reset()

    def _join(self, replica: Ema, number: Any) -> None:
        average, other = self.average._stored(), replica.average._stored()
        self.nonfinite._add_combined(replica.nonfinite._words())
        self.average.set_value(average + (other - average) / (number + 1).astype(jnp.float32))

    def _configuration(self) -> dict[str, Any]:
        return {"decay": self.decay, "shape": self.shape}
