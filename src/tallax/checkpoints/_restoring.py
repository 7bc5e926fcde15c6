# SPDX-License-Identifier: Apache-2.0
"""`from_checkpoint`: everything is compared, then read, then checked, and only then written, all at once."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tallax._errors import CheckpointError, compose, describe
from tallax._placement import is_committed, placed
from tallax._variables import Item
from tallax.checkpoints._compare import Missing, Plan, Policy, Rename, Unexpected, mismatch, plan
from tallax.checkpoints._convert import NoCountError, counted, is_same_number, same_number
from tallax.checkpoints._holders import PYTHON, RESERVED, Holder, holders_of, joined, key_of, named_objects
from tallax.checkpoints._leaves import KEY, is_key, stored, stored_dtype, sums_of
from tallax.checkpoints._manifest import Entry, Manifest, damaged
from tallax.checkpoints._report import RestoreReport
from tallax.checkpoints._tree import entry_of, has_shares, whole
from tallax.replicas import per_replica
from tallax.statistics import Statistic

Fetch = Callable[[Mapping[str, str], "Target"], Mapping[str, Any]]


def from_checkpoint(
    tree: Any,
    *objects: Any,
    missing: Missing = "error",
    unexpected: Unexpected = "error",
    rename: Rename = None,
    **named: Any,
) -> RestoreReport:
    """Puts what a tree of `to_checkpoint` has into objects, all of it or nothing, and returns what became of each name.

    A tree of Orbax's that tallax did not write is taken too: `nnx.state(model)`, plain or in a dict with the names of
    the objects. There a `Counter` takes what an old counter of float32, int32 or any other number had.

    Args:
        tree: nested dicts of arrays, as Orbax restores them.
        *objects: as they were saved, or fewer of them; arrays are put where the objects have theirs, whatever devices
            they were saved from.
        missing: what to do about what the checkpoint lacks: "init" keeps what the objects have.
        unexpected: what to do about what only the checkpoint has: "ignore" leaves it out.
        rename: from names in the checkpoint to those in the objects: a function, or a mapping of names or of their
            beginnings, `{"model/encoder": "model/backbone"}`.
        **named: objects that were saved by names of their own.

    Returns:
        Names of everything: restored, missing, unexpected, reset, converted. Items with `persistent=False` are reset;
        a `Buffer` among them has nothing to be reset to, and keeps what it has.

    Raises:
        CheckpointError: the tree is damaged, or a later version wrote it.
        HeldError: a compiled step holds an object, and it was not the step that came.
        InvalidTypeError: something is no module.
        InvalidValueError: an argument makes no sense.
        RestoreError: a shape, dtype, kind or configuration differs, or names do and the policy says "error". Its
            `report` has all of them. The objects are as they were.
        TracedReadError: inside a trace.
    """
    policy = Policy(missing, unexpected, rename)
    target = Target.of(named_objects(objects, named))
    source = Source.of(tree, tuple(target.objects))
    return target.restore(source, lambda names, _: given(source.arrays, names), policy)


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


def checkpoint_target(metadata: Any, *objects: Any, **named: Any) -> Any:
    """Returns what to hand to Orbax's own restore, so that arrays come to the devices where objects have theirs.

    Without it Orbax puts them where they were saved from, and raises where there are other devices now. Shapes and
    dtypes are those that were saved, so that Orbax casts nothing, and `from_checkpoint` can tell what differs.

    Args:
        metadata: what Orbax says of the checkpoint: `manager.item_metadata(step)`.
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
    tree = getattr(metadata, "tree", metadata)
    _leaves_of(tree, quoted=True)  # raises where it is none
    quoted = isinstance(tree, Mapping) and RESERVED in tree
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("all",))
    everywhere = jax.NamedSharding(mesh, jax.P())
    anywhere = everywhere if jax.process_count() > 1 else jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def leaf_of(path: Any, told: Any) -> jax.ShapeDtypeStruct:
        keys = [key_of(key) for key in path]
        name = joined(keys, quoted=len(keys) if quoted else 0).removesuffix("/value")
        own: Any = target.leaves.get(name, target.leaves.get(f"{next(iter(target.objects))}/{name}"))
        fits = is_committed(own) and tuple(own.shape) == tuple(told.shape)
        return jax.ShapeDtypeStruct(told.shape, told.dtype, sharding=own.sharding if fits else anywhere)

    return jax.tree_util.tree_map_with_path(leaf_of, tree)


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
    def of(cls, tree: Any, objects: Sequence[str], manifest: Manifest | None = None) -> Source:
        """Returns what is in a tree.

        Args:
            tree: nested dicts of arrays, or of anything with a shape and a dtype.
            objects: what the objects are called that it is for.
            manifest: what it tells of itself, where that is known already.

        Raises:
            CheckpointError: the manifest and the arrays do not agree.
        """
        leaves = _leaves_of(tree, quoted=isinstance(tree, Mapping) and RESERVED in tree)
        found = leaves.pop(RESERVED, None)
        if manifest is None and found is not None:
            manifest = Manifest.decoded(found)
        if manifest is None:
            return cls._foreign(leaves, objects)
        entries = {name: entry for name, entry in manifest.entries.items() if entry.persistent and entry.at is None}
        for name in {**entries, **leaves}:
            if name not in leaves or name not in entries:
                raise damaged(f"{name} is in the manifest, or among the arrays, but not in both")
            shape, dtype = tuple(leaves[name].shape), str(np.dtype(leaves[name].dtype))
            entry = entries[name]
            if (shape, dtype) != (entry.shape, str(stored_dtype(entry.dtype))):
                raise damaged(f"{name} is {dtype}{list(shape)}, and {entry} in the manifest")
        return cls(manifest, leaves)

    @classmethod
    def _foreign(cls, leaves: dict[str, Any], objects: Sequence[str]) -> Source:
        """Returns what Orbax wrote of an `nnx.State`, under the names that tallax would have given."""
        named = all(name.split("/")[0] in objects for name in leaves)
        arrays = {}
        for name, leaf in leaves.items():
            name = name.removesuffix("/value")
            arrays[name if named else f"{objects[0]}/{name}"] = stored(leaf) if is_key(leaf) else leaf
        entries = {name: Entry("", str(np.dtype(leaf.dtype)), tuple(leaf.shape)) for name, leaf in arrays.items()}
        return cls(Manifest(entries), arrays)


