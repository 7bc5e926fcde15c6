# SPDX-License-Identifier: Apache-2.0
"""Restores arrays into a module by the names of another library."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from flax import nnx

from tallax._errors import InvalidTypeError, RestoreError, describe
from tallax.checkpoints import RestoreReport
from tallax.checkpoints._collect import Holder, Target, holders_of
from tallax.checkpoints._fetch import given
from tallax.checkpoints._manifest import Entry, Manifest, Source
from tallax.checkpoints._policy import Missing, Policy, Spelling, Unexpected
from tallax.checkpoints._prefixes import Wanted, layout_of
from tallax.checkpoints._restore import restore_into
from tallax.checkpoints._serialize import is_key, joined, stored

MODEL = "model"


def put(
    arrays: Mapping[str, Any],
    model: Any,
    names: Mapping[str, str],
    *,
    others: Iterable[str] = (),
    missing: Missing,
    unexpected: Unexpected,
    spelling: Spelling,
) -> RestoreReport:
    """Restores arrays into a module. Random streams, which other libraries do not have, do not change.

    `names` has the module's names of the arrays; names without an array are those that `rename` returned in vain.
    `others` have no place in the module.
    """
    target = Target.of({MODEL: checked(model)})
    arrays = {name: stored(array) if is_key(array) else array for name, array in arrays.items()}
    arrays = _without_ties(arrays, names)
    arrays, narrowed = _narrowed(arrays, names, target)
    entries = {name: Entry("", str(np.dtype(array.dtype)), tuple(array.shape)) for name, array in arrays.items()}
    entries |= {name: Entry("", "", ()) for name in others}
    streams = frozenset(
        name for holder in target.holders if isinstance(holder.variable, nnx.RngState) for name in holder.names
    )
    # An entry without a place keeps its own name. It differs from all names of the module, which begin with "model/".
    policy = Policy(missing, unexpected, lambda name: names.get(name, name), spelling, streams, finds_layout=False)
    report = restore_into(
        target,
        Source(Manifest(entries), dict(arrays)),
        lambda found, _: given(arrays, found),
        policy,
    )
    return dataclasses.replace(report, converted=(*report.converted, *narrowed))


def found_in(names: Iterable[str], places: Mapping[str, str], model: Any, *, pinned: Iterable[str]) -> dict[str, str]:
    """Returns the module's names for the arrays of another library that have a place in the module.

    `places` has the module's names by the library's names for the same places, all with slashes.
    """
    parameters = {
        name
        for holder in holders_in(model, abstract=True)
        if isinstance(holder.variable, nnx.Param)
        for name in holder.names
    }
    wanted = Wanted.of(places, [name for name, full in places.items() if full in parameters])
    fixed = {name for name in pinned if name in places}
    layout = layout_of([f"{MODEL}/{name}" for name in names if name not in fixed], {MODEL: wanted})
    found = {old.removeprefix(f"{MODEL}/"): new.removeprefix(f"{MODEL}/") for old, new in layout.names.items()}
    return {old: places[new] for old, new in found.items() if new in places} | {name: places[name] for name in fixed}


def paths_of(model: Any) -> list[tuple[tuple[Any, ...], Any]]:
    """Returns all values of a module with their paths. A shared part has several paths."""
    found: list[tuple[tuple[Any, ...], Any]] = list(nnx.iter_graph(checked(model)))
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


def checked(model: Any) -> nnx.Module:
    """Returns a module. Raises if the argument is not a module."""
    if not isinstance(model, nnx.Module):
        raise InvalidTypeError("model", "requires an NNX module.", got=describe(model), fix="from_torch(source, model)")
    return model


def holders_in(model: Any, *, abstract: bool = False) -> list[Holder]:
    """Returns the Variables and arrays of a module, except random streams and values that checkpoints omit."""
    holders = holders_of({MODEL: checked(model)}, abstract=abstract)
    return [holder for holder in holders if holder.persistent and not isinstance(holder.variable, nnx.RngState)]


def names_in(model: Any) -> dict[str, str]:
    """Returns the name of each array of a module by every path to it, without the module's name."""
    names = {id(holder.variable): holder.names for holder in holders_in(model, abstract=True)}
    found, first = {}, {}
    for path, node in paths_of(model):
        name = joined((MODEL, *path))
        base = first.setdefault(id(node), name)
        for full in names.get(id(node), ()) if isinstance(node, nnx.Variable) else ():
            found[f"{name}{full.removeprefix(base)}".removeprefix(f"{MODEL}/")] = full
    bare = (holder for holder in holders_in(model, abstract=True) if holder.variable is None)
    return found | {holder.names[0].removeprefix(f"{MODEL}/"): holder.names[0] for holder in bare}


def shapes_in(model: Any) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each array of a module. For a counter, this is the shape of its counts."""
    return {
        name: tuple(np.shape(leaf))[:-1] if holder.is_counter else tuple(np.shape(leaf))
        for holder in holders_in(model, abstract=True)
        for name, leaf in zip(holder.names, holder.leaves, strict=True)
    }


def _without_ties(arrays: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Returns one array for each place in the module. Raises if arrays for the same place differ."""
    first: dict[str, str] = {}
    result = {}
    for name, array in arrays.items():
        other = first.setdefault(names[name], name)
        if other == name:
            result[name] = array
        elif not _is_same(array, arrays[other]):
            raise RestoreError(
                names[name],
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
    arrays: Mapping[str, Any], names: Mapping[str, str], target: Target
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Returns the arrays with 64-bit integers as 32-bit integers if the module has 32 bits and all values fit."""
    result, told = dict(arrays), []
    for name, array in arrays.items():
        entry = target.entries.get(names.get(name, ""))
        if entry is None or array.dtype != np.int64 or entry.dtype != "int32" or array.shape != entry.shape:
            continue
        narrow = np.asarray(array).astype(np.int32)
        if np.array_equal(narrow, array):
            result[name] = narrow
            told.append(f"{names[name]}: int64 -> int32, all values the same")
    return result, tuple(told)
