# SPDX-License-Identifier: Apache-2.0
"""State inside the trace of a compiled step: a count in two parts, and small Buffers as parts of one array.

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
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from tallax import _uint64
from tallax._arrays import unsplit

# Names in the jaxpr of a step, by which the analysis recognizes the permitted uses of a `TwoPartCount`.
AT_MOST = "tallax.at_most:"  # an increment, with its upper bound
READ = "tallax.read"  # a read of both parts together


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TwoPartCount:
    """The raw value of a `Counter` inside `tallax.compile_step`.

    All counts of a step are in one array on the device. A count is sliced out of it only if it is read. `added` is a
    plain word, which XLA folds and concatenates with the words of the other counters. There are no carries until the
    whole array is added to. If a step does anything but read or increment a count, it is traced again with the whole
    count (`tallax.compiling._count_uses`), so a `TwoPartCount` need not be exact then.

    Attributes:
        base: The limbs before the step, uint32[*shape, 2].
        added: The sum of the increments in the step, uint32[*shape]. The bounds of the increments show that it fits.
    """

    base: Any
    added: Any

    @property
    def limbs(self) -> jax.Array:
        """The current count. When Flax prints a module, the parts are not arrays, and `base` is returned."""
        if not isinstance(self.base, jax.Array | np.ndarray):
            return self.base
        base, added = (checkpoint_name(jnp.asarray(part), READ) for part in (self.base, self.added))
        return _uint64.add(base, _uint64.pair(added))

    @property
    def shape(self) -> tuple[int, ...]:
        """The same as for the limbs."""
        return self.base.shape

    @property
    def dtype(self) -> Any:
        """The same as for the limbs."""
        return self.base.dtype

    def plus(self, values: Any, most: int) -> TwoPartCount:
        """Returns the count after an addition of `values`, uint32, each at most `most`."""
        if not isinstance(values, jax.Array) and values.ndim == 0 == self.added.ndim:
            return TwoPartCount(self.base, self.added + values)  # a literal is its own bound
        values = jnp.broadcast_to(jnp.asarray(values), self.added.shape)
        return TwoPartCount(self.base, self.added + checkpoint_name(values, f"{AT_MOST}{most}"))

    def at(self, limbs: Any) -> TwoPartCount:
        """Returns the count after it was overwritten by `limbs`. The step is then traced again with the whole count."""
        # A zero computed from the word itself is not an increment, so the analysis sees that the count was written.
        return TwoPartCount(jnp.asarray(limbs), self.added * np.uint32(0))


class _Origins(threading.local):
    # The part itself, which keeps its id from being used again; the array that it was cut from; its first word.
    of: dict[int, tuple[Any, jax.Array, int]] | None = None


_origins = _Origins()


@contextlib.contextmanager
def tracing_step() -> Iterator[None]:
    """While a step is traced, remembers from which arrays parts are cut."""
    before, _origins.of = _origins.of, {}
    try:
        yield
    finally:
        _origins.of = before


def is_tracing_step() -> bool:
    """Returns whether a step is traced. Bound objects are not its arguments then: to read them would be a constant."""
    return _origins.of is not None


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
