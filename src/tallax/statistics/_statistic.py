# SPDX-License-Identifier: Apache-2.0
"""The protocol of all statistics: `Statistic`, which checks, merges, reads and displays."""

from __future__ import annotations

import abc
from collections.abc import Hashable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from tallax import _uint64
from tallax._arrays import is_traced
from tallax._display import card
from tallax._errors import InvalidTypeError, InvalidValueError, ReplicasError, describe
from tallax._mesh_axes import AxisName, varying_axes
from tallax._module import StateOwner
from tallax.runs._record import Bins
from tallax.statistics._conversions import Rounding, as_real_array


class Statistic(StateOwner, abc.ABC):
    """The base of every statistic: a module that owns its state and is updated with data.

    A subclass keeps its counts in a `Counter`, and other state in a `Buffer`, whose dtype it declares in `_dtypes`. Two
    statistics can be merged if `_configuration` returns the same for both. `merge` is associative, and a statistic that
    was just `reset` is its identity. Per-replica state (`tallax.per_replica`) is therefore combined by merging, unless
    a subclass overrides `_begin_replica` and `_join`.

    Args:
        axis_name: The mapped axis or axes over which each update is combined, as in `nnx.BatchNorm`. It is required
            under `vmap`, `pmap` and `shard_map(check_vma=False)`; otherwise the axes are inferred from the values.

    `model.eval()`, `model.train()` and `nnx.view(model, deterministic=True)` set `deterministic`. If it is True,
    `update` does nothing.

    If its state is cast, for example because the whole model is converted to bfloat16, every later use raises
    `InvalidTypeError`.
    """

    _written_by = "self.{name}.update(x), which writes into it; or del self.{name} first"
    _rounding: ClassVar[Rounding] = "infinite"  # the rounding of float64 from the host
    shape: tuple[int, ...] = ()  # of its results; values are reduced over the axes before those of the shape

    def __init__(self, *, axis_name: AxisName | None = None):
        super().__init__()
        if not isinstance(axis_name, Hashable) or (isinstance(axis_name, tuple) and not all(map(_is_axis, axis_name))):
            raise InvalidTypeError(
                type(self).__name__,
                "axis_name must be the name of a mapped axis, or a tuple of names.",
                got=describe(axis_name),
                fix='axis_name="data", or axis_name=("data", "model")',
            )
        self.axis_name: AxisName | None = axis_name

    def update(self, x: Any, *, where: Any = None) -> None:
        """Adds the entries of `x`, or only those with a true entry in `where`. Does nothing in eval mode.

        Args:
            x: An array of booleans, integers or floats; each statistic documents its shapes. No gradient flows in.
                Python integers and 64-bit integers of NumPy are rounded to float32 if 32 bits cannot represent them.
                float64 is always rounded to float32, so a number beyond 3.4e38 becomes infinite. (A `Histogram` counts
                it by its sign outside the edges.)
            where: A boolean array that broadcasts to `x.shape`.

        Raises:
            InvalidTypeError: `x` is not a real array, `where` is not boolean, or the state was cast.
            InvalidValueError: A shape does not match.
            ReplicasError: Inside `shard_map`, the axes to combine over cannot be inferred.
        """
        if self.deterministic:
            return
        if self._dtypes:  # a Counter refuses by itself, when it is read
            self.refuse_casts()
        values, mask = self._checked(x, where)
        self._accumulate(values, mask)

    def compute(self) -> Any:
        """Returns a frozen record: exact integers and NumPy arrays outside a trace, traced arrays inside one.

        Raises:
            InvalidTypeError: The state was cast.
        """
        return self.read(self.state_here())

    @abc.abstractmethod
    def reset(self) -> None:
        """Forgets everything that was fed."""

    def merge(self, other: Any) -> None:
        """Adds the state of `other`, as if all its data had been passed to this statistic. `other` does not change.

        Raises:
            InvalidTypeError: The state of either was cast.
            InvalidValueError: `other` is a statistic of another type or configuration.
            ReplicasError: `other` has per-replica state on axes on which this statistic has none.
        """
        if type(other) is not type(self) or other._configuration() != self._configuration():
            raise InvalidValueError(
                self,
                "only statistics of the same type and configuration can be merged.",
                got=other._title() if isinstance(other, Statistic) else describe(other),
                expected=self._title(),
                fix="make both with the same arguments",
            )
        self.refuse_casts()
        other.refuse_casts()
        self._merge(other, self._once(other))

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        result = self.compute() if self._summary() else None
        return card(self._title(), result, None if result is None else self._bins(result))

    def _title(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self._configuration().items())
        return f"{type(self).__name__}({arguments})"

    def _attributes(self) -> dict[str, Any]:
        return {**self._configuration(), "deterministic": self.deterministic, **self.variables}

    def _summary(self) -> str:
        if any(variable._shown() is None for variable in self.variables.values()):
            return ""
        try:
            return _on_one_line(repr(self.compute()))
        except InvalidTypeError:  # the state was cast, but a repr must not raise
            return ""

    def _bins(self, result: Any) -> Bins | None:
        """Returns the bins of a result, or None if it has no bins to draw."""
        del result
        return None

    @abc.abstractmethod
    def read(self, state: Mapping[str, Any]) -> Any:
        """Returns the record of a state: NumPy or traced arrays by attribute. A Counter is passed as words."""

    def _axes_of(self, x: jax.Array) -> tuple[int, ...]:
        """Returns the axes of `x` to reduce. Raises if `x` does not end in the statistic's shape."""
        return leading_axes(x, self.shape, self)

    @abc.abstractmethod
    def _accumulate(self, x: jax.Array, where: jax.Array | None) -> None:
        """Updates the state with checked values."""

    @abc.abstractmethod
    def _merge(self, other: Any, once: tuple[Hashable, ...] = ()) -> None:
        """Adds the state of a statistic with the same configuration.

        Args:
            other: The other statistic.
            once: The axes along which this statistic has per-replica state and `other` does not.
        """

    @abc.abstractmethod
    def _configuration(self) -> dict[str, Any]:
        """Returns the arguments by name that must be equal for two statistics to be merged."""

    def _begin_replica(self) -> None:
        """Sets the initial state of each replica except the first. The first keeps the state so far."""
        self.reset()

    def _join(self, replica: Any, number: Any) -> None:
        """Adds the state of another replica that made the same steps.

        Args:
            replica: A statistic of the same configuration.
            number: The number of replicas added so far, a traced int32 scalar.
        """
        del number
        self._merge(replica)

    def _once(self, other: Statistic) -> tuple[Hashable, ...]:
        """Returns the axes along which this statistic is per-replica and the other one is replicated."""
        own, others = (
            frozenset().union(*(variable._replica_axes for variable in each.variables.values()))
            for each in (self, other)
        )
        if others - own:
            raise ReplicasError(
                self,
                "a replicated statistic cannot merge a statistic with per-replica state.",
                got=f"per-replica state over {tuple(sorted(others))}",
                fix="merge tallax.combine_replicas(other), between steps",
            )
        if not own:
            return ()
        values = jax.tree.leaves([variable.get_raw_value() for variable in other.variables.values()])
        return tuple(sorted(own - others - frozenset().union(*map(varying_axes, values)), key=str))

    def _checked(self, x: Any, where: Any) -> tuple[jax.Array, jax.Array | None]:
        values, mask = as_real_array(x, self._rounding), None if where is None else as_real_array(where)
        if values is None:
            fix = "jnp.asarray(x), or x.real"
            raise InvalidTypeError(self, "a statistic requires a real array.", got=describe(x), fix=fix)
        values = jax.lax.stop_gradient(values) if is_traced(values) else values
        if where is None:
            return values, None
        if mask is None or mask.dtype != jnp.bool_:
            raise InvalidTypeError(
                self,
                "where= must be a boolean array.",
                got=describe(where),
                fix="where=mask.astype(bool), or mask > 0",
            )
        try:
            return values, jnp.broadcast_to(mask, values.shape)
        except ValueError:
            raise InvalidValueError(
                self,
                "where= must broadcast to the shape of the values.",
                got=describe(mask),
                expected=f"a shape that broadcasts to {values.shape}",
                fix="where=mask[..., None] for a mask of the leading axes",
            ) from None


