# SPDX-License-Identifier: Apache-2.0
"""The state that a step changes: all its counts and small words packed in one array, and its other arrays."""

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
from tallax.variables import cut, join


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
    """The places of values in uint32[2, n]: the low and high words of all counts, and after them other words in pairs.

    Args:
        shapes: The shapes of the values, uint32. That of a count ends with the axis of its two words.
        counts: The number of counts, which come first.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], counts: int):
        self.shapes, self.counts = list(shapes), counts
        self.ends = np.cumsum([0, *(-(-math.prod(shape) // 2) for shape in shapes)]).tolist()

    def pack(self, values: Sequence[np.ndarray]) -> np.ndarray:
        """Returns the array of all values."""
        flat = np.zeros(2 * self.ends[-1], np.uint32)
        for start, value in zip(self.ends, values, strict=False):
            flat[2 * start : 2 * start + value.size] = value.ravel()
        return np.ascontiguousarray(flat.reshape(-1, 2).T)

    def unpack(self, packed: np.ndarray) -> list[np.ndarray]:
        """Returns all values."""
        words = np.ascontiguousarray(packed.T)
        return [self.part_of_words(words, number).copy() for number in range(len(self.shapes))]

    def part_of_words(self, words: np.ndarray, number: int) -> np.ndarray:
        """Returns one value, as a view of uint32[n, 2] on the host."""
        shape = self.shapes[number]
        return words[self.ends[number] : self.ends[number + 1]].reshape(-1)[: math.prod(shape)].reshape(shape)

    def is_scalar_count(self, number: int) -> bool:
        """Returns whether a value is a single count."""
        return number < self.counts and len(self.shapes[number]) == 1

    def columns(self, number: int | None) -> range:
        """Returns the columns of one value, or no columns for a value that is not packed."""
        return range(0) if number is None else range(self.ends[number], self.ends[number + 1])

    def part(self, packed: jax.Array, number: int) -> jax.Array:
        """Returns one value."""
        words = jax.lax.slice_in_dim(packed, self.ends[number], self.ends[number + 1], axis=1)
        return _shaped(words, self.shapes[number])

    def part_now(self, packed: jax.Array, number: int) -> jax.Array:
        """Returns `part` of a concrete array. It is compiled once for all values of a shape."""
        return _part(packed, self.ends[number], self.shapes[number])

    def written(self, packed: jax.Array, number: int, value: Any) -> jax.Array:
        """Returns a concrete array of all values with one of them replaced."""
        return _written(packed, self.ends[number], value)

    def words(self, packed: jax.Array) -> jax.Array | None:
        """Returns the words of all values that are not counts, uint32[n]; None if there are none."""
        if self.counts == len(self.shapes):
            return None
        return packed[:, self.ends[self.counts] :].T.reshape(-1)

    def cut(self, words: jax.Array) -> list[jax.Array]:
        """Returns the values that are not counts."""
        shapes = [part for shape in self.shapes[self.counts :] for part in (shape, (math.prod(shape) % 2,))]
        return cut(words, shapes)[::2]

    def joined(self, values: Sequence[Any]) -> jax.Array:
        """Returns the words of all values that are not counts, as `words` does."""
        padding = jnp.zeros(1, jnp.uint32)
        parts = [part for value in values for part in ((value, padding) if math.prod(value.shape) % 2 else (value,))]
        return join(parts)

    def plus(self, packed: jax.Array, added: Mapping[int, Any], whole: Mapping[int, Any], words: Any) -> jax.Array:
        """Returns the array of all values after a step. All carries are computed at once.

        Args:
            packed: The array before the step.
            added: The increments by the number of the count, uint32.
            whole: The limbs of counts that the step replaces.
            words: The words of all values that are not counts; None if there are none.
        """
        parts: list[Any] = [] if words is None else [words.reshape(-1, 2).T]
        if self.counts:
            columns = np.diff(self.ends[: self.counts + 1]).tolist()
            by = [
                np.zeros(size, np.uint32) if number in whole else unsplit(jnp.asarray(added[number])).reshape(size)
                for number, size in enumerate(columns)
            ]
            result = _uint64.add_transposed(packed[:, : self.ends[self.counts]], jnp.concatenate(by))
            for number, limbs in whole.items():
                result = _put(result, self.ends[number], limbs)
            parts.insert(0, result)
        return jnp.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]


def _shaped(words: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    flat, size = words.T.reshape(-1), math.prod(shape)
    return (flat if flat.size == size else flat[:size]).reshape(shape)


def _columns(value: Any) -> jax.Array:
    flat = unsplit(jnp.asarray(value)).reshape(-1)
    return (flat if flat.size % 2 == 0 else jnp.pad(flat, (0, 1))).reshape(-1, 2).T


@functools.partial(jax.jit, static_argnums=2)
def _part(packed: jax.Array, start: Any, shape: tuple[int, ...]) -> jax.Array:
    return _shaped(jax.lax.dynamic_slice_in_dim(packed, start, -(-math.prod(shape) // 2), axis=1), shape)


def _put(packed: jax.Array, start: Any, value: Any) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(packed, _columns(value), start, axis=1)


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
