# SPDX-License-Identifier: Apache-2.0
"""Counts slot numbers: the inner loop of the histograms, in the fastest form for each platform.

A scatter-add into few slots is bound by the additions: about a nanosecond each on a CPU, and on an accelerator many
threads wait for the same address. So on a CPU two numbers are combined into one, which halves the additions. On other
platforms each of 64 groups of entries has its own slots, and the groups are summed at the end.

Up to 4,096 entries, neither form is faster than one plain scatter-add, and both take XLA about twice as long to compile
(tables of pairs for 128 entries: 13 kernels instead of 5). Small arrays are therefore counted by one scatter-add on
every platform.

Values keep their shape, and neighbours are paired. If XLA splits an array over devices by itself, a `ravel` or distant
halves would move values between devices before they are counted. And XLA adds up the result of a scatter between the
devices at once, before any sum over tables: 64 tables of a `LogHistogram` would be 2.3 MB. So on a mesh, each part
that a device can have is counted in a table of its own (`in_parts`), and one table is sent.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

SlotOf: TypeAlias = Callable[[jax.Array], jax.Array]

_MOST_PAIRED = 128  # slots; the table of pairs, 64 KiB of counts, fits into a core's nearest caches
_FEW = 4096  # entries
_GROUPS = 64
_GROUPS_OF_PART = 16
_LONG = 64  # entries along an axis
_SLOTS_OF_PARTS = 4  # entries for each slot of all parts; with fewer, the sum of the parts would take longest
_SLOTS_SENT = 8192  # 32 KiB, which is short against the latency of an all-reduce


def count_slots(slot_of: SlotOf, x: jax.Array, where: jax.Array | None, *, length: int) -> jax.Array:
    """Returns the number of entries of `x` in each slot.

    Args:
        slot_of: A function from values of any shape to their slots, int32 of the same shape in [0, length).
        x: The values. On an explicit-sharding mesh they may be split over devices.
        where: A boolean mask of the values to count, of the same shape.
        length: The number of slots.

    Returns:
        uint32[length], exact for fewer than 2**32 entries.
    """
    on_cpu = in_pairs if length < _MOST_PAIRED else in_order

    def count(x: jax.Array, where: jax.Array | None) -> jax.Array:
        if x.size <= _FEW:
            return in_order(slot_of, x, where, length=length)
        if (devices := _devices_of_auto_axes(x)) > 1:
            return in_parts(slot_of, x, where, length=length, devices=devices)
        forms = [functools.partial(form, slot_of, length=length) for form in (on_cpu, in_groups)]
        return jax.lax.platform_dependent(x, where, cpu=forms[0], default=forms[1])

    if x.ndim == 0:
        x, where = x[None], None if where is None else where[None]
    return _count_where_they_lie(count, x, where)


def in_order(slot_of: SlotOf, x: jax.Array, where: jax.Array | None, *, length: int) -> jax.Array:
    """Counts by one scatter-add."""
    slots, size = _slots(slot_of, x, where, length), length if where is None else length + 1
    return jnp.zeros(size, jnp.uint32).at[slots].add(1, mode="promise_in_bounds")[:length]


def in_pairs(slot_of: SlotOf, x: jax.Array, where: jax.Array | None, *, length: int) -> jax.Array:
    """Counts pairs of slots in a square table, whose rows and columns are then summed."""
    # The values are split into pairs, not their slots: XLA would fuse a table look-up and the split into a loop with a
    # third of the speed. Splitting neighbours in memory is fastest, and a long axis is the least likely to have odd
    # parts on a mesh.
    size, axis = length + 1, max(range(x.ndim), key=lambda axis: (min(x.shape[axis], _LONG), axis))
    half = x.shape[axis] // 2

    def slots_of(part: Callable[[jax.Array], jax.Array]) -> jax.Array:
        return _slots(slot_of, part(x), None if where is None else part(where), length)

    def every_other(first: int) -> Callable[[jax.Array], jax.Array]:
        def part(values: jax.Array) -> jax.Array:
            pairs = jax.lax.slice_in_dim(values, 0, 2 * half, axis=axis)
            pairs = pairs.reshape(*x.shape[:axis], half, 2, *x.shape[axis + 1 :])
            return jax.lax.index_in_dim(pairs, first, axis + 1, keepdims=False)

        return part

    first, second = slots_of(every_other(0)), slots_of(every_other(1))
    odd = slots_of(lambda values: jax.lax.slice_in_dim(values, 2 * half, None, axis=axis))
    table = jnp.zeros(size * size, jnp.uint32).at[first * size + second].add(1, mode="promise_in_bounds")
    table = table.reshape(size, size)
    counts = (table.sum(0, dtype=jnp.uint32) + table.sum(1, dtype=jnp.uint32))[:length]
    return counts.at[odd].add(1, mode="drop") if odd.size else counts


def in_groups(
    slot_of: SlotOf, x: jax.Array, where: jax.Array | None, *, length: int, groups: int = _GROUPS
) -> jax.Array:
    """Counts in several tables, entry by entry in turn, and sums them."""
    size = length + 1
    slots = _position(x.shape, groups) % groups * size + _slots(slot_of, x, where, length)
    table = jnp.zeros(groups * size, jnp.uint32).at[slots].add(1, mode="promise_in_bounds")
    return table.reshape(groups, size).sum(0, dtype=jnp.uint32)[:length]


def in_parts(slot_of: SlotOf, x: jax.Array, where: jax.Array | None, *, length: int, devices: int) -> jax.Array:
    """Counts each part of an array that XLA may split over `devices`, and sums the parts.

    Each axis is divided into parts whose number is its greatest common divisor with `devices`. If XLA splits the axis
    over some of the devices, their number divides the number of parts. So no part is on two devices, and no value moves
    for the reshape. XLA then splits the tables like the parts, adds up those of one device, and sends their sum.

    If an array is too small for so many tables, it is counted in groups whose tables have at most 32 KiB, or in one.
    """
    parts = [math.gcd(entries, devices) for entries in x.shape]
    groups = min(_GROUPS_OF_PART, x.size // (_SLOTS_OF_PARTS * (length + 1) * math.prod(parts)))
    if not groups:
        groups = min(_GROUPS, _SLOTS_SENT // (length + 1))
        form = in_order if groups < 2 else functools.partial(in_groups, groups=groups)
        return form(slot_of, x, where, length=length)

    shape = [n for entries, number in zip(x.shape, parts, strict=True) for n in (number, entries // number)]

    def count(x: jax.Array, where: jax.Array | None) -> jax.Array:
        return in_groups(slot_of, x, where, length=length, groups=groups)

    for axis in reversed(range(x.ndim)):  # the outermost `vmap` maps the first axis, and leaves the others in order
        count = jax.vmap(count, in_axes=(axis, None if where is None else axis))
    tables = count(x.reshape(shape), None if where is None else where.reshape(shape))
    return tables.sum(tuple(range(x.ndim)), dtype=jnp.uint32)


def _position(shape: tuple[int, ...], groups: int) -> jax.Array:
    """Returns int32[*shape]: the flat index of each entry, modulo the number of groups or a multiple of it."""
    position, stride = jnp.zeros(shape, jnp.int32), 1
    for axis in reversed(range(len(shape))):
        along = jax.lax.broadcasted_iota(jnp.int32, shape, axis) % groups
        position, stride = position + along * (stride % groups), stride * shape[axis]
    return position


def _devices_of_auto_axes(x: jax.Array) -> int:
    """Returns the number of devices over which XLA may split an array by itself.

    They are those along the mesh axes of type Auto, on which no trace can see the sharding. The mesh of an array comes
    from the arguments of `jit`. If only `in_shardings` has the mesh, it is not visible either, and the result is 1.
    """
    mesh = jax.typeof(x).sharding.mesh
    kinds = zip(mesh.axis_sizes, mesh.axis_types, strict=True)
    return math.prod(size for size, kind in kinds if kind == jax.sharding.AxisType.Auto)


def _slots(slot_of: SlotOf, x: jax.Array, where: jax.Array | None, length: int) -> jax.Array:
    """Returns the slots. An entry that is not counted gets `length`, which is one past the end."""
    return slot_of(x) if where is None else jnp.where(where, slot_of(x), length)


def _count_where_they_lie(
    count: Callable[[jax.Array, jax.Array | None], jax.Array], x: jax.Array, where: jax.Array | None
) -> jax.Array:
    """Returns `count(x, where)` of a global array, summed over the parts on the devices of an explicit-sharding mesh.

    On an explicit mesh, JAX requires the output sharding of gathers and scatters. Here each device counts its own part.
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
