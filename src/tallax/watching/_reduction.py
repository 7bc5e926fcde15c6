# SPDX-License-Identifier: Apache-2.0
"""The numbers of a tensor.

`numbers_of` reduces a tensor by four plain reductions of floats. XLA's CPU backend has a library for these: for a dozen
tensors of half a million entries they take 23 ms to run and 0.04 s to compile, where one variadic `lax.reduce` takes 64
ms and 0.3 s, and reductions that count comparisons take 110 ms and 0.8 s. Entries that are NaN or infinite are
therefore not counted one by one; the tensor that has one is counted, and its numbers are left out.

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

DIGIT = 12
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
        squares: The sum of their squares, or minus this sum.
        largest: The largest magnitude.
        others: The number of entries that are not zero: one array if this counts exactly, or else three digits.
        entries: The number of entries: for all, or for each index of the last axis.
        is_negated: Whether the sum of squares is negated.
    """

    total: jax.Array
    squares: jax.Array
    largest: jax.Array
    others: tuple[jax.Array, ...]
    entries: int | tuple[int, ...] = field(metadata={"static": True})
    is_negated: bool = field(default=False, metadata={"static": True})

    @property
    def columns(self) -> tuple[jax.Array, ...]:
        """All arrays, the sum of squares not negated."""
        return (self.total, -self.squares if self.is_negated else self.squares, self.largest, *self.others)

    def __getitem__(self, k: int) -> Numbers:
        """The numbers of one tensor of several."""
        entries = self.entries if isinstance(self.entries, int) else self.entries[k]
        columns = [column[..., k] for column in self.columns]
        return Numbers(columns[0], columns[1], columns[2], tuple(columns[3:]), entries)

    @property
    def sizes(self) -> np.ndarray:
        """The digits of the numbers of entries, float32[*shape, 3]."""
        return _sizes(self.entries, self.total.shape)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PackedNumbers:
    """The numbers of several tensors in one array, as they leave a branch.

    Each array that leaves a branch is copied, and a branch that is not taken makes zeros in its place: four arrays take
    longer to compile than one.

    Attributes:
        rows: The columns of `Numbers` for each tensor, float32[tensors, 4 or 6]; float32[4 or 6] for a single one.
        entries: The number of entries of each tensor.
    """

    rows: jax.Array
    entries: int | tuple[int, ...] = field(metadata={"static": True})

    @classmethod
    def of(cls, numbers: Sequence[Numbers]) -> PackedNumbers:
        """Returns the numbers of all tensors, one after the other."""
        if len(numbers) == 1:
            return cls(from_columns(numbers[0].columns), numbers[0].entries)
        columns = [[column.reshape(-1) for column in each.columns] for each in numbers]
        rows = with_equal_widths([from_columns(each) for each in columns])
        entries = [
            each.entries if isinstance(each.entries, tuple) else (each.entries,) * each.total.size for each in numbers
        ]
        return cls(jnp.concatenate(rows), tuple(itertools.chain(*entries)))

    def __getitem__(self, k: int) -> PackedNumbers:
        """The numbers of one tensor of several."""
        return PackedNumbers(self.rows[k], self.entries if isinstance(self.entries, int) else self.entries[k])

    @property
    def unpacked(self) -> Numbers:
        """The same numbers in several arrays."""
        total, squares, largest, *others = (self.rows[..., k] for k in range(self.rows.shape[-1]))
        return Numbers(total, squares, largest, tuple(others), self.entries)

    @property
    def sizes(self) -> np.ndarray:
        """The digits of the numbers of entries, float32[tensors, 3]."""
        return _sizes(self.entries, self.rows.shape[:-1])


