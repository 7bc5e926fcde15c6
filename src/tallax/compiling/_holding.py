# SPDX-License-Identifier: Apache-2.0
"""The state while a step has it, and what stands in its place on the objects."""

from __future__ import annotations

import collections
import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tallax._errors import HeldError, TraceError, compose
from tallax._placement import is_committed, is_traced, placed
from tallax._variables import Held, Item
from tallax.compiling._layout import Layout, Place, owned
from tallax.compiling._reader import Reader
from tallax.compiling._refusals import changed, written_past
from tallax.compiling._state import Items, Programs, State
from tallax.compiling._structure import Structure
from tallax.reading import Reading, entries_of

_RAW = operator.methodcaller("get_raw_value")


class Holding:
    """The state while a step has it, and what stands in its place on the objects."""

    def __init__(
        self,
        programs: Programs,
        layout: Layout,
        objects: tuple[Any, ...],
        structure: Structure,
        state: State,
        *,
        copies: bool,
    ):
        self.programs, self.layout, self.constants = programs, layout, layout.arrays
        # The state, and what the last call returned, as the programs return it.
        self.latest: collections.deque[tuple[Any, list[Any], Any]] = collections.deque([(*state.plain(), None)], 1)
        self.failed = False  # whether a call began and did not end
        self.is_tracing = False
        self._objects, self._structure, self._copies = objects, structure, copies
        self._reader: Reader | None = None
        self.held = [self._held(place) for place in layout.places]
        self._variables = [place.variable for place in layout.places]
        self._next = 0
        for variable, held in zip(self._variables, self.held, strict=True):
            variable.set_raw_value(held)

    @functools.cached_property
    def nodes(self) -> dict[tuple[Any, ...], Any]:
        """The bound modules and Variables by their paths."""
        return dict(nnx.iter_graph(self._objects))

    @property
    def state(self) -> State:
        """The state."""
        items, rest, _ = self.latest[0]
        return State(Items(*items), rest)

    def look(self, most: int) -> None:
        """Raises where the objects have changed.

        Args:
            most: looks at no more Variables than that, and twice as many modules; at the next ones with each call.
        """
        change = self._structure.change(2 * most)  # which is quicker
        if change is not None:
            raise changed(change)
        start, end = self._next, self._next + most
        self._next = end if end < len(self.held) else 0
        if list(map(_RAW, self._variables[start:end])) != self.held[start:end]:
            raise written_past(", ".join(self.strays()))

    def strays(self) -> list[str]:
        """Returns which Variables were written past the step."""
        pairs = zip(self.layout.places, self.held, strict=True)
        return [place.name for place, held in pairs if place.variable.get_raw_value() is not held]

    def checked_state(self) -> State:
        """Returns the state; raises where a step took its memory and then failed."""
        state = self.state
        if any(array.is_deleted() for array in jax.tree.leaves(state)):
            raise HeldError(
                compose(
                    "the compiled step",
                    "failed while it ran, after it had taken the memory of the state before it, so that is lost.",
                    got="a call that raised inside JAX",
                    fix="restore the last checkpoint; compile_step(..., donate=False) keeps the state before a step",
                )
            )
        return state

    def reading(self, objects: tuple[Any, ...], names: list[str]) -> Reading:
        """Starts to read all items."""
        if self._reader is None:
            self._reader = Reader(entries_of(objects, names), self.layout)
        return self._reader.reading(self.checked_state() if self.failed else self.state)

    def _held(self, place: Place) -> Held:
        raw = place.variable.get_raw_value()
        is_item = isinstance(place.variable, Item) and not place.variable.shares
        if isinstance(raw, jax.Array | np.ndarray):
            sharding = raw.sharding if isinstance(raw, jax.Array) and raw.committed else None
            value: Any = jax.ShapeDtypeStruct(raw.shape, raw.dtype, sharding=sharding)
        else:
            value = raw
        if not is_item:
            return Held(place.variable, place.name, value)
        read, write = functools.partial(self._read, place), functools.partial(self._write, place)
        return Held(place.variable, place.name, value, read, write)

    def _read(self, place: Place) -> jax.Array:
        self._refuse_closure(place)
        state = self.checked_state()
        if place.number is not None:
            return self.layout.packing.part_now(state.items.packed, place.number)
        (k,) = place.arrays
        is_lasting = k < self.layout.lasting or not self._copies
        return state.values[k] if is_lasting else jnp.copy(state.values[k])

    def _write(self, place: Place, value: Any) -> None:
        self._refuse_closure(place, value)
        (packed, _), values = self.checked_state().items, self.state.values
        if place.number is not None:
            packed = _like(self.layout.packing.written(packed, place.number, value), packed)
        else:
            (k,) = place.arrays
            values[k] = _like(owned(value, None, copy=self._copies), values[k])
        self.latest.append(((packed, values[: self.layout.lasting]), values[self.layout.lasting :], None))

    def _refuse_closure(self, place: Place, value: Any = None) -> None:
        if self.is_tracing or is_traced(value):
            raise TraceError(
                compose(
                    place.name,
                    "is held by a compiled step, so a trace can't have it: a read would be a constant, a write lost.",
                    got="a use of the object that the step is bound to, while this or another function is traced",
                    fix="the step's own argument, as in train_step(model, ...); or step.sync() before nnx.jit takes it",
                )
            )


def _like(value: jax.Array, other: jax.Array) -> jax.Array:
    """Returns a value where another one is."""
    return placed(value, other.sharding) if is_committed(other) and value.sharding != other.sharding else value
