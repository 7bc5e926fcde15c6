# SPDX-License-Identifier: Apache-2.0
"""Lanes: the numbers of tensors as float32 that can be added up.

Any kernel that is not from XLA's library takes 10 to 25 ms to compile, however small, unless XLA has compiled the same
one before. So the four numbers of a tensor that is seen once in a step stay four scalars, a `Numbers`, and `table_of`
puts those of all tensors together. The numbers of other tensors are *lanes*, float32 that need no further arithmetic:

    0       the number of tensors
    1-3     sum, sum of squares, largest magnitude
    4-12    entries, entries that are not zero, tensors that are not finite: digits of 12, 20 and 20 bits each
    13      1 if the tensors of this step are looked at; a copy of a site within a transformation reads it

The lanes of a single tensor may be NaN or infinite. `clean_lanes_of` makes lanes that are finite, and that `plus` adds
up, for tensors that are seen several times in a step, or by a layer that is scanned. `folded` in `_summary_words.py`
computes the rest from the lanes of many tensors at once.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tallax import _uint64
from tallax._mesh_axes import marked
from tallax.watching._reduction import (
    DIGIT,
    Layout,
    Numbers,
    PackedNumbers,
    digits_of,
    in_auto_axes,
    in_first_row,
    numbers_of,
    with_equal_widths,
)

LANES = 14
DUE = 13


def lanes_of(x: jax.Array, where: jax.Array | None, layout: Layout) -> jax.Array:
    """Returns the lanes of a single tensor, float32[*rows, 14]."""
    if where is None:
        return _selected_lanes(numbers_of(x, layout))
    where = jnp.broadcast_to(where, x.shape)
    masked = numbers_of(jnp.where(where, x, jnp.zeros_like(x)), layout)
    seen = numbers_of(where, layout)
    digits = seen.others if len(seen.others) == 3 else digits_of(_uint64.pair(seen.others[0]))
    return _lanes(masked.columns, jnp.stack(digits, -1))


def _lanes(columns: Sequence[jax.Array], sizes: Any) -> jax.Array:
    """Returns lanes by a concatenation. If only the columns are used, XLA removes it again."""
    shape = columns[0].shape
    ones, zeros = np.ones((*shape, 1), np.float32), np.zeros((*shape, LANES - 4 - len(columns)), np.float32)
    parts = [jax.lax.expand_dims(column, [len(shape)]) for column in columns]
    return jax.lax.concatenate([ones, *parts[:3], sizes, *parts[3:], zeros], len(shape))


def _selected_lanes(numbers: Numbers) -> jax.Array:
    """Returns lanes by selections. XLA fuses these with later operations; a concatenation is a kernel of its own."""
    lanes = np.zeros((*numbers.total.shape, LANES), np.float32)
    lanes[..., 0], lanes[..., 4:7] = 1.0, numbers.sizes
    for k, column in zip((1, 2, 3, 7, 8, 9), numbers.columns, strict=False):
        lanes = jnp.where(np.arange(LANES) == k, column[..., None], lanes)
    return jnp.asarray(lanes)


def with_numbers(step: jax.Array, numbers: Numbers | PackedNumbers) -> jax.Array:
    """Returns the lanes of a step with those of one more tensor."""

    def add(step: jax.Array, numbers: Numbers | PackedNumbers) -> jax.Array:
        return plus(step, _clean(_selected_lanes(numbers.unpacked if isinstance(numbers, PackedNumbers) else numbers)))

    return in_auto_axes(add, step)(step, numbers)


def table_of(numbers: Sequence[Numbers], *, is_split: bool) -> jax.Array:
    """Returns the lanes of many tensors, float32[n, *shape, 14], or float32[n, 14] for all shapes together.

    Args:
        numbers: The numbers of the tensors; tensors of one shape come one after the other.
        is_split: Whether the rows are split over devices, and must not be flattened. The shapes are then the same.
    """
    digits = max(len(each.others) for each in numbers)
    if is_split:
        columns = [in_one([x[None] for x in _column(numbers, k)]) for k in range(3 + digits)]
        return _lanes(_with_squares(columns, numbers), np.stack([each.sizes for each in numbers]))
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
    return _lanes(_with_squares(list(table), numbers), np.concatenate([each.sizes.reshape(-1, 3) for each in numbers]))


def _column(numbers: Sequence[Numbers], k: int) -> list[jax.Array]:
    columns = [(each.total, each.squares, each.largest, *each.others) for each in numbers]
    return [column[k] if k < len(column) else jnp.zeros_like(column[0]) for column in columns]


def _with_squares(columns: list[jax.Array], numbers: Sequence[Numbers]) -> list[jax.Array]:
    """Returns columns with the sums of squares of which some may be negated.

    All are negated at once, since an operation on each would be a kernel.
    """
    if not any(each.is_negated for each in numbers):
        return columns
    signs = [np.full(each.total.shape, -1.0 if each.is_negated else 1.0, np.float32) for each in numbers]
    columns[1] = columns[1] * np.concatenate([each.reshape(-1) for each in signs]).reshape(columns[1].shape)
    return columns


def table_of_packed(numbers: Sequence[PackedNumbers]) -> jax.Array:
    """Returns the lanes of many tensors, float32[n, 14]."""
    rows = with_equal_widths([each.rows.reshape(-1, each.rows.shape[-1]) for each in numbers])
    return _lanes(list(jnp.concatenate(rows).T), np.concatenate([each.sizes.reshape(-1, 3) for each in numbers]))


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


# The lanes of a tensor that is not finite.
_NOT_FINITE = np.array([1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], np.float32)
_IS_LARGEST = np.arange(LANES) == 3


def _clean(lanes: jax.Array) -> jax.Array:
    """Returns the lanes of one tensor so that they can be added up: finite, and of which the digits are in range."""
    middle = jnp.floor(lanes[..., 7:8] * 2.0**-DIGIT)
    place = np.arange(LANES)
    lanes = jnp.where(place == 7, lanes - middle * 2.0**DIGIT, jnp.where(place == 8, lanes + middle, lanes))
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
    digits = [digit for count in counts for digit in digits_of(jnp.stack(count, -1))]
    floats = [rows[:, 0].sum(), columns[0].sum(), columns[1].sum(), columns[2].max()]
    return jnp.stack([*floats, *digits, jnp.zeros_like(floats[0])])


def columns_of(lanes: jax.Array) -> tuple[Any, ...]:
    """Returns the sum, the sum of squares, the largest magnitude, and the counts of entries, zeros and bad tensors."""
    finite = _is_finite(lanes)

    def count(start: int) -> _uint64.Columns:
        first, second, third = (lanes[..., start + k].astype(jnp.uint32) for k in range(3))
        low = first + (second << DIGIT)
        return low, (second >> (32 - DIGIT)) + third + (low < first).astype(jnp.uint32)

    def masked(value: Any) -> Any:
        return jnp.where(finite, value, jnp.zeros_like(value))

    size, others = count(4), count(7)
    zeros = _uint64.subtract_columns(size, others)
    nonfinite = _uint64.add_columns(count(10), ((~finite).astype(jnp.uint32), jnp.uint32(0)))
    floats = [masked(lanes[..., k]) for k in (1, 2, 3)]
    return (*floats, *((masked(low), masked(high)) for low, high in (size, zeros)), nonfinite)
