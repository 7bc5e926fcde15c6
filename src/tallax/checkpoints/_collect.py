# SPDX-License-Identifier: Apache-2.0
"""Collects the state of objects: every Variable and array by name, with a way to write it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from tallax._arrays import is_traced
from tallax._errors import (
    InvalidTypeError,
    InvalidValueError,
    StateOwnedByStepError,
    TracedReadError,
    describe,
)
from tallax._module import EvalAware
from tallax._walk import Leaf, leaves_of
from tallax.checkpoints._manifest import ArrayEntry
from tallax.checkpoints._positions import POSITION, has_position, read_position, write_position
from tallax.checkpoints._serialize import RESERVED, dtype_of, is_key, joined
from tallax.compiling import CompiledStep
from tallax.replicas import combine_replicas
from tallax.statistics import Statistic
from tallax.variables import Counter, Placeholder, StateVariable

_ARRAYS = (jax.Array, np.ndarray, jax.ShapeDtypeStruct)


@dataclasses.dataclass(frozen=True)
class Holder:
    """A Variable of an object, an array outside of Variables, or an iterator over the data.

    Attributes:
        kind: The class name of the Variable; `array` outside of Variables, `position` for an iterator.
        names: The names of its arrays. There is one, unless a Variable has a pytree of them.
        leaves: The arrays.
        put: A function that replaces the arrays.
        variable: The Variable, or None.
        owner: The statistic or `ScheduledValue` that the Variable belongs to, or None.
    """

    kind: str
    names: tuple[str, ...]
    leaves: tuple[Any, ...]
    put: Callable[[Sequence[Any]], None]
    variable: nnx.Variable[Any] | None = None
    owner: EvalAware | None = None

    @property
    def persistent(self) -> bool:
        """True if checkpoints save it."""
        return self.variable is None or bool(self.variable.get_metadata("persistent", True))


def named_objects(objects: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """Returns modules and optimizers by their names in a checkpoint.

    A compiled step is synced, and stands for its bound objects.

    Raises:
        InvalidTypeError: An object is none of these, or there are no objects.
        InvalidValueError: A name is invalid or used twice.
    """
    found: dict[str, Any] = {}
    for thing in [part for each in objects for part in _parts_of(each)]:
        base, number = _label(thing), 1
        name = base
        while name in found:
            name, number = f"{base}_{number}", number + 1
        found[name] = thing
    for name, thing in named.items():
        if name in found or name == RESERVED:
            raise InvalidValueError(
                name, "each object of a checkpoint must have its own name.", got=f"{name}=...", fix="another name"
            )
        (found[name],) = _parts_of(thing)
    if not found:
        raise InvalidTypeError(
            "a checkpoint",
            "requires the modules and optimizers to save.",
            got="none",
            fix="tallax.save(path, model, optimizer)",
        )
    return found


def _parts_of(thing: Any) -> tuple[Any, ...]:
    if isinstance(thing, CompiledStep):
        thing.sync()
        return thing.objects
    if not isinstance(thing, nnx.Pytree) and not has_position(thing):
        raise InvalidTypeError(
            "a checkpoint",
            "takes modules, optimizers, compiled steps, and iterators with get_state and set_state.",
            got=" ".join(describe(thing).split()),
            fix="tallax.save(path, model, optimizer), or tallax.save(path, step)",
        )
    return (thing,)


def _label(thing: Any) -> str:
    kinds = ((nnx.Optimizer, "optimizer"), ((nnx.Rngs, nnx.RngStream), "rngs"), (nnx.Metric, "metrics"))
    other = "model" if isinstance(thing, nnx.Pytree) else "data"
    return next((label for kind, label in kinds if isinstance(thing, kind)), other)


def holders_of(objects: Mapping[str, Any], *, abstract: bool = False) -> list[Holder]:
    """Returns all state of named objects, each holder once, sorted by name. It is the same in every mode of Flax.

    With `abstract`, objects may have shapes without values, like a model from `nnx.eval_shape`.

    Raises:
        StateOwnedByStepError: A compiled step holds a value.
        InvalidTypeError: The value of a Variable is neither an array nor a number.
        TracedReadError: Inside a trace.
    """
    found: list[Holder] = []
    for name, thing in objects.items():
        if not isinstance(thing, nnx.Pytree):
            found.append(_position_of(name, thing))
            continue
        bare = set()
        for leaf in leaves_of(thing, (nnx.Variable, *_ARRAYS)):
            if isinstance(leaf.variable, _ARRAYS):
                bare.add(leaf.path)
            else:
                found.append(_holder_of(name, leaf, abstract))
        if bare:
            found += _bare_arrays(name, thing, bare, abstract)
    return sorted(found, key=lambda holder: holder.names)


def _position_of(name: str, thing: Any) -> Holder:
    """Returns the position of an iterator over the data."""
    position = read_position(name, thing)
    return Holder(POSITION, (joined((name,)),), (position,), lambda leaves: write_position(name, thing, leaves[0]))


def _holder_of(name: str, leaf: Leaf, abstract: bool) -> Holder:
    base, variable = joined((name, *leaf.path)), leaf.variable
    flat, structure = jax.tree_util.tree_flatten_with_path(variable.get_raw_value())
    names = tuple(joined((base, *inner), quoted=1) for inner, _ in flat)
    leaves = tuple(_checked_leaf(leaf_name, inner, abstract) for leaf_name, (_, inner) in zip(names, flat, strict=True))

    def put(leaves: Sequence[Any]) -> None:
        variable.set_raw_value(jax.tree.unflatten(structure, leaves))

    kind = "Counter" if isinstance(variable, Counter) else type(variable).__name__
    return Holder(kind, names, leaves, put, variable, leaf.owner)


def _bare_arrays(name: str, thing: Any, paths: set[Any], abstract: bool) -> list[Holder]:
    """Returns the arrays that modules have as plain attributes, except for those that Flax treats as constants."""
    found = []
    for path, leaf in nnx.to_flat_state(nnx.split(thing, graph=True)[1]):
        if path in paths:
            full = joined((name, *path))

            def put(leaves: Sequence[Any], path: Any = path) -> None:
                nnx.update(thing, nnx.from_flat_state([(path, leaves[0])]))

            found.append(Holder("array", (full,), (_checked_leaf(full, leaf, abstract),), put))
    return found


def _checked_leaf(name: str, leaf: Any, abstract: bool) -> Any:
    """Returns an array or a number. Raises for everything else, and for an abstract array unless it is allowed."""
    if isinstance(leaf, Placeholder):
        raise StateOwnedByStepError(
            name,
            "is owned by a compiled step, which keeps the state on the device between its calls.",
            got="the object that the step is bound to",
            fix="the step itself, as in tallax.save(path, step); or step.sync() first",
        )
    if is_traced(leaf):
        raise TracedReadError(
            name,
            "can only be saved or restored outside of a trace.",
            got=describe(leaf),
            fix="call it outside of jit",
        )
    if isinstance(leaf, jax.ShapeDtypeStruct):
        if abstract:
            return _on_a_concrete_mesh(name, leaf)
        raise InvalidTypeError(
            name,
            "cannot save abstract values (from `nnx.eval_shape`).",
            got=f"{leaf.dtype}{list(leaf.shape)} without a value",
            fix="tallax.restore(path, model) first, which gives an abstract model its values",
        )
    if not isinstance(leaf, jax.Array | np.ndarray | np.generic | bool | int | float | complex):
        raise InvalidTypeError(
            name,
            "a checkpoint stores arrays and numbers.",
            got=describe(leaf),
            fix="an attribute that is not a Variable, for a constant",
        )
    return leaf


def _on_a_concrete_mesh(name: str, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """Returns a shape whose sharding has devices: `nnx.eval_shape` within `jax.set_mesh` omits them."""
    sharding = leaf.sharding
    if not isinstance(sharding, jax.NamedSharding) or not isinstance(sharding.mesh, jax.sharding.AbstractMesh):
        return leaf
    mesh = jax.sharding.get_mesh()
    if mesh.empty or mesh.abstract_mesh.shape != sharding.mesh.shape:
        raise InvalidValueError(
            name,
            "has a sharding without devices, and the mesh that has them is not set.",
            got=f"{sharding.spec} on {dict(sharding.mesh.shape)}",
            fix="call it within jax.set_mesh(mesh), as nnx.eval_shape was",
        )
    sharding = jax.NamedSharding(mesh, sharding.spec)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding, weak_type=leaf.weak_type)


@dataclasses.dataclass(frozen=True)
class State:
    """The state of named objects, to save or to restore into.

    Attributes:
        objects: The objects by name.
        wholes: The same objects, with per-replica state combined.
        holders: The holders of `wholes`, sorted by name.
        variables: The Variable of each array, by name; None for an array outside of Variables.
        leaves: The arrays by name.
        entries: The descriptions of the arrays, by name.
    """

    objects: dict[str, Any]
    wholes: dict[str, Any]
    holders: list[Holder]
    variables: dict[str, Any]
    leaves: dict[str, Any]
    entries: dict[str, ArrayEntry]

    @classmethod
    def of(cls, objects: dict[str, Any], *, abstract: bool = False) -> State:
        """Returns the state of named objects, which `abstract` allows to have shapes without values."""
        wholes, holders = objects, holders_of(objects, abstract=abstract)
        if any(isinstance(holder.variable, StateVariable) and holder.variable._per_replica for holder in holders):
            wholes = {name: whole(thing) for name, thing in objects.items()}
            holders = holders_of(wholes, abstract=abstract)
        variables, leaves, entries = {}, {}, {}
        for holder in holders:
            for name, leaf in zip(holder.names, holder.leaves, strict=True):
                variables[name], leaves[name], entries[name] = holder.variable, leaf, _entry_of(holder, leaf)
        return cls(objects, wholes, holders, variables, leaves, entries)


def _entry_of(holder: Holder, leaf: Any) -> ArrayEntry:
    array = jax.eval_shape(jax.random.key_data, leaf) if is_key(leaf) else leaf
    owner = holder.owner
    return ArrayEntry(
        kind=holder.kind,
        dtype=dtype_of(leaf),
        shape=tuple(np.shape(array)),
        owner="" if owner is None else type(owner).__name__,
        configuration=repr(owner._configuration()) if isinstance(owner, Statistic) else "",
        reduce=str(holder.variable.get_metadata("reduce")) if isinstance(holder.variable, StateVariable) else "",
        persistent=holder.persistent,
    )


def whole(thing: Any) -> Any:
    """Returns an object with per-replica state combined, or the object itself if it has none."""
    if isinstance(thing, nnx.Pytree) and any(leaf.variable._per_replica for leaf in leaves_of(thing, StateVariable)):
        return combine_replicas(thing)
    return thing
