# SPDX-License-Identifier: Apache-2.0
"""Packs all counts of a step into one array, and adds the increments of a step to it."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tallax import _uint64
from tallax._arrays import unsplit


class Packing:
    """The places of counts in uint32[2, n]: low words and high words, with the counts concatenated.

    Args:
        shapes: The shapes of the counts.
    """

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
        """Returns the array of all counts after a step. All carries are computed at once.

        Args:
            packed: The array before the step.
            added: The increments by the number of the count, uint32.
            whole: The limbs of counts that the step replaces.
        """
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
