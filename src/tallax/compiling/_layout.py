# SPDX-License-Identifier: Apache-2.0
"""The state of a step as arrays: the place of each Variable's value, and the packed array of counts and small words.

Nothing here refers to the bound objects, so programs may keep a layout without keeping objects or values alive.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tallax import _uint64
from tallax._arrays import unsplit
from tallax._errors import StructureChangedError
from tallax.compiling._owners import Form, Kind, path_in
from tallax.variables import TwoPartCount, cut, join


class State(NamedTuple):
    """The state that a step changes, as its programs take and return it.

    Attributes:
        packed: The words of all counts and small Buffers of uint32, or None without any; see `Packing`.
        small: The arrays of other small tallax variables.
        rest: All other arrays, whose memory a step may overwrite.
    """

    packed: Any
    small: list[Any]
    rest: list[Any]

    @property
    def values(self) -> list[Any]:
        """All values that are not packed, in the order of the layout."""
        return self.small + self.rest


@dataclass(frozen=True, slots=True)
class Place:
    """The place of one Variable's value in the state.

    Attributes:
        path: Flax's path to the Variable.
        form: The parts of its value.
        number: Its number among the packed values; None for other values.
        arrays: The range of its arrays among the values.
    """

    path: tuple[Any, ...]
    form: Form
    number: int | None
    arrays: range


class Layout:
    """The split of objects into packed values, other values, and arrays outside of Variables.

    Attributes:
        places: The places of all Variables, in the order of their kinds.
        packed: The places of packed values.
        packing: The columns of packed values.
        small: The number of arrays among the values that a step does not overwrite.
        constants: The paths of arrays that are in no Variable.
        key: Equal for layouts that one program fits.

    Args:
        graphdef: Flax's structure of the objects.
        graph: Whether Flax's graph mode made it.
        paths: The paths of all leaves, in Flax's order.
        forms: The forms of the Variables among them, in the order of their kinds.
        names: The names of the objects.
    """

    def __init__(
        self,
        graphdef: Any,
        graph: bool,
        paths: Sequence[tuple[Any, ...]],
        forms: Mapping[tuple[Any, ...], Form],
        names: Sequence[str],
    ):
        self.graphdef, self._graph, self._paths, self._names = graphdef, graph, list(paths), names
        self.constants = [path for path in paths if path not in forms]
        self.places: list[Place] = []
        end = 0
        for number, (path, form) in enumerate(forms.items()):
            count = 0 if form.is_packed else form.arrays
            self.places.append(Place(path, form, number if form.is_packed else None, range(end, end + count)))
            end += count
        self.packed = [place for place in self.places if place.number is not None]
        self.small: int = sum(len(place.arrays) for place in self.places if place.form.kind is Kind.SMALL)
        self.packing = Packing([(place.form.kind, place.form.shape) for place in self.packed])
        # The graphdef does not contain shapes. If two Counters swap their shapes, the arrays of a program do not
        # change, but the columns of the counts in them do.
        key = [(p.path, p.form.structure, p.form.kind, p.form.shape, p.form.arrays) for p in self.places]
        self.key = (graphdef, key, self.constants)

    def state(self, packed: Any, values: list[Any]) -> State:
        """Returns the state with these values."""
        return State(packed, values[: self.small], values[self.small :])

    def name_of(self, place: Place) -> str:
        """Returns the user's path to a Variable, such as `model/encoder/step`."""
        return path_in(place.path, self._names)

    def merge(self, packed: Mapping[int, Any], values: Sequence[Any], constants: Sequence[Any]) -> tuple[Any, ...]:
        """Returns objects like the bound ones, with other values."""
        flat: dict[Any, Any] = dict(zip(self.constants, constants, strict=True))
        for place in self.places:
            arrays = [values[k] for k in place.arrays] if place.number is None else [packed[place.number]]
            flat[place.path] = place.form.structure.unflatten(arrays)
        return nnx.merge(self.graphdef, nnx.from_flat_state([(path, flat[path]) for path in self._paths]))

    def split(self, objects: tuple[Any, ...], constants: Sequence[Any]) -> tuple[dict[int, Any], list[Any]] | None:
        """Returns the packed and other values of objects from `merge`, or None if their structure has changed.

        Raises:
            StructureChangedError: An array outside of Variables was replaced.
        """
        graphdef, state = nnx.split(objects, graph=self._graph)
        flat = dict(nnx.to_flat_state(state))
        if graphdef != self.graphdef or list(flat) != self._paths:
            return None
        for path, array in zip(self.constants, constants, strict=True):
            if flat[path] is not array:
                raise StructureChangedError(
                    path_in(path, self._names),
                    "is an array outside of Variables, but a compiled step changes only Variables.",
                    got="another array after the step",
                    fix="tallax.Buffer(x), or nnx.Variable(x), which is written by self.x[...] = y",
                )
        packed, values = {}, []
        for place in self.places:
            variable: Any = flat[place.path]
            if place.number is None:
                if jax.tree.structure(variable) != place.form.structure:
                    return None
                values += jax.tree.leaves(variable)
            else:
                raw = variable.get_raw_value()
                raw = raw if isinstance(raw, TwoPartCount) or _uint64.is_limbs(raw) else variable._exact()
                if raw.shape != place.form.shape:
                    return None
                packed[place.number] = raw
        return packed, values


class Packing:
    """The columns of values in uint32[2, n]: the low and high words of all counts, and then other words in pairs.

    Args:
        values: The kinds and shapes of the values, counts first. The shape of a count ends with the axis of its words.
    """

    def __init__(self, values: Sequence[tuple[Kind, tuple[int, ...]]]):
        self.shapes = [shape for _, shape in values]
        self.counts: int = sum(kind is Kind.COUNT for kind, _ in values)
        self.ends = np.cumsum([0, *(-(-math.prod(shape) // 2) for shape in self.shapes)]).tolist()

    def pack(self, values: Sequence[np.ndarray]) -> np.ndarray:
        """Returns the array of all values."""
        flat = np.zeros(2 * self.ends[-1], np.uint32)
        for start, value in zip(self.ends, values, strict=False):
            flat[2 * start : 2 * start + value.size] = value.ravel()
        return np.ascontiguousarray(flat.reshape(-1, 2).T)

    def part_of_words(self, words: np.ndarray, number: int) -> np.ndarray:
        """Returns one value, as a view of uint32[n, 2] on the host."""
        shape = self.shapes[number]
        return words[self.ends[number] : self.ends[number + 1]].reshape(-1)[: math.prod(shape)].reshape(shape)

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
        """Returns the words of all values that are not counts, uint32[n]; None without any."""
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
            words: The words of all values that are not counts; None without any.
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


def _put(packed: jax.Array, start: Any, value: Any) -> jax.Array:
    flat = unsplit(jnp.asarray(value)).reshape(-1)
    columns = (flat if flat.size % 2 == 0 else jnp.pad(flat, (0, 1))).reshape(-1, 2).T
    return jax.lax.dynamic_update_slice_in_dim(packed, columns, start, axis=1)


_written = jax.jit(_put)


@functools.partial(jax.jit, static_argnums=2)
def _part(packed: jax.Array, start: Any, shape: tuple[int, ...]) -> jax.Array:
    return _shaped(jax.lax.dynamic_slice_in_dim(packed, start, -(-math.prod(shape) // 2), axis=1), shape)
