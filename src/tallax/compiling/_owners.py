# SPDX-License-Identifier: Apache-2.0
"""The owners of the values of bound Variables: one for each Variable, shared by all compiled steps that bind it."""

from __future__ import annotations

import enum
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import nnx

from tallax._arrays import is_traced
from tallax._errors import StateOwnedByStepError, TraceError
from tallax._walk import path_name
from tallax.variables import Buffer, Counter, Placeholder, StateVariable, TwoPartCount, is_tracing_step, no_value

_SMALL = 2**16  # bytes; a step may keep two copies of a smaller value
_TIME = operator.attrgetter("time")


class Kind(enum.IntEnum):
    """The storage of a value in the state of a step, in the order of the values there."""

    COUNT = 0  # packed, as a word that is added to
    WORDS = 1  # a small Buffer of uint32 that is replicated on every device, packed behind the counts
    SMALL = 2  # of a tallax variable; a step does not overwrite its memory, so a read needs no copy
    OTHER = 3


@dataclass(frozen=True)
class Form:
    """The parts of a Variable's value.

    Attributes:
        structure: The structure to rebuild the Variable from its arrays.
        kind: The storage of the value.
        shape: The shape of its words, if they are packed.
        arrays: The number of its arrays.
        value: The shape, dtype and sharding of the value.
    """

    structure: Any
    kind: Kind
    shape: tuple[int, ...]
    arrays: int
    value: Any

    @classmethod
    def of(cls, variable: nnx.Variable[Any]) -> Form:
        """Returns the form of a Variable that has its value. Raises `TraceError` if the Variable is inside a trace."""
        raw = variable.get_raw_value()
        if isinstance(raw, TwoPartCount) or is_traced(raw):
            raise in_a_trace()
        kind, shape, value = Kind.OTHER, (), raw
        if isinstance(raw, jax.Array | np.ndarray):
            sharding = raw.sharding if isinstance(raw, jax.Array) and raw.committed else None
            value = jax.ShapeDtypeStruct(raw.shape, raw.dtype, sharding=sharding)
        if isinstance(variable, StateVariable):
            is_small = raw.nbytes <= _SMALL
            kind = Kind.SMALL if is_small else Kind.OTHER
            if not variable._per_replica and (isinstance(raw, np.ndarray) or raw.is_fully_replicated):
                if isinstance(variable, Counter):
                    kind, shape = Kind.COUNT, (*variable.shape, 2)
                elif isinstance(variable, Buffer) and is_small and raw.dtype == np.uint32:
                    kind, shape = Kind.WORDS, raw.shape
        return cls(jax.tree.structure(variable), kind, tuple(shape), len(jax.tree.leaves(raw)), value)

    @property
    def is_packed(self) -> bool:
        """True if the value is in the packed array."""
        return self.kind <= Kind.WORDS

    def fits(self, raw: Any) -> bool:
        """Returns whether `of` would return this for the same Variable with another array."""
        value = self.value
        if not isinstance(value, jax.ShapeDtypeStruct) or not isinstance(raw, jax.Array | np.ndarray):
            return False
        sharding = raw.sharding if isinstance(raw, jax.Array) and raw.committed else None
        return raw.shape == value.shape and raw.dtype == value.dtype and sharding == value.sharding


class Owner(Placeholder):
    """The owner of one Variable's value, from the first call of a step that binds it until it is put back.

    It is also the placeholder on the Variable, which keeps it, and so the value, alive. The value is in the state of a
    `Holding`, together with the other values of one step. If several steps bind the Variable, the current value is that
    of the holding that caught up last.

    Attributes:
        variable: The Variable.
        form: The parts of its value.
        holders: The holdings of all steps that bind it, and its place in each.
        is_released: Whether the value is back on the Variable.
    """

    __slots__ = ("_names", "_path", "form", "holders", "is_released")

    def __init__(self, variable: nnx.Variable[Any], path: Sequence[Any], names: Sequence[str], form: Form):
        super().__init__(variable, form.value)
        self.form, self._path, self._names = form, path, names
        self.holders: dict[Any, Any] = {}
        self.is_released = False

    @property
    def name(self) -> str:
        """The user's path to the Variable, such as `model/encoder/step`."""
        return path_in(self._path, self._names)

    def current(self) -> Any:
        """Returns the holding that has the current value."""
        return max(self.holders, key=_TIME)

    def release(self) -> None:
        """Makes all steps that bind the Variable take its value over again, at their next calls."""
        self.is_released = True
        for holding in self.holders:
            holding.is_ready = False

    def again(self) -> Owner:
        """Returns a new owner of the value, after this one has released it."""
        return Owner(self.variable, self._path, self._names, self.form)

    def is_copied(self) -> bool:
        """Returns whether the value is used through a copy: the Variable itself has its value again, or see above."""
        return self.is_released or not self.holders or super().is_copied()

    def block_until_ready(self) -> Owner:
        """Waits for the step that is running, as `jax.block_until_ready` expects of an array."""
        if self.holders:
            jax.block_until_ready(self.current().state)
        return self

    def _get(self) -> jax.Array:
        self._refuse_traces(None)
        holding = self.current()
        return holding.read(self.holders[holding])

    def _set(self, value: Any) -> None:
        self._refuse_traces(value)
        holding = self.current()
        holding.write(self.holders[holding], value)

    def _refuse_traces(self, value: Any) -> None:
        if self.is_released or not self.holders:
            raise no_value(self.name)
        if is_tracing_step() or is_traced(value):
            raise TraceError(
                self.name,
                "is owned by a compiled step, so a trace cannot use it: reads would be constants, writes lost.",
                got="a use of the object that the step is bound to, while this or another function is traced",
                fix="the step's own argument, as in train_step(model, ...); or step.sync() before nnx.jit takes it",
            )


def owner_of(variable: nnx.Variable[Any]) -> Owner | None:
    """Returns the owner of a Variable's value, or None if the Variable itself has it, or is a copy."""
    raw = variable.get_raw_value()
    return raw if isinstance(raw, Owner) and raw.variable is variable and not raw.is_released else None


def path_in(path: Sequence[Any], names: Sequence[str]) -> str:
    """Returns a path as text, `model/experts/1/step`. Its first key is the position of the bound object in `names`."""
    return path_name(path[1:], names[int(path_name(path[:1]))])


def written_past(owners: Sequence[Owner]) -> StateOwnedByStepError:
    return StateOwnedByStepError(
        ", ".join(owner.name for owner in owners),
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