def _leaves_of(tree: Any, *, quoted: bool) -> dict[str, Any]:
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


@dataclasses.dataclass(frozen=True)
class Target:
    """The objects that a checkpoint is restored into.

    Attributes:
        objects: by name.
        holders: what they hold, with the shares of replicas combined.
        leaves: the arrays, by name.
        entries: what they are, by name.
    """

    objects: dict[str, Any]
    wholes: dict[str, Any]
    holders: list[Holder]
    leaves: dict[str, Any]
    entries: dict[str, Entry]

    @classmethod
    def of(cls, objects: dict[str, Any]) -> Target:
        """Returns what named objects hold."""
        wholes, holders = objects, holders_of(objects)
        if any(has_shares(holder) for holder in holders):
            wholes = {name: whole(thing) for name, thing in objects.items()}
            holders = holders_of(wholes)
        pairs = [
            (holder, name, leaf) for holder in holders for name, leaf in zip(holder.names, holder.leaves, strict=True)
        ]
        leaves = {name: leaf for _, name, leaf in pairs}
        return cls(objects, wholes, holders, leaves, {name: entry_of(holder, leaf) for holder, name, leaf in pairs})

    def restore(self, source: Source, fetch: Fetch, policy: Policy) -> RestoreReport:
        """Compares, reads, checks and writes; raises before it writes."""
        manifest = source.manifest
        found = plan(manifest.entries, self.entries, policy, told={"step": manifest.step, "extra": manifest.extra})
        values, report = self._read(found, manifest, fetch)
        self._write(values)
        return report

    def _read(self, found: Plan, manifest: Manifest, fetch: Fetch) -> tuple[dict[str, Any], RestoreReport]:
        inline = {name: old for name, old in found.sources.items() if manifest.entries[old].at is not None}
        apart = {name: old for name, old in found.sources.items() if name not in inline}
        arrays = {name: manifest.array(old) for name, old in inline.items()}
        fetched = fetch(apart, self)
        arrays |= {name: stored(array) for name, array in fetched.items()}
        for name, total in zip(fetched, sums_of([arrays[name] for name in fetched]), strict=True):
            if manifest.entries[apart[name]].sum not in (None, total):
                raise damaged(f"{apart[name]} is not what was written")
        converted, warnings = [], []
        values = {}
        for name, array in arrays.items():
            saved, wanted = manifest.entries[found.sources[name]], self.entries[name]
            how = warning = None
            try:
                if wanted.kind == "Counter" and saved.kind != "Counter":
                    array, how, warning = counted(name, saved, np.asarray(array))
                elif is_same_number(saved, wanted):
                    array, how = same_number(name, saved, wanted, np.asarray(array))
            except NoCountError as error:
                report = dataclasses.replace(found.report, mismatched=(f"{name}: {error}; expected {wanted}",))
                raise mismatch(name, str(error), str(wanted), report) from None
            converted += [how] if how else []
            warnings += [warning] if warning else []
            values[name] = in_place_of(self.leaves[name], array, wanted)
        return values, dataclasses.replace(found.report, converted=tuple(converted), warnings=tuple(warnings))

    def _write(self, values: Mapping[str, Any]) -> None:
        """Puts values in, all or none."""
        touched: list[Holder] = []
        try:
            for holder in self.holders:
                if any(name in values for name in holder.names):
                    touched.append(holder)
                    holder.put([values.get(name, leaf) for name, leaf in zip(holder.names, holder.leaves, strict=True)])
                elif not holder.persistent:
                    touched.append(holder)
                    _reset(holder)
            for name, thing in self.objects.items():
                if thing is not self.wholes[name]:
                    touched += holders_of({name: thing})
                    _share_out(self.wholes[name], thing)
        except BaseException:
            for holder in touched:
                with contextlib.suppress(Exception):  # one that takes no value has its own still
                    holder.put(holder.leaves)
            raise


