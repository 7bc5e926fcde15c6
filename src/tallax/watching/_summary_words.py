# SPDX-License-Identifier: Apache-2.0
"""The state of a `Summary`: 17 words of 32 bits, and their changes.

The words are integers, so that casting the floats of a model to bfloat16 does not touch them:

    0-5     size, zeros, nonfinite: exact counts of two words each
    6-7     the update at which the largest magnitude came, two words
    8       the bits of the largest magnitude
    9-12    the bits of two float32 pairs: sum and sum of squares, high words first
    13-14   the first update with an entry that was NaN or infinite, two words
    15-16   the number of updates, two words; the same in all rows
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tallax import _uint64
from tallax.statistics import _two_floats
from tallax.watching._lanes import clean_lanes_of, columns_of, plus
from tallax.watching._reduction import Layout, from_columns, in_auto_axes, with_all_of_vmap

WORDS = 17
COUNTS, AT, LARGEST, HIGH, LOW = slice(0, 6), slice(6, 8), 8, slice(9, 11), slice(11, 13)
NONFINITE_AT, UPDATES = slice(13, 15), slice(15, 17)


def begun(words: jax.Array, window: int | None) -> jax.Array:
    """Returns the state at the beginning of an update, which is counted; after a window, the numbers start again."""
    updates = words[..., UPDATES]
    counted = _uint64.add_columns((words[..., 15], words[..., 16]), (jnp.uint32(1), jnp.uint32(0)))
    numbers = words
    if window is not None:
        numbers = jnp.where(_uint64.divisible(updates, window)[..., None], jnp.uint32(0), numbers)
    place = np.arange(WORDS)
    for k, word in zip((15, 16), counted, strict=True):
        numbers = jnp.where(place == k, word[..., None], numbers)
    return numbers


def folded(words: jax.Array, lanes: jax.Array) -> jax.Array:
    """Returns the state after the numbers of one update.

    All is computed by columns, which are then put together by selections. XLA fuses these into few kernels, which it
    compiles in 0.2 s for any number of states; a concatenation of the columns takes 0.65 s.

    Args:
        words: The state, uint32[..., *rows, 17], which has counted the update.
        lanes: float32[..., *rows, 14].
    """
    column = [words[..., k] for k in range(WORDS)]
    total, squares, most, *counts = columns_of(lanes)
    at = (column[15], column[16])
    new = [
        word
        for k, count in enumerate(counts)
        for word in _uint64.add_columns((column[2 * k], column[2 * k + 1]), count)
    ]

    def is_zero(count: _uint64.Columns) -> jax.Array:
        return (count[0] | count[1]) == 0

    largest = floats_of(column[LARGEST])
    larger = (most > largest) | (is_zero((column[6], column[7])) & ~is_zero(counts[0]))
    fails = is_zero((column[13], column[14])) & ~is_zero(counts[2])
    sums = [(floats_of(column[9 + k]), floats_of(column[11 + k])) for k in range(2)]
    (high, low), (high2, low2) = (_two_floats.add_float(*each) for each in zip(sums, (total, squares), strict=True))
    new += [jnp.where(larger, ours, before) for ours, before in zip(at, column[6:8], strict=True)]
    new += [bits_of(x) for x in (jnp.where(larger, most, largest), high, high2, low, low2)]
    new += [jnp.where(fails, ours, before) for ours, before in zip(at, column[13:15], strict=True)]
    return from_columns([*new, *at])


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


def observed(
    words: jax.Array, due: Any, leaves: Sequence[jax.Array], where: Any, layout: Layout, window: int | None
) -> jax.Array:
    """Returns the state after an update with some tensors, which are reduced only if the update is due."""
    return in_auto_axes(_observe(layout, window), words)(words, due, (list(leaves), where))


def added(step: jax.Array, due: Any, leaves: Sequence[jax.Array], layout: Layout) -> jax.Array:
    """Returns the lanes of a step after some more tensors.

    Args:
        step: The lanes so far.
        due: Whether the tensors are looked at; None if they always are.
        leaves: The tensors.
        layout: The rows and replicas.
    """
    return in_auto_axes(_add(layout), step)(step, due, (list(leaves), None))


@functools.cache
def _observe(layout: Layout, window: int | None) -> Callable[..., jax.Array]:
    def after(words: jax.Array, tensors: tuple[list[jax.Array], Any]) -> jax.Array:
        return folded(words, _lanes_of_all(tensors, layout))

    def observe(words: jax.Array, due: Any, tensors: tuple[list[jax.Array], Any]) -> jax.Array:
        return _if_due(due, after, begun(words, window), tensors)

    return _not_inlined(observe)


@functools.cache
def _add(layout: Layout) -> Callable[..., jax.Array]:
    def after(step: jax.Array, tensors: tuple[list[jax.Array], Any]) -> jax.Array:
        return plus(step, _lanes_of_all(tensors, layout))

    def add(step: jax.Array, due: Any, tensors: tuple[list[jax.Array], Any]) -> jax.Array:
        return _if_due(due, after, step, tensors)

    return _not_inlined(add)


def _if_due(due: Any, update: Callable[..., jax.Array], state: jax.Array, tensors: Any) -> jax.Array:
    return update(state, tensors) if due is None else jax.lax.cond(due, update, lambda state, _: state, state, tensors)


def _lanes_of_all(tensors: tuple[list[jax.Array], Any], layout: Layout) -> jax.Array:
    leaves, where = tensors
    return functools.reduce(plus, [clean_lanes_of(x, where, layout) for x in leaves])


def _not_inlined(update: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Returns a function that JAX traces and lowers once for all tensors of a shape; XLA inlines it."""
    # Last, so that the axis that is split over the rows stays where it is.
    return jax.jit(with_all_of_vmap(update, -1))


def floats_of(words: Any) -> jax.Array:
    """Returns the float32 whose bits some words are."""
    return jax.lax.bitcast_convert_type(words, jnp.float32)


def bits_of(floats: jax.Array) -> jax.Array:
    """Returns the bits of float32 as words."""
    return jax.lax.bitcast_convert_type(floats, jnp.uint32)
