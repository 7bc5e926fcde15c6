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
from tallax.checkpoints._collect import Target, named_objects
from tallax.checkpoints._fetch import Fetch, fetch_values, given, read_arrays, read_manifest
from tallax.checkpoints._locate import locate, orbax, pytree_handler, told
from tallax.checkpoints._manifest import Entry, Manifest, Source, arrays_in
from tallax.checkpoints._plan import RestoreReport, places, plan_restore
from tallax.checkpoints._policy import Missing, Policy, Rename, Unexpected
from tallax.checkpoints._prefixes import without_value_levels
from tallax.checkpoints._save import path_of
from tallax.checkpoints._serialize import PYTHON, RESERVED, is_placed, joined, key_of, needs_numpy


def from_checkpoint(
    tree: Any,
    *objects: Any,
    missing: Missing = "error",
    unexpected: Unexpected = "error",
    rename: Rename = None,
    **named: Any,
) -> RestoreReport:
    """Restores objects from a tree of `to_checkpoint`, all of it or nothing, and returns a report.

    A tree of Orbax's that tallax did not write is taken too: `nnx.state(model)`, bare, below the names of the objects,
    or with a level more; see docs/checkpoints.md. There a `Counter` takes what an old counter of float32, int32 or any
    other number had. Objects may be abstract, as `nnx.eval_shape` makes them: they get their values here.

    Args:
        tree: nested dicts of arrays, as Orbax restores them.
        *objects: as they were saved, or fewer of them; arrays are put where the objects have theirs, or where the
            shardings of abstract objects say, whatever devices they were saved from.
        missing: the arrays that the checkpoint may lack, and that then keep what the objects have. "error": none.
            "state": those of counters, buffers, statistics and scheduled values, so that new ones start fresh while a
            missing parameter is an error. "init": any. Or a list of patterns for names, `["**/step", "model/extra/*"]`,
            and of types of Variables, `[nnx.RngState]`. A `*` is any text within one level, `**` any levels; a pattern
            is also that of all below it. Nothing of an object in the checkpoint is always an error.
        unexpected: the arrays of the checkpoint that may be without a place in the objects. "error": none. "ignore":
            any. Or a list of patterns for their names in the checkpoint.
        rename: from names in the checkpoint to those in the objects: a function, or a mapping of names or of their
            beginnings, `{"model/encoder": "model/backbone"}`.
        **named: objects that were saved by names of their own.

    Returns:
        Names of everything: restored, missing, unexpected, reset, converted. Items with `persistent=False` are reset;
        a `Buffer` among them has nothing to be reset to, and keeps what it has.

    Raises:
        CheckpointError: the tree is damaged, or a later version wrote it.
        StateOwnedByStepError: a compiled step holds an object, and it was not the step that came.
        InvalidTypeError: an object is not a module.
        InvalidValueError: an argument is invalid.
        RestoreError: a shape, dtype, kind or configuration differs; names do and the policy does not allow it; nothing
            of an object is in the checkpoint; or what an abstract object lacks has no reset value. Its `report` has all
            of them. The objects are as they were.
        TracedReadError: inside a trace.
    """
    policy = Policy(missing, unexpected, rename)
    target = Target.of(named_objects(objects, named))
    source = Source.of(tree)
    return restore_into(target, source, lambda names, _: given(source.arrays, names), policy)


