# SPDX-License-Identifier: Apache-2.0
"""Stage 4 of a restore: reads arrays onto the devices of the objects, verifies and converts them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tallax import _uint64
from tallax._errors import CheckpointError, describe
from tallax.checkpoints._collect import State
from tallax.checkpoints._locate import orbax
from tallax.checkpoints._manifest import MOST, ArrayEntry, Manifest, damaged
from tallax.checkpoints._plan import Plan, RestoreReport, is_same_number, mismatch
from tallax.checkpoints._serialize import KEY, PYTHON, RESERVED, in_place_of, is_placed, stored, stored_dtype, sums_of
from tallax.variables import StateVariable

Fetch = Callable[[Mapping[str, str]], Mapping[str, Any]]


def fetch_values(target: State, plan: Plan, manifest: Manifest, fetch: Fetch) -> tuple[dict[str, Any], RestoreReport]:
    """Returns the values for the objects by name, and the report with the conversions."""
    values: dict[str, Any] = {}
    converted: list[str] = []
    warnings: list[str] = []
    for name, array in _verified(plan, manifest, fetch).items():
        saved, wanted = manifest.entries[plan.sources[name]], target.entries[name]
        change = warning = None
        try:
            if wanted.kind == "Counter" and saved.kind != "Counter":
                array, change, warning = as_count(name, saved, wanted, np.asarray(array))
            elif is_same_number(saved, wanted):
                array, change = as_same_number(name, saved, wanted, np.asarray(array))
        except InexactError as error:
            report = dataclasses.replace(plan.report, mismatched=(f"{name}: {error}; expected {wanted}",))
            raise mismatch(name, plan.sources[name], (str(error), str(wanted)), report) from None
        converted += [change] if change else []
        warnings += [warning] if warning else []
        on_host = isinstance(target.variables[name], StateVariable)
        values[name] = in_place_of(target.leaves[name], array, wanted.dtype, on_host=on_host)
    return values, dataclasses.replace(plan.report, converted=tuple(converted), warnings=tuple(warnings))


def _verified(plan: Plan, manifest: Manifest, fetch: Fetch) -> dict[str, Any]:
    """Returns the arrays as they are stored, after a comparison with their checksums."""
    separate = {name: old for name, old in plan.sources.items() if manifest.entries[old].at is None}
    arrays = {name: manifest.array(old) for name, old in plan.sources.items() if name not in separate}
    fetched = {name: stored(array) for name, array in fetch(separate).items()}
    for name, total in zip(fetched, sums_of(list(fetched.values())), strict=True):
        if manifest.entries[separate[name]].sum not in (None, total):
            raise damaged(f"{separate[name]} differs from the bytes that were written")
    return arrays | fetched


def read_arrays(
    checkpointer: Any, folder: Path, tree: Any, wanted: Mapping[int, str], target: State | None
) -> dict[str, Any]:
    """Returns some arrays of a folder.

    `wanted` has their names by the ids of leaves of `tree`. The objects of `target` determine the devices.
    """
    ocp, outlines = orbax(), jax.tree.leaves(tree)
    names = [wanted.get(id(leaf)) for leaf in outlines]
    if not any(names):
        return {}
    on_host = ocp.type_handlers.RestoreArgs(restore_type=np.ndarray)

    def how(leaf: Any) -> Any:
        name = wanted.get(id(leaf))
        own: Any = None if target is None or name is None else target.leaves[name]
        if target is None or name is None or not is_placed(own) or _is_special(target.entries[name], leaf):
            return on_host
        return ocp.ArrayRestoreArgs(
            restore_type=jax.Array, sharding=own.sharding, global_shape=tuple(leaf.shape), dtype=leaf.dtype
        )

    item = jax.tree.map(lambda leaf: 0 if id(leaf) in wanted else ocp.PLACEHOLDER, tree)
    arguments = ocp.args.PyTreeRestore(item=item, restore_args=jax.tree.map(how, tree))
    found = checkpointer.restore(folder, args=arguments)
    leaves = jax.tree.leaves(found, is_leaf=lambda leaf: leaf is ocp.PLACEHOLDER)
    return {name: leaf for name, leaf in zip(names, leaves, strict=True) if name is not None}


def _is_special(entry: ArrayEntry, leaf: Any) -> bool:
    """Returns whether an array must be converted before it is written, and not only placed on devices."""
    same = (entry.shape, entry.dtype) == (tuple(leaf.shape), str(np.dtype(leaf.dtype)))
    return not same or entry.kind == "Counter" or entry.dtype.startswith(KEY) or entry.dtype in PYTHON


def given(arrays: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Returns the wanted arrays of a tree, by the names of the objects.

    Raises:
        CheckpointError: An array is missing. In a partial restore, Orbax returns the request unchanged for such an
            array.
    """
    for old in names.values():
        if not isinstance(arrays[old], jax.Array | np.ndarray | np.generic):
            raise CheckpointError(
                old,
                "has no value in the tree.",
                got=describe(arrays[old]),
                fix="a tree that Orbax has restored; or the tree without the missing arrays, and missing='init'",
            )
    return {new: arrays[old] for new, old in names.items()}