def in_place_of(leaf: Any, array: Any, entry: Entry) -> Any:
    """Returns an array in the form and on the devices in which an object has its value."""
    if entry.dtype in PYTHON and not isinstance(leaf, jax.Array | np.ndarray | np.generic):
        return PYTHON[entry.dtype](np.asarray(array).item())
    if isinstance(leaf, np.ndarray | np.generic):
        host = np.array(array)
        return host if isinstance(leaf, np.ndarray) else host[()]
    if entry.dtype.startswith(KEY):
        words = array if isinstance(array, jax.Array) else jnp.asarray(array)
        keys = jax.random.wrap_key_data(words, impl=entry.dtype.removeprefix(KEY))
        return placed(keys, leaf.sharding) if is_committed(leaf) else keys
    if not is_committed(leaf):
        return _weak(np.asarray(array)) if leaf.weak_type else jnp.asarray(np.asarray(array))
    if leaf.weak_type and leaf.is_fully_addressable:
        return placed(_weak(np.asarray(array)), leaf.sharding)
    if isinstance(array, jax.Array):
        return array if array.sharding == leaf.sharding else _moved(array, leaf.sharding)
    return placed(array, leaf.sharding)


def _weak(host: np.ndarray) -> jax.Array:
    """Returns an array with the promotion of a Python number, of the same bits: what it multiplies must not widen."""
    weak = jnp.asarray(host.item() if host.ndim == 0 else host.dtype.type(0).item())
    if weak.dtype != host.dtype:  # x64 was switched since
        return jnp.asarray(host)
    return weak if host.ndim == 0 else jnp.broadcast_to(weak, host.shape).at[...].set(host)


def _moved(array: jax.Array, sharding: jax.sharding.Sharding) -> jax.Array:
    if array.is_fully_addressable and not sharding.is_fully_addressable:
        return placed(np.asarray(array), sharding)
    return placed(array, sharding)


def _reset(holder: Holder) -> None:
    if isinstance(holder.owner, Statistic):
        holder.owner.reset()
    elif holder.is_counter and holder.variable is not None:
        holder.variable.set(0)


def _share_out(combined: Any, thing: Any) -> None:
    """Puts what a combined copy of an object has into the object, whose items keep a share for each replica."""
    originals = dict(_items(thing))
    layouts = {(item.get_raw_value().sharding.mesh, item.replica_axes) for item in originals.values() if item.shares}
    laid_out = combined
    for mesh, axes in layouts:
        paths = {
            path
            for path, item in originals.items()
            if item.shares and (item.get_raw_value().sharding.mesh, item.replica_axes) == (mesh, axes)
        }
        laid_out = per_replica(laid_out, mesh, axes, only=lambda path, _, paths=paths: tuple(path) in paths)
    values = {path: node.get_raw_value() for path, node in nnx.iter_graph(laid_out) if isinstance(node, nnx.Variable)}
    for path, node in nnx.iter_graph(thing):
        if isinstance(node, nnx.Variable):
            node.set_raw_value(values[path])
    bare = [entry for entry in nnx.to_flat_state(nnx.split(laid_out, graph=True)[1]) if not _is_variable(entry[1])]
    if bare:
        nnx.update(thing, nnx.from_flat_state(bare))


def _is_variable(leaf: Any) -> bool:
    return isinstance(leaf, nnx.Variable)


def _items(thing: Any) -> list[tuple[Any, Any]]:
    return [(path, node) for path, node in nnx.iter_graph(thing) if isinstance(node, Item)]
