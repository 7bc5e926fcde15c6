# SPDX-License-Identifier: Apache-2.0
"""Taking what a call of a Logger is given, so that nothing of it has to be waited for, and nothing can change it."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from tallax._errors import InvalidTypeError, InvalidValueError, TracedReadError, compose, describe
from tallax._placement import is_traced
from tallax._variables import Counter
from tallax.compiling import CompiledStep
from tallax.logging._numbers import Numbers
from tallax.reading import Entry, Reading, collect
from tallax_runs import Item, Record


@dataclass(frozen=True)
class Taken:
    """What a record is made of, once it is on the host.

    Attributes:
        step: as the caller or the count of calls has it.
        counter: the name of the item that has it more exactly, if one does.
        time: in seconds since the epoch.
        readings: of items.
        known: what these items are.
        scalars: on the host.
        arrays: scalars by name, on the way to the host.
    """

    step: int
    counter: str | None
    time: float
    readings: Sequence[Reading]
    known: Known
    scalars: Mapping[str, int | float]
    arrays: Reading | None

    def counted(self) -> int:
        """Returns what the counter says; waits for the device."""
        assert self.counter is not None
        return self.readings[self.known.names[self.counter]].result()[self.counter]

    def record(self, process: int, extra: Mapping[str, int]) -> Record:
        """Returns the record, which has these scalars too; waits for the device."""
        numbers = Numbers()
        for reading in self.readings:
            numbers.update(reading.result())
        step = self.step if self.counter is None else self.counted()
        numbers.scalars |= self.scalars
        if self.arrays is not None:
            numbers.scalars |= self.arrays.result()
        numbers.scalars |= extra
        return Record(step, self.time, process, numbers.scalars, numbers.histograms, self.known.items)


@dataclass(frozen=True, eq=False)
class Known:
    """What the items of some readings are.

    Attributes:
        entries: of each reading.
    """

    entries: Sequence[Sequence[Entry]]

    def are(self, readings: Sequence[Reading]) -> bool:
        """Tells whether readings are of the same items, as those of one compiled step are."""
        return len(self.entries) == len(readings) and all(
            entries is reading.entries for entries, reading in zip(self.entries, readings, strict=True)
        )

    @functools.cached_property
    def names(self) -> Mapping[str, int]:
        """Of each item by its name, the number of its reading.

        Raises:
            InvalidValueError: two items have one name.
        """
        names: dict[str, int] = {}
        for number, entries in enumerate(self.entries):
            for entry in entries:
                if entry.name in names:
                    raise _twins(
                        entry.name, "the name of two items", "log modules that hold both: log(nnx.Dict(a=a, b=b))"
                    )
                names[entry.name] = number
        return names

    @functools.cached_property
    def items(self) -> Mapping[str, Item]:
        """Each by its name."""
        return {entry.name: entry.description for entry in itertools.chain(*self.entries)}


class Taker:
    """Takes what the calls of a Logger are given."""

    def __init__(self) -> None:
        self._known = Known(())

    def take(self, objects: Sequence[Any], scalars: Mapping[str, Any], step: int, counter: str | None) -> Taken:
        """Returns what a call was given, on its way to the host; waits for nothing.

        Args:
            objects: compiled steps, and modules.
            scalars: numbers, and arrays of one.
            step: see `Taken`.
            counter: likewise.

        Raises:
            InvalidTypeError: an object is no module, or a scalar no number.
            InvalidValueError: a scalar has a shape, or its name is that of an item; or two objects have items of one
                name.
            TracedReadError: inside a trace.
        """
        steps = [thing for thing in objects if isinstance(thing, CompiledStep)]
        modules = [thing for thing in objects if not isinstance(thing, CompiledStep)]
        # Checked before anything is sent on its way: an error takes nothing.
        numbers: dict[str, Any] = {name: _checked(name, value) for name, value in scalars.items()}
        readings = [step.collect() for step in steps]
        if modules:
            readings.append(collect(*modules))
        known = self._known
        if not known.are(readings):
            known = Known([reading.entries for reading in readings])
        _refuse_twins(known.names, numbers)
        self._known = known
        there = [name for name, value in numbers.items() if isinstance(value, jax.Array)]
        arrays = None
        if there:
            # Gathered into an array of the reading's own: the next step may take the memory of these.
            arrays = Reading(
                (),
                [numbers.pop(name) for name in there],
                lambda copies: dict(zip(there, map(_number, copies), strict=True)),
            )
        counter = counter if counter in known.names else None
        return Taken(step, counter, time.time(), readings, known, numbers, arrays)


def counter_of(taken: Taken, name: str | None) -> str | None:
    """Returns the name of the Counter that counts the steps of a run, among what was taken.

    Args:
        taken: by the first call.
        name: the one that it has to be; without it the one called `step` with the shortest path, if there is one.

    Raises:
        InvalidValueError: there is none of that name, or several could be the one.
    """
    counters = [
        entry.name
        for entry in itertools.chain(*taken.known.entries)
        if entry.owner is None and isinstance(entry.item, Counter) and not entry.item.shape
    ]
    if name is not None:
        if name in counters:
            return name
        raise InvalidValueError(
            compose(
                "Logger",
                "step= is the name of a Counter of one count.",
                got=describe(name),
                expected=", ".join(counters) or "a model with a tallax.StepCounter",
                fix="one of these; or log(model, step=...) without it",
            )
        )
    called = [name for name in counters if name.rpartition("/")[2] == "step"]
    shortest = min((name.count("/") for name in called), default=0)
    called = [name for name in called if name.count("/") == shortest]
    if len(called) > 1:
        raise InvalidValueError(
            compose(
                "Logger",
                "several counters could be the one that counts the run's steps.",
                got=", ".join(called),
                fix=f"Logger(..., step={called[0]!r})",
            )
        )
    return called[0] if called else None


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


def _refuse_twins(items: Mapping[str, int], scalars: Mapping[str, Any]) -> None:
    """Raises where a scalar would be written under a name that is an item's."""
    for name in scalars:
        if name in items:
            raise _twins(name, "a scalar and an item", "another name for the scalar")
        parent = name.rpartition("/")[0]
        if parent in items:
            raise InvalidValueError(
                compose(
                    name,
                    "is written below an item, whose own values have such names.",
                    got=f"a scalar called {name!r} and an item called {parent!r}",
                    fix="another name for the scalar",
                )
            )


def _twins(name: str, got: str, fix: str) -> InvalidValueError:
    return InvalidValueError(
        compose(
            name,
            "two values have this name, and one would hide the other.",
            got=got,
            fix=fix,
        )
    )
