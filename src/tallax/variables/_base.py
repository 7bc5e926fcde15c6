# SPDX-License-Identifier: Apache-2.0
"""`StateVariable`, the base of `Counter` and `Buffer`: metadata, `.value`, and guarded writes."""

from __future__ import annotations

from typing import Any, ClassVar, NoReturn

import flax.errors
import jax
import numpy as np
from flax import nnx
from flax.nnx import reprlib

from tallax._arrays import is_committed, is_traced
from tallax._display import card, tree
from tallax._errors import InvalidTypeError, InvalidValueError, ReplicasError, TraceError, describe
from tallax._mesh_axes import mapped_axes
from tallax.runs._number_format import size
from tallax.variables._metadata import DECLARED, PerReplica, check_reduce, refuse_kind, refuse_misspelled
from tallax.variables._placeholder import Placeholder
from tallax.variables._traced_state import TwoPartCount, without_gradient

_MISSING = object()
_set_attribute = nnx.Variable.__setattr__  # bound once, because each eager count calls it


class StateVariable(nnx.Variable[Any]):
    """The base of `Counter` and `Buffer`: metadata, reads and writes by `.value`, and guarded writes."""

    # Used in the `fix:` line of errors.
    _compared_by: ClassVar[str]
    _written_by: ClassVar[str]

    def __init__(self, value: Any, *, persistent: bool, reduce: str, metadata: dict[str, Any]):
        for name in metadata:
            refuse_misspelled(type(self).__name__, name, metadata[name])
        check_reduce(type(self).__name__, reduce)
        own = {"hijax": False, "ref": False, "persistent": bool(persistent), "reduce": reduce}
        super().__init__(value, **{**metadata, **own})

    # No deprecation warning as in Flax: users of PyTorch and of older Flax write `.value`, and here it is safe.
    @property
    def value(self) -> Any:
        """The value as `get_value()` gives it; assigning it is `set_value`."""
        return self.get_value()

    @value.setter
    def value(self, value: Any) -> None:
        self.set_value(value)

    @property
    def _per_replica(self) -> PerReplica | None:
        """The layout of per-replica state, or None if there is one value for all replicas, as in a new variable."""
        # Flax copies all metadata for each look-up, and every count asks for this several times.
        return self.get_metadata("per_replica") if self.has_metadata("per_replica") else None

    @property
    def _replica_axes(self) -> tuple[str, ...]:
        """The mesh axes along which each replica has its own value."""
        layout = self._per_replica
        return () if layout is None else layout.axes

    def _stored(self) -> Any:
        """Returns the raw value: one for all replicas, or inside `shard_map` the value of this replica.

        If only a derivative traces the value, the underlying array is returned, because no gradient flows out of state.

        Raises:
            ReplicasError: The variable has per-replica state, and this is outside `shard_map`.
            StateOwnedByStepError: A compiled step owns the value, and this is a copy of the variable.
        """
        self._refuse_per_replica()
        raw = self.get_raw_value()
        if isinstance(raw, TwoPartCount):
            return raw.limbs
        if isinstance(raw, Placeholder):
            return raw.read(self)
        if type(raw) is np.ndarray:
            return raw
        return without_gradient(raw) if is_traced(raw) else plain(raw)

    def _exact(self) -> Any:
        """Returns all of the value without moving it: on the host, on the device, or traced; the words of a Counter."""
        return self._stored()

    def _refuse_per_replica(self) -> None:
        axes = self._replica_axes
        if axes and not set(axes) <= set(mapped_axes()):
            raise ReplicasError(
                self,
                "has per-replica state, which must be combined first.",
                got=f"a read or write outside a shard_map over {axes}",
                fix="to read, tallax.combine_replicas(model); to write, a shard_map with tallax.replica_specs(model)",
            )

    def __getattr__(self, name: str) -> Any:
        # Flax forwards unknown attributes to the raw value. Dunders are excluded: NumPy would find the limbs of a
        # Counter by `__array_interface__`, and `copy.deepcopy` would return the array by `__deepcopy__`. Flax's own
        # names arrive here if `__init__` has not run, for example in a debugger, and a look-up of metadata would look
        # them up again.
        if not name.startswith("_"):
            if self.has_metadata(name):
                return self.get_metadata(name)
            found = getattr(self.get_value(), name, _MISSING)
            if found is not _MISSING:
                return found
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)

    def _not_ordered(self, other: Any) -> NoReturn:
        raise InvalidTypeError(
            self,
            f"a {type(self).__name__} cannot be compared with < or >; compare its value.",
            got=f"a comparison with {describe(other)}",
            fix=self._compared_by,
        )

    # One by one: type checkers differ in the type that they infer for `__lt__ = __le__ = ...`.
    def __lt__(self, other: Any) -> NoReturn:
        self._not_ordered(other)

    def __le__(self, other: Any) -> NoReturn:
        self._not_ordered(other)

    def __gt__(self, other: Any) -> NoReturn:
        self._not_ordered(other)

    def __ge__(self, other: Any) -> NoReturn:
        self._not_ordered(other)

    def __nnx_repr__(self) -> Any:
        raw = self.get_raw_value()
        if not self._per_replica and not (isinstance(raw, Placeholder) and not raw.is_readable_by(self)):
            part: Any
            for part in super().__nnx_repr__():
                shown = getattr(part, "value", None)
                if isinstance(shown, Placeholder) and shown.is_readable_by(self):
                    part = type(part)(part.key, shown.read(self))
                yield part
            return
        yield reprlib.Object(type=type(self).__name__)  # Flax's own representation would read the value
        yield reprlib.Attr("value", raw)
        if self._per_replica:
            yield reprlib.Attr("per_replica", self._per_replica)

    def __treescope_repr__(self, path: Any, subtree_renderer: Any) -> Any:
        value, raw = self._shown(), self.get_raw_value()
        note = str(raw) if value is None else size(raw.nbytes)
        attributes = {"value": raw if value is None else value, **_told(self.get_metadata())}
        return tree(self, attributes, note, path, subtree_renderer)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        told = ", ".join(f"{name}={value!r}" for name, value in _told(self.get_metadata()).items())
        return card(f"{type(self).__name__}({told})", self._shown())

    def _shown(self) -> Any:
        """Returns the exact value for display, or None if it cannot be read here."""
        raw = self.get_raw_value()
        if self._per_replica or isinstance(raw, TwoPartCount) or is_traced(raw):
            return None
        if isinstance(raw, Placeholder):
            return raw.read(self) if raw.is_readable_by(self) else None
        return raw if isinstance(raw, jax.Array | np.ndarray) else None  # only a shape, under nnx.eval_shape

    def _place_abstract(self, value: Any) -> bool:
        """Gives an abstract value the sharding of another, as `nnx.eval_shape` does on a mesh. False for arrays."""
        raw = self.get_raw_value()
        if not (isinstance(raw, jax.ShapeDtypeStruct) and isinstance(value, jax.ShapeDtypeStruct)):
            return False
        if value.shape not in (self.shape, raw.shape) or value.dtype != raw.dtype:
            return False
        # The sharding of a Counter's words. A spec omits their last axis.
        self.set_raw_value(raw.update(sharding=value.sharding))
        return True

    def _store(self, new: Any, *, here: bool = False) -> None:
        """Replaces the raw value, and keeps it on the devices on which the old value was placed on purpose.

        A value on a device stays on a device, so that a write before a compiled step does not cause an implicit
        transfer in the step. If `here` is True, as for an eager count, the value moves to the host.
        """
        self._refuse_per_replica()
        raw = self.get_raw_value()
        if isinstance(raw, Placeholder):
            raw.write(self, new)
            return
        if isinstance(raw, TwoPartCount):
            new = raw.at(new)
        elif isinstance(raw, jax.Array) and not is_traced(raw, new):
            if is_committed(raw) and not is_committed(new):
                new = jax.device_put(new, raw.sharding)
            elif not (here or isinstance(new, jax.Array)):
                new = jax.device_put(new)
        self.set_raw_value(new)

    # --- methods of Flax that would lose something --------------------------------------------------------------------

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "value":  # a property, but Flax's check of attributes would raise before the property is called
            self.set_value(value)
            return
        try:
            _set_attribute(self, name, value)
        except flax.errors.TraceContextError:
            raise self._of_another_trace() from None

    def set_raw_value(self, value: Any, **options: Any) -> None:
        """Replaces the raw value without checking it. Raises if the variable belongs to another trace."""
        try:
            # The method is looked up at each write, because statecheck watches writes by replacing it on the class.
            # Compared with a method bound at import, an eager `counter += 1` takes 1 to 2% longer; with super(), 5%.
            nnx.Variable.set_raw_value(self, value, **options)
        except flax.errors.TraceContextError:
            raise self._of_another_trace() from None

    def set_metadata(self, *args: Any, **metadata: Any) -> None:
        """Like `nnx.Variable.set_metadata`, but a dict does not replace `persistent` and `reduce`.

        Raises:
            InvalidTypeError: A name is a misspelled `persistent` or `reduce`.
            InvalidValueError: `reduce` is unknown, or `hijax` or `ref` is set.
            TraceError: The variable belongs to another trace.
        """
        new = dict(args[0]) if len(args) == 1 and not metadata else {args[0]: args[1]} if len(args) == 2 else metadata
        for name, value in new.items():
            if name not in DECLARED:
                refuse_misspelled(type(self).__name__, name, value)
        if "reduce" in new:
            check_reduce(type(self).__name__, new["reduce"])
        if len(args) == 1 and not metadata:
            kept = {name: value for name, value in self.get_metadata().items() if name in DECLARED}
            args = ({**kept, **new},)
        try:
            super().set_metadata(*args, **metadata)
        except flax.errors.TraceContextError:
            raise self._of_another_trace() from None

    def del_metadata(self, name: str) -> None:
        """Like `nnx.Variable.del_metadata`, but `persistent` and `reduce` cannot be deleted.

        Raises:
            InvalidValueError: `name` is `persistent` or `reduce`.
            TraceError: The variable belongs to another trace.
        """
        if name in ("persistent", "reduce"):
            raise InvalidValueError(
                self, f"cannot be without {name}.", got=f"del_metadata({name!r})", fix=f"set_metadata({name}=...)"
            )
        try:
            super().del_metadata(name)
        except flax.errors.TraceContextError:
            raise self._of_another_trace() from None

    @classmethod
    def from_metadata(cls, value: Any, attributes: dict[str, Any]) -> Any:
        """Makes a copy with other metadata. `nnx.with_vars` calls it to change the kind of Variable.

        Raises:
            InvalidValueError: The metadata has `hijax=True` or `ref=True`.
        """
        for name in ("hijax", "ref"):
            refuse_kind(cls.__name__, name, attributes.get(name))
        return super().from_metadata(value, attributes)

    def _of_another_trace(self) -> TraceError:
        return TraceError(
            self,
            f"a {type(self).__name__} was written from a different trace than its own, so the write would be lost.",
            got="a transformed function that closes over the model, or over state merged into one",
            fix="pass the model as an argument, to nnx.jit, nnx.scan, ...; or return the increment, and add "
            "it outside; or nnx.merge(..., copy=True) and return its state",
        )


def plain(raw: Any) -> Any:
    """Returns an instance of a subclass of `np.ndarray` as a plain `np.ndarray`, and everything else unchanged.

    JAX's derivatives replace NumPy arrays among their arguments by a private subclass, which differs from an array in
    type, comparisons and pickling.
    """
    return np.asarray(raw) if isinstance(raw, np.ndarray) else raw


def _told(metadata: dict[str, Any]) -> dict[str, Any]:
    """Returns the metadata, except for Flax's own flags at their defaults."""
    return {name: value for name, value in metadata.items() if name not in ("hijax", "ref", "eager_sharding")}
