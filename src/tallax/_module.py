# SPDX-License-Identifier: Apache-2.0
"""`Module`: an `nnx.Module` that keeps its Variables."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from flax import nnx

from tallax._errors import ReplacedVariableError, compose, describe


class Module(nnx.Module):
    """An `nnx.Module` whose Variables, and items made of several, can't be overwritten by mistake.

    In a plain `nnx.Module`, `self.step = self.step + 1` replaces the Variable by an array: from then on the value is
    not saved, not threaded through transformations, and not found by any filter, without a word. Here it raises and
    says what to write instead; and so it does for a statistic, a `Scheduled` and a `StepCounter`, as in
    `self.rate = self.rate.update(x)`. Assigning another one, `del self.step`, and an explicit `nnx.data(...)` stay
    possible.

    Raises:
        ReplacedVariableError: an attribute that holds a Variable is assigned something that is not one; or one that
            holds a statistic, a `Scheduled` or a `StepCounter`, what is neither a module nor a Variable.

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
            return  # what `self.step += 1` ends with: the item wrote itself, and Flax's checks take 5 to 10 us
        if (isinstance(current, nnx.Variable) and not isinstance(value, nnx.Variable | dataclasses.Field)) or (
            isinstance(current, EvalAware) and not isinstance(value, nnx.Variable | nnx.Pytree | dataclasses.Field)
        ):
            raise ReplacedVariableError(
                compose(
                    current,
                    f"this attribute holds a {type(current).__name__}, which an assignment would drop.",
                    got=describe(value),
                    fix=getattr(type(current), "written_by", "self.{name}[...] = x").format(name=name),
                )
            )
        super().__setattr__(name, value)


class EvalAware(Module):
    """A `Module` that does its counting in training mode only.

    `model.eval()`, `model.train()` and `nnx.view(model, deterministic=True)` switch `deterministic`, as they do for
    `nnx.Dropout`. In graph mode it is a static attribute, so each mode is compiled once.
    """

    written_by: ClassVar[str] = "self.{name}(), which writes into it; or del self.{name} first"  # what errors advise

    def __init__(self):
        self.deterministic: bool = False

    def set_view(self, deterministic: bool | None = None) -> None:
        """Used by `nnx.view`.

        Args:
            deterministic: if True, nothing is counted.
        """
        if deterministic is not None:
            self.deterministic = deterministic
