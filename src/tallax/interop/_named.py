# SPDX-License-Identifier: Apache-2.0
"""Restores arrays into a module by the names of another library."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from flax import nnx

from tallax._errors import InvalidTypeError, RestoreError, describe
from tallax.checkpoints import RestoreReport
from tallax.checkpoints._collect import Holder, State, holders_of
from tallax.checkpoints._fetch import given
from tallax.checkpoints._manifest import ArrayEntry, Manifest, Source
from tallax.checkpoints._names import places_of
from tallax.checkpoints._policy import Policy
from tallax.checkpoints._restore import restore_into
from tallax.checkpoints._serialize import is_key, joined, stored

MODEL = "model"


@dataclasses.dataclass(frozen=True)
class Place:
    """An array of a module under one of its paths. A shared part has several.

    Attributes:
        path: The attribute names, keys and indices that lead to the Variable, or to an array outside of Variables.
        owners: The modules and containers along the path.
        inner: The levels within the value of the Variable, if that is a tree of arrays.
        name: The name of the array in a checkpoint of the module.
        holder: The Variable.
        leaf: The array.
    """

    path: tuple[Any, ...]
    owners: Sequence[Any]
    inner: Sequence[str]
    name: str
    holder: Holder
    leaf: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array. For a counter, this is the shape of its counts."""
        shape = tuple(np.shape(self.leaf))
        return shape[:-1] if self.holder.kind == "Counter" else shape


def places_in(model: Any, *, abstract: bool = False) -> list[Place]:
    """Returns the arrays of a module, except random streams and values that checkpoints omit, by every path.

    Raises:
        InvalidTypeError: The argument is not a module.
    """
    if not isinstance(model, nnx.Module):
        raise InvalidTypeError("model", "requires an NNX module.", got=describe(model), fix="from_torch(source, model)")
    holders = [holder for holder in holders_of({MODEL: model}, abstract=abstract) if holder.persistent]
    holders = [holder for holder in holders if not isinstance(holder.variable, nnx.RngState)]
    by_variable = {id(holder.variable): holder for holder in holders if holder.variable is not None}
    by_name = {holder.names[0]: holder for holder in holders if holder.variable is None}
    found, first = [], {}
    paths = _paths_in(model)
    nodes = dict(paths)
    for path, node in paths:
        name = joined((MODEL, *path))
        if isinstance(node, nnx.Variable):
            holder, base = by_variable.get(id(node)), first.setdefault(id(node), name)
        else:
            holder, base = by_name.get(name), name
        if holder is None:
            continue
        owners = [nodes.get(path[:k]) for k in range(len(path))]
        for full, leaf in zip(holder.names, holder.leaves, strict=True):
            found.append(Place(path, owners, full.removeprefix(base).split("/")[1:], full, holder, leaf))
    return found


def _paths_in(model: Any) -> list[tuple[tuple[Any, ...], Any]]:
    """Returns all values of a module with their paths. A shared part has several paths."""
    found: list[tuple[tuple[Any, ...], Any]] = list(nnx.iter_graph(model))
    seen = {tuple(map(str, path)) for path, _ in found}

    def walk(node: Any, path: tuple[Any, ...], above: tuple[int, ...]) -> None:
        for name, child in vars(node).items():
            inner = (*path, name)
            if not isinstance(child, nnx.Pytree | nnx.Variable) or id(child) in above:
                continue
            if tuple(map(str, inner)) not in seen:
                seen.add(tuple(map(str, inner)))
                found.append((inner, child))
            if isinstance(child, nnx.Pytree):
                walk(child, inner, (*above, id(child)))

    walk(model, (), (id(model),))
    return found


def match(own: Mapping[str, str], places: Mapping[str, Place]) -> dict[str, str]:
    """Returns the names in the module of the arrays of another library that have a place in it.

    `own` has the names of the arrays after the user's `rename=`, with slashes, and `places` has the places by the names
    that the library would use for them.
    """
    # In an error, the names of the module begin with "model", and `rename=` may repeat them.
    own = {old: new if new in (old, *places) else new.removeprefix(f"{MODEL}/") for old, new in own.items()}
    kinds = {f"{MODEL}/{name}": isinstance(place.holder.variable, nnx.Param) for name, place in places.items()}
    fixed = {f"{MODEL}/{new}" for old, new in own.items() if new != old and new in places}
    free = [new for new in own.values() if f"{MODEL}/{new}" not in fixed]
    found = {new: f"{MODEL}/{new}" for new in own.values()} | places_of(free, kinds, [MODEL], fixed)
    matched = {old: found[new].removeprefix(f"{MODEL}/") for old, new in own.items()}
    return {old: places[new].name for old, new in matched.items() if new in places}


def put(
    arrays: Mapping[str, Any],
    model: Any,
    places: Mapping[str, str],
    policy: Policy,
    *,
    others: Iterable[str] = (),
) -> RestoreReport:
    """Restores arrays into a module. Random streams, which other libraries do not have, do not change.

    `places` has the name in the module of each array that has a place. `others` are entries that are not arrays.
    """
    target = State.of({MODEL: model}, abstract=True)
    arrays = {name: stored(array) if is_key(array) else array for name, array in arrays.items()}
    arrays = _without_ties(arrays, places)
    arrays, narrowed = _narrowed(arrays, places, target)
    entries = {name: ArrayEntry("", str(np.dtype(array.dtype)), tuple(array.shape)) for name, array in arrays.items()}
    entries |= {name: ArrayEntry("", "", ()) for name in others}
    streams = frozenset(name for name, kind in target.variables.items() if isinstance(kind, nnx.RngState))
    # An entry without a place keeps its own name. It differs from all names of the module, which begin with "model/".
    places = {name: places.get(name, name) for name in entries}
    source = Source(Manifest(entries), arrays)
    policy = dataclasses.replace(policy, optional=streams)
    report = restore_into(target, source, lambda found: given(arrays, found), policy, places)
    return dataclasses.replace(report, converted=(*report.converted, *narrowed))


def _without_ties(arrays: Mapping[str, Any], places: Mapping[str, str]) -> dict[str, Any]:
    """Returns one array for each place in the module. Raises if arrays for the same place differ."""
    first: dict[str, str] = {}
    result = {}
    for name, array in arrays.items():
        other = first.setdefault(places.get(name, name), name)
        if other == name:
            result[name] = array
        elif not _is_same(array, arrays[other]):
            raise RestoreError(
                places[name],
                "is one Variable in the module, but the source has two different values for it.",
                got=f"{other!a} and {name!a}",
                fix=f"two Variables in the module; or a source without one of these, such as {name!a}",
            )
    return result


def _is_same(left: Any, right: Any) -> bool:
    if left is right:
        return True
    if (left.shape, left.dtype) != (right.shape, right.dtype):
        return False
    one, other = (np.ascontiguousarray(np.asarray(array)).reshape(-1).view(np.uint8) for array in (left, right))
    return bool(np.array_equal(one, other))


def _narrowed(
    arrays: Mapping[str, Any], places: Mapping[str, str], target: State
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Returns the arrays with 64-bit integers as 32-bit integers if the module has 32 bits and all values fit."""
    result, told = dict(arrays), []
    for name, array in arrays.items():
        entry = target.entries.get(places.get(name, ""))
        if entry is None or array.dtype != np.int64 or entry.dtype != "int32" or array.shape != entry.shape:
            continue
        narrow = np.asarray(array).astype(np.int32)
        if np.array_equal(narrow, array):
            result[name] = narrow
            told.append(f"{places[name]}: int64 -> int32, all values the same")
    return result, tuple(told)
