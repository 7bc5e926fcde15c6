# SPDX-License-Identifier: Apache-2.0
"""The numbers of a tensor, in one pass over it, and their addition to the state of a `Summary`.

`parts_of` reduces a tensor to six numbers. One variadic `lax.reduce` computes five of them, because six reductions of
their own took twice as long to compile (15 s instead of 8 s for 42 sites of a transformer).

The state is 13 words of 32 bits. They are integers, so that casting the floats of a model to bfloat16 does not touch
them:

    0-5     size, zeros, nonfinite: exact counts of two words each
    6-7     the update at which the largest magnitude came, two words
    8       the bits of the largest magnitude
    9-12    the bits of two float32 pairs: sum and sum of squares, high words first

On a mesh a state has `rows`: one for each device along the axes of the batch, so that a tensor that is split over
them is reduced without any collective. The rows are added up when the state is read.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap

from tallax import _uint64
from tallax._mesh_axes import marked
from tallax.statistics import _two_floats

WORDS = 13
COUNTS, AT, LARGEST, HIGH, LOW = slice(0, 6), slice(6, 8), 8, slice(9, 11), slice(11, 13)


class Parts(NamedTuple):
    """The numbers of one or more tensors; each has the shape of the rows."""

    sums: jax.Array  # float32[*rows, 2]: of the finite entries, and of their squares
    largest: jax.Array  # float32[*rows]: the largest magnitude of the finite entries, 0 if there are none
    counts: jax.Array  # limbs, uint32[*rows, 3, 2]: entries, zeros, and entries that are NaN or infinite


class Layout(NamedTuple):
    """How the numbers of tensors are reduced.

    Attributes:
        rows: the number of rows; None if the state has no axis for them.
        axis: the axis of the tensors that is split over the rows, if its size allows it.
        over: the mapped mesh axes that the numbers are combined over, inside `shard_map`.
    """

    rows: int | None = None
    axis: int = 0
    over: tuple[Hashable, ...] = ()


def parts_of(x: jax.Array, where: jax.Array | None, layout: Layout) -> Parts:
    """Returns the numbers of a tensor of floats, of the entries where `where` is true."""
    x = (jnp.abs(x) if jnp.iscomplexobj(x) else x).astype(jnp.float32)
    if layout.rows is None:
        return _combined(_reduced(x, where, tuple(range(x.ndim))), layout.over)
    axis = None if layout.over else _row_axis(x.shape, layout.rows, layout.axis)
    if axis is None:  # all of it in the first row, by a collective if the tensor is split
        whole = _combined(_reduced(x, where, tuple(range(x.ndim))), layout.over)
        return Parts(*(jnp.zeros((layout.rows, *part.shape), part.dtype).at[0].set(part) for part in whole))
    shape = (*x.shape[:axis], layout.rows, x.shape[axis] // layout.rows, *x.shape[axis + 1 :])
    x = x.reshape(shape)
    where = None if where is None else where.reshape(shape)
    return _reduced(x, where, tuple(k for k in range(x.ndim) if k != axis))


def _row_axis(shape: Sequence[int], rows: int, axis: int) -> int | None:
    """Returns the axis to split over the rows: `axis` if its size is a multiple, or the first that has one, or None."""
    return next((k for k in (axis, *range(len(shape))) if k < len(shape) and shape[k] and shape[k] % rows == 0), None)


def _reduced(x: jax.Array, where: jax.Array | None, axes: tuple[int, ...]) -> Parts:
    finite = jnp.isfinite(x)
    nonfinite, zero = ~finite, x == 0
    if where is not None:
        finite, nonfinite, zero = finite & where, nonfinite & where, zero & where
    value = jnp.where(finite, x, 0.0)
    operands = (value, value * value, jnp.abs(value), zero.astype(jnp.uint32), nonfinite.astype(jnp.uint32))
    initial = (*[np.float32(0)] * 3, *[np.uint32(0)] * 2)
    if axes:
        total, square, largest, zeros, others = jax.lax.reduce(operands, initial, _add_or_largest, axes)
    else:
        total, square, largest, zeros, others = operands
    if where is None:
        size = jnp.full_like(zeros, math.prod(x.shape[axis] for axis in axes))
    else:
        size = where.sum(axes, dtype=jnp.uint32)
    counts = _uint64.pair(jnp.stack([size, zeros, others], -1))
    return Parts(jnp.stack([total, square], -1), largest, counts)


def _add_or_largest(left: Sequence[Any], right: Sequence[Any]) -> tuple[Any, ...]:
    added = [a + b for a, b in zip(left, right, strict=True)]
    return added[0], added[1], jnp.maximum(left[2], right[2]), added[3], added[4]


def joined(parts: Sequence[Parts]) -> Parts:
    """Returns the numbers of several tensors together."""
    result = parts[0]
    for part in parts[1:]:
        counts = _uint64.add(result.counts, part.counts)
        result = Parts(result.sums + part.sums, jnp.maximum(result.largest, part.largest), counts)
    return result


def _combined(parts: Parts, over: tuple[Hashable, ...]) -> Parts:
    """Returns the numbers of all replicas together, by a single all-reduce.

    Each replica writes its words into a row of zeros of its own, so the sum over the replicas has all rows. An
    all-gather would do the same, but `shard_map` does not infer that its result is equal on all replicas.
    """
    if not over:
        return parts
    floats = jnp.concatenate([parts.sums, parts.largest[None]])
    words = jnp.concatenate([jax.lax.bitcast_convert_type(floats, jnp.uint32), parts.counts.ravel()])
    replicas = math.prod(jax.lax.axis_size(axis) for axis in over)
    rows = jnp.zeros((replicas, words.shape[0]), jnp.uint32).at[jax.lax.axis_index(over)].set(words)
    rows = jax.lax.psum(marked(rows, over), over)
    floats = jax.lax.bitcast_convert_type(rows[:, :3], jnp.float32)
    counts = rows[:, 3:].reshape(replicas, 3, 2)
    low, high = (_uint64.total(counts[..., word], (0,)) for word in (0, 1))
    counts = _uint64.add(low, _uint64.pair(jnp.zeros_like(high[..., 0]), high[..., 0]))
    return Parts(floats[:, :2].sum(0), floats[:, 2].max(0), counts)


def folded(words: jax.Array, parts: Parts, at: jax.Array) -> jax.Array:
    """Returns the state after the numbers of one update.

    Args:
        words: the state, uint32[*rows, 13].
        parts: the numbers.
        at: the number of the update, two words; leading axes must be those of a stack.
    """
    counts = words[..., COUNTS].reshape(*words.shape[:-1], 3, 2)
    sums = (_floats(words[..., HIGH]), _floats(words[..., LOW]))
    high, low = _two_floats.add_float(sums, parts.sums)
    largest = _floats(words[..., LARGEST])
    first = _uint64.is_zero(words[..., AT]) & ~_uint64.is_zero(parts.counts[..., 0, :])
    larger = (parts.largest > largest) | first
    return jnp.concatenate(
        [
            _uint64.add(counts, parts.counts).reshape(*words.shape[:-1], 6),
            jnp.where(larger[..., None], jnp.broadcast_to(at, words[..., AT].shape), words[..., AT]),
            _bits(jnp.where(larger, parts.largest, largest))[..., None],
            _bits(high),
            _bits(low),
        ],
        -1,
    )


def merged(left: jax.Array, right: jax.Array) -> jax.Array:
    """Returns the union of two states, each uint32[*rows, 13]."""
    high, low = _two_floats.add(
        (_floats(left[..., HIGH]), _floats(left[..., LOW])), (_floats(right[..., HIGH]), _floats(right[..., LOW]))
    )
    counts = [part[..., COUNTS].reshape(*part.shape[:-1], 3, 2) for part in (left, right)]
    ours, theirs = _floats(left[..., LARGEST]), _floats(right[..., LARGEST])
    empty, others = (_uint64.is_zero(part[..., AT]) for part in (left, right))
    earlier = _uint64.less(right[..., AT], left[..., AT])
    better = ~others & (empty | (theirs > ours) | ((theirs == ours) & earlier))
    return jnp.concatenate(
        [
            _uint64.add(*counts).reshape(*left.shape[:-1], 6),
            jnp.where(better[..., None], right[..., AT], left[..., AT]),
            _bits(jnp.where(better, theirs, ours))[..., None],
            _bits(high),
            _bits(low),
        ],
        -1,
    )


class When(NamedTuple):
    """When an update takes place.

    Attributes:
        at: the number of the update, two words.
        due: whether the tensors are looked at; None if at every update.
        restart: whether the state starts from zero; None if it never does.
    """

    at: jax.Array
    due: jax.Array | None
    restart: jax.Array | None


def observed(words: jax.Array, when: When, leaves: Sequence[jax.Array], where: Any, layout: Layout) -> jax.Array:
    """Returns the state after an update with some tensors, which are reduced only if the update is due."""
    return _observe(layout)(words, when, list(leaves), where)


@functools.cache
def _observe(layout: Layout) -> Callable[..., jax.Array]:
    def observe(words: jax.Array, when: When, leaves: list[jax.Array], where: Any) -> jax.Array:
        def after(words: jax.Array, leaves: list[jax.Array]) -> jax.Array:
            if when.restart is not None:
                words = jnp.where(when.restart, jnp.uint32(0), words)
            return folded(words, joined([parts_of(x, where, layout) for x in leaves]), when.at)

        if when.due is None:
            return after(words, leaves)
        return jax.lax.cond(when.due, after, lambda words, _: words, words, leaves)

    # A state that all lanes of `vmap` share takes in the entries of all of them, as if the model had been called with
    # the whole batch. Without this rule `vmap` would make one state for each lane, which no Variable can hold.
    mapped = custom_vmap(observe)

    @mapped.def_vmap
    def _(axis_size: int, is_mapped: Any, words: Any, when: When, leaves: Any, where: Any) -> tuple[Any, bool]:
        if any(jax.tree.leaves(is_mapped[:2])):
            axes = jax.tree.map(lambda each: 0 if each else None, is_mapped)
            return jax.vmap(observe, axes, axis_size=axis_size)(words, when, leaves, where), True

        def whole(x: jax.Array, each: bool) -> jax.Array:
            # Last, so that the axis that is split over the rows stays where it is.
            return jnp.moveaxis(x if each else jnp.broadcast_to(x, (axis_size, *x.shape)), 0, -1)

        leaves, where = jax.tree.map(whole, (leaves, where), tuple(is_mapped[2:]))
        return mapped(words, when, leaves, where), False

    return jax.jit(mapped, inline=True)


def _floats(words: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(words, jnp.float32)


def _bits(floats: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(floats, jnp.uint32)
