# SPDX-License-Identifier: Apache-2.0
"""The numbers of a tensor, and its lanes: the same numbers as float32 that can be added up.

`numbers_of` reduces a tensor by four plain reductions of floats. XLA's CPU backend has a library for these: for a dozen
tensors of half a million entries they take 23 ms to run and 0.04 s to compile, where one variadic `lax.reduce` takes 64
ms and 0.3 s, and reductions that count comparisons take 110 ms and 0.8 s. Entries that are NaN or infinite are
therefore not counted one by one; the tensor that has one is counted, and its numbers are left out.

Any kernel that is not from the library takes 10 to 25 ms to compile, however small, unless XLA has compiled the same
one before. So the four numbers of a tensor that is seen once in a step stay four scalars, a `Numbers`, and
`table_of` puts those of all tensors together. The numbers of other tensors are *lanes*, float32 that need no further
arithmetic:

    0       the number of tensors
    1-3     sum, sum of squares, largest magnitude
    4-12    entries, entries that are not zero, tensors that are not finite: digits of 12, 20 and 20 bits each
    13      1 if the tensors of this step are looked at; a copy of a site within a transformation reads it

The lanes of a single tensor may be NaN or infinite. `clean_lanes_of` makes lanes that are finite, and that `plus` adds
up, for tensors that are seen several times in a step, or by a layer that is scanned. `folded` in `_summary_words.py`
computes the rest from the lanes of many tensors at once.

On a mesh a state has `rows`: one for each device along the axes of the batch, so that a tensor that is split over
them is reduced without any collective. The rows are added up when the state is read.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap

from tallax import _uint64
from tallax._mesh_axes import marked, varying_axes

LANES = 14
DUE = 13
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


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Numbers:
    """The numbers of a tensor; or of several, one after the other on the last axis.

    Attributes:
        total: The sum of the entries, float32[*shape]; the shape is that of the stack and the rows.
        squares: The sum of their squares.
        largest: The largest magnitude.
        others: The number of entries that are not zero: one array if this counts exactly, or else three digits.
        entries: The number of entries: for all, or for each index of the last axis.
    """

    total: jax.Array
    squares: jax.Array
    largest: jax.Array
    others: tuple[jax.Array, ...]
    entries: int | tuple[int, ...] = field(metadata={"static": True})

    @property
    def columns(self) -> tuple[jax.Array, ...]:
        """All arrays."""
        return (self.total, self.squares, self.largest, *self.others)

    def __getitem__(self, k: int) -> Numbers:
        """The numbers of one tensor of several."""
        entries = self.entries if isinstance(self.entries, int) else self.entries[k]
        columns = [column[..., k] for column in self.columns]
        return Numbers(columns[0], columns[1], columns[2], tuple(columns[3:]), entries)

    @property
    def sizes(self) -> np.ndarray:
        """The digits of the numbers of entries, float32[*shape, 3]."""
        digits = np.moveaxis(np.asarray(_digits_of_int(np.asarray(self.entries, np.int64)), np.float32), 0, -1)
        return np.broadcast_to(digits, (*self.total.shape, 3))


def numbers_of(x: jax.Array, layout: Layout, due: jax.Array | None = None, *, leading: int = 0) -> Numbers:
    """Returns the numbers of a tensor for each row, and for each module of a stack.

    Args:
        x: The tensor.
        layout: The rows.
        due: Whether the tensor is read; None if it always is. Otherwise the numbers are zeros, but have its size.
        leading: The number of axes of the stack, which the tensor begins with.
    """
    x, axes, is_in_first_row = _by_rows(x, layout, leading)
    if due is None:
        numbers = _reduced(x, axes)
    else:
        # Only scalars leave the branches: a kernel for an array of lanes in each of them takes longer to compile than
        # all reductions of the tensor.
        shapes = jax.eval_shape(lambda x: _reduced(x, axes), x)
        zeros = jax.tree.map(lambda each: marked(jnp.zeros(each.shape), tuple(varying_axes(x))), shapes)
        numbers = jax.lax.cond(due, lambda x: _reduced(x, axes), lambda _: zeros, x)
    if not is_in_first_row:
        return numbers
    # No axis can be split over the rows, so all is in the first row: by a collective, if the tensor is split.
    assert layout.rows is not None
    assert isinstance(numbers.entries, int)
    is_first = np.arange(layout.rows) == 0
    columns = [jnp.where(is_first, column[..., None], 0.0) for column in numbers.columns]
    return Numbers(columns[0], columns[1], columns[2], tuple(columns[3:]), (numbers.entries, *[0] * (layout.rows - 1)))


def numbers_in(step: jax.Array, layout: Layout, x: jax.Array, due: jax.Array | None) -> Numbers:
    """Returns the numbers of a tensor, split over devices as the lanes of a step are."""
    reduce, column = _reduce(layout), step[..., 0]
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)  # without a sharding, with which explicit axes could not be mixed
    like = jax.tree.map(lambda _: column, jax.eval_shape(reduce, shape, None))
    return in_auto_axes(reduce, like)(x, due)


@functools.cache
def _reduce(layout: Layout) -> Callable[..., Numbers]:
    # It is not inlined: JAX traces and lowers it once for all tensors of a shape.
    return jax.jit(lambda x, due: numbers_of(x, layout, due))


def _by_rows(x: jax.Array, layout: Layout, leading: int) -> tuple[jax.Array, tuple[int, ...], bool]:
    """Returns a tensor with an axis of rows, the axes to reduce, and whether there is no such axis, but rows."""
    x = (jnp.abs(x) if jnp.iscomplexobj(x) else x).astype(jnp.float32)
    shape = x.shape[leading:]
    axis = None if layout.rows is None else axis_of_rows(shape, layout.rows, layout.axis)
    if layout.rows is None or axis is None:
        return x, tuple(range(leading, x.ndim)), layout.rows is not None
    at = leading + axis
    x = x.reshape(*x.shape[:at], layout.rows, x.shape[at] // layout.rows, *x.shape[at + 1 :])
    return x, tuple(k for k in range(leading, x.ndim) if k != at), False


def _reduced(x: jax.Array, axes: tuple[int, ...]) -> Numbers:
    entries = math.prod(x.shape[axis] for axis in axes)
    shape = tuple(size for axis, size in enumerate(x.shape) if axis not in axes)
    # `max` of no entries has no value; with `initial=0.0` XLA would compile a second kernel for it.
    largest = jax.lax.reduce_max(jax.lax.abs(x), axes) if entries else jnp.zeros(shape, jnp.float32)
    # 1 for each entry but zeros, by operations of the library without constants. A constant, as in `minimum(x, 1.0)`,
    # is an array of the tensor's size, which the library reads, and which lives as long as the step.
    ones = jax.lax.abs(jax.lax.sign(x))
    last = x.ndim - 1
    if entries <= _EXACT:
        others = (jax.lax.reduce_sum(ones, axes),)
    elif last in axes and x.shape[last] <= _EXACT:
        counts = jax.lax.reduce_sum(ones, (last,)).astype(jnp.uint32)
        others = _digits(_uint64.total(counts, [axis for axis in axes if axis < last]))
    else:
        others = _digits(_uint64.total(ones >= 1.0, axes))
    return Numbers(jax.lax.reduce_sum(x, axes), jax.lax.reduce_sum(x * x, axes), largest, others, entries)


def _digits(counts: jax.Array) -> tuple[jax.Array, ...]:
    """Returns the three digits of counts below 2**52 as float32."""
    low, high = counts[..., 0], counts[..., 1]
    return tuple(digit.astype(jnp.float32) for digit in (low & (2**_DIGIT - 1), low >> _DIGIT, high))


def _digits_of_int(count: Any) -> tuple[Any, Any, Any]:
    return count & (2**_DIGIT - 1), (count & _uint64.WORD) >> _DIGIT, count >> 32


def lanes_of(x: jax.Array, where: jax.Array | None, layout: Layout) -> jax.Array:
    """Returns the lanes of a single tensor, float32[*rows, 14]."""
    if where is None:
        return _selected_lanes(numbers_of(x, layout))
    where = jnp.broadcast_to(where, x.shape)
    masked = numbers_of(jnp.where(where, x, jnp.zeros_like(x)), layout)
    seen = numbers_of(where, layout)
    digits = seen.others if len(seen.others) == 3 else _digits(_uint64.pair(seen.others[0]))
    return _lanes(masked.columns, jnp.stack(digits, -1))


def _lanes(columns: Sequence[jax.Array], sizes: Any) -> jax.Array:
    """Returns lanes by a concatenation, of which XLA takes the columns apart again where that is all they are for."""
    shape = columns[0].shape
    ones, zeros = np.ones((*shape, 1), np.float32), np.zeros((*shape, LANES - 4 - len(columns)), np.float32)
    parts = [jax.lax.expand_dims(column, [len(shape)]) for column in columns]
    return jax.lax.concatenate([ones, *parts[:3], sizes, *parts[3:], zeros], len(shape))


def _selected_lanes(numbers: Numbers) -> jax.Array:
    """Returns lanes by selections, which XLA fuses with what follows, while a concatenation is a kernel of its own."""
    lanes = np.zeros((*numbers.total.shape, LANES), np.float32)
    lanes[..., 0], lanes[..., 4:7] = 1.0, numbers.sizes
    for k, column in zip((1, 2, 3, 7, 8, 9), numbers.columns, strict=False):
        lanes = jnp.where(np.arange(LANES) == k, column[..., None], lanes)
    return jnp.asarray(lanes)


def with_numbers(step: jax.Array, numbers: Numbers) -> jax.Array:
    """Returns the lanes of a step with those of one more tensor."""

    def add(step: jax.Array, numbers: Numbers) -> jax.Array:
        return plus(step, _clean(_selected_lanes(numbers)))

    return in_auto_axes(add, step)(step, numbers)


def table_of(numbers: Sequence[Numbers], *, is_split: bool) -> jax.Array:
    """Returns the lanes of many tensors, float32[n, *shape, 14], or float32[n, 14] for all shapes together.

    Args:
        numbers: The numbers of the tensors; tensors of one shape come one after the other.
        is_split: Whether the rows are split over devices, and must not be flattened. The shapes are then the same.
    """
    digits = max(len(each.others) for each in numbers)
    if is_split:
        columns = [_column(numbers, k) for k in range(3 + digits)]
        together = [in_one([x[None] for x in column]) for column in columns]
        return _lanes(together, np.stack([each.sizes for each in numbers]))
    columns = [x.reshape(-1) for k in range(3 + digits) for x in _column(numbers, k)]  # all sums, then all squares...
    if len(columns) <= _FEW:
        table = jnp.concatenate(columns).reshape(3 + digits, -1)
    else:
        tables = []
        for _, group in itertools.groupby(numbers, key=lambda each: each.total.shape):
            some = list(group)
            columns = [x.reshape(-1) for k in range(3 + digits) for x in _column(some, k)]
            tables.append(in_one(columns).reshape(3 + digits, -1))
        table = jnp.concatenate(tables, 1)
    return _lanes(list(table), np.concatenate([each.sizes.reshape(-1, 3) for each in numbers]))


def _column(numbers: Sequence[Numbers], k: int) -> list[jax.Array]:
    return [each.columns[k] if k < len(each.columns) else jnp.zeros_like(each.total) for each in numbers]


_FAN_IN, _FEW, _TINY = 8, 64, 64


def in_one(arrays: Sequence[jax.Array]) -> jax.Array:
    """Returns the concatenation of arrays of one shape along their first axis.

    XLA's CPU backend compiles a concatenation of a thousand scalars in 0.2 s, and of two thousand in 0.8 s. If eight
    are concatenated at a time, and then the results, the same takes a tenth: XLA fuses up to eight, with the new axis,
    and compiles equal fusions once.
    """
    shape, end = arrays[0].shape, len(arrays) // _FAN_IN * _FAN_IN
    if len(arrays) <= _FEW or math.prod(shape) > _TINY:
        return jnp.concatenate(arrays)
    blocks = [jnp.concatenate(arrays[k : k + _FAN_IN])[None] for k in range(0, end, _FAN_IN)]
    return jnp.concatenate([jnp.concatenate(blocks).reshape(-1, *shape[1:]), *arrays[end:]])


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


# The lanes of a tensor that is not finite.
_NOT_FINITE = np.array([1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], np.float32)
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
    rows = marked(jnp.zeros((replicas, DUE)), over).at[jax.lax.axis_index(over)].set(lanes[:DUE])
    rows = jax.lax.psum(rows, over)
    columns = columns_of(rows)
    counts = [
        functools.reduce(_uint64.add_columns, [(low[k], high[k]) for k in range(replicas)]) for low, high in columns[3:]
    ]
    size, zeros, nonfinite = counts
    counts = [size, _uint64.subtract_columns(size, zeros), nonfinite]
    digits = [digit for count in counts for digit in _digits(jnp.stack(count, -1))]
    floats = [rows[:, 0].sum(), columns[0].sum(), columns[1].sum(), columns[2].max()]
    return jnp.stack([*floats, *digits, jnp.zeros_like(floats[0])])


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
    explicit = jax.sharding.AxisType.Explicit
    meshes = [jax.typeof(each).sharding.mesh for each in jax.tree.leaves(like)]
    kinds = dict(pair for mesh in meshes for pair in zip(mesh.axis_names, mesh.axis_types, strict=True))
    axes = tuple(name for name, kind in kinds.items() if kind == explicit)
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
