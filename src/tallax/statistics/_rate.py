# SPDX-License-Identifier: Apache-2.0
"""`Rate`: the fraction of entries that fired."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax

from tallax._mesh_axes import AxisName
from tallax.statistics._counts import Counts, fired_and_total
from tallax.statistics._statistic import exact_or_traced, ratio, unboxed
from tallax.variables import Counter, as_shape


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RateResult:
    """The counts of a `Rate` and their ratio: scalars, or arrays of its shape if it has one.

    Attributes:
        fired: The number of entries that fired. A Python int or uint64 outside a trace; int32, saturated, inside one.
        total: The number of entries, with the dtype of `fired`.
        rate: Fired / total as a float; 0.0 if nothing was seen (`total == 0`).
    """

    fired: Any
    total: Any
    rate: Any


class Rate(Counts):
    """Counts the entries that fired, for example of a mask, a head, an expert or a gradient clip.

    An entry fires if it is true or not zero, so NaN fires.

    | field | shape | dtype | reset value | reduction |
    |---|---|---|---|---|
    | counts | (*shape, 2): fired and total | an exact `Counter` | 0 | sum |

    Args:
        shape: The shape of the rates, for example one for each head or expert. It must match the last axes of the
            values passed to `update`. Entries are counted over the leading axes.
        axis_name: The mapped axis or axes over which each update is combined. It is required under `vmap`, `pmap` and
            `shard_map(check_vma=False)`; otherwise the axes are inferred from the values.
        persistent: Whether checkpoints save the state.

    Raises:
        InvalidValueError: `shape` is not a valid shape.

    Example:
        >>> import jax.numpy as jnp, tallax
        >>> heads = tallax.statistics.Rate(shape=2)
        >>> heads.update(jnp.array([[True, False], [True, True], [True, False]]))
        >>> heads.compute().rate
        array([1.        , 0.33333333])
    """

    _rounding = "nonzero"

    def __init__(
        self, shape: int | tuple[int, ...] = (), *, axis_name: AxisName | None = None, persistent: bool = True
    ):
        super().__init__(axis_name=axis_name)
        self.shape: tuple[int, ...] = as_shape(shape, item="Rate")
        self.counts: Counter = Counter(shape=(*self.shape, 2), persistent=persistent)

    def compute(self) -> RateResult:
        """Returns the counts `fired` and `total` and their ratio, each of the declared shape."""
        return self.read(self.state_here())

    def read(self, state: Mapping[str, Any]) -> RateResult:
        """Returns the record of a state; see `Statistic.read`."""
        counts = exact_or_traced(state["counts"])
        return RateResult(*unboxed(counts[..., 0], counts[..., 1], ratio(state["counts"], 0, 1)))

    def _counted(self, x: jax.Array, where: jax.Array | None, axes: tuple[int, ...]) -> jax.Array:
        return _fired_and_total(x, where, axes)

    def _configuration(self) -> dict[str, Any]:
        return {"shape": self.shape}


_fired_and_total = jax.jit(fired_and_total, static_argnums=2, inline=True)
