# SPDX-License-Identifier: Apache-2.0
"""The protocol of all statistics, and what its implementations share."""

from __future__ import annotations

import abc
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tallax import _limbs
from tallax._errors import InvalidTypeError, InvalidValueError, compose, describe
from tallax._module import EvalAware
from tallax._notebooks import bundle, card, tree
from tallax._placement import is_traced
from tallax._replicas import AxisName
from tallax._variables import Buffer, Counter
from tallax_runs._record import Bins


class Statistic(EvalAware, abc.ABC):
    """What every statistic is: a module that holds one Variable and is fed by `update`.

    A subclass keeps its state in one `Counter` or `Buffer`, and says in `_configuration` what two statistics must share
    to be merged. `merge` is associative, and a statistic that was just `reset` is its identity. Replicas that each keep
    a share (`tallax.per_replica`) are therefore merged, unless a subclass says otherwise in `_begin_share` and `_join`.

    Args:
        axis_name: the mapped axis or axes over which each update's increment is combined, as in `nnx.BatchNorm`.
            Needed under `vmap`, `pmap` and `shard_map(check_vma=False)`; under plain `shard_map` the values fed tell.

    `model.eval()`, `model.train()` and `nnx.view(model, deterministic=True)` switch `deterministic`, and `update` does
    nothing while it is True.
    """

    written_by = "self.{name}.update(x), which writes into it; or del self.{name} first"

    def __init__(self, *, axis_name: AxisName | None = None):
        super().__init__()
        self.axis_name = axis_name

    def update(self, x: Any, *, where: Any = None) -> None:
        """Takes in every entry of `x`, or those where `where` is true; does nothing in eval mode.

        Args:
            x: an array of booleans, integers or floats; see the statistic for the shapes it takes. No gradient flows
                in.
            where: a boolean array that broadcasts to `x.shape`.

        Raises:
            InvalidTypeError: `x` is not a real array, or `where` is not boolean.
            InvalidValueError: a shape does not fit.
            ReplicasError: inside `shard_map`, where nothing tells which replicas to combine.
        """
        if self.deterministic:
            return
        values, mask = self._checked(x, where)
        self._accumulate(values, mask)

    def compute(self) -> Any:
        """Returns a frozen record: exact integers and NumPy arrays outside a trace, traced arrays inside one."""
        return self.read(current_state(self.item))

    @abc.abstractmethod
    def reset(self) -> None:
        """Forgets everything that was fed."""

    def merge(self, other: Any) -> None:
        """Takes in everything that `other` was fed; `other` stays as it is.

        Raises:
            InvalidValueError: `other` is another kind of statistic, or configured otherwise.
        """
        if type(other) is not type(self) or other._configuration() != self._configuration():
            raise InvalidValueError(
                compose(
                    self,
                    "only statistics of the same kind and configuration can be merged.",
                    got=_signature(other) if isinstance(other, Statistic) else describe(other),
                    expected=_signature(self),
                    fix="make both with the same arguments",
                )
            )
        self._merge(other)

    def __repr__(self) -> str:
        """Returns one line: how it was made and, where its values can be read, what it has seen."""
        said = self._said()
        return f"{_signature(self)}: {said}" if said else _signature(self)

    __str__ = __repr__

    def __treescope_repr__(self, path: Any, subtree_renderer: Any) -> Any:
        item = next(name for name, value in vars(self).items() if value is self.item)
        attributes = {**self._configuration(), "deterministic": self.deterministic, item: self.item}
        return tree(self, attributes, self._said(), path, subtree_renderer)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        result = self.compute() if self._said() else None
        return bundle(card(_signature(self), result, None if result is None else self._bins(result)))

    def _said(self) -> str:
        """Returns what it has seen, in one line; nothing where its values can't be read."""
        return "" if self.item.shown() is None else _on_one_line(repr(self.compute()))

    def _bins(self, result: Any) -> Bins | None:
        """Returns what of a result is to be drawn, if anything."""
        del result
        return None

    @property
    def item(self) -> Counter | Buffer:
        """The Variable that holds the state."""
        (item,) = (value for value in vars(self).values() if isinstance(value, Counter | Buffer))
        return item

    @abc.abstractmethod
    def read(self, state: Any) -> Any:
        """Returns the record of a state, which is a NumPy array or a traced one; a Counter's is its words."""

    @abc.abstractmethod
    def _accumulate(self, x: jax.Array, where: jax.Array | None) -> None:
        """Takes in checked values."""

    @abc.abstractmethod
    def _merge(self, other: Any) -> None:
        """Takes in a statistic of the same configuration."""

    @abc.abstractmethod
    def _configuration(self) -> dict[str, Any]:
        """Returns the arguments that two statistics must share to be merged, by name."""

    def _begin_share(self) -> None:
        """Becomes what a further replica starts from, where the first starts from all that was fed so far."""
        self.reset()

    def _join(self, share: Any, number: Any) -> None:
        """Takes in the share of another replica that took the same steps.

        Args:
            share: a statistic of the same configuration.
            number: how many shares this one consists of already, a traced int32 scalar.
        """
        del number
        self._merge(share)

    def _checked(self, x: Any, where: Any) -> tuple[jax.Array, jax.Array | None]:
        values = _real_array(x, self, "a statistic takes a real array.")
        if where is None:
            return values, None
        mask = _real_array(where, self, "where= takes a boolean array.")
        if mask.dtype != jnp.bool_:
            raise InvalidTypeError(
                compose(
                    self,
                    "where= takes a boolean array.",
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
                    "where= broadcasts to the shape of the values.",
                    got=describe(mask),
                    expected=f"a shape that broadcasts to {values.shape}",
                    fix="where=mask[..., None] for a mask of the leading axes",
                )
            ) from None


