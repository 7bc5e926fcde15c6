# SPDX-License-Identifier: Apache-2.0
"""The view of a checkpoint in `tallax show`: every tallax variable with its exact value, without its model."""

from __future__ import annotations

import ast
import math
import os
import urllib.parse
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optax

from tallax import _uint64, statistics
from tallax._walk import WATCHED, path_name
from tallax.checkpoints._fetch import read_arrays, read_manifest
from tallax.checkpoints._locate import METADATA, folder_of, orbax, orbax_errors, outline_of, pytree_handler
from tallax.checkpoints._manifest import ArrayEntry, Manifest, Source
from tallax.checkpoints._positions import POSITION
from tallax.checkpoints._serialize import stored_dtype
from tallax.logging._flatten import Numbers
from tallax.runs import StateInfo
from tallax.runs._contents import Contents
from tallax.runs._keys import sort_key
from tallax.schedules import ScheduledValue
from tallax.watching import _preset_statistics
from tallax.watching._preset_statistics import reader_of
from tallax.watching._step_statistic import StepStatistic
from tallax.watching._summary import Summary

_SMALL = 64  # the most entries of a value outside of tallax variables; larger arrays are weights, which are not read
_LARGE = 2**26  # the most bytes of a tallax variable; without the model, its size is not known
_LONG = 10_000  # the most characters of a configuration
_READABLE = {
    name: kind
    for name, kind in {**vars(statistics), "Summary": Summary, **vars(_preset_statistics)}.items()
    if isinstance(kind, type) and issubclass(kind, statistics.Statistic)
}


def shown(path: str | os.PathLike[str]) -> Contents:
    """Returns the contents of a checkpoint of tallax or Orbax, or of the latest checkpoint of a series.

    Raises:
        CheckpointError: The checkpoint does not exist, or is damaged, unfinished or of a later version.
    """
    folder, handler = _folder(path), pytree_handler()
    with orbax_errors(str(path), "cannot be read."), orbax().Checkpointer(handler) as checkpointer:
        tree = outline_of(handler, folder)
        manifest = read_manifest(checkpointer, folder, tree)
        source = Source.of(tree, manifest)
        entries = source.manifest.entries
        wanted = {id(source.arrays[name]): name for name, entry in entries.items() if _is_to_be_read(entry)}
        arrays = read_arrays(checkpointer, folder, tree, wanted, None)
    numbers, items = Numbers(), {}
    groups: dict[str, dict[str, ArrayEntry]] = {}  # by the name of the owner, if it exists
    for name, entry in sorted(entries.items()):
        groups.setdefault(name.rpartition("/")[0] if entry.owner else name, {})[name] = entry
    for quoted, group in sorted(groups.items(), key=lambda pair: sort_key(pair[0])):
        owner = _site_name(quoted)
        items[owner] = _described(group.values())
        found = {
            name: source.manifest.array(name) if entry.at is not None else arrays.get(name)
            for name, entry in group.items()
        }
        if all(array is not None and np.isrealobj(array) for array in found.values()):
            value = _value(group, {name: np.asarray(array) for name, array in found.items()})
            if value is not None:
                numbers.add(owner, value)
    about, facts = _about(folder, source.manifest, total=len(entries))
    return Contents("checkpoint", str(path), about, facts, items, numbers.scalars, numbers.histograms, {})


def _site_name(name: str) -> str:
    """Returns the name of a statistic of `tallax.watch` as runs have it, `model/up:output`; other names unchanged."""
    parts = [urllib.parse.unquote(part) for part in name.split("/")]
    return path_name(parts) if WATCHED in parts else name


def _folder(path: str | os.PathLike[str]) -> Path:
    """Returns the folder with the arrays, for a series that of the latest checkpoint."""
    folder = Path(path).absolute()
    if folder.is_dir():
        steps = [int(item.name) for item in folder.iterdir() if item.name.isdigit() and item.is_dir()]
        if steps and not (folder / METADATA).exists():
            folder /= str(max(steps))
    return folder_of(folder, str(path))


def _is_to_be_read(entry: ArrayEntry) -> bool:
    """Returns whether to read an array: tallax state, or a few numbers."""
    is_item = bool(entry.owner) or entry.kind in ("Counter", "Buffer")
    few_numbers = not entry.kind and math.prod(entry.shape) <= _SMALL
    return entry.persistent and entry.at is None and (is_item or few_numbers) and entry.nbytes <= _LARGE


def _value(entries: Mapping[str, ArrayEntry], arrays: Mapping[str, np.ndarray]) -> Any:
    """Returns the value of one array, or of the arrays of one owner; None if it is unknown."""
    owner = _owner(entries)
    if owner is not None:
        return owner.read({name.rpartition("/")[2]: array for name, array in arrays.items()})
    if len(entries) > 1:
        return None
    ((entry, state),) = zip(entries.values(), arrays.values(), strict=True)
    if entry.kind == POSITION:
        return None
    if entry.kind == "Counter":
        counts = _uint64.to_uint64(state)
        return counts if counts.ndim else int(counts)
    return state if state.ndim else state.item()


def _owner(entries: Mapping[str, ArrayEntry]) -> Any:
    """Returns a statistic of the kind and configuration of the entries, or None if that fails."""
    try:
        owner = _made(next(iter(entries.values())))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None
    if owner is None:
        return None
    shapes = {name: np.shape(variable.get_raw_value()) for name, variable in owner.variables.items()}
    if {name.rpartition("/")[2] for name in entries} != set(shapes):
        return None
    stacks = set()
    for name, entry in entries.items():
        shape = shapes[name.rpartition("/")[2]]
        cut = len(entry.shape) - len(shape)
        if cut < 0 or entry.shape[cut:] != shape:
            return None
        stacks.add(entry.shape[:cut])  # the leading axes are those of a stack
    return owner if len(stacks) == 1 else None


def _made(entry: ArrayEntry) -> Any:
    if entry.owner == "ScheduledValue":
        return ScheduledValue(optax.constant_schedule(math.nan))  # never called, so its value is not in the checkpoint
    if entry.owner not in _READABLE or len(entry.configuration) > _LONG:
        return None
    kind, configuration = _READABLE[entry.owner], ast.literal_eval(entry.configuration)
    return reader_of(kind, **configuration) if issubclass(kind, StepStatistic) else kind(**configuration)


def _described(entries: Collection[ArrayEntry]) -> StateInfo:
    """Returns the description of one array, or of the arrays of one owner, with the dtype and shape of the largest."""
    entry = max(entries, key=lambda entry: entry.nbytes)
    shape = entry.shape[:-1] if entry.kind == "Counter" else entry.shape
    dtype = str(stored_dtype(entry.dtype, widened=False)) if entry.kind else entry.dtype
    size = sum(each.nbytes for each in entries)
    return StateInfo(entry.owner or entry.kind or "array", shape, dtype, size, entry.persistent)


def _about(folder: Path, manifest: Manifest, *, total: int) -> tuple[str, dict[str, Any]]:
    step = manifest.step
    if step is None and (folder.name.isdigit() or folder.parent.name.isdigit()):
        step = int(folder.name if folder.name.isdigit() else folder.parent.name)
    about = f"{total} arrays" if step is None else f"step {step:,}, {total} arrays"
    return about, {"step": step} | ({} if manifest.extra is None else {"extra": manifest.extra})