def checkpoint_target(metadata: Any, *objects: Any, **named: Any) -> Any:
    """Returns the target for Orbax's own restore, with the shardings of the objects.

    Without it Orbax puts them where they were saved from, and raises where there are other devices now. Shapes and
    dtypes are those that were saved, so that Orbax casts nothing, and `from_checkpoint` can tell what differs; arrays
    of 64 bits, which JAX has only with x64, come as NumPy's.

    Args:
        metadata: what Orbax says of the checkpoint: `manager.item_metadata(step)`, `checkpointer.metadata(path)`, or
            `metadata(path)` of its `experimental.v1`.
        *objects: see `to_checkpoint`.
        **named: see `to_checkpoint`.

    Raises:
        CheckpointError: that is no metadata of a tree of arrays.
        TallaxError: as `from_checkpoint` does.

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
    target = Target.of(named_objects(objects, named))
    tree = metadata
    for attribute in ("item_metadata", "metadata", "tree"):  # of Orbax's records, each of which has the next in it
        tree = tree if isinstance(tree, Mapping) else getattr(tree, attribute, tree)
    quoted = isinstance(tree, Mapping) and RESERVED in tree
    found = arrays_in(tree, quoted=quoted)  # raises where it is none
    short = {name: name for name in found} if quoted else without_value_levels(found)
    entries = {short[name]: Entry("", "", tuple(getattr(leaf, "shape", ()))) for name, leaf in found.items()}
    names = places(entries, target.entries, target.objects)
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("all",))
    everywhere = jax.NamedSharding(mesh, jax.P())
    anywhere = everywhere if jax.process_count() > 1 else jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def leaf_of(path: Any, told: Any) -> Any:
        if type(told) in PYTHON.values():  # a number, which Orbax's v1 tells by another
            return told
        if needs_numpy(told.dtype):
            return np.broadcast_to(np.zeros((), told.dtype), told.shape)  # which takes no memory
        keys = [key_of(key) for key in path]
        own: Any = target.leaves.get(names.get(short[joined(keys, quoted=len(keys) if quoted else 0)], ""))
        fits = is_placed(own) and tuple(own.shape) == tuple(told.shape)
        return jax.ShapeDtypeStruct(told.shape, told.dtype, sharding=own.sharding if fits else anywhere)

    return jax.tree_util.tree_map_with_path(leaf_of, tree)


def restore(
    path: str | os.PathLike[str],
    *objects: Any,
    missing: Missing = "error",
    unexpected: Unexpected = "error",
    rename: Rename = None,
    **named: Any,
) -> RestoreReport:
    """Restores objects from a folder, all of it or nothing, and returns a report.

    It takes what `save` and `Checkpoints` wrote, and what Orbax wrote of `nnx.state(model)` or of a dict of states; see
    `from_checkpoint` for these. Arrays go to the devices where the objects have theirs. In several processes all have
    to call it together.

    Args:
        path: of the folder.
        *objects: see `from_checkpoint`.
        missing: see `from_checkpoint`.
        unexpected: see `from_checkpoint`.
        rename: see `from_checkpoint`.
        **named: see `from_checkpoint`.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged, unfinished, of another kind or of a later version.
        InvalidTypeError: `path` is not a path.
        InvalidValueError: `path` is an address, such as `gs://...`.
        RestoreError: as `from_checkpoint` does.
        TallaxError: as `from_checkpoint` does.
    """
    path = path_of(path, "tallax.restore(path, model, optimizer)")
    report, _ = restore_from(path, objects, named, Policy(missing, unexpected, rename))
    return report


def restore_from(
    path: Path, objects: Sequence[Any], named: Mapping[str, Any], policy: Policy
) -> tuple[RestoreReport, Manifest]:
    """As `restore`; returns the manifest of the checkpoint, too."""
    target = Target.of(named_objects(objects, named))
    with told(str(path), "the checkpoint cannot be read"), orbax().Checkpointer(pytree_handler()) as checkpointer:
        folders, trees = locate(path.absolute(), str(path))
        if "" in folders:
            source = Source.of(trees[""], read_manifest(checkpointer, folders[""], trees[""]))
        else:
            source = Source.of(trees)
        parts = {id(leaf): part for part, tree in trees.items() for leaf in jax.tree.leaves(tree)}

        def fetch(names: Mapping[str, str], target: Target) -> Mapping[str, Any]:
            found: dict[str, Any] = {}
            leaves = {new: source.arrays[old] for new, old in names.items()}
            for part, folder in folders.items():
                wanted = {leaf.name: new for new, leaf in leaves.items() if parts[id(leaf)] == part}
                found |= read_arrays(checkpointer, folder, trees[part], wanted, target)
            return found

        return restore_into(target, source, fetch, policy), source.manifest


def restore_into(target: Target, source: Source, fetch: Fetch, policy: Policy) -> RestoreReport:
    """Runs the last three stages: plans, fetches and applies. The objects change only if all three succeed.

    Args:
        target: the objects.
        source: the checkpoint.
        fetch: returns the arrays of the checkpoint that the plan asks for.
        policy: the treatment of missing, unexpected and renamed arrays.
    """
    plan = plan_restore(source.manifest, target, policy)
    fresh = require_values(target, plan.report)
    values, report = fetch_values(target, plan, source.manifest, fetch, policy)
    apply(target, values, fresh)
    return report
