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
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tallax._arrays import is_traced
from tallax._walk import path_name
from tallax.checking._job_values import Value, Values, is_numeric
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


Part: TypeAlias = "tuple[tuple[Any, ...], Any, str]"
GLOBAL_GENERATORS = ("numpy.random", "random")  # by the names of their modules


def global_generators() -> Values:
    """Returns the states of the generators that `numpy.random` and `random` share between all callers."""
    states = (np.random.get_state(legacy=False), random.getstate())
    return {name: Value(pickle.dumps(state), "random") for name, state in zip(GLOBAL_GENERATORS, states, strict=True)}


def values_of(named: Mapping[str, Any], *, seen: set[int] | None = None) -> Values:
    """Returns the values of objects by path.

    Args:
        named: The objects by name.
        seen: The identities of objects that are left out because they were walked before. Those of this walk are added.
    """
    walk = _Walk(set() if seen is None else seen)
    for name, thing in named.items():
        walk.add((name,), thing, "plain")
    return walk.found


def roots_of(returned: Any, names: Mapping[int, str]) -> dict[str, Any]:
    """Returns the objects that a job returned, by name.

    Args:
        returned: The value that the job returned.
        names: The names of its local variables by the identity of their values: `return model, data` has no others.
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
        if isinstance(thing, jax.Array | np.ndarray):
            if (thing := _array(str(path[-1]), thing, kind)) is None:
                return
        elif thing is None or isinstance(thing, (str, bytes, *_NUMBERS)):
            thing = Value(np.asarray(thing) if isinstance(thing, np.generic) else thing, kind)
        if isinstance(thing, Value):
            self.found[path_name(path)] = thing
        elif id(thing) not in self.seen:
            self.seen.add(id(thing))
            self.kept.append(thing)
            with contextlib.suppress(RecursionError):
                for below, part, of_kind in _parts(thing, kind):
                    self.add((*path, *below), part, of_kind)


def _array(name: str, array: Any, kind: str) -> Value | None:
    """Returns an array as a value; None if this process cannot read it, or if it consists of objects."""
    if isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array, kind = jax.random.key_data(array), "random"
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return None  # of several processes; each compares the arrays that it can read
    host = np.array(array)
    if host.dtype == object:
        return None
    is_pair = host.dtype == np.uint32 and host.shape[-1:] == (2,) and kind in ("plain", "array", "position")
    if is_pair and any(word in name.lower() for word in ("key", "rng")):
        kind = "random"
    return Value(host, "array" if kind == "plain" else kind)


def _parts(thing: Any, kind: str) -> Iterable[Part]:
    """Returns the parts of an object: the path of each below the object, the part, and its kind."""
    named: Iterable[tuple[Any, Any]] = ()
    if isinstance(thing, CompiledStep):
        thing.sync()
        named = roots_of(tuple(thing.objects), {}).items()
    elif isinstance(thing, nnx.Variable):
        return _variable_parts(thing)
    elif isinstance(thing, nnx.Pytree):
        return _node_parts(thing)
    elif (state := _random_state(thing)) is not None:
        named = [((), Value(state, "random"))]
    elif _is_record(thing):
        keys = tuple(thing) if isinstance(thing, Mapping) else None
        entries = thing.values() if isinstance(thing, Mapping) else thing
        named = [((), Value(np.array([np.asarray(entry) for entry in entries]), "record", keys))]
    elif isinstance(thing, Mapping):
        named = thing.items()
        if "bit_generator" in thing and "state" in thing:  # of NumPy's generators, inside the state of a loader
            named = [((), Value(pickle.dumps(dict(thing)), "random"))]
    elif isinstance(thing, tuple) and (fields := getattr(thing, "_fields", None)):
        named = zip(fields, thing, strict=True)
    elif isinstance(thing, tuple | list):
        named = enumerate(thing)
    elif isinstance(thing, set | frozenset):
        with contextlib.suppress(TypeError):
            named = [((), repr(sorted(thing)))]
    elif _has_position(thing):
        kind = "position"
        with contextlib.suppress(Exception):  # a user's object: if it cannot tell its state, it is not compared
            state = thing.get_state() if hasattr(thing, "get_state") else thing.state_dict()
            named = [(() if isinstance(state, Mapping) else "state", state)]
    elif isinstance(thing, types.GeneratorType):
        kind, frame = "position", thing.gi_frame
        named = frame.f_locals.items() if frame is not None else ()
    elif isinstance(thing, _BUILTIN_ITERATORS):
        kind = "position"
        with warnings.catch_warnings(), contextlib.suppress(Exception):
            warnings.simplefilter("ignore")  # Python 3.14 ends the pickling of itertools, which this reads
            reduced = thing.__reduce__()
            named = enumerate(reduced[1:] if isinstance(reduced, tuple) else ())
    elif dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        named = [(field.name, getattr(thing, field.name, None)) for field in dataclasses.fields(thing)]
    elif isinstance(thing, type | types.ModuleType) or (callable(thing) and not hasattr(thing, "__next__")):
        named = ()
    elif len(leaves := jax.tree_util.tree_leaves_with_path(thing, is_leaf=_is_variable)) != 1 or leaves[0][0]:
        named = leaves  # a leaf without a path is the object itself
    elif is_users(_file_of(thing)):
        kind = "position" if hasattr(thing, "__next__") or hasattr(thing, "__iter__") else kind
        named = getattr(thing, "__dict__", {}).items()
    return [(path if isinstance(path, tuple) else (path,), part, kind) for path, part in named]


def _variable_parts(variable: nnx.Variable[Any]) -> Iterable[Part]:
    value, kind = variable.get_raw_value(), type(variable).__name__
    if not variable.get_metadata("persistent", True):
        return []  # declared as not saved: a restore resets it on purpose
    if isinstance(variable, Counter):
        return [] if is_traced(value) else [((), Value(np.array(variable), kind), kind)]
    return [(path, leaf, kind) for path, leaf in jax.tree_util.tree_leaves_with_path(value)]


def _node_parts(node: Any) -> Iterable[Part]:
    for path, leaf in nnx.iter_graph(whole(node), graph=True):
        if isinstance(leaf, nnx.Variable | jax.Array | np.ndarray):
            yield path, leaf, "array"
        elif isinstance(leaf, _NUMBERS) or _random_state(leaf) is not None:
            yield path, leaf, "attribute"


def _is_variable(thing: Any) -> bool:
    return isinstance(thing, nnx.Variable)


def _is_node(thing: Any) -> bool:
    return isinstance(thing, nnx.Pytree | nnx.State | nnx.Variable)


def _is_scalar(entry: Any) -> bool:
    if isinstance(entry, bool | str | bytes) or is_traced(entry):
        return False
    if isinstance(entry, jax.Array | np.ndarray):
        return entry.ndim == 0 and is_numeric(entry.dtype)
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
