# SPDX-License-Identifier: Apache-2.0
"""The owners of the values of bound Variables: one for each Variable, shared by all compiled steps that bind it."""

from __future__ import annotations

import contextlib
import operator
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import nnx

from tallax._arrays import is_traced
from tallax._errors import StateOwnedByStepError, TraceError
from tallax.variables import Buffer, Counter, Held, Pending, StateVariable, no_value

_SMALL = 2**16  # bytes; a step may keep two copies of a smaller value
_TIME = operator.attrgetter("time")


@dataclass(frozen=True)
class Form:
    """The parts of a Variable's value.

    Attributes:
        structure: The structure to rebuild the Variable from its arrays.
        shape: The shape of its words, if they are packed.
        arrays: The number of its arrays.
        is_packed: Whether it is a count, or a small Buffer of uint32, that is replicated on every device.
        is_small: Whether it is a tallax variable whose memory a step does not overwrite.
        value: The shape, dtype and sharding of the value.
    """

    structure: Any
    shape: tuple[int, ...]
    arrays: int
    is_packed: bool
    is_small: bool
    value: Any

    @classmethod
    def of(cls, variable: nnx.Variable[Any]) -> Form:
        """Returns the form of a Variable that has its value. Raises `TraceError` if the Variable is inside a trace."""
        raw = variable.get_raw_value()
        if isinstance(raw, Pending) or is_traced(raw):
            raise in_a_trace()
        is_array = isinstance(raw, jax.Array | np.ndarray)
        is_small = isinstance(variable, StateVariable) and raw.nbytes <= _SMALL
        is_count = isinstance(variable, Counter)
        is_packed = is_count or (isinstance(variable, Buffer) and is_small and raw.dtype == np.uint32)
        is_packed = is_packed and not variable._per_replica and (isinstance(raw, np.ndarray) or raw.is_fully_replicated)
        words = (*variable.shape, 2) if is_count else raw.shape if is_packed else ()
        sharding = raw.sharding if isinstance(raw, jax.Array) and raw.committed else None
        return cls(
            structure=jax.tree.structure(variable),
            shape=tuple(words) if is_packed else (),
            arrays=len(jax.tree.leaves(raw)),
            is_packed=is_packed,
            is_small=is_small,
            value=jax.ShapeDtypeStruct(raw.shape, raw.dtype, sharding=sharding) if is_array else raw,
        )

    def fits(self, raw: Any) -> bool:
        """Returns whether `of` would return this for the same Variable with another array."""
        value = self.value
        if not isinstance(value, jax.ShapeDtypeStruct) or not isinstance(raw, jax.Array | np.ndarray):
            return False
        sharding = raw.sharding if isinstance(raw, jax.Array) and raw.committed else None
        return raw.shape == value.shape and raw.dtype == value.dtype and sharding == value.sharding


class Owned(Held):
    """A placeholder that leads to the owner of the value."""

    __slots__ = ("cell",)

    def __init__(self, cell: Cell):
        is_item = isinstance(cell.variable, StateVariable) and not cell.variable._per_replica
        read, write = (cell.read, cell.write) if is_item else (None, None)
        super().__init__(cell.variable, cell.name, cell.form.value, read, write)
        self.cell = cell

    def is_copied(self) -> bool:
        """Returns whether the value is used through a copy: the Variable itself has its value again, or see above."""
        return self.cell.is_released or not self.cell.holders or super().is_copied()

    def block_until_ready(self) -> Owned:
        """Waits for the step that is running, as `jax.block_until_ready` expects of an array."""
        if self.cell.holders:
            jax.block_until_ready(self.cell.current().state)
        return self


class Cell:
    """The owner of one Variable's value, from the first call of a step that binds it until it is put back.

    The value is in the state of a `Holding`, together with the other values of one step. If several steps bind the
    Variable, the current value is that of the holding that caught up last.

    Attributes:
        variable: The Variable.
        name: The user's path to it, such as `model.encoder.step`.
        form: The parts of its value.
        held: The placeholder on the Variable. It keeps the cell, and so the value, alive.
        holders: The holdings of all steps that bind it, and its place in each.
        is_released: Whether the value is back on the Variable.
    """

    def __init__(self, variable: nnx.Variable[Any], name: str, form: Form):
        self.variable, self.name, self.form = variable, name, form
        self.holders: dict[Any, Any] = {}
        self.is_released = False
        self.held = Owned(self)

    def current(self) -> Any:
        """Returns the holding that has the current value."""
        return max(self.holders, key=_TIME)

    def read(self) -> jax.Array:
        """Returns the current value."""
        self._refuse(None)
        holding = self.current()
        return holding.read(self.holders[holding])

    def write(self, value: Any) -> None:
        """Replaces the current value."""
        self._refuse(value)
        holding = self.current()
        holding.write(self.holders[holding], value)

    def release(self) -> None:
        """Makes all steps that bind the Variable take its value over again, at their next calls."""
        self.is_released = True
        for holding in self.holders:
            holding.is_ready = False

    def _refuse(self, value: Any) -> None:
        if self.is_released or not self.holders:
            raise no_value(self.name)
        if _state.is_tracing or is_traced(value):
            raise TraceError(
                self.name,
                "is owned by a compiled step, so a trace cannot use it: reads would be constants, writes lost.",
                got="a use of the object that the step is bound to, while this or another function is traced",
                fix="the step's own argument, as in train_step(model, ...); or step.sync() before nnx.jit takes it",
            )


class _State(threading.local):
    is_tracing = False


_state = _State()


@contextlib.contextmanager
def tracing() -> Iterator[None]:
    """While a step is traced, bound objects are not its arguments: to read them would be a constant."""
    before, _state.is_tracing = _state.is_tracing, True
    try:
        yield
    finally:
        _state.is_tracing = before


def cell_of(variable: nnx.Variable[Any], name: str) -> Cell | None:
    """Returns the owner of a Variable's value, or None if the Variable itself has the value.

    Raises:
        StateOwnedByStepError: The Variable is a copy of one whose value a compiled step has.
    """
    cell = owner_of(variable)
    if cell is None and any(isinstance(leaf, Held) for leaf in jax.tree.leaves(variable.get_raw_value())):
        raise no_value(name)
    return cell


def owner_of(variable: nnx.Variable[Any]) -> Cell | None:
    """Returns the owner of a Variable's value, or None if the Variable itself has it, or is a copy."""
    raw = variable.get_raw_value()
    is_its = isinstance(raw, Owned) and raw.cell.variable is variable and not raw.cell.is_released
    return raw.cell if is_its else None


def written_past(names: str) -> StateOwnedByStepError:
    return StateOwnedByStepError(
        names,
        "was written while a compiled step owned it, so the step did not see the new value.",
        got="a write between two calls of the step",
        fix="step.sync() before the write; tallax variables can be written at any time",
    )


def in_a_trace() -> TraceError:
    return TraceError(
        "the compiled step",
        "keeps the state between calls, so it cannot be called inside a trace.",
        got="a call inside jit, scan or another transformation",
        fix="call the step outside; step.scan(batches) runs several steps in one program",
    )


def lost() -> StateOwnedByStepError:
    return StateOwnedByStepError(
        "the compiled step",
        "failed while it ran, after it had overwritten the previous state, so the state is lost.",
        got="a call that raised inside JAX",
        fix="restore the last checkpoint; compile_step(..., donate=False) keeps the state before a step",
    )
