# SPDX-License-Identifier: Apache-2.0
"""`from_checkpoint`: everything is compared, then read, then checked, and only then written, all at once."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from tallax._errors import RestoreError, compose
from tallax.checkpoints._collect import PYTHON, RESERVED, Holder, holders_of, joined, key_of, named_objects
from tallax.checkpoints._compare import Plan, mismatch, places, plan
from tallax.checkpoints._convert import NoCountError, counted, is_same_number, same_number
from tallax.checkpoints._locate import without_value_levels
from tallax.checkpoints._manifest import Entry, Manifest, damaged
from tallax.checkpoints._policy import Missing, Policy, Unexpected
from tallax.checkpoints._rename import Rename, some
from tallax.checkpoints._restore_report import RestoreReport
from tallax.checkpoints._saved_tree import Source, given, leaves_of
from tallax.checkpoints._serialize import dtype_of, in_place_of, is_abstract, is_placed, needs_numpy, stored, sums_of
from tallax.checkpoints._to_tree import entry_of, has_shares, whole
from tallax.replicas import per_replica
from tallax.schedules import Scheduled
from tallax.statistics import Statistic
from tallax.variables import StateVariable

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
        InvalidTypeError: something is no module.
        InvalidValueError: an argument makes no sense.
        RestoreError: a shape, dtype, kind or configuration differs; names do and the policy does not allow it; nothing
            of an object is in the checkpoint; or what an abstract object lacks has no reset value. Its `report` has all
            of them. The objects are as they were.
        TracedReadError: inside a trace.
    """
    policy = Policy(missing, unexpected, rename)
    target = Target.of(named_objects(objects, named))
    source = Source.of(tree)
    return target.restore(source, lambda names, _: given(source.arrays, names), policy)


def checkpoint_target(metadata: Any, *objects: Any, **named: Any) -> Any:
    """Returns what to hand to Orbax's own restore, so that arrays come to the devices where objects have theirs.

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
    found = leaves_of(tree, quoted=quoted)  # raises where it is none
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
        wholes, holders = objects, holders_of(objects, abstract=True)
        if any(has_shares(holder) for holder in holders):
            wholes = {name: whole(thing) for name, thing in objects.items()}
            holders = holders_of(wholes, abstract=True)
        pairs = [
            (holder, name, leaf) for holder in holders for name, leaf in zip(holder.names, holder.leaves, strict=True)
        ]
        leaves = {name: leaf for _, name, leaf in pairs}
        return cls(objects, wholes, holders, leaves, {name: entry_of(holder, leaf) for holder, name, leaf in pairs})

    def restore(self, source: Source, fetch: Fetch, policy: Policy) -> RestoreReport:
        """Compares, reads, checks and writes; raises before it writes."""
        manifest = source.manifest
        found = plan(
            manifest.entries,
            self.entries,
            self.objects,
            policy,
            variables={name: holder.variable for holder in self.holders for name in holder.names},
            told={"step": manifest.step, "extra": manifest.extra},
        )
        fresh = self._without_value(found.report)
        values, report = self._read(found, manifest, fetch, policy)
        self._write(values, fresh)
        return report

    def _without_value(self, report: RestoreReport) -> list[Holder]:
        """Returns abstract state that the checkpoint lacks and that has a reset value; raises if it has none."""
        absent = {name for name in (*report.missing, *report.kept) if is_abstract(self.leaves[name])}
        fresh = [holder for holder in self.holders if absent & set(holder.names)]
        empty = [name for holder in fresh if not holder.has_reset for name in holder.names if name in absent]
        if empty:
            error = RestoreError(
                compose(
                    some(empty),
                    "of an abstract model is not in the checkpoint, so there is no value that it could have.",
                    got=f"{self.entries[empty[0]]} of nnx.eval_shape",
                    fix="make the model itself, model = Model(rngs); or give this a value before the restore",
                )
            )
            error.report = report
            raise error
        return fresh

    def _read(
        self, found: Plan, manifest: Manifest, fetch: Fetch, policy: Policy
    ) -> tuple[dict[str, Any], RestoreReport]:
        inline = {name: old for name, old in found.sources.items() if manifest.entries[old].at is not None}
        apart = {name: old for name, old in found.sources.items() if name not in inline}
        arrays = {name: manifest.array(old) for name, old in inline.items()}
        fetched = fetch(apart, self)
        arrays |= {name: stored(array) for name, array in fetched.items()}
        for name, total in zip(fetched, sums_of([arrays[name] for name in fetched]), strict=True):
            if manifest.entries[apart[name]].sum not in (None, total):
                raise damaged(f"{apart[name]} is not what was written")
        converted, warnings = [], []
        variables = {name: holder.variable for holder in self.holders for name in holder.names}
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
                raise mismatch(name, found.sources[name], str(error), str(wanted), report, policy) from None
            converted += [how] if how else []
            warnings += [warning] if warning else []
            on_host = isinstance(variables[name], StateVariable)
            values[name] = in_place_of(self.leaves[name], array, wanted.dtype, on_host=on_host)
        return values, dataclasses.replace(found.report, converted=tuple(converted), warnings=tuple(warnings))

    def _write(self, values: Mapping[str, Any], fresh: list[Holder]) -> None:
        """Puts values in, and others to their reset value; all or none."""
        touched: list[Holder] = []
        try:
            for holder in fresh:
                touched.append(holder)
                _reset(holder)
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


def _reset(holder: Holder) -> None:
    """Sets a count to 0, a statistic to empty, and the value of a schedule to not called."""
    owner, variable = holder.owner, holder.variable
    if isinstance(owner, Statistic):
        owner.reset()
    elif holder.is_counter and variable is not None:
        variable.set(0)
    elif isinstance(owner, Scheduled) and variable is not None and is_abstract(*holder.leaves):
        first = Scheduled(owner.schedule).state.get_raw_value()
        variable.set_raw_value(np.broadcast_to(first, holder.leaves[0].shape).copy())
    if variable is not None and is_abstract(leaf := holder.leaves[0]) and is_placed(leaf):
        variable.set_raw_value(in_place_of(leaf, variable.get_raw_value(), dtype_of(leaf)))


def _share_out(combined: Any, thing: Any) -> None:
    """Puts what a combined copy of an object has into the object, whose items keep a share for each replica."""
    originals = dict(_items(thing))
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
    return [(path, node) for path, node in nnx.iter_graph(thing) if isinstance(node, StateVariable)]
