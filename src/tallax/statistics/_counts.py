# SPDX-License-Identifier: Apache-2.0
"""The two forms of a statistic, `Counts` and `CountsAndBuffer`, and how a batch is added to the state of each."""

from __future__ import annotations

import abc
import math
from collections.abc import Hashable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from tallax._arrays import unsplit
from tallax._mesh_axes import axes_to_combine, on_first, replica_count
from tallax.statistics._statistic import Statistic
from tallax.variables import Buffer, Counter


class Counts(Statistic):
    """A statistic whose state is one `Counter` named `counts`. A merge adds the counts."""

    counts: Counter

    @abc.abstractmethod
    def _counted(self, x: jax.Array, where: jax.Array | None, axes: tuple[int, ...]) -> jax.Array:
        """Returns the counts of a batch that is not empty, reduced over `axes`, as uint32 of the counter's shape."""

    def reset(self) -> None:
        """Forgets everything that was fed."""
        self.counts.reset()

    def _accumulate(self, x: jax.Array, where: jax.Array | None) -> None:
        axes = self._axes_of(x)
        if x.size:
            self.counts._tally(self._counted(x, where, axes), x.size, self.axis_name)

    def _merge(self, other: Any, once: tuple[Hashable, ...] = ()) -> None:
        self.counts._add_combined(on_first(other.counts._words(), once))


class CountsAndBuffer(Statistic):
    """A statistic whose state is one `Counter` and one `Buffer`. One compiled program updates both.

    A subclass defines the names of both, and the reset value, the update and the merge of its buffer. The last two are
    static methods, pure functions, each compiled once for all statistics of a type.
    """

    _counter_name: ClassVar[str] = "counts"
    _buffer_name: ClassVar[str]
    # (words, buffer, x, where, axes, combination, *constants): the words after an update, the limbs of the update alone
    # (summed over the replicas), and the buffer after it.
    _updated: Any
    # (words, buffer, words of the other statistic, its buffer, once): the buffer of both; for `once`, see `_merge`.
    _merged: Any

    @property
    def _counter(self) -> Counter:
        return vars(self)[self._counter_name]

    @property
    def _buffer(self) -> Buffer:
        return vars(self)[self._buffer_name]

    @property
    def _constants(self) -> tuple[float, ...]:
        """The further arguments of `_updated`, which are compiled into the program."""
        return ()

    @abc.abstractmethod
    def _initial_buffer(self) -> np.ndarray:
        """Returns the buffer of an empty statistic."""

    def reset(self) -> None:
        """Forgets everything that was fed."""
        self.refuse_casts()
        self._counter.reset()
        # A stack of statistics, as made by `vmap`, has additional leading axes.
        self._buffer[...] = np.broadcast_to(self._initial_buffer(), self._buffer.shape)

    def _accumulate(self, x: jax.Array, where: jax.Array | None) -> None:
        axes = self._axes_of(x)
        how = axes_to_combine(x, where, state=self._counter, axis_name=self.axis_name)
        state = self._counter._words(), self._buffer._stored()
        words, counts, buffer = self._updated(*state, x, where, axes, how, *self._constants)
        # `Activity` counts every update as one, also an empty update.
        most = max(entries_of(x, axes) * replica_count(how.over), 1)
        self._counter._add_known(words, counts, most=most)
        self._buffer.set_value(buffer)

    def _merge(self, other: Any, once: tuple[Hashable, ...] = ()) -> None:
        states = [(each._counter._words(), each._buffer._stored()) for each in (self, other)]
        self._counter._add_combined(on_first(other._counter._words(), once))
        self._buffer.set_value(self._merged(*states[0], *states[1], once))


def entries_of(x: jax.Array, axes: tuple[int, ...]) -> int:
    """Returns the number of entries of `x` for each count."""
    return math.prod(x.shape[axis] for axis in axes)


def fired_and_total(x: jax.Array, where: jax.Array | None, axes: tuple[int, ...]) -> jax.Array:
    """Returns uint32[*shape, 2]: the numbers of entries that are true or not zero, and of all entries."""
    fired = x.astype(jnp.bool_)
    if where is None:
        fired = unsplit(fired.sum(axes, dtype=jnp.uint32))
        return jnp.stack([fired, jnp.full_like(fired, entries_of(x, axes))], -1)
    counts = [unsplit(kind.sum(axes, dtype=jnp.uint32)) for kind in (fired & where, where)]
    return jnp.stack(counts, -1)


def both(mask: jax.Array, where: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Returns the entries under `where` at which a mask is true, and those at which it is not."""
    return (mask, ~mask) if where is None else (mask & where, ~mask & where)
