# SPDX-License-Identifier: Apache-2.0
"""The state of a training job as values by path: what `resumecheck` saves in one process and compares in another.

A job may return anything: modules, optimizers, iterators, pytrees, plain Python objects. `values_of` walks them and
returns NumPy arrays, numbers and text only, so that a file of them can be read without the job's own code.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import pickle
import random
import sys
import types
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tallax._arrays import is_traced
from tallax._walk import path_name
from tallax.checking._source_lines import is_users
from tallax.checkpoints._collect import whole
from tallax.compiling import CompiledStep
from tallax.variables import Counter

_NUMBERS = (bool, int, float, complex, np.generic)
_BUILTIN_ITERATORS = (
    *(type(iter(each)) for each in ([], (), "", b"", range(0), {}, set())),
    type(iter(range(2**70))),
    *(zip, map, filter, enumerate, reversed),
    *(value for value in vars(itertools).values() if isinstance(value, type)),
)
_DEEPEST, _MOST = 12, 20_000  # levels and values: a job may return a graph of objects without end


@dataclasses.dataclass(frozen=True)
class Value:
    """One value of a job's state.

    Attributes:
        value: a NumPy array, a number, text, bytes, or None.
        kind: the class of its Variable, such as `Param`; `random` for keys and generators, `position` for the state of
            an iterator, `record` for a list of numbers such as the losses, `array` or `plain` for everything else.
        keys: for a record with names for its entries, those names.
    """

    value: Any
    kind: str
    keys: tuple[int, ...] | None = None

    @property
    def array(self) -> np.ndarray:
        """The value as a NumPy array; of text, one without a numeric dtype."""
        return self.value if isinstance(self.value, np.ndarray) else np.asarray(self.value)

    @property
    def is_number(self) -> bool:
        """Whether it consists of numbers."""
        if isinstance(self.value, bool | np.bool_) or self.value is None:
            return False
        return _is_numeric(self.array.dtype)

    @property
    def is_integer(self) -> bool:
        """Whether it consists of integers."""
        return self.is_number and bool(jnp.issubdtype(self.array.dtype, jnp.integer))

    def __str__(self) -> str:
        if self.kind == "random":
            return "a random state" if not isinstance(self.value, np.ndarray) else f"a key ({self.value.tolist()})"[:80]
        if isinstance(self.value, np.ndarray):
            dtype, shape = self.value.dtype, ",".join(map(str, self.value.shape))
            if self.value.size == 1:
                return f"{dtype}[{shape}] ({self.value.item()})"
            if self.value.size <= 4:
                return f"{dtype}[{shape}] ({self.value.tolist()})"
            start = np.array2string(self.value.reshape(-1)[:3], precision=6, separator=", ").rstrip("]")
            return f"{dtype}[{shape}] ({start}, ...])"
        text = repr(self.value)
        return text if len(text) <= 60 else f"{text[:57]}..."


Values = dict[str, Value]
GLOBAL_GENERATORS = ("numpy.random", "random")  # by the names of their modules


def global_generators() -> Values:
    """Returns the states of the generators that `numpy.random` and `random` share between all callers."""
    states = (np.random.get_state(legacy=False), random.getstate())
    return {name: Value(pickle.dumps(state), "random") for name, state in zip(GLOBAL_GENERATORS, states, strict=True)}


def _is_numeric(dtype: Any) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.number))


def values_of(named: Mapping[str, Any], *, seen: set[int] | None = None) -> Values:
    """Returns the values of objects by path.

    Args:
        named: objects by name.
        seen: identities of objects that are left out because they were walked before; those of this walk are added.
    """
    walk = _Walk(set() if seen is None else seen)
    for name, thing in named.items():
        walk.add((name,), thing, "plain")
    return walk.found


def roots_of(returned: Any, names: Mapping[int, str]) -> dict[str, Any]:
    """Returns the objects that a job returned, by name.

    Args:
        returned: by the job.
        names: of its local variables by the identity of their values, since `return model, data` names them already.
    """
    if returned is None:
        return {}
    if isinstance(returned, Mapping) and all(isinstance(key, str) for key in returned) and not _is_node(returned):
        return dict(returned)
    fields = getattr(returned, "_fields", None)
    if isinstance(returned, tuple) and fields:
        return dict(zip(fields, returned, strict=True))
    things = returned if isinstance(returned, tuple | list) and not _is_record(returned) else (returned,)
    found: dict[str, Any] = {}
    for thing in things:
        base, number = names.get(id(thing)) or _label(thing), 1
        name = base
        while name in found:
            name, number = f"{base}_{number}", number + 1
        found[name] = thing
    return found


def _label(thing: Any) -> str:
    kinds = ((nnx.Optimizer, "optimizer"), ((nnx.Rngs, nnx.RngStream), "rngs"), (CompiledStep, "step"))
    for kind, label in kinds:
        if isinstance(thing, kind):
            return label
    if isinstance(thing, nnx.Pytree):
        return "model"
    if isinstance(thing, nnx.State):
        return "state"
    if _is_record(thing):
        return "losses"
    return "data" if _has_position(thing) else type(thing).__name__.lower()


class _Walk:
    """One walk over objects; each object is listed once, under the first path that leads to it."""

    def __init__(self, seen: set[int]):
        self.found: Values = {}
        self.kept: list[Any] = []  # so that no identity in `seen` is given to another object
        self.seen = seen

    def add(self, path: tuple[Any, ...], thing: Any, kind: str) -> None:
        """Adds the values of an object."""
        if len(path) > _DEEPEST or len(self.found) > _MOST or is_traced(thing):
            return
        if thing is None or isinstance(thing, (str, bytes, *_NUMBERS)):
            self._note(path, np.asarray(thing) if isinstance(thing, np.generic) else thing, kind)
        elif isinstance(thing, jax.Array | np.ndarray):
            self._add_array(path, thing, kind)
        elif id(thing) not in self.seen:
            self.seen.add(id(thing))
            self.kept.append(thing)
            with contextlib.suppress(RecursionError):
                self._add_object(path, thing, kind)

    def _note(self, path: tuple[Any, ...], value: Any, kind: str, keys: tuple[int, ...] | None = None) -> None:
        self.found[path_name(path)] = Value(value, kind, keys)

    def _add_array(self, path: tuple[Any, ...], array: Any, kind: str) -> None:
        if isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
            array, kind = jax.random.key_data(array), "random"
        if isinstance(array, jax.Array) and not array.is_fully_addressable:
            return  # of several processes; each compares the arrays that it can read
        host = np.array(array)
        if host.dtype == object:
            return
        if host.dtype == np.uint32 and host.shape[-1:] == (2,) and kind in ("plain", "array", "position"):
            kind = "random" if any(word in str(path[-1]).lower() for word in ("key", "rng")) else kind
        self._note(path, host, "array" if kind == "plain" else kind)

    def _add_object(self, path: tuple[Any, ...], thing: Any, kind: str) -> None:
        if isinstance(thing, CompiledStep):
            thing.sync()
            for number, part in enumerate(thing.objects):
                self.add((*path, _label(part)) if number == 0 else (*path, f"{_label(part)}_{number}"), part, kind)
        elif isinstance(thing, nnx.Variable):
            self._add_variable(path, thing)
        elif isinstance(thing, nnx.Pytree):
            self._add_node(path, thing)
        elif (state := _random_state(thing)) is not None:
            self._note(path, state, "random")
        elif _is_record(thing):
            self._add_record(path, thing)
        elif isinstance(thing, Mapping):
            if "bit_generator" in thing and "state" in thing:  # of NumPy's generators, inside the state of a loader
                self._note(path, pickle.dumps(dict(thing)), "random")
                return
            for key, child in thing.items():
                self.add((*path, key), child, kind)
        elif isinstance(thing, tuple) and (fields := getattr(thing, "_fields", None)):
            for name, child in zip(fields, thing, strict=True):
                self.add((*path, name), child, kind)
        elif isinstance(thing, tuple | list):
            for number, child in enumerate(thing):
                self.add((*path, number), child, kind)
        elif isinstance(thing, set | frozenset):
            with contextlib.suppress(TypeError):
                self._note(path, repr(sorted(thing)), kind)
        elif _has_position(thing):
            self._add_position(path, thing)
        elif isinstance(thing, types.GeneratorType):
            frame = thing.gi_frame
            for name, child in (frame.f_locals if frame is not None else {}).items():
                self.add((*path, name), child, "position")
        elif isinstance(thing, _BUILTIN_ITERATORS):
            self._add_iterator(path, thing)
        elif dataclasses.is_dataclass(thing) and not isinstance(thing, type):
            for field in dataclasses.fields(thing):
                self.add((*path, field.name), getattr(thing, field.name, None), kind)
        elif isinstance(thing, type | types.ModuleType) or (callable(thing) and not hasattr(thing, "__next__")):
            return
        elif not self._add_pytree(path, thing, kind) and is_users(_file_of(thing)):
            is_iterator = hasattr(thing, "__next__") or hasattr(thing, "__iter__")
            for name, child in vars(thing).items() if hasattr(thing, "__dict__") else ():
                self.add((*path, name), child, "position" if is_iterator else kind)

    def _add_variable(self, path: tuple[Any, ...], variable: nnx.Variable[Any]) -> None:
        if not variable.get_metadata("persistent", True):
            return  # declared as not saved: a restore resets it on purpose
        kind = type(variable).__name__
        if is_traced(variable.get_raw_value()):
            return
        if isinstance(variable, Counter):
            self._note(path, np.array(variable), kind)
            return
        for inner, leaf in jax.tree_util.tree_leaves_with_path(variable.get_raw_value()):
            self.add((*path, *inner), leaf, kind)

    def _add_node(self, path: tuple[Any, ...], node: Any) -> None:
        for inner, leaf in nnx.iter_graph(whole(node), graph=True):
            if isinstance(leaf, nnx.Variable):
                if id(leaf) not in self.seen:
                    self.seen.add(id(leaf))
                    self.kept.append(leaf)
                    self._add_variable((*path, *inner), leaf)
            elif isinstance(leaf, jax.Array | np.ndarray):
                self._add_array((*path, *inner), leaf, "array")
            elif isinstance(leaf, _NUMBERS) or _random_state(leaf) is not None:
                self.add((*path, *inner), leaf, "attribute")

    def _add_record(self, path: tuple[Any, ...], record: Any) -> None:
        keys = tuple(record) if isinstance(record, Mapping) else None
        entries = list(record.values() if isinstance(record, Mapping) else record)
        self._note(path, np.array([np.asarray(entry) for entry in entries]), "record", keys)

    def _add_position(self, path: tuple[Any, ...], thing: Any) -> None:
        with contextlib.suppress(Exception):  # a user's object: if it cannot tell its state, it is not compared
            state = thing.get_state() if hasattr(thing, "get_state") else thing.state_dict()
            self.add((*path, "state") if not isinstance(state, Mapping) else path, state, "position")

    def _add_iterator(self, path: tuple[Any, ...], thing: Any) -> None:
        with warnings.catch_warnings(), contextlib.suppress(Exception):
            warnings.simplefilter("ignore")  # Python 3.14 ends the pickling of itertools, which this reads
            parts = thing.__reduce__()
            for number, part in enumerate(parts[1:] if isinstance(parts, tuple) else ()):
                self.add((*path, number), part, "position")

    def _add_pytree(self, path: tuple[Any, ...], thing: Any, kind: str) -> bool:
        leaves = jax.tree_util.tree_leaves_with_path(thing, is_leaf=lambda part: isinstance(part, nnx.Variable))
        if len(leaves) == 1 and leaves[0][1] is thing:
            return False
        for inner, leaf in leaves:
            self.add((*path, *inner), leaf, kind)
        return True


def _is_node(thing: Any) -> bool:
    return isinstance(thing, nnx.Pytree | nnx.State | nnx.Variable)


def _is_scalar(entry: Any) -> bool:
    if isinstance(entry, bool | str | bytes) or is_traced(entry):
        return False
    if isinstance(entry, jax.Array | np.ndarray):
        return entry.ndim == 0 and _is_numeric(entry.dtype)
    return isinstance(entry, _NUMBERS)


def _is_record(thing: Any) -> bool:
    """Returns whether an object is a list of numbers, or numbers by step, as the losses of a run are."""
    if isinstance(thing, Mapping):
        entries: Iterable[Any] = thing.values()
        if not thing or not all(isinstance(key, int) for key in thing):
            return False
    elif isinstance(thing, list):
        entries = thing
    else:
        return False
    return all(_is_scalar(entry) for entry in entries)


def _has_position(thing: Any) -> bool:
    """Returns whether an object can tell its position, as the iterators of grain and the loaders of torchdata do."""
    if isinstance(thing, type | np.random.RandomState):
        return False
    return callable(getattr(thing, "get_state", None)) or callable(getattr(thing, "state_dict", None))


def _random_state(thing: Any) -> Any:
    """Returns the state of a generator of random numbers; None of any other object."""
    if isinstance(thing, np.random.Generator):
        thing = thing.bit_generator
    if isinstance(thing, np.random.BitGenerator):
        return pickle.dumps(thing.state)
    if isinstance(thing, np.random.RandomState):
        return pickle.dumps(thing.get_state(legacy=False))
    return pickle.dumps(thing.getstate()) if isinstance(thing, random.Random) else None


def _file_of(thing: Any) -> str:
    module = sys.modules.get(type(thing).__module__)
    return getattr(module, "__file__", None) or "<frozen"