def leading_axes(x: jax.Array, shape: tuple[int, ...], item: object, *, argument: str = "shape=...") -> tuple[int, ...]:
    """Returns the axes of `x` before those of a statistic's `shape`. Raises if `x` does not end in `shape`.

    Args:
        x: The values.
        shape: The required last axes.
        item: The statistic, named in the error.
        argument: The argument that sets the shape, for the error.
    """
    leading = x.ndim - len(shape)
    if leading < 0 or x.shape[leading:] != shape:
        kind = type(item).__name__
        raise InvalidValueError(
            item,
            f"a statistic of shape {shape} requires values whose last axes have that shape.",
            got=describe(x),
            expected=f"shape (..., {', '.join(map(str, shape))})",
            fix=f"move the axis of heads, experts or units to the end, or declare {kind}({argument})",
        )
    return tuple(range(leading))


def exact_or_traced(words: np.ndarray | jax.Array) -> np.ndarray | jax.Array:
    """Returns counts from words: uint64 on the host, or saturated int32 if they are traced."""
    return _uint64.to_int32(words) if isinstance(words, jax.Array) else _uint64.to_uint64(words)


def ratio(words: Any, part: int, whole: int) -> Any:
    """Returns one count over another as floats; 0 if both are 0. Traced counts saturate, but their ratio does not."""
    numpy, counts = (jnp, _uint64.to_float32(words)) if is_traced(words) else (np, _uint64.to_uint64(words))
    return counts[..., part] / numpy.maximum(counts[..., whole], 1)


def unboxed(*parts: Any) -> tuple[Any, ...]:
    """Returns scalars on the host as Python numbers, and all other arrays unchanged."""
    host = (np.ndarray, np.generic)
    return tuple(part.item() if isinstance(part, host) and part.ndim == 0 else part for part in parts)


def _is_axis(name: Any) -> bool:
    return isinstance(name, Hashable)


def _on_one_line(text: str) -> str:
    return " ".join(line.strip() for line in text.splitlines())  # NumPy wraps long arrays
