# SPDX-License-Identifier: Apache-2.0
"""`restore` and `from_checkpoint`: run the stages locate, manifest, plan, fetch and apply, in this order."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tallax.checkpoints._apply import apply, require_values
from tallax.checkpoints._collect import State, named_objects
from tallax.checkpoints._fetch import Fetch, fetch_values, given, read_arrays, read_manifest
from tallax.checkpoints._locate import folder_of, orbax, orbax_errors, outline_of, path_of, pytree_handler
from tallax.checkpoints._manifest import Manifest, Source, arrays_in
from tallax.checkpoints._names import without_value_levels
from tallax.checkpoints._plan import RestoreReport, find_places, plan_restore
from tallax.checkpoints._policy import Missing, Policy, Rename, Unexpected
from tallax.checkpoints._serialize import PYTHON, RESERVED, is_placed, joined, needs_numpy


def from_checkpoint(
    tree: Any,
    *objects: Any,
    missing: Missing = "error",
    unexpected: Unexpected = "error",
    rename: Rename = None,
    **named: Any,
) -> RestoreReport:
    """Restores objects from a tree of `to_checkpoint`, and returns a report. If it raises, the objects do not change.

    It also accepts a tree that Orbax wrote without tallax: `nnx.state(model)`, bare, or below the name of the object or
    another name; see docs/checkpoints.md. From such a tree, a `Counter` gets the value of an old counter of
    float32, int32 or another dtype. Objects from `nnx.eval_shape` get their values here.

    Args:
        tree: Nested dicts of arrays, as Orbax restores them.
        *objects: The objects that were saved, or some of them. Arrays are placed on the devices of the objects, or by
            the shardings of abstract objects, independent of the devices that they were saved from.
        missing: The arrays that may be missing from the checkpoint, and then keep their values in the objects. With
            "error", none may be missing. With "state", arrays of counters, buffers, statistics and scheduled values may
            be missing, so that new ones start fresh, but a missing parameter is an error. With "init", any may be
            missing. You can also pass a list of patterns for names, `["**/step", "model/extra/*"]`, and of types of
            Variables, `[nnx.RngState]`. A `*` matches any text within one level, `**` any levels, and a pattern also
            matches everything below it. If the checkpoint has nothing of an object, it is always an error.
        unexpected: The arrays of the checkpoint that may have no place in the objects: none with "error", any with
            "ignore", or a list of patterns for their names in the checkpoint.
        rename: A function from names in the checkpoint to names in the objects, or a mapping of names or their
            beginnings, such as `{"model/encoder": "model/backbone"}`.
        **named: Objects that were saved with their own names.

    Returns:
        A report with the names of all state: restored, missing, unexpected, reset, converted. State with
        `persistent=False` is reset, except for a `Buffer`, which does not have a reset value and keeps its value.

    Raises:
        CheckpointError: The tree is damaged, or a later version wrote it.
        StateOwnedByStepError: A compiled step owns an object. Pass the step instead of the object.
        InvalidTypeError: An object is not a module.
        InvalidValueError: An argument is invalid.
        RestoreError: A shape, dtype, kind or configuration differs; names differ and the policy does not allow it;
            nothing of an object is in the checkpoint; or a missing value of an abstract object does not have a reset
            value. The `report` of the error has all differences.
        TracedReadError: Inside a trace.
    """
    policy = Policy(missing, unexpected, rename)
    target = State.of(named_objects(objects, named), abstract=True)
    source = Source.of(tree)
    return restore_into(target, source, lambda names: given(source.arrays, names), policy)


def checkpoint_target(metadata: Any, *objects: Any, **named: Any) -> Any:
    """Returns the target for Orbax's own restore, with the shardings of the objects.

    Without it, Orbax restores arrays onto the devices that they were saved from, and raises if these do not exist.
    Shapes and dtypes are the saved ones, so Orbax casts nothing and `from_checkpoint` can detect differences. 64-bit
    arrays, which JAX supports only with x64, are restored as NumPy arrays.

    Args:
        metadata: Orbax's metadata of the checkpoint: `manager.item_metadata(step)`, `checkpointer.metadata(path)`, or
            `metadata(path)` of its `experimental.v1`.
        *objects: See `to_checkpoint`.
        **named: See `to_checkpoint`.

    Raises:
        CheckpointError: `metadata` is not the metadata of a tree of arrays.
        TallaxError: As `from_checkpoint` does.

    Example:
        >>> import tempfile, orbax.checkpoint as ocp, tallax
        >>> from flax import nnx
        >>> model = nnx.Dict(step=tallax.Counter(3))
        >>> with ocp.CheckpointManager(tempfile.mkdtemp(), item_handlers=ocp.StandardCheckpointHandler()) as manager:
        ...     saved = manager.save(10, args=ocp.args.StandardSave(tallax.to_checkpoint(model)))
        ...     manager.wait_until_finished()
        ...     target = tallax.checkpoint_target(manager.item_metadata(10), model)
        ...     tree = manager.restore(10, args=ocp.args.StandardRestore(target))
        >>> tallax.from_checkpoint(tree, model).restored
        ('model/step',)
    """
    target = State.of(named_objects(objects, named), abstract=True)
    tree = metadata
    for attribute in ("item_metadata", "metadata", "tree"):  # the levels of Orbax's records, the outermost first
        tree = tree if isinstance(tree, Mapping) else getattr(tree, attribute, tree)
    quoted = isinstance(tree, Mapping) and RESERVED in tree
    found = arrays_in(tree, quoted=quoted)  # raises if it is not metadata
    short = {name: name for name in found} if quoted else without_value_levels(found)
    places = find_places(short.values(), target, None, is_foreign=not quoted)
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("all",))
    everywhere = jax.NamedSharding(mesh, jax.P())
    anywhere = everywhere if jax.process_count() > 1 else jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def leaf_of(path: Any, saved: Any) -> Any:
        if type(saved) in PYTHON.values():  # a number, which Orbax's v1 represents by another number
            return saved
        if needs_numpy(saved.dtype):
            return np.broadcast_to(np.zeros((), saved.dtype), saved.shape)  # takes no memory
        own: Any = target.leaves.get(places.get(short[joined(path, quoted=len(path) if quoted else 0)], ""))
        fits = is_placed(own) and tuple(own.shape) == tuple(saved.shape)
        return jax.ShapeDtypeStruct(saved.shape, saved.dtype, sharding=own.sharding if fits else anywhere)

    return jax.tree_util.tree_map_with_path(leaf_of, tree)


def restore(
    path: str | os.PathLike[str],
    *objects: Any,
    missing: Missing = "error",
    unexpected: Unexpected = "error",
    rename: Rename = None,
    **named: Any,
) -> RestoreReport:
    """Restores objects from a folder, and returns a report. If it raises, the objects do not change.

    It accepts checkpoints of `save` and `Checkpoints`, and those in which Orbax saved `nnx.state(model)` or a dict of
    states; see `from_checkpoint` for these. Arrays are placed on the devices of the objects. If there are several
    processes, all must call it together.

    Args:
        path: The path of the folder.
        *objects: See `from_checkpoint`.
        missing: See `from_checkpoint`.
        unexpected: See `from_checkpoint`.
        rename: See `from_checkpoint`.
        **named: See `from_checkpoint`.

    Raises:
        CheckpointError: The checkpoint does not exist, or is damaged, unfinished, of another kind or of a later
            version.
        InvalidTypeError: `path` is not a path.
        InvalidValueError: `path` is an address, such as `gs://...`.
        RestoreError: As `from_checkpoint` does.
        TallaxError: As `from_checkpoint` does.
    """
    path = path_of(path, "tallax.restore(path, model, optimizer)")
    report, _ = restore_from(path, objects, named, Policy(missing, unexpected, rename))
    return report


def restore_from(
    path: Path, objects: Sequence[Any], named: Mapping[str, Any], policy: Policy
) -> tuple[RestoreReport, Manifest]:
    """As `restore`; returns the manifest of the checkpoint, too."""
    target = State.of(named_objects(objects, named), abstract=True)
    handler = pytree_handler()
    with orbax_errors(str(path), "cannot be read."), orbax().Checkpointer(handler) as checkpointer:
        folder = folder_of(path.absolute(), str(path))
        tree = outline_of(handler, folder)
        source = Source.of(tree, read_manifest(checkpointer, folder, tree))

        def fetch(names: Mapping[str, str]) -> Mapping[str, Any]:
            wanted = {id(source.arrays[old]): new for new, old in names.items()}
            return read_arrays(checkpointer, folder, tree, wanted, target)

        return restore_into(target, source, fetch, policy), source.manifest


def restore_into(
    target: State, source: Source, fetch: Fetch, policy: Policy, places: Mapping[str, str] | None = None
) -> RestoreReport:
    """Runs the last three stages: plans, fetches and applies. The objects change only if all three succeed."""
    plan = plan_restore(source, target, policy, places)
    fresh = require_values(target, plan.report)
    values, report = fetch_values(target, plan, source.manifest, fetch)
    apply(target, values, fresh)
    return report
