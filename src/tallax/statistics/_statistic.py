# SPDX-License-Identifier: Apache-2.0
"""The protocol of all statistics, and the base classes that implement it."""

from __future__ import annotations

import abc
import math
from collections.abc import Hashable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from tallax import _uint64
from tallax._arrays import is_traced
from tallax._display import bundle, card, tree
from tallax._errors import InvalidTypeError, InvalidValueError, ReplicasError, compose, describe
from tallax._mesh_axes import AxisName, Combination, axes_to_combine, on_first, replica_count, varying_axes
from tallax._module import EvalAware
from tallax.runs._record import Bins
from tallax.statistics._host import Rounding, as_real_array
from tallax.variables import Buffer, Counter, StateVariable, refuse_cast


class Statistic(EvalAware, abc.ABC):
    """The base of every statistic: a module that owns its state and is updated with data.

    A subclass keeps its counts in a `Counter`, and other state in a `Buffer`, whose dtype it declares in `_dtypes`. Two
    statistics can be merged if `_configuration` returns the same for both. `merge` is associative, and a statistic that
    was just `reset` is its identity. Per-replica state (`tallax.per_replica`) is therefore combined by merging, unless
    a subclass overrides `_begin_replica` and `_join`.

    Args:
        persistent: Whether checkpoints save the state.
        axis_name: The mapped axis or axes over which each update is combined, as in `nnx.BatchNorm`. It is required
            under `vmap`, `pmap` and `shard_map(check_vma=False)`; otherwise the axes are inferred from the values.

    `model.eval()`, `model.train()` and `nnx.view(model, deterministic=True)` set `deterministic`. If it is True,
    `update` does nothing.

    If its state is cast, for example because the whole model is converted to bfloat16, every later use raises
    `InvalidTypeError`.
    """

    _written_by = "self.{name}.update(x), which writes into it; or del self.{name} first"
    _dtypes: ClassVar[Mapping[str, Any]] = {}  # the dtypes of its buffers, by attribute
    _rounding: ClassVar[Rounding] = "infinite"  # the rounding of float64 from the host

    def __init__(self, *, axis_name: AxisName | None = None):
        super().__init__()
        if not isinstance(axis_name, Hashable) or (isinstance(axis_name, tuple) and not all(map(_is_axis, axis_name))):
            raise InvalidTypeError(
                compose(
                    type(self).__name__,
                    "axis_name must be the name of a mapped axis, or a tuple of names.",
                    got=describe(axis_name),
                    fix='axis_name="data", or axis_name=("data", "model")',
                )
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
                compose(
                    self,
                    "only statistics of the same type and configuration can be merged.",
                    got=_signature(other) if isinstance(other, Statistic) else describe(other),
                    expected=_signature(self),
                    fix="make both with the same arguments",
                )
            )
        self.refuse_casts()
        other.refuse_casts()
        self._merge(other, self._once(other))

    def __repr__(self) -> str:
        """Returns one line: the configuration, and the result if it can be read."""
        said = self._said()
        return f"{_signature(self)}: {said}" if said else _signature(self)

    __str__ = __repr__

    def __treescope_repr__(self, path: Any, subtree_renderer: Any) -> Any:
        attributes = {**self._configuration(), "deterministic": self.deterministic, **self.variables}
        return tree(self, attributes, self._said(), path, subtree_renderer)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        result = self.compute() if self._said() else None
        return bundle(card(_signature(self), result, None if result is None else self._bins(result)))

    def _said(self) -> str:
        """Returns the result in one line, or an empty string if it cannot be read."""
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

    @property
    def variables(self) -> dict[str, StateVariable]:
        """The Variables with the state, by attribute."""
        # Not by `isinstance`, which runs Python code for Flax's classes: readings ask three times for each statistic.
        return {name: value for name, value in sorted(vars(self).items()) if StateVariable in type(value).__mro__}

    def stored_state(self) -> dict[str, Any]:
        """Returns the state by attribute: on the host, on the device, or traced. The state of a Counter is its words.

        Raises:
            InvalidTypeError: The state was cast.
        """
        self.refuse_casts()
        return {name: stored_state(variable) for name, variable in self.variables.items()}

    def state_here(self) -> dict[str, Any]:
        """Returns the state by attribute: NumPy arrays, or traced arrays inside a trace. A Counter is words.

        Raises:
            InvalidTypeError: The state was cast.
        """
        states = self.stored_state()
        if is_traced(*states.values()):
            return {name: jax.lax.stop_gradient(jnp.asarray(state)) for name, state in states.items()}
        return {name: np.asarray(state) for name, state in states.items()}

    @abc.abstractmethod
    def read(self, state: Mapping[str, Any]) -> Any:
        """Returns the record of a state: NumPy or traced arrays by attribute. A Counter is passed as words."""

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

    def refuse_casts(self) -> None:
        """Raises if the state was cast.

        Raises:
            InvalidTypeError: The state was cast.
        """
        for name, dtype in self._dtypes.items():
            refuse_cast(self, vars(self)[name], dtype)

    def _once(self, other: Statistic) -> tuple[Hashable, ...]:
        """Returns the axes along which this statistic is per-replica and the other one is replicated."""
        own, others = (
            frozenset().union(*(variable._replica_axes for variable in each.variables.values()))
            for each in (self, other)
        )
        if others - own:
            raise ReplicasError(
                compose(
                    self,
                    "a replicated statistic cannot merge a statistic with per-replica state.",
                    got=f"per-replica state over {tuple(sorted(others))}",
                    fix="merge tallax.combine_replicas(other), between steps",
                )
            )
        if not own:
            return ()
        values = jax.tree.leaves([variable.get_raw_value() for variable in other.variables.values()])
        return tuple(sorted(own - others - frozenset().union(*map(varying_axes, values)), key=str))

    def _checked(self, x: Any, where: Any) -> tuple[jax.Array, jax.Array | None]:
        values = _real_array(x, self, "a statistic requires a real array.", self._rounding)
        if where is None:
            return values, None
        mask = _real_array(where, self, "where= must be a boolean array.")
        if mask.dtype != jnp.bool_:
            raise InvalidTypeError(
                compose(
                    self,
                    "where= must be a boolean array.",
                    got=describe(where),
                    fix="where=mask.astype(bool), or mask > 0",
                )
            )
        try:
            return values, jnp.broadcast_to(mask, values.shape)
        except ValueError:
            raise InvalidValueError(
                compose(
                    self,
                    "where= must broadcast to the shape of the values.",
                    got=describe(mask),
                    expected=f"a shape that broadcasts to {values.shape}",
                    fix="where=mask[..., None] for a mask of the leading axes",
                )
            ) from None


