# SPDX-License-Identifier: Apache-2.0
"""Stage 1 of a restore: finds the arrays in a folder, and their shapes, without trusting the folder.

Before Orbax reads anything, the kinds and sizes of the files are checked, and the shapes in the storage of the arrays.
No name in a checkpoint becomes a path, and no size in it is trusted. All data is JSON and arrays, without pickle.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from tallax._errors import CheckpointError, InvalidTypeError, InvalidValueError, TallaxError
from tallax.checkpoints._manifest import MOST, damaged, is_too_much

METADATA = "_METADATA"  # Orbax writes these into every folder of a tree
UNFINISHED = ".orbax-checkpoint-tmp"
_TOC, _TOC_MOST = "manifest.ocdbt", 2**24  # tensorstore's own manifest, of some hundred bytes; it reads all of it


def orbax() -> Any:
    """Returns `orbax.checkpoint`, which takes a second to import."""
    import orbax.checkpoint

    return orbax.checkpoint


def path_of(path: Any, call: str) -> Path:
    """Returns the first argument of a call as a path. Raises if it is not a path."""
    if isinstance(path, str | os.PathLike):
        if "://" in str(path):
            raise InvalidValueError(
                str(path),
                "tallax writes checkpoints only to folders on a disk.",
                fix="a path that is mounted; or Orbax's own calls, with tallax.to_checkpoint and from_checkpoint",
            )
        return Path(path)
    raise InvalidTypeError(
        "a checkpoint", "requires its path as the first argument.", got=f"a {type(path).__name__}", fix=call
    )


def pytree_handler() -> Any:
    """Returns Orbax's handler for trees of arrays."""
    return orbax().PyTreeCheckpointHandler()


def folder_of(path: Path, name: str) -> Path:
    """Returns the folder with the arrays: `path`, or its only folder of a tree if Orbax's manager wrote it.

    Raises:
        CheckpointError: The folder has no checkpoint.
    """
    what, fix = "there is nothing", "the folder that tallax.save wrote"
    if path.is_dir():
        if UNFINISHED not in path.name and (path / METADATA).is_file():
            return path
        trees = [] if UNFINISHED in path.name else [item for item in path.iterdir() if (item / METADATA).is_file()]
        steps = [item for item in path.iterdir() if item.name.isdecimal()]
        if len(trees) == 1 and not trees[0].name.isdecimal():
            return trees[0]
        if UNFINISHED in path.name:
            what, fix = "it was never finished: its writer was stopped", "an earlier checkpoint"
        elif steps:
            what, fix = f"a folder of {len(steps)} checkpoints", "tallax.Checkpoints(path).restore(model)"
        elif trees:
            what = f"a folder of {len(trees)} trees: {', '.join(sorted(ascii(item.name) for item in trees)[:3])}"
            fix = "one call for each of these, with its path"
        else:
            what = "a folder that Orbax has not written a tree to"
    elif path.exists():
        what, fix = "a file", "tallax.interop.from_torch(path, model) for a .pt or .safetensors file"
    raise CheckpointError(name, "is not a checkpoint.", got=what, fix=fix)


def _look_at_files(folder: Path) -> None:
    """Raises `CheckpointError` if a file is too large, is not a plain file, or is outside of the folder."""
    home = os.path.realpath(folder)
    for root, folders, files in os.walk(folder):
        for path in (Path(root, name) for name in (*folders, *files)):
            name = ascii(str(path.relative_to(folder)))
            if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(home):
                raise CheckpointError(
                    "the checkpoint",
                    "must not link to files outside of its folder.",
                    got=f"{name}, a link that leads out of it",
                    fix="a copy without links, cp -rL FOLDER COPY, if you trust its author",
                )
            if not (path.is_file() or path.is_dir()):
                raise damaged(f"{name} is neither a file nor a folder")
            if path.name == _TOC and path.stat().st_size > _TOC_MOST:
                raise damaged(f"{name} has {path.stat().st_size} bytes")
    metadata = folder / METADATA
    if metadata.stat().st_size > 2 * MOST or is_too_much(text := metadata.read_bytes(), times=2):
        raise damaged(f"{METADATA} has more in it than any model")
    _look_at_names(text, are_paths=not (folder / _TOC).exists())


def _look_at_names(text: bytes, *, are_paths: bool) -> None:
    """Raises `CheckpointError` if a name is a path, because Orbax follows it, except in tensorstore's database."""
    try:
        metadata = json.loads(text)
        keys = [str(key["key"]) for entry in metadata["tree_metadata"].values() for key in entry["key_metadata"]]
        are_paths = are_paths or metadata.get("use_ocdbt") is not True
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return  # Orbax reports the error
    for key in keys:
        if are_paths and ("/" in key or key in ("..", ".")):
            raise damaged(f"{key!a}, a name that would be a path")


def outline_of(handler: Any, folder: Path) -> Any:
    """Returns the outline of the arrays: their shapes and dtypes, as their storage has them."""
    _look_at_files(folder)
    tree = handler.metadata(folder).tree
    seen = set()
    for leaf in jax.tree.leaves(tree):
        if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
            raise CheckpointError(
                "the checkpoint",
                "can only be restored if all its values are arrays and numbers.",
                got=f"{leaf.name!a}, of which Orbax says {type(leaf).__name__}",
                fix="Orbax's own restore, and tallax.from_checkpoint of that part of its tree which has arrays",
            )
        if leaf.name in seen:  # Orbax treats {"a.b": x} and {"a": {"b": x}} as the same
            raise damaged(f"two arrays are written as {leaf.name!a}, so one of them is lost")
        seen.add(leaf.name)
        storage = getattr(leaf, "storage", None)
        chunk = getattr(storage, "chunk_shape", None) or ()
        if math.prod(chunk) > max(1, math.prod(leaf.shape)):
            raise damaged(f"{leaf.name!a} has pieces larger than itself")
    return tree


@contextlib.contextmanager
def orbax_errors(name: str, rule: str) -> Iterator[None]:
    """Converts the exceptions of Orbax and its storage to `CheckpointError`, with the first line of Orbax's text."""
    # Orbax drops the other reads of a failed call, and asyncio then logs "Task exception was never retrieved" for each.
    # It could only be silenced for the whole process (its logger, `sys.unraisablehook`), which a library must not do.
    try:
        yield
    except TallaxError:
        raise
    except Exception as error:
        # An error of Orbax can have thousands of lines.
        text = "".join(filter(str.isprintable, f"{type(error).__name__}: {error}".splitlines()[0]))
        failure = text if len(text) <= 200 else f"{text[:197]}..."
    else:
        return
    fix = "look for a full disk, rights, or a damaged file; an earlier checkpoint may be whole"
    raise CheckpointError(name, rule, got=failure, fix=fix)
