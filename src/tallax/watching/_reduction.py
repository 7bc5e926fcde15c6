# SPDX-License-Identifier: Apache-2.0
"""The lanes of a tensor: its numbers, as float32 that can be added up.

`lanes_of` reduces a tensor by four plain reductions of floats. XLA's CPU backend has a library for these: for a dozen
tensors of half a million entries they take 23 ms to run and 0.04 s to compile, where one variadic `lax.reduce` takes 64
ms and 0.3 s, and reductions that count comparisons take 110 ms and 0.8 s. Entries that are NaN or infinite are
therefore not counted one by one; the tensor that has one is counted, and its numbers are left out.

Any kernel that is not from the library takes 14 to 25 ms to compile, however small. So the *lanes* of a tensor are
float32 that need no further arithmetic, and `folded` in `_summary_words.py` computes the rest from the lanes of many
tensors at once:

    0       the number of tensors
    1-3     sum, sum of squares, largest magnitude
    4-12    entries, entries that are not zero, tensors that are not finite: digits of 12, 20 and 20 bits each

The lanes of a single tensor may be NaN or infinite. `clean_lanes_of` makes lanes that are finite, and that `plus` adds
up, for tensors that are seen several times in a step, or by a layer that is scanned.

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
from tallax._mesh_axes import marked, varying_axes

LANES = 13
_DIGIT = 12
_EXACT = 2**24  # up to which a float32 counts


class Layout(NamedTuple):
    """The layout of the numbers of a tensor: rows, axis and replicas.

    Attributes:
        rows: The number of rows; None if the state has no axis for them.
        axis: The axis of the tensors that is split over the rows, if its size allows it; None for the first row only.
        over: The mapped mesh axes that the numbers are combined over, inside `shard_map`.
        kept: The mapped mesh axes along which the state is per-replica.
    """

    rows: int | None = None
    axis: int | None = 0
    over: tuple[Hashable, ...] = ()
    kept: tuple[Hashable, ...] = ()


def lanes_of(x: jax.Array, where: jax.Array | None, layout: Layout, due: jax.Array | None = None) -> jax.Array:
    """Returns the lanes of a single tensor, float32[*rows, 13].

    If `due` is given and false, the tensor is not read; the lanes still have its size, which the caller must not count.
    """
    x = (jnp.abs(x) if jnp.iscomplexobj(x) else x).astype(jnp.float32)
    if layout.rows is None:
        return _reduced(x, where, tuple(range(x.ndim)), due)
    axis = axis_of_rows(x.shape, layout.rows, layout.axis)
    if axis is None:
        # No axis can be split over the rows, so all is in the first row: by a collective, if the tensor is split.
        return in_first_row(_reduced(x, where, tuple(range(x.ndim)), due), layout.rows)
    shape = (*x.shape[:axis], layout.rows, x.shape[axis] // layout.rows, *x.shape[axis + 1 :])
    where = None if where is None else where.reshape(shape)
    return _reduced(x.reshape(shape), where, tuple(k for k in range(len(shape)) if k != axis), due)


def clean_lanes_of(x: jax.Array, where: jax.Array | None, layout: Layout) -> jax.Array:
    """Returns the lanes of a single tensor so that they can be added up; over all replicas, if the layout says so."""
    if not layout.over:
        return _clean(lanes_of(x, where, layout))
    lanes = _combined(_clean(lanes_of(x, where, Layout())), layout.over)
    return lanes if layout.rows is None else in_first_row(lanes, layout.rows)


def in_first_row(part: jax.Array, rows: int) -> jax.Array:
    """Returns numbers as the first of several rows; the others are zeros."""
    return jnp.zeros((rows, *part.shape), part.dtype).at[0].set(part)


def axis_of_rows(shape: Sequence[int], rows: int, start: int | None) -> int | None:
    """Returns the axis to split over the rows: `start` if its size is a multiple, or the first that fits, or None."""
    axes = [] if start is None else [start, *range(len(shape))]
    return next((k for k in axes if k < len(shape) and shape[k] and shape[k] % rows == 0), None)


def _reduced(x: jax.Array, where: jax.Array | None, axes: tuple[int, ...], due: jax.Array | None = None) -> jax.Array:
    entries = math.prod(x.shape[axis] for axis in axes)
    rows = tuple(size for axis, size in enumerate(x.shape) if axis not in axes)

    def fixed(*lanes: int) -> np.ndarray:
        return np.broadcast_to(np.array(lanes, np.float32), (*rows, len(lanes)))

    size: Any = fixed(*_digits_of_int(entries))
    if where is not None:
        x, size = jnp.where(where, x, 0.0), _digits(_uint64.total(jnp.broadcast_to(where, x.shape), axes))
    if due is None:
        numbers = numbers_of(x, axes)
    else:
        # Only scalars leave the branches: a kernel for an array of lanes in each of them takes longer to compile than
        # all reductions of the tensor.
        shapes = jax.eval_shape(lambda x: numbers_of(x, axes), x)
        zeros = [marked(jnp.zeros(each.shape), tuple(varying_axes(x))) for each in shapes]
        numbers = jax.lax.cond(due, lambda x: numbers_of(x, axes), lambda _: zeros, x)
    lanes = [jax.lax.expand_dims(part, [len(rows)]) if part.ndim == len(rows) else part for part in numbers]
    others = [lanes[3]] if lanes[3].shape[-1] == 3 else [lanes[3], fixed(0, 0)]
    return jax.lax.concatenate([fixed(1), *lanes[:3], size, *others, fixed(0, 0, 0)], len(rows))


def numbers_of(x: jax.Array, axes: tuple[int, ...]) -> list[jax.Array]:
    """Returns the sum, the sum of squares, the largest magnitude and the number of entries that are not zero.

    The last one is a float32 if this counts exactly, or else three digits on a last axis.

    Args:
        x: float32.
        axes: The axes that are reduced.
    """
    entries = math.prod(x.shape[axis] for axis in axes)
    rows = tuple(size for axis, size in enumerate(x.shape) if axis not in axes)
    # `max` of no entries has no value; with `initial=0.0` XLA would compile a second kernel for it.
    largest = jax.lax.reduce_max(jax.lax.abs(x), axes) if entries else jnp.zeros(rows, jnp.float32)
    # 1 for each entry but zeros, by operations of the library without constants. A constant, as in `minimum(x, 1.0)`,
    # is an array of the tensor's size, which the library reads, and which lives as long as the step.
    ones = jax.lax.abs(jax.lax.sign(x))
    last = x.ndim - 1
    if entries <= _EXACT:
        others = jax.lax.reduce_sum(ones, axes)
    elif last in axes and x.shape[last] <= _EXACT:
        counts = jax.lax.reduce_sum(ones, (last,)).astype(jnp.uint32)
        others = _digits(_uint64.total(counts, [axis for axis in axes if axis < last]))
    else:
        others = _digits(_uint64.total(ones >= 1.0, axes))
    return [jax.lax.reduce_sum(x, axes), jax.lax.reduce_sum(x * x, axes), largest, others]


def _digits(counts: jax.Array) -> jax.Array:
    """Returns counts below 2**52 as float32[..., 3]."""
    low, high = counts[..., 0], counts[..., 1]
    return jnp.stack([low & (2**_DIGIT - 1), low >> _DIGIT, high], -1).astype(jnp.float32)


def _digits_of_int(count: int) -> tuple[int, int, int]:
    return count & (2**_DIGIT - 1), (count & _uint64.WORD) >> _DIGIT, count >> 32


def lanes_of_sizes(numbers: jax.Array, sizes: Sequence[int]) -> jax.Array:
    """Returns the lanes of tensors of known sizes, float32[n, 13].

    Args:
        numbers: float32[n, 6]: the lanes 1 to 3 and 7 to 9.
        sizes: The number of entries of each.
    """
    digits = np.array([_digits_of_int(size) for size in sizes], np.float32)
    ones, zeros = np.ones((len(sizes), 1), np.float32), np.zeros((len(sizes), 3), np.float32)
    return jnp.concatenate([ones, numbers[:, :3], digits, numbers[:, 3:], zeros], -1)


_NOT_FINITE = np.array([1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0], np.float32)  # the lanes of a tensor that is not finite
_IS_LARGEST = np.arange(LANES) == 3


def _clean(lanes: jax.Array) -> jax.Array:
    """Returns the lanes of one tensor so that they can be added up: finite, and of which the digits are in range."""
    middle = jnp.floor(lanes[..., 7:8] * 2.0**-_DIGIT)
    place = np.arange(LANES)
    lanes = jnp.where(place == 7, lanes - middle * 2.0**_DIGIT, jnp.where(place == 8, lanes + middle, lanes))
    return jnp.where(_is_finite(lanes)[..., None], lanes, _NOT_FINITE)


def _is_finite(lanes: jax.Array) -> jax.Array:
    return jnp.isfinite(lanes[..., 3]) & ~jnp.isnan(lanes[..., 1])  # `max` may drop a NaN, the sum never does


def plus(left: jax.Array, right: jax.Array) -> jax.Array:
    """Returns the lanes of two sets of tensors together, each clean; counts of up to 2**24 may be added 4,096 times."""
    return jnp.where(_IS_LARGEST, jnp.maximum(left, right), left + right)


def _combined(lanes: jax.Array, over: tuple[Hashable, ...]) -> jax.Array:
    """Returns the lanes of all replicas together, by a single all-reduce.

    Each replica writes its lanes into a row of zeros of its own, so the sum over the replicas has all rows. An
    all-gather would do the same, but `shard_map` does not infer that its result is equal on all replicas.
    """
    if not over:
        return lanes
    replicas = math.prod(jax.lax.axis_size(axis) for axis in over)
    rows = marked(jnp.zeros((replicas, LANES)), over).at[jax.lax.axis_index(over)].set(lanes)
    rows = jax.lax.psum(rows, over)
    columns = columns_of(rows)
    counts = [
        functools.reduce(_uint64.add_columns, [(low[k], high[k]) for k in range(replicas)]) for low, high in columns[3:]
    ]
    size, zeros, nonfinite = counts
    digits = [_digits(jnp.stack(each, -1)) for each in (size, _uint64.subtract_columns(size, zeros), nonfinite)]
    floats = [rows[:, 0].sum(), columns[0].sum(), columns[1].sum(), columns[2].max()]
    return jnp.concatenate([jnp.stack(floats), *digits])


def columns_of(lanes: jax.Array) -> tuple[Any, ...]:
    """Returns the sum, the sum of squares, the largest magnitude, and the counts of entries, zeros and bad tensors."""
    finite = _is_finite(lanes)

    def count(start: int) -> _uint64.Columns:
        first, second, third = (lanes[..., start + k].astype(jnp.uint32) for k in range(3))
        low = first + (second << _DIGIT)
        return low, (second >> (32 - _DIGIT)) + third + (low < first).astype(jnp.uint32)

    def masked(value: Any) -> Any:
        return jnp.where(finite, value, jnp.zeros_like(value))

    size, others = count(4), count(7)
    zeros = _uint64.subtract_columns(size, others)
    nonfinite = _uint64.add_columns(count(10), ((~finite).astype(jnp.uint32), jnp.uint32(0)))
    floats = [masked(lanes[..., k]) for k in (1, 2, 3)]
    return (*floats, *((masked(low), masked(high)) for low, high in (size, zeros)), nonfinite)


def in_auto_axes(function: Callable[..., Any], like: Any) -> Callable[..., Any]:
    """Returns a function that may mix arrays which an explicit mesh splits in different ways.

    A reduction per device is a reshape, and JAX refuses to stack its result with replicated numbers if the axes of the
    mesh are explicit. Inside the function they are automatic.

    Args:
        function: The function.
        like: Arrays with the shardings of the results.
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


def with_all_of_vmap(update: Callable[[Any, Any, Any], jax.Array], axis: int) -> Callable[..., jax.Array]:
    """Returns `update(state, due, tensors)` such that a state that all lanes of `vmap` share takes those of all lanes.

    It is as if the model had been called with the whole batch. Without this rule `vmap` would make one state for each
    lane, which no Variable can hold.

    Args:
        update: The function.
        axis: The place of the axis of `vmap` in the tensors.
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