class Counts(Statistic):
    """A statistic whose state is one `Counter` named `counts`. A merge adds the counts."""

    counts: Counter

    def reset(self) -> None:
        """Forgets everything that was fed."""
        self.counts.reset()

    def _merge(self, other: Any, once: tuple[Hashable, ...] = ()) -> None:
        self.counts._add_combined(on_first(other.counts._words(), once))


class CountsAndBuffer(Statistic):
    """A statistic whose state is one `Counter` and one `Buffer`. One compiled program updates both.

    A subclass defines the names of both, and implements `_initial_buffer`, `_updated_state` and `_merged_buffers`.
    """

    _counter_name: ClassVar[str] = "counts"
    _buffer_name: ClassVar[str]

    @property
    def _counter(self) -> Counter:
        return vars(self)[self._counter_name]

    @property
    def _buffer(self) -> Buffer:
        return vars(self)[self._buffer_name]

    @abc.abstractmethod
    def _initial_buffer(self) -> np.ndarray:
        """Returns the buffer of an empty statistic."""

    @abc.abstractmethod
    def _updated_state(
        self, words: Any, buffer: Any, x: jax.Array, where: jax.Array | None, axes: tuple[int, ...], how: Combination
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns the limbs after an update, the limbs of the update alone, and the buffer after it."""

    def reset(self) -> None:
        """Forgets everything that was fed."""
        self.refuse_casts()
        self._counter.reset()
        # A stack of statistics, as made by `vmap`, has additional leading axes.
        self._buffer[...] = np.broadcast_to(self._initial_buffer(), self._buffer.shape)

    def _axes_of(self, x: jax.Array) -> tuple[int, ...]:
        """Returns the axes of `x` to reduce. Raises if `x` does not end in the statistic's shape."""
        return leading_axes(x, vars(self)["shape"], self)

    def _accumulate(self, x: jax.Array, where: jax.Array | None) -> None:
        axes = self._axes_of(x)
        how = axes_to_combine(x, where, state=self._counter, axis_name=self.axis_name)
        updated = self._updated_state(self._counter._words(), self._buffer._stored(), x, where, axes, how)
        # `Activity` counts every update as one, also an empty update.
        most = max(entries_of(x, axes) * replica_count(how.over), 1)
        self._counter._add_known(*updated[:2], most=most)
        self._buffer.set_value(updated[2])

    def _merge(self, other: Any, once: tuple[Hashable, ...] = ()) -> None:
        self._counter._add_combined(on_first(other._counter._words(), once))
        self._buffer.set_value(self._merged_buffers(self._buffer._stored(), other._buffer._stored()))

    def _merged_buffers(self, own: Any, other: Any) -> jax.Array:
        """Returns the merged buffer of two statistics, if it does not depend on the counts."""
        raise NotImplementedError


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
            compose(
                item,
                f"a statistic of shape {shape} requires values whose last axes have that shape.",
                got=describe(x),
                expected=f"shape (..., {', '.join(map(str, shape))})",
                fix=f"move the axis of heads, experts or units to the end, or declare {kind}({argument})",
            )
        )
    return tuple(range(leading))


def entries_of(x: jax.Array, axes: tuple[int, ...]) -> int:
    """Returns the number of entries of `x` for each count."""
    return math.prod(x.shape[axis] for axis in axes)


def stored_state(variable: StateVariable) -> Any:
    """Returns a value without moving it: on the host, on the device, or traced. The value of a Counter is its words."""
    return variable._words() if isinstance(variable, Counter) else variable._stored()


def exact_or_traced(words: np.ndarray | jax.Array) -> np.ndarray | jax.Array:
    """Returns counts from words: uint64 on the host, or saturated int32 if they are traced."""
    return _uint64.to_int32(words) if isinstance(words, jax.Array) else _uint64.to_uint64(words)


def unboxed(*parts: Any) -> tuple[Any, ...]:
    """Returns scalars on the host as Python numbers, and all other arrays unchanged."""
    host = (np.ndarray, np.generic)
    return tuple(part.item() if isinstance(part, host) and part.ndim == 0 else part for part in parts)


def _real_array(x: Any, item: object, rule: str, rounding: Rounding = "infinite") -> jax.Array:
    values = as_real_array(x, rounding)
    if values is None:
        raise InvalidTypeError(compose(item, rule, got=describe(x), fix="jnp.asarray(x), or x.real"))
    return jax.lax.stop_gradient(values) if is_traced(values) else values


def _is_axis(name: Any) -> bool:
    return isinstance(name, Hashable)


def _on_one_line(text: str) -> str:
    return " ".join(line.strip() for line in text.splitlines())  # NumPy wraps long arrays


def _signature(statistic: Statistic) -> str:
    arguments = ", ".join(f"{name}={value!r}" for name, value in statistic._configuration().items())
    return f"{type(statistic).__name__}({arguments})"
