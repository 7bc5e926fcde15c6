# SPDX-License-Identifier: Apache-2.0
"""The state that a step changes: all its counts packed in one array, and its other arrays."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tallax import _uint64
from tallax._arrays import unsplit


class Items(NamedTuple):
    """The state of tallax variables: all counts in one array, if there are any, and small values."""

    packed: Any
    values: list[Any]


class State(NamedTuple):
    """The state that a step changes: the tallax variables, and the arrays that it may overwrite."""

    items: Items
    rest: list[Any]

    @property
    def values(self) -> list[Any]:
        """All values except the counts, in the order of the layout."""
        return self.items.values + self.rest

    def plain(self) -> tuple[tuple[Any, list[Any]], list[Any]]:
        """Returns the state as plain tuples, without names, as the programs take and return it."""
        return (self.items.packed, self.items.values), self.rest


class Packing:
    """The places of counts in uint32[2, n]: low words and high words, with the counts concatenated."""

    def __init__(self, shapes: Sequence[tuple[int, ...]]):
        self.shapes = list(shapes)
        self.sizes = [math.prod(shape) for shape in shapes]
        self.ends = np.cumsum([0, *self.sizes]).tolist()

    def pack(self, counts: Sequence[np.ndarray]) -> np.ndarray:
        """Returns the array of all counts, which are passed as uint64."""
        flat = np.concatenate([np.ravel(part) for part in counts]) if counts else np.zeros(0, np.uint64)
        return np.ascontiguousarray(_uint64.from_uint64(flat).T)

    def unpack(self, packed: np.ndarray) -> list[np.ndarray]:
        """Returns all counts as uint64."""
        flat = _uint64.to_uint64(np.ascontiguousarray(packed.T))
        return [
            flat[start:end].reshape(shape)
            for start, end, shape in zip(self.ends[:-1], self.ends[1:], self.shapes, strict=True)
        ]

    def columns(self, number: int | None) -> range:
        """Returns the columns of one count, or no columns for another value."""
        return range(0) if number is None else range(self.ends[number], self.ends[number + 1])

    def part(self, packed: jax.Array, number: int) -> jax.Array:
        """Returns the limbs of one count, uint32[*shape, 2]."""
        words = jax.lax.slice_in_dim(packed, self.ends[number], self.ends[number + 1], axis=1)
        return words.T.reshape(*self.shapes[number], 2)

    def part_now(self, packed: jax.Array, number: int) -> jax.Array:
        """Returns `part` of a concrete array. It is compiled once for all counts of a shape."""
        return _part(packed, self.ends[number], self.shapes[number])

    def written(self, packed: jax.Array, number: int, limbs: Any) -> jax.Array:
        """Returns a concrete array of all counts with one count replaced."""
        return _written(packed, self.ends[number], limbs)

    def plus(self, packed: jax.Array, added: Mapping[int, Any], whole: Mapping[int, Any]) -> jax.Array:
        """Returns the array of all counts after a step, with all carries computed at once. `whole` replaces counts."""
        words = [
            np.zeros(size, np.uint32) if number in whole else unsplit(jnp.asarray(added[number])).reshape(size)
            for number, size in enumerate(self.sizes)
        ]
        result = _uint64.add_transposed(packed, jnp.concatenate(words))
        for number, limbs in whole.items():
            result = _put(result, self.ends[number], limbs)
        return result


@functools.partial(jax.jit, static_argnums=2)
def _part(packed: jax.Array, start: Any, shape: tuple[int, ...]) -> jax.Array:
    words = jax.lax.dynamic_slice_in_dim(packed, start, math.prod(shape), axis=1)
    return words.T.reshape(*shape, 2)


def _put(packed: jax.Array, start: Any, limbs: Any) -> jax.Array:
    words = unsplit(jnp.asarray(limbs)).reshape(-1, 2).T
    return jax.lax.dynamic_update_slice_in_dim(packed, words, start, axis=1)


_written = jax.jit(_put)


class Overlap:
    """The values that two steps share, which are moved to one of them from the other.

    Attributes:
        values: Pairs of positions among the values of the two steps.
    """

    def __init__(self, mine: Packing, theirs: Packing, pairs: Sequence[tuple[Any, Any]]):
        self.values = [pair for a, b in pairs if a.number is None for pair in zip(a.arrays, b.arrays, strict=True)]
        to = [k for a, _ in pairs for k in mine.columns(a.number)]
        start = [k for _, b in pairs for k in theirs.columns(b.number)]
        runs = _runs(to, start)
        self._has_counts = bool(runs)
        self._is_whole = runs == ((0, 0, mine.ends[-1]),) and mine.ends == theirs.ends
        self._move = None if self._is_whole or not runs else _mover(runs)

    def move(self, mine: Any, theirs: Any) -> Any:
        """Returns all counts of one layout, with the shared counts copied from the other layout."""
        if not self._has_counts:
            return mine
        return theirs if self._move is None else self._move(mine, theirs)


def _runs(to: Sequence[int], start: Sequence[int]) -> tuple[tuple[int, int, int], ...]:
    """Returns pairs of positions as runs: (to, from, length)."""
    runs: list[tuple[int, int, int]] = []
    for column, other in sorted(zip(to, start, strict=True)):
        first, its_first, length = runs[-1] if runs else (0, 0, 0)
        if runs and (column, other) == (first + length, its_first + length):
            runs[-1] = (first, its_first, length + 1)
        else:
            runs.append((column, other, 1))
    return tuple(runs)


@functools.lru_cache(maxsize=256)
def _mover(runs: tuple[tuple[int, int, int], ...]) -> Callable[[Any, Any], Any]:
    """Returns the compiled move of runs of columns. Each pair of layouts has one program, also after a `sync()`."""
    to, start = (np.concatenate([np.arange(run[k], run[k] + run[2]) for run in runs]) for k in (0, 1))

    @jax.jit
    def move(mine: jax.Array, theirs: jax.Array) -> jax.Array:
        if len(runs) == 1:
            ((first, other, length),) = runs
            part = jax.lax.slice_in_dim(theirs, other, other + length, axis=1)
            return jax.lax.dynamic_update_slice_in_dim(mine, part, first, axis=1)
        return mine.at[:, to].set(theirs[:, start])

    return move