def _sizes(entries: int | tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
    digits = np.moveaxis(np.asarray(_digits_of_int(np.asarray(entries, np.int64)), np.float32), 0, -1)
    return np.broadcast_to(digits, (*shape, 3))


def with_equal_widths(rows: Sequence[jax.Array]) -> list[jax.Array]:
    """Returns rows of packed numbers, with zeros for the digits that some do not have."""
    width = max(each.shape[-1] for each in rows)
    return [each if each.shape[-1] == width else jnp.pad(each, ((0, 0), (0, width - each.shape[-1]))) for each in rows]


def from_columns(columns: Sequence[jax.Array]) -> jax.Array:
    """Returns arrays of one shape stacked on a new last axis, by selections.

    XLA fuses these, and compiles equal ones once; a concatenation is a kernel of its own.
    """
    shape = (*columns[0].shape, len(columns))
    leading = tuple(range(len(shape) - 1))
    place = jax.lax.broadcasted_iota(jnp.int32, shape, len(shape) - 1)
    result = jax.lax.broadcast_in_dim(columns[0], shape, leading)
    for k, column in enumerate(columns[1:], 1):
        result = jax.lax.select(place == k, jax.lax.broadcast_in_dim(column, shape, leading), result)
    return result


@functools.partial(jax.jit, static_argnums=(1, 2), static_argnames="is_squared")
def numbers_of(x: jax.Array, layout: Layout, leading: int = 0, *, is_squared: bool = False) -> Numbers:
    """Returns the numbers of a tensor for each row, and for each module of a stack.

    It is not inlined, so that JAX traces and lowers it once for each shape.

    Args:
        x: The tensor.
        layout: The rows.
        leading: The number of axes of the stack, which the tensor begins with.
        is_squared: Whether the step computes the squares of the tensor too, as Adam does those of a gradient.
    """
    x, axes, is_in_first_row = _by_rows(x, layout, leading)
    numbers = _reduced(x, axes, is_squared=is_squared)
    if not is_in_first_row:
        return numbers
    # No axis can be split over the rows, so all is in the first row: by a collective, if the tensor is split.
    assert layout.rows is not None
    assert isinstance(numbers.entries, int)
    is_first = np.arange(layout.rows) == 0
    columns = [jnp.where(is_first, column[..., None], 0.0) for column in numbers.columns]
    return Numbers(columns[0], columns[1], columns[2], tuple(columns[3:]), (numbers.entries, *[0] * (layout.rows - 1)))


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


def _reduced(x: jax.Array, axes: tuple[int, ...], *, is_squared: bool) -> Numbers:
    entries = math.prod(x.shape[axis] for axis in axes)
    shape = tuple(size for axis, size in enumerate(x.shape) if axis not in axes)
    # `max` of no entries has no value; with `initial=0.0` XLA would compile a second kernel for it.
    largest = jax.lax.reduce_max(jax.lax.abs(x), axes) if entries else jnp.zeros(shape, jnp.float32)
    # 1 for each entry but zeros, by operations of the library without constants. A constant, as in `minimum(x, 1.0)`,
    # is an array of the tensor's size, which the library reads, and which lives as long as the step.
    ones = jax.lax.square(jax.lax.sign(x))
    last = x.ndim - 1
    if entries <= _EXACT:
        others = (jax.lax.reduce_sum(ones, axes),)
    elif last in axes and x.shape[last] <= _EXACT:
        counts = jax.lax.reduce_sum(ones, (last,)).astype(jnp.uint32)
        others = digits_of(_uint64.total(counts, [axis for axis in axes if axis < last]))
    else:
        others = digits_of(_uint64.total(ones >= 1.0, axes))
    # XLA would compute `x * x` once for this and for the optimizer, in an array of the tensor's size. It does not see
    # that this product is the same.
    squares = jax.lax.reduce_sum((-x if is_squared else x) * x, axes)
    return Numbers(jax.lax.reduce_sum(x, axes), squares, largest, others, entries, is_negated=is_squared)


def digits_of(counts: jax.Array) -> tuple[jax.Array, ...]:
    """Returns the three digits of counts below 2**52 as float32."""
    low, high = counts[..., 0], counts[..., 1]
    return tuple(digit.astype(jnp.float32) for digit in (low & (2**DIGIT - 1), low >> DIGIT, high))


def _digits_of_int(count: Any) -> tuple[Any, Any, Any]:
    return count & (2**DIGIT - 1), (count & _uint64.WORD) >> DIGIT, count >> 32


def in_first_row(part: jax.Array, rows: int) -> jax.Array:
    """Returns numbers as the first of several rows; the others are zeros."""
    return jnp.zeros((rows, *part.shape), part.dtype).at[0].set(part)


def axis_of_rows(shape: Sequence[int], rows: int, start: int | None) -> int | None:
    """Returns the axis to split over the rows: `start` if its size is a multiple, or the first that fits, or None."""
    axes = [] if start is None else [start, *range(len(shape))]
    return next((k for k in axes if k < len(shape) and shape[k] and shape[k] % rows == 0), None)


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
