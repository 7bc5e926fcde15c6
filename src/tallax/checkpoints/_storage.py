# SPDX-License-Identifier: Apache-2.0
"""`save` and `restore`: one folder, written and read by Orbax.

What is in a folder is compared with the objects by names, shapes and dtypes before any array is read, and only what the
objects have is read.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from tallax._errors import CheckpointError, InvalidTypeError, InvalidValueError, ReplicasError, compose
from tallax.checkpoints._apply import Target
from tallax.checkpoints._collect import RESERVED, named_objects
from tallax.checkpoints._folders import folder_of, items_of, manifest_of, orbax, outline_of, read_arrays, told
from tallax.checkpoints._policy import Missing, Policy, Unexpected
from tallax.checkpoints._rename import Rename
from tallax.checkpoints._restore_report import RestoreReport
from tallax.checkpoints._saved_tree import Source
from tallax.checkpoints._to_tree import Contents


def path_of(path: Any, call: str) -> Path:
    """Returns the path that a call begins with; raises, and shows the call, where something else came first."""
    if isinstance(path, str | os.PathLike):
        if "://" in str(path):
            raise InvalidValueError(
                compose(
                    str(path),
                    "a checkpoint of tallax's own is a folder on a disk.",
                    fix="a path that is mounted; or Orbax's own calls, with tallax.to_checkpoint and from_checkpoint",
                )
            )
        return Path(path)
    raise InvalidTypeError(
        compose("a checkpoint", "is called by its path, which comes first.", got=f"a {type(path).__name__}", fix=call)
    )


def save(path: str | os.PathLike[str], *objects: Any, extra: Any = None, **named: Any) -> None:
    """Writes all that objects hold into a new folder, and returns once it is there to stay.

    The folder is Orbax's, with what `to_checkpoint` returns in it. It appears whole or not at all. In several processes
    all have to call it together.

    Args:
        path: of the folder, which must not exist.
        *objects: see `to_checkpoint`.
        extra: see `to_checkpoint`.
        **named: see `to_checkpoint`.

    Raises:
        CheckpointError: there is something at `path` already, or it can't be written.
        InvalidTypeError: `path` is none.
        InvalidValueError: `path` is an address, such as `gs://...`.
        ReplicasError: what processes hold each for itself differs between them.
        TallaxError: as `to_checkpoint` does.

    Example:
        >>> import tempfile, tallax
        >>> from flax import nnx
        >>> path = tempfile.mkdtemp() + "/trained"
        >>> tallax.save(path, nnx.Dict(step=tallax.Counter(3)), extra={"epoch": 2})
        >>> model = nnx.Dict(step=tallax.Counter())
        >>> tallax.restore(path, model).extra, int(model.step)
        ({'epoch': 2}, 3)
    """
    folder = path_of(path, "tallax.save(path, model, optimizer)").absolute()
    if folder.exists():
        raise CheckpointError(
            compose(
                str(path),
                "is there already, and a checkpoint is never written over.",
                fix="another path; or tallax.Checkpoints(folder, keep=3), which removes old ones after a new one",
            )
        )
    contents = Contents.of(named_objects(objects, named), extra)
    ocp = orbax()
    with told(str(path), "can't be written"), ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        checkpointer.save(folder, args=arguments(contents))


def arguments(contents: Contents, step: int | None = None) -> Any:
    """Returns what Orbax is to save, with the manifest once more as JSON that anybody can read."""
    manifest = contents.manifest(step)
    tree = contents.tree(manifest)
    if jax.process_count() > 1:
        _refuse_differences(tree[RESERVED])
    return orbax().args.StandardSave(tree, custom_metadata=manifest.as_json())


def restore(
    path: str | os.PathLike[str],
    *objects: Any,
    missing: Missing = "error",
    unexpected: Unexpected = "error",
    rename: Rename = None,
    **named: Any,
) -> RestoreReport:
    """Puts what a folder has into objects, all of it or nothing, and returns what became of each name.

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
        InvalidTypeError: `path` is none.
        InvalidValueError: `path` is an address, such as `gs://...`.
        RestoreError: as `from_checkpoint` does.
        TallaxError: as `from_checkpoint` does.
    """
    path = path_of(path, "tallax.restore(path, model, optimizer)")
    policy = Policy(missing, unexpected, rename)
    target = Target.of(named_objects(objects, named))
    handler = orbax().PyTreeCheckpointHandler()
    with told(str(path), "can't be read"), orbax().Checkpointer(handler) as checkpointer:
        folders = items_of(path.absolute())
        trees = {name: outline_of(handler, folder) for name, folder in folders.items()}
        if not trees or any(isinstance(tree, Mapping) and RESERVED in tree for tree in trees.values()):
            # Of several trees of tallax's own each has all objects, so one has to be chosen.
            folders = {"": folder_of(path.absolute(), str(path))}
            trees = {"": outline_of(handler, folders[""])}
            source = Source.of(trees[""], manifest_of(checkpointer, folders[""], trees[""]))
        else:
            source = Source.of(trees)
        items = {id(leaf): name for name, tree in trees.items() for leaf in jax.tree.leaves(tree)}

        def fetch(names: Mapping[str, str], target: Target) -> Mapping[str, Any]:
            found: dict[str, Any] = {}
            for item, folder in folders.items():
                leaves = {new: source.arrays[old] for new, old in names.items()}
                wanted = {leaf.name: new for new, leaf in leaves.items() if items[id(leaf)] == item}
                found |= read_arrays(checkpointer, folder, trees[item], wanted, target)
            return found

        return target.restore(source, fetch, policy)


def _refuse_differences(manifest: np.ndarray) -> None:
    """Raises where processes would save different things: only the first one's would be written."""
    everywhere = np.asarray(multihost_utils.process_allgather(np.frombuffer(_digest(manifest), np.uint8)))
    if len(np.unique(everywhere.reshape(jax.process_count(), -1), axis=0)) > 1:
        raise ReplicasError(
            compose(
                "the checkpoint",
                "what is not on all devices together is the same in all processes, as only one's is written.",
                got="other items, arrays or names in another process",
                fix="tallax.assert_replicated(model, only=...), which names the first that differs",
            )
        )


def _digest(manifest: np.ndarray) -> bytes:
    return hashlib.blake2b(manifest.tobytes(), digest_size=16).digest()
