# SPDX-License-Identifier: Apache-2.0
"""Words inside the trace of a compiled step: parts of one array, which are put together without a kernel for each.

A compiled step keeps all small Buffers of uint32 in one array. XLA's CPU backend compiles a kernel for each slice of an
array and for each part of a concatenation that is a slice, in 14 ms: with 158 summaries more than the step itself. So
while a step is traced, `cut` remembers the array that each part comes from. `join` needs only one gather for the parts
of one array, in any order. Outside of a compiled step nothing is remembered, and parts are sliced and concatenated.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tallax._arrays import unsplit


class _Origins(threading.local):
    # The part itself, which keeps its id from being used again; the array that it was cut from; its first word.
    of: dict[int, tuple[Any, jax.Array, int]] | None = None


_origins = _Origins()


@contextlib.contextmanager
def remembering_origins() -> Iterator[None]:
    """While a step is traced, remembers from which arrays parts are cut."""
    before, _origins.of = _origins.of, {}
    try:
        yield
    finally:
        _origins.of = before


def without_gradient(x: jax.Array) -> jax.Array:
    """Returns a traced array without its gradient, and a part that is remembered as it is, since it is found by id."""
    return x if _origins.of is not None and id(x) in _origins.of else jax.lax.stop_gradient(x)


def cut(words: jax.Array, shapes: Sequence[tuple[int, ...]]) -> list[jax.Array]:
    """Returns the consecutive parts of uint32[n]. A part that nobody uses costs nothing."""
    sizes = [math.prod(shape) for shape in shapes]
    parts, start = [], 0
    # One operation instead of one for each part, which takes JAX longer to trace than the parts are worth.
    for flat, size, shape in zip(jax.lax.split(words, sizes), sizes, shapes, strict=True):
        part = flat if shape == (size,) else flat.reshape(shape)
        if _origins.of is not None:
            _origins.of[id(part)] = part, words, start
        parts.append(part)
        start += size
    return parts


def join(parts: Sequence[Any]) -> jax.Array:
    """Returns the words of some parts, one part after the other, uint32[n]."""
    arrays: dict[int, tuple[Any, int]] = {}  # the arrays that the parts come from, and their places
    places, end = [], 0
    for part in parts:
        _, words, start = (_origins.of or {}).get(id(part), (None, part, 0))
        if id(words) not in arrays:
            arrays[id(words)] = words, end
            end += math.prod(words.shape)
        first = arrays[id(words)][1] + start
        places.append(np.arange(first, first + math.prod(part.shape)))
    flat = [unsplit(jnp.asarray(words)).reshape(-1) for words, _ in arrays.values()]
    together = jnp.concatenate(flat) if len(flat) > 1 else flat[0]
    wanted = np.concatenate(places)
    if np.array_equal(wanted, np.arange(end)):
        return together
    return together.at[wanted].get(mode="promise_in_bounds")


def stack(parts: Sequence[Any]) -> jax.Array:
    """Returns `jnp.stack(parts)`."""
    if _origins.of is None or not all(id(part) in _origins.of for part in parts):
        return jnp.stack([jnp.asarray(part) for part in parts])
    return join(parts).reshape(len(parts), *parts[0].shape)
