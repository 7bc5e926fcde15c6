# SPDX-License-Identifier: Apache-2.0
"""The mesh axes that a value varies on, and the sum of an increment over them.

Inside `shard_map` every array has the set of mesh axes that it *varies* on. An increment that varies on `data` was
computed from one shard of the batch, so the count of the whole batch is its sum over `data`, and over no other axis: a
sum over an axis on which it is replicated would count it once per replica. The increment is summed, never the total.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from tallax import _uint64
from tallax._errors import ReplicasError

if TYPE_CHECKING:
    from tallax._uint64 import Limbs

AxisName: TypeAlias = Hashable | tuple[Hashable, ...]


class Combination(NamedTuple):
    """The reduction of an increment over replicas, before it is added to a state.

    Attributes:
        over: The axes to sum over.
        once: The axes along which the state is per-replica and the increment is the same. Only the first replica along
            these axes adds it, because otherwise the sum over all replicas would contain it several times.
    """

    over: tuple[Hashable, ...] = ()
    once: tuple[Hashable, ...] = ()


NOT_COMBINED = Combination()


def varying_axes(value: Any) -> frozenset[Hashable]:
    """Returns the mesh axes that `value` varies on; empty outside `shard_map`, and under `check_vma=False`."""
    if not isinstance(value, jax.Array):
        return frozenset()
    kind = jax.typeof(value)
    manual = getattr(kind, "manual_axis_type", None)
    return frozenset(manual.varying if manual is not None else kind.vma)  # older versions of JAX call it `vma`


def mapped_axes() -> tuple[Hashable, ...]:
    """Returns the mesh axes that the surrounding `shard_map` maps over; empty outside `shard_map`."""
    return tuple(jax.sharding.get_abstract_mesh().manual_axes)


def axes_to_combine(
    *increments: Any, state: Any, like: Any = None, axis_name: AxisName | None = None, alike: bool = False
) -> Combination:
    """Returns the reduction of an update's increments before they are added to `state`.

    An increment is summed over the axes that it varies on, and over no others. Along an axis of per-replica state, each
    replica keeps its own increment if the increments vary. If they are all the same, only the first replica keeps it.

    Args:
        *increments: The arrays computed from one replica's part of the data.
        state: The tallax variable that they are added to.
        like: An array that varies on the axes to combine over, usually the batch.
        axis_name: The axes to combine over. An empty tuple means that the increment is the same everywhere and counts
            once.
        alike: Whether an increment without known axes is the same everywhere and counts once.

    Raises:
        ReplicasError: Inside `shard_map`, neither the increments nor the arguments determine the axes.
    """
    mapped = mapped_axes()
    if axis_name is None and not mapped:
        return NOT_COMBINED
    known, kept = frozenset().union(*map(varying_axes, (*increments, like))), frozenset(state._replica_axes)
    if axis_name is not None:
        named = frozenset(axis_name if isinstance(axis_name, tuple) else (axis_name,))
        return Combination(_in_order(named - kept), _in_order(kept - named - (known if named else frozenset())))
    # State that a user has split by hand varies, but is not declared as per-replica.
    by_hand = frozenset().union(*map(varying_axes, jax.tree.leaves(state.get_raw_value()))) - kept
    if not known and not alike and frozenset(mapped) - by_hand:
        raise ReplicasError(
            state,
            "inside shard_map, an increment that is the same on every device is ambiguous: "
            "it may be one event, or one per device.",
            got=f"an increment that varies over none of the mapped axes {mapped} (or check_vma=False)",
            fix=f"like=batch to sum it over the axes the batch is split on, axis_name={mapped!r} to name them, "
            "or axis_name=() to count it once, as after jax.lax.psum",
        )
    return Combination(_in_order(known - kept - by_hand), _in_order(kept - known))


def axes_of_equal(values: Any, state: Any) -> tuple[Hashable, ...]:
    """Returns the axes along which `state` is per-replica and the arrays in `values` are the same."""
    varying = frozenset().union(*map(varying_axes, jax.tree.leaves(values)))
    return _in_order(frozenset(state._replica_axes) - varying) if mapped_axes() else ()


def _in_order(axes: frozenset[Hashable]) -> tuple[Hashable, ...]:
    return tuple(sorted(axes, key=str))


def marked(value: Any, axes: tuple[Hashable, ...]) -> Any:
    """Returns `value` marked as varying on those of `axes` that `shard_map` maps, as its collectives require."""
    unmarked = tuple(sorted(set(axes) & set(mapped_axes()) - varying_axes(value), key=str))
    return jax.lax.pcast(value, unmarked, to="varying") if unmarked else value


def sum_over(value: Any, axes: tuple[Hashable, ...]) -> jax.Array:
    """Returns the sum of `value` over mapped axes."""
    return jax.lax.psum(marked(value, axes), axes) if axes else value


def max_over(value: jax.Array, axes: tuple[Hashable, ...]) -> jax.Array:
    """Returns the maximum of `value` over mapped axes."""
    return jax.lax.pmax(marked(value, axes), axes) if axes else value


def min_over(value: jax.Array, axes: tuple[Hashable, ...]) -> jax.Array:
    """Returns the minimum of `value` over mapped axes."""
    return jax.lax.pmin(marked(value, axes), axes) if axes else value


def count_over(limbs: Limbs, axes: tuple[Hashable, ...]) -> Limbs:
    """Returns the sum of every replica's limbs over mapped axes, exactly and in one collective."""
    return _uint64.psum(marked(limbs, axes), axes) if axes else limbs


def replica_count(axes: tuple[Hashable, ...]) -> int:
    """Returns the number of replicas along mapped axes."""
    return math.prod(jax.lax.axis_size(axis) for axis in axes)


def on_first(value: Any, axes: tuple[Hashable, ...], otherwise: Any = 0) -> jax.Array:
    """Returns `value` on the first replica along `axes`, and `otherwise` on the others. Without axes: `value`."""
    if not axes:
        return value
    return jnp.where(jax.lax.axis_index(axes) == 0, value, jnp.asarray(otherwise, value.dtype))
