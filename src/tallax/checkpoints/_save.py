# SPDX-License-Identifier: Apache-2.0
"""`to_checkpoint` and `save`: convert objects to a tree of arrays with a manifest, and write it with Orbax."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from tallax._errors import (
    CheckpointError,
    InvalidTypeError,
    ReplicasError,
    describe,
)
from tallax.checkpoints._collect import State, named_objects
from tallax.checkpoints._locate import orbax, orbax_errors, path_of
from tallax.checkpoints._manifest import ArrayEntry, Manifest
from tallax.checkpoints._positions import POSITION
from tallax.checkpoints._serialize import RESERVED, dtype_of, is_writable, stored, sums_of
from tallax.reading import reading_of_arrays
from tallax.variables import StateVariable

_SMALL = 2**16  # bytes; a larger value is a separate array


def to_checkpoint(*objects: Any, extra: Any = None, **named: Any) -> dict[str, Any]:
    """Returns the state of objects as a tree of arrays, which any of Orbax's checkpointers can save.

    It contains all state: parameters, batch statistics, random streams, optimizer state and tallax state. Only
    variables with `persistent=False` are omitted. `tree["model"]` and `tree["optimizer"]` are nested like the objects.
    `tree["tallax"]` is the manifest, which lists all arrays and has the exact values of small tallax variables.
    `from_checkpoint` compares the tree with the objects and restores it.

    The arrays are those of the objects, on their devices, so a step that donates them must wait until they are written.
    `tallax.Checkpoints` and compiled steps do this for you. If there are several processes, all must call it together.

    Args:
        *objects: Modules, optimizers, and compiled steps, which are synced and stand for their bound objects. An
            optimizer is named `optimizer`, an `nnx.Rngs` `rngs`, a metric `metrics`, and any other module `model`.
            An iterator over the data with `get_state` and `set_state` is named `data`; its position is saved.
        extra: Any value that JSON can represent, such as the epoch. The report of a restore contains it.
        **named: Further objects with your own names.

    Raises:
        StateOwnedByStepError: A compiled step owns an object. Pass the step instead of the object.
        InvalidTypeError: An object is not a module, the value of a Variable is neither an array nor a number, or
            `extra` is not JSON.
        InvalidValueError: Two objects would have the same name.
        ReplicasError: Per-replica state cannot be combined.
        TracedReadError: Inside a trace.

    Example:
        >>> import tallax
        >>> from flax import nnx
        >>> model = nnx.Dict(step=tallax.Counter(2**40), layer=nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
        >>> tree = tallax.to_checkpoint(model)
        >>> tree["model"]["layer"]["kernel"].shape
        (2, 3)
        >>> other = nnx.Dict(step=tallax.Counter(), layer=nnx.Linear(2, 3, rngs=nnx.Rngs(1)))
        >>> report = tallax.from_checkpoint(tree, other)
        >>> int(other.step), report.restored
        (1099511627776, ('model/layer/bias', 'model/layer/kernel', 'model/step'))
    """
    return SplitState.of(named_objects(objects, named), extra).tree()


@dataclasses.dataclass(frozen=True)
class SplitState:
    """The state of objects, split into separate arrays and values for the manifest.

    Attributes:
        entries: All entries by name, without sums and offsets.
        arrays: The arrays by name.
        inline: Small tallax variables, and values that Orbax does not accept: empty arrays, Python numbers.
        extra: The user's JSON.
    """

    entries: dict[str, ArrayEntry]
    arrays: dict[str, Any]
    inline: dict[str, Any]
    extra: Any

    @classmethod
    def of(cls, objects: dict[str, Any], extra: Any = None) -> SplitState:
        """Returns the state of named objects."""
        try:
            extra = json.loads(json.dumps(extra, allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidTypeError(
                "extra", "must be JSON.", got=str(error), fix='numbers, text, lists: extra={"epoch": 3}'
            ) from None
        state, arrays, inline = State.of(objects), {}, {}
        for name, entry in state.entries.items():
            if entry.persistent:
                leaf = state.leaves[name]
                _refuse_dtype(name, leaf)
                is_small = entry.nbytes <= (_SMALL if isinstance(state.variables[name], StateVariable) else 0)
                is_inline = is_small or entry.kind == POSITION or not isinstance(leaf, jax.Array | np.ndarray)
                (inline if is_inline else arrays)[name] = _written(name, leaf)
        return cls(state.entries, arrays, inline, extra)

    def copied(self) -> SplitState:
        """Returns a copy that no step will donate. It starts the copy, and returns immediately."""
        arrays, inline = jax.tree.map(lambda array: array.copy(), (self.arrays, self.inline))
        return dataclasses.replace(self, arrays=arrays, inline=inline)

    def tree(self, manifest: Manifest | None = None) -> dict[str, Any]:
        """Returns the tree of arrays. Waits for the values if the manifest is not known yet."""
        tree: dict[str, Any] = {}
        for name, array in self.arrays.items():
            *parents, last = name.split("/")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = array
        tree[RESERVED] = (manifest or self.manifest()).encoded()
        return tree

    def manifest(self, step: int | None = None) -> Manifest:
        """Returns the manifest. Waits for the values."""
        entries, parts, end = dict(self.entries), [], 0
        there = {name: value for name, value in self.inline.items() if isinstance(value, jax.Array)}
        for name, value in (self.inline | reading_of_arrays(there).result()).items():
            entries[name] = dataclasses.replace(entries[name], at=end)
            parts.append(value.tobytes())
            end += len(parts[-1])
        for name, total in zip(self.arrays, sums_of(list(self.arrays.values())), strict=True):
            entries[name] = dataclasses.replace(entries[name], sum=total)
        return Manifest(entries, b"".join(parts), self.extra, step)


def _refuse_dtype(name: str, leaf: Any) -> None:
    if not is_writable(dtype_of(leaf)):
        raise InvalidTypeError(
            name,
            "Orbax cannot save arrays of this dtype.",
            got=describe(leaf),
            expected="booleans, integers, floats or complex numbers that JAX has",
            fix="cast it to one of these; or an attribute that is not a Variable, for a constant",
        )


def _written(name: str, leaf: Any) -> Any:
    """Returns an array as it is written. If there are several processes, an array local to each becomes NumPy."""
    try:
        array = stored(leaf)
    except OverflowError:
        raise InvalidTypeError(
            name,
            "an integer in a checkpoint must fit into 64 bits.",
            got=describe(leaf),
            fix="tallax.Counter, or an attribute that is not a Variable",
        ) from None
    if jax.process_count() > 1 and isinstance(array, jax.Array) and array.is_fully_addressable:
        return np.asarray(array)  # Orbax does not accept an array of one process; that of the first process is written
    return array


def save(path: str | os.PathLike[str], *objects: Any, extra: Any = None, **named: Any) -> None:
    """Writes the state of objects into a new folder, and returns once the write is complete.

    Orbax writes the folder, with the tree of `to_checkpoint`. If the program is killed, the folder is either complete
    or absent. If there are several processes, all must call it together.

    Args:
        path: The path of the folder, which must not exist.
        *objects: See `to_checkpoint`.
        extra: See `to_checkpoint`.
        **named: See `to_checkpoint`.

    Raises:
        CheckpointError: `path` exists already, or cannot be written.
        InvalidTypeError: `path` is not a path.
        InvalidValueError: `path` is an address, such as `gs://...`.
        ReplicasError: Arrays that are local to each process differ between processes.
        TallaxError: As `to_checkpoint` does.

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
            str(path),
            "already exists, and a checkpoint is never overwritten.",
            fix="another path; or tallax.Checkpoints(folder, keep=3), which removes old ones after a new one",
        )
    state = SplitState.of(named_objects(objects, named), extra)
    ocp = orbax()
    with (
        orbax_errors(str(path), "cannot be written."),
        ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer,
    ):
        checkpointer.save(folder, args=arguments(state, state.manifest()))


def arguments(state: SplitState, manifest: Manifest) -> Any:
    """Returns the arguments of Orbax's save, with the manifest once more as JSON that other programs can read."""
    tree = state.tree(manifest)
    if jax.process_count() > 1:
        _refuse_differences(tree[RESERVED].tobytes())
    return orbax().args.StandardSave(tree, custom_metadata=manifest.as_json())


def _refuse_differences(manifest: bytes) -> None:
    """Raises if processes would save different values, because only those of the first process would be written."""
    digest = np.frombuffer(hashlib.blake2b(manifest, digest_size=16).digest(), np.uint8)
    everywhere = np.asarray(multihost_utils.process_allgather(digest))
    if len(np.unique(everywhere.reshape(jax.process_count(), -1), axis=0)) > 1:
        raise ReplicasError(
            "the checkpoint",
            "values that are local to a process must be equal in all processes, because only one writes them.",
            got="different variables, arrays or names in another process",
            fix="tallax.assert_replicated(model, only=...), which names the first that differs",
        )
