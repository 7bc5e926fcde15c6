# SPDX-License-Identifier: Apache-2.0
"""The numbers of a tensor, and their addition to the state of a `Summary`.

`lanes_of` reduces a tensor by four plain reductions of floats. XLA's CPU backend has a library for these: for a dozen
tensors of half a million entries they take 23 ms to run and 0.04 s to compile, where one variadic `lax.reduce` takes 64
ms and 0.3 s, and reductions that count comparisons take 110 ms and 0.8 s. Entries that are NaN or infinite are
therefore not counted one by one; the tensor that has one is counted, and its numbers are left out.

Any kernel that is not from the library takes 14 to 25 ms to compile, however small. So the *lanes* of a tensor are
float32 that need no further arithmetic, and `parts_from` computes the rest from the lanes of many tensors at once:

    0       the number of tensors
    1-3     sum, sum of squares, largest magnitude
    4-12    entries, entries that are not zero, tensors that are not finite: digits of 12, 20 and 20 bits each

The lanes of a single tensor may be NaN or infinite. `lanes_from` makes the lanes of several tensors, which are finite,
and of which each count can be added 4,096 times exactly.

The state is 17 words of 32 bits. They are integers, so that casting the floats of a model to bfloat16 does not touch
them:

    0-5     size, zeros, nonfinite: exact counts of two words each
    6-7     the update at which the largest magnitude came, two words
    8       the bits of the largest magnitude
    9-12    the bits of two float32 pairs: sum and sum of squares, high words first
    13-14   the first update with an entry that was NaN or infinite, two words
    15-16   the number of updates, two words; the same in all rows

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

WORDS = 17
COUNTS, AT, LARGEST, HIGH, LOW = slice(0, 6), slice(6, 8), 8, slice(9, 11), slice(11, 13)
NONFINITE_AT, UPDATES = slice(13, 15), slice(15, 17)
LANES = 13
_DIGIT = 12
_EXACT = 2**24  # up to which a float32 counts


class Parts(NamedTuple):
    """The numbers of one or more tensors; each has the shape of the rows."""

    sums: jax.Array  # float32[*rows, 2]: of the entries, and of their squares
    largest: jax.Array  # float32[*rows]: the largest magnitude, 0 if there are no entries
    # uint32[*rows, 3, 2], two words each: entries, zeros, and tensors that were left out as not finite
    counts: jax.Array


class Layout(NamedTuple):
    """The layout of the numbers of a tensor: rows, axis and replicas.

    Attributes:
        rows: the number of rows; None if the state has no axis for them.
        axis: the axis of the tensors that is split over the rows, if its size allows it; None for the first row only.
        over: the mapped mesh axes that the numbers are combined over, inside `shard_map`.
        kept: the mapped mesh axes along which the state is per-replica.
    """

    rows: int | None = None
    axis: int | None = 0
    over: tuple[Hashable, ...] = ()
    kept: tuple[Hashable, ...] = ()


def parts_of(x: jax.Array, where: jax.Array | None, layout: Layout) -> Parts:
    """Returns the numbers of a tensor of floats, of the entries where `where` is true."""
    if not layout.over:
        return parts_from(lanes_of(x, where, layout))
    parts, rows = _combined(parts_from(lanes_of(x, where, Layout())), layout.over), layout.rows
    return parts if rows is None else jax.tree.map(lambda part: in_first_row(part, rows), parts)


def lanes_of(x: jax.Array, where: jax.Array | None, layout: Layout) -> jax.Array:
    """Returns the lanes of a single tensor, float32[*rows, 13]."""
    x = (jnp.abs(x) if jnp.iscomplexobj(x) else x).astype(jnp.float32)
    if layout.rows is None:
        return _reduced(x, where, tuple(range(x.ndim)))
    axis = axis_of_rows(x.shape, layout.rows, layout.axis)
    if axis is None:
        # No axis can be split over the rows, so all is in the first row: by a collective, if the tensor is split.
        return in_first_row(_reduced(x, where, tuple(range(x.ndim))), layout.rows)
    shape = (*x.shape[:axis], layout.rows, x.shape[axis] // layout.rows, *x.shape[axis + 1 :])
    where = None if where is None else where.reshape(shape)
    return _reduced(x.reshape(shape), where, tuple(k for k in range(len(shape)) if k != axis))


def in_first_row(part: jax.Array, rows: int) -> jax.Array:
    """Returns numbers as the first of several rows; the others are zeros."""
    return jnp.zeros((rows, *part.shape), part.dtype).at[0].set(part)


def axis_of_rows(shape: Sequence[int], rows: int, start: int | None) -> int | None:
    """Returns the axis to split over the rows: `start` if its size is a multiple, or the first that fits, or None."""
    axes = [] if start is None else [start, *range(len(shape))]
    return next((k for k in axes if k < len(shape) and shape[k] and shape[k] % rows == 0), None)


def _reduced(x: jax.Array, where: jax.Array | None, axes: tuple[int, ...]) -> jax.Array:
    entries = math.prod(x.shape[axis] for axis in axes)
    rows = tuple(size for axis, size in enumerate(x.shape) if axis not in axes)

    def fixed(*lanes: int) -> np.ndarray:
        return np.broadcast_to(np.array(lanes, np.float32), (*rows, len(lanes)))

    def lane(part: jax.Array) -> jax.Array:
        return jax.lax.expand_dims(part, [len(rows)])

    size: Any = fixed(entries & (2**_DIGIT - 1), (entries & _uint64.WORD) >> _DIGIT, entries >> 32)
    if where is not None:
        x, size = jnp.where(where, x, 0.0), _digits(_uint64.total(jnp.broadcast_to(where, x.shape), axes))
    # `max` of no entries has no value; with `initial=0.0` XLA would compile a second kernel for it.
    largest = jnp.abs(x).max(axes) if entries else jnp.zeros(rows, jnp.float32)
    # 1 for each entry but zeros, by operations of the library without constants. A constant, as in `minimum(x, 1.0)`,
    # is an array of the tensor's size, which the library reads, and which lives as long as the step.
    ones = jnp.abs(jnp.sign(x))
    last = x.ndim - 1
    if entries <= _EXACT:
        others = [lane(ones.sum(axes)), fixed(0, 0)]
    elif last in axes and x.shape[last] <= _EXACT:
        others = [_digits(_uint64.total(ones.sum(-1).astype(jnp.uint32), [axis for axis in axes if axis < last]))]
    else:
        others = [_digits(_uint64.total(ones >= 1.0, axes))]
    sums = [lane(x.sum(axes)), lane((x * x).sum(axes)), lane(largest)]
    return jax.lax.concatenate([fixed(1), *sums, size, *others, fixed(0, 0, 0)], len(rows))


def _digits(counts: jax.Array) -> jax.Array:
    """Returns counts below 2**52 as float32[..., 3]."""
    low, high = counts[..., 0], counts[..., 1]
    return jnp.stack([low & (2**_DIGIT - 1), low >> _DIGIT, high], -1).astype(jnp.float32)


def lanes_from(parts: Parts) -> jax.Array:
    """Returns the lanes of several tensors, float32[*rows, 13], for which `parts_from` returns their numbers."""
    size, zeros, nonfinite = (parts.counts[..., k, :] for k in range(3))
    counts = [_digits(count) for count in (size, _uint64.minus(size, zeros), nonfinite)]
    floats = [jnp.ones_like(parts.largest)[..., None], parts.sums, parts.largest[..., None]]
    return jnp.concatenate([*floats, *counts], -1)


def parts_from(lanes: jax.Array) -> Parts:
    """Returns the numbers that the lanes of one or more tensors stand for."""
    total, largest = lanes[..., 1], lanes[..., 3]
    low, middle, high = (lanes[..., 4 + k : LANES : 3].astype(jnp.uint32) for k in range(3))
    counts = _uint64.add(_uint64.pair(low), _uint64.pair(middle << _DIGIT, (middle >> (32 - _DIGIT)) + high))
    finite = jnp.isfinite(largest) & ~jnp.isnan(total)  # `max` may drop a NaN, the sum never does
    size, others, nonfinite = (jnp.where(finite[..., None], counts[..., k, :], jnp.uint32(0)) for k in range(3))
    nonfinite = _uint64.add(nonfinite, _uint64.pair(~finite))
    return Parts(
        jnp.where(finite[..., None], lanes[..., 1:3], 0.0),
        jnp.where(finite, largest, 0.0),
        jnp.stack([size, _uint64.minus(size, others), nonfinite], -2),
    )


def joined(left: Parts, right: Parts) -> Parts:
    """Returns the numbers of two sets of tensors together."""
    counts = _uint64.add(left.counts, right.counts)
    return Parts(left.sums + right.sums, jnp.maximum(left.largest, right.largest), counts)


def _combined(parts: Parts, over: tuple[Hashable, ...]) -> Parts:
    """Returns the numbers of all replicas together, by a single all-reduce.

    Each replica writes its lanes into a row of zeros of its own, so the sum over the replicas has all rows. An
    all-gather would do the same, but `shard_map` does not infer that its result is equal on all replicas.
    """
    if not over:
        return parts
    replicas = math.prod(jax.lax.axis_size(axis) for axis in over)
    rows = marked(jnp.zeros((replicas, LANES)), over).at[jax.lax.axis_index(over)].set(lanes_from(parts))
    parts = parts_from(jax.lax.psum(rows, over))
    counts = functools.reduce(_uint64.add, [parts.counts[k] for k in range(replicas)])
    return Parts(parts.sums.sum(0), parts.largest.max(0), counts)


def begun(words: jax.Array, window: int | None) -> jax.Array:
    """Returns the state at the beginning of an update, which is counted; after a window, the numbers start again."""
    updates = words[..., UPDATES]
    numbers = words[..., : UPDATES.start]
    if window is not None:
        numbers = jnp.where(_uint64.divisible(updates, window)[..., None], jnp.uint32(0), numbers)
    return jnp.concatenate([numbers, _uint64.add(updates, jnp.asarray(_uint64.full(updates.shape[:-1], 1)))], -1)


def folded(words: jax.Array, parts: Parts) -> jax.Array:
    """Returns the state after the numbers of one update.

    Args:
        words: the state, uint32[..., *rows, 17], which has counted the update.
        parts: the numbers, with the same leading axes.
    """
    counts, at = words[..., COUNTS].reshape(*words.shape[:-1], 3, 2), words[..., UPDATES]
    sums = (floats_of(words[..., HIGH]), floats_of(words[..., LOW]))
    high, low = _two_floats.add_float(sums, parts.sums)
    largest = floats_of(words[..., LARGEST])
    first = _uint64.is_zero(words[..., AT]) & ~_uint64.is_zero(parts.counts[..., 0, :])
    larger = (parts.largest > largest) | first
    fails = _uint64.is_zero(words[..., NONFINITE_AT]) & ~_uint64.is_zero(parts.counts[..., 2, :])
    return jnp.concatenate(
        [
            _uint64.add(counts, parts.counts).reshape(*words.shape[:-1], 6),
            jnp.where(larger[..., None], at, words[..., AT]),
            bits_of(jnp.where(larger, parts.largest, largest))[..., None],
            bits_of(high),
            bits_of(low),
            jnp.where(fails[..., None], at, words[..., NONFINITE_AT]),
            at,
        ],
        -1,
    )


def merged(left: jax.Array, right: jax.Array, *, is_replica: bool) -> jax.Array:
    """Returns the union of two states, each uint32[*rows, 17]; replicas took the same updates."""
    high, low = _two_floats.add(
        (floats_of(left[..., HIGH]), floats_of(left[..., LOW])),
        (floats_of(right[..., HIGH]), floats_of(right[..., LOW])),
    )
    counts = [part[..., COUNTS].reshape(*part.shape[:-1], 3, 2) for part in (left, right)]
    ours, theirs = left[..., UPDATES], right[..., UPDATES]
    most = jnp.where(_uint64.less(ours, theirs)[..., None], theirs, ours)
    updates = most if is_replica else _uint64.add(ours, theirs)
    ours, theirs = floats_of(left[..., LARGEST]), floats_of(right[..., LARGEST])
    tie = (theirs == ours) & (_first(left, right, AT) == right[..., AT]).all(-1)
    better = ((theirs > ours) | tie)[..., None]
    return jnp.concatenate(
        [
            _uint64.add(*counts).reshape(*left.shape[:-1], 6),
            jnp.where(better, right[..., AT], left[..., AT]),
            bits_of(jnp.maximum(ours, theirs))[..., None],
            bits_of(high),
            bits_of(low),
            _first(left, right, NONFINITE_AT),
            updates,
        ],
        -1,
    )


def _first(left: jax.Array, right: jax.Array, place: slice) -> jax.Array:
    """Returns the smaller of two numbers of updates that are not 0; 0 if both are."""
    ours, theirs = left[..., place], right[..., place]
    is_theirs = ~_uint64.is_zero(theirs) & (_uint64.is_zero(ours) | _uint64.less(theirs, ours))
    return jnp.where(is_theirs[..., None], theirs, ours)


def in_auto_axes(function: Callable[..., Any], like: Any) -> Callable[..., Any]:
    """Returns a function that may mix arrays which an explicit mesh splits in different ways.

    A reduction per device is a reshape, and JAX refuses to stack its result with replicated numbers if the axes of the
    mesh are explicit. Inside the function they are automatic.

    Args:
        function: the function.
        like: arrays with the shardings of the results.
    """
    sharding = jax.typeof(jax.tree.leaves(like)[0]).sharding
    types = zip(sharding.mesh.axis_names, sharding.mesh.axis_types, strict=True)
    axes = tuple(name for name, kind in types if kind == jax.sharding.AxisType.Explicit)
    if not axes:
        return function
    shardings = jax.tree.map(lambda each: jax.typeof(each).sharding.spec, like)
    return functools.partial(jax.sharding.auto_axes(function, axes=axes), out_sharding=shardings)


def zeros_on_rows(shape: tuple[int, ...], dtype: Any, words: jax.Array) -> jax.Array:
    """Returns zeros whose last two axes are split as those of a state, if an explicit mesh splits them."""
    zeros = jnp.zeros(shape, dtype)
    sharding = jax.typeof(words).sharding
    if not any(sharding.spec):
        return zeros
    spec = [*[None] * (len(shape) - 2), *sharding.spec[-2:]]
    return jax.sharding.reshard(zeros, jax.NamedSharding(sharding.mesh, jax.P(*spec)))


def observed(
    words: jax.Array, due: Any, leaves: Sequence[jax.Array], where: Any, layout: Layout, window: int | None
) -> jax.Array:
    """Returns the state after an update with some tensors, which are reduced only if the update is due."""
    observe = _observe(layout, window)
    return in_auto_axes(observe, words)(words, due, (list(leaves), where))


def added(step: jax.Array, due: Any, leaves: Sequence[jax.Array], layout: Layout, *, is_first: bool) -> jax.Array:
    """Returns the lanes of a step after some more tensors; `is_first` if there are none so far."""
    observe = _observe(layout, None, is_first if len(leaves) == 1 and not layout.over else False)
    return in_auto_axes(observe, step)(step, due, (list(leaves), None))


@functools.cache
def _observe(layout: Layout, window: int | None, is_first: bool | None = None) -> Callable[..., jax.Array]:
    """Returns the function of `observed`, or if `is_first` is not None, that of `added`."""

    def observe(words: jax.Array, due: Any, tensors: tuple[list[jax.Array], Any]) -> jax.Array:
        def after(words: jax.Array, tensors: tuple[list[jax.Array], Any]) -> jax.Array:
            leaves, where = tensors
            if is_first:
                return lanes_of(leaves[0], where, layout)
            parts = functools.reduce(joined, [parts_of(x, where, layout) for x in leaves])
            return folded(words, parts) if is_first is None else lanes_from(joined(parts_from(words), parts))

        if is_first is None:
            words = begun(words, window)
        if due is None:
            return after(words, tensors)
        return jax.lax.cond(due, after, lambda words, _: words, words, tensors)

    # Last, so that the axis that is split over the rows stays where it is.
    return jax.jit(with_all_of_vmap(observe, -1), inline=True)


def with_all_of_vmap(update: Callable[[Any, Any, Any], jax.Array], axis: int) -> Callable[..., jax.Array]:
    """Returns `update(state, due, tensors)` such that a state that all lanes of `vmap` share takes those of all lanes.

    It is as if the model had been called with the whole batch. Without this rule `vmap` would make one state for each
    lane, which no Variable can hold.

    Args:
        update: the function.
        axis: the place of the axis of `vmap` in the tensors.
    """
    mapped = custom_vmap(update)

    @mapped.def_vmap
    def in_vmap(size: int, is_mapped: Any, state: Any, due: Any, tensors: Any) -> tuple[Any, bool]:
        if any(jax.tree.leaves(is_mapped[:2])):
            axes = jax.tree.map(lambda each: 0 if each else None, is_mapped)
            return jax.vmap(update, axes, axis_size=size)(state, due, tensors), True

        def whole(x: jax.Array, each: bool) -> jax.Array:
            return jnp.moveaxis(x if each else jnp.broadcast_to(x, (size, *x.shape)), 0, axis)

        return mapped(state, due, jax.tree.map(whole, tensors, is_mapped[2])), False

    del in_vmap  # which `mapped` keeps
    return mapped


def floats_of(words: Any) -> jax.Array:
    """Returns the float32 whose bits some words are."""
    return jax.lax.bitcast_convert_type(words, jnp.float32)


def bits_of(floats: jax.Array) -> jax.Array:
    """Returns the bits of float32 as words."""
    return jax.lax.bitcast_convert_type(floats, jnp.uint32)
