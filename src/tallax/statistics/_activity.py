# SPDX-License-Identifier: Apache-2.0
"""`Activity`: the firing rates of units, and the dead units."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from tallax import _uint64
from tallax._arrays import is_traced
from tallax._errors import InvalidValueError
from tallax._mesh_axes import AxisName, Combination, count_over, on_first
from tallax.statistics._counts import CountsAndBuffer, fired_and_total
from tallax.statistics._statistic import exact_or_traced, leading_axes, ratio, unboxed
from tallax.variables import Buffer, Counter

_FIRED, _TOTAL, _UPDATES = range(3)  # the number of counts for each unit


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class ActivityResult:
    """The firing rates of the units of an `Activity`, and the dead units.

    Attributes:
        rates: The firing rate of each unit since the last reset, fired / total as a float; 0.0 if nothing was seen.
        dead: bool[units]: the units that did not fire in the window.
        updates: The number of updates in the window so far. A Python int outside a trace; int32, saturated, inside one.
    """

    rates: Any
    dead: Any
    updates: Any


class Activity(CountsAndBuffer):
    """The firing rate of each unit, and the units that have not fired for long: dead ReLUs, experts without tokens.

    A unit fires if its entry is true or not zero, so NaN fires. A unit that never fired is dead, from the start.

    | field | shape | dtype | reset value | reduction |
    |---|---|---|---|---|
    | counts | (units, 3): fired, entries, updates (equal for all) | an exact `Counter` | 0 | sum |
    | quiet | (units, 2): updates since it last fired, two words | uint32 | 2**64 - 1: never | min |

    Args:
        units: The number of units: the size of the last axis of the values passed to `update`.
        window: The number of updates without firing after which a unit is dead. If omitted, a unit is dead only if it
            never fired.
        axis_name: The mapped axis or axes over which each update is combined. It is required under `vmap`, `pmap` and
            `shard_map(check_vma=False)`; otherwise the axes are inferred from the values. A unit fires if it fires on
            any replica.
        persistent: Whether checkpoints save the state.

    A masked entry neither fires nor counts in its unit's total. Each update counts as one in the window, regardless of
    mask and size, so a unit that is masked for a whole window is dead.

    `merge` adds entries and updates, and keeps the smaller number of updates since each unit fired. It is exact,
    associative and commutative. A unit is dead after a merge only if it was dead in both.

    Raises:
        InvalidValueError: `units` or `window` is not an integer in [1, 2**31 - 1].

    Example:
        >>> import jax.numpy as jnp, tallax
        >>> hidden = tallax.statistics.Activity(3, window=100)
        >>> hidden.update(jnp.array([[0.7, 0.0, 0.0], [0.2, 0.0, 1.5]]))
        >>> hidden.compute()
        ActivityResult(rates=array([1. , 0. , 0.5]), dead=array([False,  True, False]), updates=1)
    """

    _rounding = "nonzero"
    _buffer_name = "quiet"
    _dtypes: ClassVar[Mapping[str, Any]] = {"quiet": np.dtype(np.uint32)}

    def __init__(
        self,
        units: int,
        *,
        window: int | None = None,
        axis_name: AxisName | None = None,
        persistent: bool = True,
    ):
        super().__init__(axis_name=axis_name)
        if not (_is_size(units) and (window is None or _is_size(window))):
            raise InvalidValueError(
                "Activity",
                "units and window must be positive integers.",
                got=f"units={units!r}, window={window!r}",
                expected="integers in [1, 2**31 - 1], or no window",
                fix="Activity(x.shape[-1], window=1000)",
            )
        self.units: int = int(units)
        self.window: int | None = None if window is None else int(window)
        self.counts: Counter = Counter(shape=(self.units, 3), persistent=persistent)
        self.quiet: Buffer = Buffer(self._initial_buffer(), persistent=persistent)

    def compute(self) -> ActivityResult:
        """Returns the rate of each unit, the dead units, and the length of the window so far."""
        return self.read(self.state_here())

    def read(self, state: Mapping[str, Any]) -> ActivityResult:
        """Returns the record of a state; see `Statistic.read`."""
        words, quiet = state["counts"], state["quiet"]
        counts, since = exact_or_traced(words), exact_or_traced(quiet)
        updates = counts[..., _UPDATES].max(-1)
        if self.window is not None:
            numpy = jnp if is_traced(words) else np
            updates = numpy.minimum(updates, counts.dtype.type(self.window))
        dead = counts[..., _FIRED] == 0 if self.window is None else since >= self.window
        return ActivityResult(ratio(words, _FIRED, _TOTAL), dead, *unboxed(updates))

    def _initial_buffer(self) -> np.ndarray:
        return _uint64.full((self.units,), _uint64.MAX)

    def _axes_of(self, x: jax.Array) -> tuple[int, ...]:
        return leading_axes(x, (self.units,), self, argument=f"{x.shape[-1]}" if x.ndim else "units")

    @staticmethod
    @functools.partial(jax.jit, static_argnums=(4, 5), inline=True)
    def _updated(
        words: jax.Array, buffer: jax.Array, x: jax.Array, where: Any, axes: tuple[int, ...], how: Combination
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        counts = count_over(_uint64.pair(fired_and_total(x, where, axes)), how.over)
        counts = on_first(counts, how.once)
        one = _uint64.pair(jnp.ones_like(buffer[..., 0]))
        silent = _uint64.is_zero(counts[..., _FIRED, :])[..., None]
        quiet = jnp.where(~silent, jnp.uint32(0), _uint64.add(buffer, one))  # the largest count means never: it stays
        counts = jnp.concatenate([counts, one[..., None, :]], -2)
        return _uint64.add(words, counts), counts, quiet

    @staticmethod
    @functools.partial(jax.jit, static_argnums=4, inline=True)
    def _merged(words: Any, buffer: Any, other_words: Any, other: Any, once: tuple[Hashable, ...]) -> jax.Array:
        return jnp.where(_uint64.less(other, buffer)[..., None], other, buffer)

    # All replicas had the same updates, so only the updates of the first replica are kept.
    def _join(self, replica: Activity, number: Any) -> None:
        del number
        updates = self.counts._words()[..., _UPDATES, :]
        self._merge(replica)
        self.counts._store(self.counts._words().at[..., _UPDATES, :].set(updates))

    def _configuration(self) -> dict[str, Any]:
        return {"units": self.units, "window": self.window}


def _is_size(number: Any) -> bool:
    is_integer = isinstance(number, int | np.integer) and not isinstance(number, bool)
    return is_integer and 1 <= int(number) <= _uint64.INT32_MAX