class InexactError(ValueError):
    """A value cannot become a count, or would change when converted. The text contains the reason."""


def as_same_number(name: str, saved: ArrayEntry, wanted: ArrayEntry, array: np.ndarray) -> tuple[np.ndarray, str]:
    """Returns a number in the required form, and a description of the conversion.

    Raises:
        InexactError: The conversion would change the number.
    """
    with np.errstate(over="ignore"):
        converted = array.astype(stored_dtype(wanted.dtype))
    if not np.array_equal(converted.astype(array.dtype), array, equal_nan=array.dtype.kind in "fc"):
        raise InexactError(f"{saved.dtype} with {array.item()}, which {converted.dtype} does not have")
    return converted, f"{name}: {saved.dtype} -> {wanted.dtype}, the same number"


def as_count(
    name: str, saved: ArrayEntry, wanted: ArrayEntry, array: np.ndarray
) -> tuple[np.ndarray, str | None, str | None]:
    """Returns the words of a count, a description of the conversion, and a warning if the old form may be inexact.

    Raises:
        InexactError: An entry is negative or not whole.
    """
    dtype = saved.dtype
    if saved.shape == wanted.shape:  # the words of a Counter, saved by Orbax alone
        return array, None, None
    values = array.astype(np.float64) if jnp.issubdtype(array.dtype, jnp.floating) else array
    if np.any(values < 0):
        why = "below 0: it wrapped around" if array.dtype.kind == "i" else "below 0"
        raise InexactError(f"{dtype} with {values.min()}, which is {why}")
    if values.dtype == np.float64 and not np.array_equal(values, np.floor(values)):
        raise InexactError(f"{dtype} with {values[values != np.floor(values)].flat[0]}, which is not a whole number")
    if values.dtype == np.float64 and np.any(values >= 2.0**64):
        raise InexactError(f"{dtype} with {values.max()}, which is beyond 64 bits")
    limit, why = _limit(array.dtype)
    warning = None
    if array.size and values.max() >= limit:
        warning = f"{name}: was {dtype} at {int(values.max())}, and {why}: the true count may be larger"
    return _uint64.from_uint64(values.astype(np.uint64)), f"{name}: {dtype} -> exact count", warning


def _limit(dtype: np.dtype) -> tuple[float, str]:
    if jnp.issubdtype(dtype, jnp.floating):
        bits = jnp.finfo(dtype).nmant + 1
        return 2**bits, f"{dtype} adds nothing to 2**{bits}"
    most = int(np.iinfo(dtype).max)
    return most, f"{dtype} ends there"


def read_manifest(checkpointer: Any, folder: Path, tree: Any) -> Manifest | None:
    leaf = tree.get(RESERVED) if isinstance(tree, Mapping) else None
    if leaf is None or isinstance(leaf, Mapping):  # a part of a model may have this name
        return None
    if getattr(leaf, "dtype", None) != np.uint8 or len(leaf.shape) != 1 or leaf.shape[0] > MOST:
        raise damaged("its manifest is not text")
    return Manifest.decoded(read_arrays(checkpointer, folder, tree, {id(leaf): RESERVED}, None)[RESERVED])
