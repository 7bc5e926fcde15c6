# SPDX-License-Identifier: Apache-2.0
"""`Module`, an `nnx.Module` that keeps its Variables, and the bases of the modules of tallax."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tallax._arrays import is_traced
from tallax._containers import guard, refuse_replacing
from tallax._display import tree
from tallax.variables import StateVariable, refuse_cast


class Module(nnx.Module):
    """An `nnx.Module` whose Variables and statistics cannot be overwritten by mistake.

    In a plain `nnx.Module`, `self.step = self.step + 1` replaces the Variable by an array. From then on, checkpoints,
    transformations and filters silently miss the value. In a `tallax.Module` it raises, and the error shows the correct
    code. The same is true for a statistic, a `ScheduledValue` and a `StepCounter`, for example if you write
    `self.rate = self.rate.update(x)`. You can still assign another Variable or an explicit `nnx.data(...)`, or write
    `del self.step`.
    The entries of each `nnx.List` and `nnx.Dict` that is assigned to an attribute are guarded too, at any depth, also
    within an `nnx.Sequential` or a plain module: `self.loads[0] = self.loads[0] + 1` raises.

    Raises:
        ReplacedVariableError: An assignment would replace a Variable by a value that is not a Variable, or a statistic,
            a `ScheduledValue` or a `StepCounter` by a value that is neither a module nor a Variable.

    Example:
        >>> import tallax
        >>> class Gate(tallax.Module):
        ...     def __init__(self):
        ...         self.calls = tallax.Counter()
        >>> gate = Gate()
        >>> gate.calls = gate.calls + 1
        Traceback (most recent call last):
        tallax.ReplacedVariableError: gate.calls: this attribute is a Counter, which an assignment would drop.
          got:  int32[] (1)
          fix:  self.calls += 1, self.calls.set(n)
    """

    def __setattr__(self, name: str, value: Any) -> None:
        current = vars(self).get(name)
        if current is value and value is not None:
            return  # The end of `self.step += 1`: the same Variable is assigned. Flax's checks would take 5 to 10 us.
        refuse_replacing(current, value, name=name)
        super().__setattr__(name, value)
        value = vars(self)[name]  # nnx.data(...) has been unwrapped
        if isinstance(value, nnx.Pytree):
            guard(value)


class EvalAware(Module):
    """A `Module` that counts in training mode only.

    `model.eval()`, `model.train()` and `nnx.view(model, deterministic=True)` switch `deterministic`, as they do for
    `nnx.Dropout`. In graph mode it is a static attribute, so each mode is compiled once.
    """

    _written_by: ClassVar[str] = "self.{name}(), which writes into it; or del self.{name} first"  # the advice in errors

    def __init__(self):
        self.deterministic: bool = False

    def set_view(self, deterministic: bool | None = None) -> None:
        """Used by `nnx.view`.

        Args:
            deterministic: If True, nothing is counted.
        """
        if deterministic is not None:
            self.deterministic = deterministic


class StateOwner(EvalAware):
    """A module whose Variables are read, shown, combined and restored together: a statistic, or a `ScheduledValue`.

    A subclass declares the dtypes of its Buffers in `_dtypes`. It defines `read`, and for its display `_title`,
    `_summary` and `_attributes`.
    """

    _dtypes: ClassVar[Mapping[str, Any]] = {}  # by attribute

    @property
    def variables(self) -> dict[str, StateVariable]:
        """The Variables with the state, by attribute."""
        # Not by `isinstance`, which runs Python code for Flax's classes: readings ask three times for each statistic.
        return {name: value for name, value in sorted(vars(self).items()) if StateVariable in type(value).__mro__}

    def read(self, state: Mapping[str, Any]) -> Any:
        """Returns the record of a state: NumPy or traced arrays by attribute. A Counter is passed as words."""
        raise NotImplementedError

    def stored_state(self) -> dict[str, Any]:
        """Returns the state by attribute: on the host, on the device, or traced. The state of a Counter is its words.

        Raises:
            InvalidTypeError: The state was cast.
        """
        self.refuse_casts()
        return {name: variable._exact() for name, variable in self.variables.items()}

    def state_here(self) -> dict[str, Any]:
        """Returns the state by attribute: NumPy arrays, or traced arrays inside a trace. A Counter is words.

        Raises:
            InvalidTypeError: The state was cast.
        """
        states = self.stored_state()
        if is_traced(*states.values()):
            return {name: jax.lax.stop_gradient(jnp.asarray(state)) for name, state in states.items()}
        return {name: np.asarray(state) for name, state in states.items()}

    def refuse_casts(self) -> None:
        """Raises if the state was cast.

        Raises:
            InvalidTypeError: The state was cast.
        """
        for name, dtype in self._dtypes.items():
            refuse_cast(self, vars(self)[name], dtype)

    def __repr__(self) -> str:
        """Returns one line: the arguments, and the value if it can be read."""
        summary = self._summary()
        return f"{self._title()}: {summary}" if summary else self._title()

    __str__ = __repr__

    def __treescope_repr__(self, path: Any, subtree_renderer: Any) -> Any:
        return tree(self, self._attributes(), self._summary(), path, subtree_renderer)

    def _title(self) -> str:
        """Returns the type and its arguments."""
        raise NotImplementedError

    def _summary(self) -> str:
        """Returns the value in one line, or an empty string if it cannot be read."""
        raise NotImplementedError

    def _attributes(self) -> dict[str, Any]:
        """Returns the attributes that are shown, by name."""
        raise NotImplementedError