class Counts(Statistic):
    """A statistic whose state is one `Counter`, called `counts`, which adds up when it is merged."""

    counts: Counter

    def reset(self) -> None:
        """Forgets everything that was fed."""
        self.counts.reset()

    def _merge(self, other: Any) -> None:
        self.counts += other.counts


def leading_axes(x: jax.Array, shape: tuple[int, ...], item: object, *, argument: str = "shape=...") -> tuple[int, ...]:
    """Returns the axes of `x` before those of a statistic's `shape`; raises where `x` does not end in `shape`.

    Args:
        x: what was fed.
        shape: what its last axes are to be.
        item: whom to name in the error.
        argument: how the statistic is told its shape, for the error.
    """
    leading = x.ndim - len(shape)
    if leading < 0 or x.shape[leading:] != shape:
        kind = type(item).__name__
        raise InvalidValueError(
            compose(
                item,
                f"a statistic of shape {shape} takes values whose last axes are that shape.",
                got=describe(x),
                expected=f"shape (..., {', '.join(map(str, shape))})",
                fix=f"move the axis of heads, experts or units to the end, or declare {kind}({argument})",
            )
        )
    return tuple(range(leading))


def stored_state(item: Counter | Buffer) -> Any:
    """Returns an item's value where it is: on the host, on the device, or traced; a Counter's as words."""
    return item.words() if isinstance(item, Counter) else item.stored()


def current_state(item: Counter | Buffer) -> np.ndarray | jax.Array:
    """Returns an item's value, a Counter's as words: a NumPy array, or inside a trace a traced one."""
    state = stored_state(item)
    return jax.lax.stop_gradient(state) if is_traced(state) else np.asarray(state)


def exact_or_traced(words: np.ndarray | jax.Array) -> np.ndarray | jax.Array:
    """Returns the counts that words are: uint64 on the host, int32, saturated, where they are traced."""
    return _limbs.to_int32(words) if isinstance(words, jax.Array) else _limbs.to_uint64(words)


def _real_array(x: Any, item: object, rule: str) -> jax.Array:
    try:
        values = jnp.asarray(x)
    except (TypeError, ValueError):
        values = None
    if values is None or not (jnp.isrealobj(values) and _is_numeric(values.dtype)):
        raise InvalidTypeError(compose(item, rule, got=describe(x), fix="jnp.asarray(x), or x.real"))
    return jax.lax.stop_gradient(values) if is_traced(values) else values


def _is_numeric(dtype: Any) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.number) or dtype == jnp.bool_)


def _on_one_line(text: str) -> str:
    return " ".join(line.strip() for line in text.splitlines())  # NumPy wraps long arrays


def _signature(statistic: Statistic) -> str:
    arguments = ", ".join(f"{name}={value!r}" for name, value in statistic._configuration().items())
    return f"{type(statistic).__name__}({arguments})"
