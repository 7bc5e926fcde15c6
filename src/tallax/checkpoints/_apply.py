# SPDX-License-Identifier: Apache-2.0
"""Stage 5 of a restore: writes the fetched values into the objects, all of them or none."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from tallax._errors import RestoreError
from tallax._walk import leaves_of
from tallax.checkpoints._collect import Holder, Target, holders_of
from tallax.checkpoints._plan import RestoreReport
from tallax.checkpoints._policy import some
from tallax.checkpoints._serialize import dtype_of, in_place_of, is_abstract, is_placed
from tallax.replicas import per_replica
from tallax.schedules import ScheduledValue
from tallax.statistics import Statistic
from tallax.variables import StateVariable


def require_values(target: Target, report: RestoreReport) -> list[Holder]:
    """Returns the abstract state that the checkpoint lacks. Raises if a Variable does not have a reset value."""
    absent = {name for name in (*report.missing, *report.kept) if is_abstract(target.leaves[name])}
    fresh = [holder for holder in target.holders if absent & set(holder.names)]
    empty = [name for holder in fresh if not holder.has_reset for name in holder.names if name in absent]
    if empty:
        error = RestoreError(
            some(empty),
            "of an abstract model is not in the checkpoint, so it would not have a value.",
            got=f"{target.entries[empty[0]]} of nnx.eval_shape",
            fix="make the model itself, model = Model(rngs); or give this a value before the restore",
        )
        error.report = report
        raise error
    return fresh


def apply(target: Target, values: Mapping[str, Any], fresh: list[Holder]) -> None:
    """Writes values, and resets other state. If it raises, nothing has changed."""
    touched: list[Holder] = []
    try:
        for holder in fresh:
            touched.append(holder)
            _reset(holder)
        for holder in target.holders:
            if any(name in values for name in holder.names):
                touched.append(holder)
                holder.put([values.get(name, leaf) for name, leaf in zip(holder.names, holder.leaves, strict=True)])
            elif not holder.persistent:
                touched.append(holder)
                _reset(holder)
        for name, thing in target.objects.items():
            if thing is not target.wholes[name]:
                touched += holders_of({name: thing})
                _share_out(target.wholes[name], thing)
    except BaseException:
        for holder in touched:
            with contextlib.suppress(Exception):  # a Variable that rejects a value still has its own value
                holder.put(holder.leaves)
        raise


def _reset(holder: Holder) -> None:
    """Resets a count to 0, a statistic to empty, and a scheduled value to not called."""
    owner, variable = holder.owner, holder.variable
    if isinstance(owner, Statistic):
        owner.reset()
    elif holder.is_counter and variable is not None:
        variable.set(0)
    elif isinstance(owner, ScheduledValue) and variable is not None and is_abstract(*holder.leaves):
        first = ScheduledValue(owner.schedule).state.get_raw_value()
        variable.set_raw_value(np.broadcast_to(first, holder.leaves[0].shape).copy())
    if variable is not None and is_abstract(leaf := holder.leaves[0]) and is_placed(leaf):
        variable.set_raw_value(in_place_of(leaf, variable.get_raw_value(), dtype_of(leaf)))


def _share_out(combined: Any, thing: Any) -> None:
    """Writes the values of a combined copy into an object with per-replica state."""
    originals = {leaf.path: leaf.variable for leaf in leaves_of(thing, StateVariable)}
    layouts = {
        (item.get_raw_value().sharding.mesh, item._replica_axes) for item in originals.values() if item._per_replica
    }
    laid_out = combined
    for mesh, axes in layouts:
        paths = {
            path
            for path, item in originals.items()
            if item._per_replica and (item.get_raw_value().sharding.mesh, item._replica_axes) == (mesh, axes)
        }
        laid_out = per_replica(laid_out, mesh, axes, only=lambda path, _, paths=paths: path in paths)
    values = {leaf.path: leaf.variable.get_raw_value() for leaf in leaves_of(laid_out)}
    for leaf in leaves_of(thing):
        leaf.variable.set_raw_value(values[leaf.path])
    bare = [
        entry
        for entry in nnx.to_flat_state(nnx.split(laid_out, graph=True)[1])
        if not isinstance(entry[1], nnx.Variable)
    ]
    if bare:
        nnx.update(thing, nnx.from_flat_state(bare))
