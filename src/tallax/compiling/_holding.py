# SPDX-License-Identifier: Apache-2.0
"""The state of one step between its calls, and how it moves between steps that share Variables."""

from __future__ import annotations

import collections
import functools
import itertools
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tallax._arrays import home_of, is_committed, is_traced, placed
from tallax.compiling._bound_objects import BoundObjects, owned
from tallax.compiling._layout import Place, State
from tallax.compiling._overlap import Overlap
from tallax.compiling._owners import Kind, Owner, in_a_trace, lost, owner_of, written_past
from tallax.compiling._reader import Reader
from tallax.compiling._results import Reference, is_object
from tallax.reading import Reading, entries_of

_RAW = operator.methodcaller("get_raw_value")
_CLOCK = itertools.count()
_LOOK_AT = 8  # Variables that each call, and each read, checks for writes past the step: less than a microsecond


class Holding:
    """The state of one step, in the order of its programs' arguments.

    If another step shares Variables, it has its own holding, and only one of them has the current value at a time.
    `catch_up` moves the current values here. They stay on the device, and only counts are copied, because they are
    packed in a different order. If the objects determine no devices, the arguments of the call do.

    Attributes:
        latest: The state and the result of the last call, as the programs return them.
        owners: The owners of the values, in the order of their places.
        constants: The arrays outside of Variables.
        time: The time of the last `catch_up`; -1 before the first.
        is_current: Whether it has all current values.
        is_ready: Whether the step can be called: its programs exist, and it still owns all its Variables.
        failed: Whether a call began and did not end.
        neighbours: The holdings that share Variables, with the shared places.

    Raises:
        TraceError: Inside a trace.
    """

    def __init__(self, bound: BoundObjects, objects: tuple[Any, ...], arguments: Any):
        self.layout, self.owners, self.constants = bound.layout, bound.owners, bound.arrays
        self.time, self.is_current, self.is_ready, self.failed = -1, False, False, False
        self.neighbours: dict[Holding, Overlap] = {}
        self._objects, self._structure = objects, bound.structure
        self._reader: Reader | None = None
        variables = [owner.variable for owner in self.owners]
        self._bound = variables, self.owners
        starts = range(0, len(variables), _LOOK_AT) or [0]
        # Prepared, because a slice of the two lists in each call would take longer than the comparison.
        self._some = itertools.cycle([tuple(x[start : start + _LOOK_AT] for x in self._bound) for start in starts])
        self._before = [(owner, owner.variable.get_raw_value()) for owner in self.owners if not owner.holders]
        others = {holding for owner in self.owners for holding in owner.holders}
        there = [array for holding in others for array in jax.tree.leaves(holding.state)]
        home = home_of([*(raw for _, raw in self._before), *there]) or home_of(jax.tree.leaves(arguments))
        # These arrays have no other references from here on, so this step or another one may donate them.
        values = bound.values(home)
        packed = owned(bound.packed(), home, copy=True) if self.layout.packed else None
        if is_traced(packed, *values):
            raise in_a_trace()
        self.latest: collections.deque[Any] = collections.deque(maxlen=1)
        self._set(packed, values)

    # --- owning -----------------------------------------------------------------------------------------------------

    def install(self) -> None:
        """Puts placeholders on the Variables, and moves the values of shared ones here.

        If it raises, the objects do not change.
        """
        try:
            pairs: dict[Holding, list[tuple[Place, Place]]] = {}
            for place, owner in zip(self.layout.places, self.owners, strict=True):
                for other, theirs in owner.holders.items():
                    pairs.setdefault(other, []).append((place, theirs))
                owner.holders[self] = place
            for other, places in pairs.items():
                self.neighbours[other] = Overlap(self.layout.packing, other.layout.packing, places)
                other.neighbours[self] = Overlap(other.layout.packing, self.layout.packing, [(b, a) for a, b in places])
            for owner, _ in self._before:
                owner.variable.set_raw_value(owner)
            self.catch_up()
        except BaseException:
            if self.time < 0:  # no value has been moved yet
                self._leave()
                for owner, raw in self._before:
                    owner.variable.set_raw_value(raw)
            raise
        self._before = []

    def catch_up(self) -> None:
        """Moves all values here that other steps have changed.

        Raises:
            StateOwnedByStepError: Another step failed on the device after it had donated shared values.
            TraceError: Inside a trace.
        """
        packed, values = self.state.packed, self.state.values
        newer = sorted((other for other in self.neighbours if other.time > self.time), key=operator.attrgetter("time"))
        for other in newer:
            overlap, theirs = self.neighbours[other], other.state
            packed, other_values = overlap.move(packed, theirs.packed), theirs.values
            for k, n in overlap.values:
                values[k] = other_values[n]
        if is_traced(packed):
            raise in_a_trace()
        if any(other.failed for other in newer) and any(x is not None and x.is_deleted() for x in values):
            raise lost()
        # If Ctrl-C comes at any point, each current value is in the holding with the latest time. The old references
        # are dropped last: this step may donate the arrays, and without donation they would keep memory alive.
        self._set(packed, values)
        self.time = next(_CLOCK)
        for other, overlap in self.neighbours.items():
            if other.is_current or other in newer:
                other.is_current = False
                other._forget([n for _, n in overlap.values])
        self.is_current = True

    def put_back(self) -> list[Owner]:
        """Puts all values back on the objects, and returns the owners of those that were written past the step."""
        if not self.is_current:
            self.catch_up()
        strays = self._give_back(self.owners)
        self._leave()
        return strays

    def retire(self) -> None:
        """Leaves the values to other steps that bind their Variables, and puts the others back on the objects."""
        alone = []
        for owner in self.owners:
            if not owner.is_released and owner.current() is self:
                if len(owner.holders) == 1:
                    alone.append(owner)
                else:
                    next(other for other in owner.holders if other is not self).catch_up()
        self._give_back(alone)
        self._leave()

    def _give_back(self, owners: Sequence[Owner]) -> list[Owner]:
        state, packing, strays = self.checked_state(), self.layout.packing, []
        values, words = state.values, None
        for owner in owners:
            if owner.is_released:
                continue
            variable, place = owner.variable, owner.holders[self]
            if variable.get_raw_value() is not owner:
                strays.append(owner)
            elif place.number is None:
                new = place.form.structure.unflatten([values[k] for k in place.arrays])
                variable.set_raw_value(new.get_raw_value())
            else:
                if words is None:
                    words = np.ascontiguousarray(np.asarray(state.packed).T)
                raw, sharding = packing.part_of_words(words, place.number).copy(), owner.sharding
                variable.set_raw_value(raw if sharding is None else placed(raw, sharding))
            owner.release()
        return strays

    def _leave(self) -> None:
        for owner in self.owners:
            owner.holders.pop(self, None)
        for other in self.neighbours:
            other.neighbours.pop(self, None)
        self.neighbours = {}

    def _set(self, packed: Any, values: list[Any]) -> None:
        self.latest.append((*self.layout.state(packed, values), None))

    def _forget(self, numbers: Sequence[int]) -> None:
        values = self.state.values
        for k in numbers:
            values[k] = None
        self._set(self.state.packed, values)

    # --- looking ----------------------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """The state."""
        return State(*self.latest[0][:3])

    @functools.cached_property
    def nodes(self) -> dict[tuple[Any, ...], Any]:
        """The bound modules and Variables by their paths."""
        return dict(nnx.iter_graph(self._objects))

    @functools.cached_property
    def references(self) -> dict[int, Reference]:
        """References to the bound modules and Variables, by their ids."""
        return {id(node): Reference(path) for path, node in self.nodes.items() if is_object(node)}

    def is_restructured(self, *, look: bool = True) -> bool:
        """Returns whether the structure of the objects has changed since the step took them over.

        Every call checks all modules: after `model.eval()`, the next call must run the program for eval mode, as
        `nnx.jit` does. A comparison takes about 0.1 us per module. Writes past the step are errors that may be found
        later, so a call checks only some of the Variables, and the next call the next ones. Without `look`, it checks
        none if the structure is the same.

        Raises:
            StateOwnedByStepError: A Variable was written past the step.
        """
        is_restructured = self._structure.change() is not None
        if is_restructured or look:
            variables, owners = self._bound if is_restructured else next(self._some)
            if not all(map(operator.is_, map(_RAW, variables), owners)):
                raise written_past([owner for owner in self.owners if _RAW(owner.variable) is not owner])
        return is_restructured

    def checked_state(self) -> State:
        """Returns the state. Raises if a step donated its memory and then failed."""
        state = self.state
        if any(array.is_deleted() for array in jax.tree.leaves(state)):
            raise lost()
        return state

    def reading(self, names: list[str]) -> Reading:
        """Starts to read all tallax variables."""
        if not self.is_current:
            self.catch_up()
        if self._reader is None:
            self._reader = Reader(entries_of(self._objects, names), self.layout, self.owners)
        return self._reader.reading(self.checked_state() if self.failed else self.state)

    # --- single values ----------------------------------------------------------------------------------------------

    def read(self, place: Place) -> jax.Array:
        """Returns the value of a tallax variable."""
        state = self.checked_state()
        if place.number is not None:
            with jax.transfer_guard_host_to_device("allow"):  # of the place of the count
                return self.layout.packing.part_now(state.packed, place.number)
        (k,) = place.arrays
        return state.values[k] if place.form.kind is Kind.SMALL else jnp.copy(state.values[k])

    def write(self, place: Place, value: Any) -> None:
        """Replaces the value of a tallax variable."""
        packed, values = self.checked_state().packed, self.state.values
        if place.number is not None:
            with jax.transfer_guard_host_to_device("allow"):  # of the place of the count, and of a host's value
                packed = _like(self.layout.packing.written(packed, place.number, value), packed)
        else:
            (k,) = place.arrays
            values[k] = _like(owned(value, None, copy=place.form.kind is not Kind.SMALL), values[k])
        self._set(packed, values)


def put_back(objects: tuple[Any, ...]) -> None:
    """Puts all values back on some objects, from all steps that own them."""
    owners: dict[Holding, list[Owner]] = {}
    for _, node in nnx.iter_graph(objects):
        owner = owner_of(node) if isinstance(node, nnx.Variable) else None
        if owner is not None:
            owners.setdefault(owner.current(), []).append(owner)
    for holding, its in owners.items():
        holding._give_back(its)


def _like(value: jax.Array, other: jax.Array) -> jax.Array:
    """Returns a value on the devices of another one."""
    return placed(value, other.sharding) if is_committed(other) and value.sharding != other.sharding else value
