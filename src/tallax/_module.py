# SPDX-License-Identifier: Apache-2.0
"""`Module`: an `nnx.Module` that keeps its Variables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from flax import nnx

from tallax._containers import guard, refuse_replacing


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

    @property
    def variables(self) -> Mapping[str, Any]:
        """The Variables that are read and combined together, by name; empty if each is independent."""
        return {}

    def set_view(self, deterministic: bool | None = None) -> None:
        """Used by `nnx.view`.

        Args:
            deterministic: If True, nothing is counted.
        """
        if deterministic is not None:
            self.deterministic = deterministic
