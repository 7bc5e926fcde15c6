# SPDX-License-Identifier: Apache-2.0
"""Taking what a call of a Logger is given, so that nothing of it has to be waited for, and nothing can change it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from tallax._errors import InvalidTypeError, InvalidValueError, TracedReadError, compose, describe
from tallax._placement import is_traced
from tallax.compiling import CompiledStep
from tallax.logging._numbers import Numbers
from tallax.reading import Reading, collect
from tallax_runs import Item, Record


@dataclass(frozen=True)
class Taken:
    """What a record is made of, once it is on the host.

    Attributes:
        step: as the caller or the count of calls has it.
        counter: the name of the item that has it more exactly, if one does.
        time: in seconds since the epoch.
        readings: of items.
        scalars: on the host.
        arrays: scalars by name, on the way to the host.
    """

    step: int
    counter: str | None
    time: float
    readings: Sequence[Reading]
    scalars: Mapping[str, int | float]
    arrays: Reading | None

    def record(self, process: int, extra: Mapping[str, int]) -> Record:
        """Returns the record, which has these scalars too; waits for the device."""
        numbers = Numbers()
        step, items = self.step, {}
        for reading in self.readings:
            for name, value in reading.result().items():
                numbers.add(name, value)
                if name == self.counter:
                    step = value
            items |= described(reading)
        numbers.scalars |= self.scalars
        if self.arrays is not None:
            numbers.scalars |= self.arrays.result()
        numbers.scalars |= extra
        return Record(step, self.time, process, numbers.scalars, numbers.histograms, items)


def described(reading: Reading) -> dict[str, Item]:
    """Returns what the items of a reading are."""
    return {entry.name: entry.description for entry in reading.entries}


def take(objects: Sequence[Any], scalars: Mapping[str, Any], step: int, counter: str | None) -> Taken:
    """Returns what a call was given, on its way to the host; waits for nothing.

    Args:
        objects: compiled steps, and modules.
        scalars: numbers, and arrays of one.
        step: see `Taken`.
        counter: likewise.

    Raises:
        InvalidTypeError: an object is no module, or a scalar no number.
        InvalidValueError: a scalar has a shape, or its name is that of an item; or two objects have items of one name.
        TracedReadError: inside a trace.
    """
    steps = [thing for thing in objects if isinstance(thing, CompiledStep)]
    modules = [thing for thing in objects if not isinstance(thing, CompiledStep)]
    # Checked before anything is sent on its way: an error takes nothing.
    numbers: dict[str, Any] = {name: _checked(name, value) for name, value in scalars.items()}
    readings = [step.collect() for step in steps]
    if modules:
        readings.append(collect(*modules))
    names = [entry.name for reading in readings for entry in reading.entries]
    _refuse_twins(names, numbers)
    there = [name for name, value in numbers.items() if isinstance(value, jax.Array)]
    arrays = None
    if there:
        # Gathered into an array of the reading's own: the next step may take the memory of these.
        arrays = Reading(
            (),
            [numbers.pop(name) for name in there],
            lambda copies: dict(zip(there, map(_number, copies), strict=True)),
        )
    return Taken(step, counter if counter in names else None, time.time(), readings, numbers, arrays)


def _checked(name: str, value: Any) -> int | float | jax.Array:
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int | float):
        return value
    if is_traced(value):
        raise TracedReadError(
            compose(
                name,
                "has no value on the host inside a trace.",
                got="log(...) inside a compiled function",
                fix="return it from the function, and log what it returned",
            )
        )
    if not isinstance(value, jax.Array | np.ndarray | np.generic) or not _is_real(value.dtype):
        raise InvalidTypeError(
            compose(
                name,
                "a Logger takes numbers, and arrays of one number.",
                got=describe(value),
                fix=f"log(model, {name}=...) with a float, an int, or a jax.Array of shape ()",
            )
        )
    if value.size != 1:
        raise InvalidValueError(
            compose(
                name,
                "a Logger takes arrays of one number.",
                got=describe(value),
                fix=f"{name}.mean(); or a tallax.statistics.Histogram on the model, for how it is distributed",
            )
        )
    return value if isinstance(value, jax.Array) else _number(value)


def _is_real(dtype: Any) -> bool:
    return bool(jax.numpy.issubdtype(dtype, jax.numpy.number) or dtype == np.bool_) and not jax.numpy.issubdtype(
        dtype, jax.numpy.complexfloating
    )


def _number(value: Any) -> int | float:
    number = np.asarray(value).item()
    return int(number) if isinstance(number, bool) else number


def _refuse_twins(items: list[str], scalars: Mapping[str, Any]) -> None:
    """Raises where two values would be written under one name."""
    known: set[str] = set()
    for name in [*items, *scalars]:
        if name in known:
            raise InvalidValueError(
                compose(
                    name,
                    "two values have this name, and one would hide the other.",
                    got="the name of two items" if items.count(name) > 1 else "a scalar and an item",
                    fix="another name for the scalar; or log modules that hold both: log(nnx.Dict(a=a, b=b))",
                )
            )
        known.add(name)
    for name in scalars:
        parent = name.rpartition("/")[0]
        if parent in known:
            raise InvalidValueError(
                compose(
                    name,
                    "is written below an item, whose own values have such names.",
                    got=f"a scalar called {name!r} and an item called {parent!r}",
                    fix="another name for the scalar",
                )
            )
