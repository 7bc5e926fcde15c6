# SPDX-License-Identifier: Apache-2.0
"""Arrays by the names of another library, put into a module."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from tallax._errors import InvalidTypeError, compose, describe
from tallax.checkpoints import RestoreReport
from tallax.checkpoints._compare import Missing, Policy, Unexpected
from tallax.checkpoints._holders import Holder, holders_of
from tallax.checkpoints._leaves import is_key, stored
from tallax.checkpoints._manifest import Entry, Manifest
from tallax.checkpoints._restoring import Target
from tallax.checkpoints._sources import Source, given

MODEL = "model"


def put(
    arrays: Mapping[str, Any],
    model: Any,
    names: Mapping[str, str],
    *,
    missing: Missing,
    unexpected: Unexpected,
) -> RestoreReport:
    """Restores arrays into a module; random streams, which other libraries do not have, stay as they are.

    Args:
        arrays: by their own names.
        model: the module.
        names: what the module calls them; others are unexpected.
        missing: see `tallax.from_checkpoint`.
        unexpected: see `tallax.from_checkpoint`.
    """
    target = Target.of({MODEL: checked(model)})
    arrays = {name: stored(array) if is_key(array) else array for name, array in arrays.items()}
    arrays, narrowed = _narrowed(arrays, names, target)
    entries = {name: Entry("", str(np.dtype(array.dtype)), tuple(array.shape)) for name, array in arrays.items()}
    streams = frozenset(
        name for holder in target.holders if isinstance(holder.variable, nnx.RngState) for name in holder.names
    )
    # What has no place keeps its own name, which no name of the module can be: it has no "model/" in front.
    policy = Policy(missing, unexpected, lambda name: names.get(name, name), streams)
    report = target.restore(
        Source(Manifest(entries), dict(arrays)),
        lambda found, _: given(arrays, found),
        policy,
    )
    return dataclasses.replace(report, converted=(*report.converted, *narrowed))


def checked(model: Any) -> nnx.Module:
    """Returns a module; raises where it is none."""
    if not isinstance(model, nnx.Module):
        raise InvalidTypeError(
            compose("model", "takes an NNX module.", got=describe(model), fix="from_torch(source, model)")
        )
    return model


def holders_in(model: Any) -> list[Holder]:
    """Returns what a module holds, but for its random streams and what checkpoints do not keep."""
    holders = holders_of({MODEL: checked(model)})
    return [holder for holder in holders if holder.persistent and not isinstance(holder.variable, nnx.RngState)]


def _narrowed(
    arrays: Mapping[str, Any], names: Mapping[str, str], target: Target
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Returns the arrays with 64-bit integers in 32 bits where the module has them so and none is changed by it."""
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
