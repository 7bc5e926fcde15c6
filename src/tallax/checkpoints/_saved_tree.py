# SPDX-License-Identifier: Apache-2.0
"""What is in a tree of arrays, tallax's own or Orbax's, under the names that objects have."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from tallax._errors import CheckpointError, compose, describe
from tallax.checkpoints._collect import RESERVED, joined, key_of
from tallax.checkpoints._locate import without_value_levels
from tallax.checkpoints._manifest import Entry, Manifest, damaged
from tallax.checkpoints._serialize import is_key, stored, stored_dtype


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint: what it says that it has, and its arrays, or what stands for them.

    Attributes:
        manifest: what it tells of itself; made up from the arrays where tallax did not write it.
        arrays: by name.
    """

    manifest: Manifest
    arrays: dict[str, Any]

    @classmethod
    def of(cls, tree: Any, manifest: Manifest | None = None) -> Source:
        """Returns what is in a tree.

        Args:
            tree: nested dicts of arrays, or of anything with a shape and a dtype.
            manifest: what it tells of itself, where that is known already.

        Raises:
            CheckpointError: the manifest and the arrays do not agree.
        """
        leaves = leaves_of(tree, quoted=isinstance(tree, Mapping) and RESERVED in tree)
        found = leaves.pop(RESERVED, None)
        read_by_others = manifest is None
        if manifest is None and found is not None:
            manifest = Manifest.decoded(found)
        if manifest is None:
            return cls._foreign(leaves)
        entries = {name: entry for name, entry in manifest.entries.items() if entry.persistent and entry.at is None}
        for name in {**entries, **leaves}:
            if name not in leaves or name not in entries:
                raise damaged(f"{name} is in the manifest, or among the arrays, but not in both")
            shape, dtype = tuple(leaves[name].shape), str(np.dtype(leaves[name].dtype))
            entry = entries[name]
            if (shape, dtype) != (entry.shape, str(stored_dtype(entry.dtype))):
                if read_by_others and shape == entry.shape:
                    raise _cast(name, f"{dtype}{list(shape)}", entry)
                raise damaged(f"{name} is {dtype}{list(shape)}, and {entry} in the manifest")
        return cls(manifest, leaves)

    @classmethod
    def _foreign(cls, leaves: dict[str, Any]) -> Source:
        """Returns what Orbax wrote of an `nnx.State`, or of a tree with states in it."""
        names = without_value_levels(leaves)
        arrays = {names[name]: stored(leaf) if is_key(leaf) else leaf for name, leaf in leaves.items()}
        entries = {name: Entry("", str(np.dtype(leaf.dtype)), tuple(leaf.shape)) for name, leaf in arrays.items()}
        return cls(Manifest(entries), arrays)


def _cast(name: str, got: str, entry: Entry) -> CheckpointError:
    """Returns the error of an array that came in another dtype than it was written in."""
    return CheckpointError(
        compose(
            name,
            "is not as it was written; Orbax casts to the dtypes of what it is asked for, and JAX what has 64 bits.",
            got=got,
            expected=f"{entry}, as the manifest says",
            fix="ask Orbax for tallax.checkpoint_target(metadata, model); or an earlier checkpoint, if this is damaged",
        )
    )


def leaves_of(tree: Any, *, quoted: bool) -> dict[str, Any]:
    """Returns the arrays of a tree, or what stands for them, by name.

    Args:
        tree: nested dicts.
        quoted: whether its keys are parts of names already.
    """
    try:
        flat = [([*map(key_of, path)], leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
        leaves = {joined(keys, quoted=len(keys) if quoted else 0): leaf for keys, leaf in flat}
    except (TypeError, ValueError, RecursionError):
        leaves = {}
    for name, leaf in leaves.items():
        if isinstance(leaf, bool | int | float | complex):
            leaves[name] = np.asarray(leaf)
    arrays = (hasattr(leaf, "dtype") and hasattr(leaf, "shape") for leaf in leaves.values())
    if not leaves or "" in leaves or not all(arrays):
        raise CheckpointError(
            compose(
                "the checkpoint",
                "is no tree of arrays.",
                got=describe(tree),
                fix="what Orbax restores of tallax.to_checkpoint(...), or of nnx.state(model)",
            )
        )
    return leaves


def given(arrays: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Returns those arrays of a tree that are wanted, by the names that the objects have for them.

    Raises:
        CheckpointError: one is not there: what Orbax did not find in a partial restore, it leaves as it was asked for.
    """
    for old in names.values():
        if not isinstance(arrays[old], jax.Array | np.ndarray | np.generic):
            raise CheckpointError(
                compose(
                    old,
                    "has no value in the tree.",
                    got=describe(arrays[old]),
                    fix="a tree that Orbax has restored; without what the checkpoint lacks, and missing='init'",
                )
            )
    return {new: arrays[old] for new, old in names.items()}
