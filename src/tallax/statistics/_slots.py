# SPDX-License-Identifier: Apache-2.0
"""How often does each slot number occur? The inner loop of the histograms, in the form that each platform likes.

A scatter-add into few slots is bound by the adds themselves: about a nanosecond each on a CPU, and on an accelerator
many threads queue for the same address. On a CPU two numbers are therefore combined into one, which halves the adds.
Elsewhere each of 64 groups of entries has slots of its own, and the groups are summed at the end.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

_MOST_PAIRED = 128  # slots; their square, 64 KiB of counts, stays in a core's nearest caches
_GROUPS = 64


def count_slots(slots: jax.Array, length: int) -> jax.Array:
    """Returns how often each of the numbers below `length` occurs.

    Args:
        slots: int32[n] in [0, length]; `length` itself marks an entry that is not to be counted.
        length: the number of slots.

    Returns:
        uint32[length]; exact for fewer than 2**32 entries.
    """
    on_cpu = in_pairs if length < _MOST_PAIRED else in_order
    return jax.lax.platform_dependent(
        slots, cpu=functools.partial(on_cpu, length=length), default=functools.partial(in_groups, length=length)
    )


def in_order(slots: jax.Array, *, length: int) -> jax.Array:
    """Counts by one scatter-add."""
    return jnp.zeros(length, jnp.uint32).at[slots].add(1, mode="drop")


def in_pairs(slots: jax.Array, *, length: int) -> jax.Array:
    """Counts pairs of numbers in a square table, whose rows and columns are then summed."""
    size, half = length + 1, slots.shape[0] // 2
    pairs = slots[:half] * size + slots[half : 2 * half]
    table = jnp.zeros(size * size, jnp.uint32).at[pairs].add(1, mode="promise_in_bounds").reshape(size, size)
    counts = (table.sum(0, dtype=jnp.uint32) + table.sum(1, dtype=jnp.uint32))[:length]
    return counts.at[slots[2 * half :]].add(1, mode="drop")  # the odd one


def in_groups(slots: jax.Array, *, length: int) -> jax.Array:
    """Counts in 64 tables, entry by entry in turn, and sums them."""
    size = length + 1
    group = jnp.arange(slots.shape[0], dtype=jnp.int32) % _GROUPS
    table = jnp.zeros(_GROUPS * size, jnp.uint32).at[group * size + slots].add(1, mode="promise_in_bounds")
    return table.reshape(_GROUPS, size).sum(0, dtype=jnp.uint32)[:length]


def count_where_they_lie(
    count: Callable[[jax.Array, jax.Array | None], jax.Array], x: jax.Array, where: jax.Array | None
) -> jax.Array:
    """Returns `count(x, where)` of a global array, summed over the parts that an explicit-sharding mesh splits it into.

    JAX asks for the output sharding of gathers and scatters on an explicit mesh; here each device counts its own part.
    """
    sharding = jax.typeof(x).sharding
    axes = tuple(name for part in sharding.spec if part for name in (part if isinstance(part, tuple) else (part,)))
    if not axes:
        return count(x, where)
    if where is not None:
        where = jax.sharding.reshard(where, sharding)
    return jax.shard_map(
        lambda x, where: jax.lax.psum(count(x, where), axes),
        mesh=sharding.mesh,
        in_specs=(sharding.spec, None if where is None else sharding.spec),
        out_specs=jax.P(),
        axis_names=frozenset(axes),
    )(x, where)
