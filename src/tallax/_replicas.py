# SPDX-License-Identifier: Apache-2.0
"""Which mesh axes a value differs over, and the sum of an increment over them.

Inside `shard_map` every array carries the set of mesh axes it *varies* over. An increment that varies over `data` was
computed from one shard of the batch, so the count of the whole is its sum over `data`, and over nothing else: summing
over an axis on which it is replicated would count it once per replica. The increment is summed, never the total.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import jax.numpy as jnp

from tallax import _limbs
from tallax._errors import ReplicasError, compose

if TYPE_CHECKING:
    from tallax._limbs import Limbs

AxisName: TypeAlias = Hashable | tuple[Hashable, ...]


def varying_axes(value: Any) -> frozenset[Hashable]:
    """Returns the mesh axes that `value` varies over; empty outside `shard_map`, and under `check_vma=False`."""
    if not isinstance(value, jax.Array):
        return frozenset()
    kind = jax.typeof(value)
    manual = getattr(kind, "manual_axis_type", None)
    return frozenset(manual.varying if manual is not None else kind.vma)  # `vma` is how jax called it before


def mapped_axes() -> tuple[Hashable, ...]:
    """Returns the mesh axes that the surrounding `shard_map` maps over; empty outside one."""
    return tuple(jax.sharding.get_abstract_mesh().manual_axes)


def axes_to_combine(
    *increments: Any, state: Any, like: Any = None, axis_name: AxisName | None = None, alike: bool = False
) -> tuple[Hashable, ...]:
    """Returns the axes over which an update's increments are to be combined before `state` takes them in.

    Args:
        *increments: what was computed from one replica's share of the data.
        state: the item that is going to take them in. Axes that it varies over itself, or keeps a share for each
            replica of, are left alone: each replica then keeps a count of its own.
        like: an array that varies over the axes to combine over, usually the batch.
        axis_name: the axes themselves; an empty tuple means that the increment is the same everywhere and counts once.
        alike: whether an increment that nothing tells about is the same everywhere and counts once.

    Raises:
        ReplicasError: inside `shard_map`, where neither the increments nor the arguments tell the axes.
    """
    mapped = mapped_axes()
    if axis_name is not None:
        axes = frozenset(axis_name if isinstance(axis_name, tuple) else (axis_name,)) - frozenset(state.replica_axes)
    elif mapped:
        own = frozenset().union(state.replica_axes, *map(varying_axes, jax.tree.leaves(state.get_raw_value())))
        known = frozenset().union(*map(varying_axes, (*increments, like)))
        if not known and not alike and frozenset(mapped) - own:
            raise ReplicasError(
                compose(
                    state,
                    "inside shard_map, an increment that is the same on every device may mean one event or one each.",
                    got=f"an increment that varies over none of the mapped axes {mapped} (or check_vma=False)",
                    fix=f"like=batch to sum it over the axes the batch is split on, axis_name={mapped!r} to name them, "
                    "or axis_name=() to count it once, as after jax.lax.psum",
                )
            )
        axes = known - own
    else:
        axes = frozenset()
    return tuple(sorted(axes, key=str))


def marked(value: Any, axes: tuple[Hashable, ...]) -> Any:
    """Returns `value` marked as varying over those of `axes` that `shard_map` maps, as its collectives want it."""
    unmarked = tuple(sorted(set(axes) & set(mapped_axes()) - varying_axes(value), key=str))
    return jax.lax.pcast(value, unmarked, to="varying") if unmarked else value


def sum_over(value: jax.Array, axes: tuple[Hashable, ...]) -> jax.Array:
    """Returns the sum of every replica's `value` over mapped axes."""
    return jax.lax.psum(marked(value, axes), axes) if axes else value


def max_over(value: jax.Array, axes: tuple[Hashable, ...]) -> jax.Array:
    """Returns the largest of every replica's `value` over mapped axes."""
    return jax.lax.pmax(marked(value, axes), axes) if axes else value


def min_over(value: jax.Array, axes: tuple[Hashable, ...]) -> jax.Array:
    """Returns the smallest of every replica's `value` over mapped axes."""
    return jax.lax.pmin(marked(value, axes), axes) if axes else value


def count_over(limbs: Limbs, axes: tuple[Hashable, ...]) -> Limbs:
    """Returns the sum of every replica's limbs over mapped axes, exactly and in one collective."""
    return _limbs.psum(marked(limbs, axes), axes) if axes else limbs


def replica_count(axes: tuple[Hashable, ...]) -> int:
    """Returns how many replicas there are along mapped axes."""
    return math.prod(jax.lax.axis_size(axis) for axis in axes)


def on_first(value: jax.Array, axes: tuple[Hashable, ...]) -> jax.Array:
    """Returns `value` on the first replica along `axes`, and 0 on the others."""
    return jnp.where(jax.lax.axis_index(axes) == 0, value, jnp.zeros_like(value))
