# SPDX-License-Identifier: Apache-2.0
"""`Module`: an `nnx.Module` that keeps its Variables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from flax import nnx

from tallax._containers import guard, refuse_replacing


class Module(nnx.Module):
    """An `nnx.Module` whose Variables and statistics cannot be overwritten by mistake.

    In a plain `nnx.Module`, `self.step = self.step + 1` replaces the Variable by an array: from then on the value is
    silently not saved, not threaded through transformations, and not found by any filter. Here it raises, and the error
    shows the correct code. The same holds for a statistic, a `Scheduled` and a `StepCounter`, as in
    `self.rate = self.rate.update(x)`. Assigning another one, `del self.step`, and an explicit `nnx.data(...)` stay
    possible. The same holds for the entries of each `nnx.List` and `nnx.Dict` that is assigned to an attribute, at any
    depth, also within an `nnx.Sequential` or a plain module: `self.loads[0] = self.loads[0] + 1` raises.

    Raises:
        ReplacedVariableError: an attribute or entry that holds a Variable is assigned something that is not one; or one
            that holds a statistic, a `Scheduled` or a `StepCounter`, what is neither a module nor a Variable.

    Example:
        >>> import tallax
        >>> class Gate(tallax.Module):
        ...     def __init__(self):
        ...         self.calls = tallax.Counter()
        >>> gate = Gate()
        >>> gate.calls = gate.calls + 1
        Traceback (most recent call last):
        tallax.ReplacedVariableError: gate.calls: this attribute holds a Counter, which an assignment would drop.
          got:  int32[] (1)
          fix:  self.calls += 1, self.calls.set(n)
    """

    def __setattr__(self, name: str, value: Any) -> None:
        current = vars(self).get(name)
        if current is value and value is not None:
            return  # the end of `self.step += 1`: the Variable wrote itself, and Flax's checks take 5 to 10 us
        refuse_replacing(current, value, name=name)
        super().__setattr__(name, value)
        value = vars(self)[name]  # nnx.data(...) has been opened
        if isinstance(value, nnx.Pytree):
            guard(value)


class EvalAware(Module):
    """A `Module` that does its counting in training mode only.

    `model.eval()`, `model.train()` and `nnx.view(model, deterministic=True)` switch `deterministic`, as they do for
    `nnx.Dropout`. In graph mode it is a static attribute, so each mode is compiled once.
    """

    _written_by: ClassVar[str] = "self.{name}(), which writes into it; or del self.{name} first"  # what errors advise

    def __init__(self):
        self.deterministic: bool = False

    @property
    def variables(self) -> Mapping[str, Any]:
        """The Variables that are read and combined together, by name; empty if each stands for itself."""
        return {}

    def set_view(self, deterministic: bool | None = None) -> None:
        """Used by `nnx.view`.

        Args:
            deterministic: if True, nothing is counted.
        """
        if deterministic is not None:
            self.deterministic = deterministic
