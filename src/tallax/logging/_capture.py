# SPDX-License-Identifier: Apache-2.0
"""Captures the arguments of a Logger call without waiting, so that later changes do not affect them."""

from __future__ import annotations

import contextlib
import functools
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from tallax._arrays import is_traced
from tallax._errors import InvalidValueError, TracedReadError, describe
from tallax.compiling import CompiledStep
from tallax.logging._flatten import Numbers, no_number
from tallax.logging._omissions import Exclusion, Omission, described
from tallax.reading import Entry, Reading, collect, reading_of_arrays
from tallax.runs import Record, StateInfo
from tallax.variables import Counter

ARRAYS = (jax.Array, np.ndarray, np.generic)


@dataclass(frozen=True)
class Captured:
    """The arguments of one call, with their copy to the host under way.

    Attributes:
        step: The step from the caller or the clock, which `capture` does not know.
        counter: The name of the step counter, whose value replaces `step`, or None.
        time: The time of the call, in seconds since the epoch.
        readings: The readings of the state.
        known: The names and descriptions in these readings.
        scalars: Scalars on the host and on the device. The latter are read only if `copies` fails.
        copies: A function that returns copies of those on the device, which it waits for.
        omissions: Scalars that cannot be written.
    """

    step: int
    counter: str | None
    time: float
    readings: Sequence[Reading]
    known: Known
    scalars: Mapping[str, Any]
    copies: Callable[[], Mapping[str, Any]]
    omissions: Sequence[Omission]

    def count(self) -> int:
        """Returns the value of the step counter. This waits for the device."""
        assert self.counter is not None
        return self.readings[self.known.names[self.counter]].outcomes()[self.counter]

    def step_counter(self) -> tuple[Counter | None, int]:
        """Returns the step counter and the position of its reading, or None and 0."""
        if self.counter is None:
            return None, 0
        return self.known.counters[self.counter], self.known.names[self.counter]

    def record(self, process: int, extra: Mapping[str, int]) -> tuple[Record, list[Omission]]:
        """Returns the record, with `extra` among its scalars, and the omissions. This waits for the device.

        Raises:
            Exception: None of the values could be read. It is the error of the first.
        """
        numbers, errors, step, excluded = Numbers(), list[Exception](), self.step, self.known.exclusion
        for reading, entries in zip(self.readings, self.known.entries, strict=True):
            try:
                values = reading.outcomes()
            except Exception as error:
                errors.append(error)
                numbers.omissions += [Omission.of_error(entry.name, error, doing="read") for entry in entries]
                continue
            keys = self.known.keys & values.keys()
            numbers.omissions += [no_number(name, "a random key") for name in sorted(keys)]
            if self.counter in values:
                step = values[self.counter]
            if keys or excluded:
                values = {name: value for name, value in values.items() if name not in keys and name not in excluded}
            numbers.update(values)
        self._add_scalars(numbers, errors)
        numbers.omissions += self.omissions
        if excluded:
            numbers.scalars = {name: value for name, value in numbers.scalars.items() if name not in excluded}
            numbers.histograms = {name: bins for name, bins in numbers.histograms.items() if name not in excluded}
            numbers.omissions = [omission for omission in numbers.omissions if omission.name not in excluded]
        if errors and not numbers.scalars and not numbers.histograms:
            raise errors[0]
        scalars = {**numbers.scalars, **extra}
        return Record(step, self.time, process, scalars, numbers.histograms, self.known.state), numbers.omissions

    def _add_scalars(self, numbers: Numbers, errors: list[Exception]) -> None:
        """Adds the scalars. One that would hide a value of the state, or another scalar, becomes an omission."""
        copies: Mapping[str, Any] = {}
        with contextlib.suppress(Exception):  # if one array cannot be computed, the others are read one by one
            copies = self.copies()
        for name, value in self.scalars.items():
            found = Numbers()
            try:
                value = copies.get(name, value)
                found.update({name: np.asarray(value).reshape(()) if isinstance(value, ARRAYS) else value})
            except Exception as error:
                errors.append(error)
                found.omissions.append(Omission.of_error(name, error, doing="read"))
            numbers.omissions += found.omissions
            for part, number in found.scalars.items():
                if self.known.has(part) or part in numbers.scalars or (part != name and part in self.scalars):
                    numbers.omissions.append(_twin(part))
                else:
                    numbers.scalars[part] = number


@dataclass(frozen=True, eq=False)
class Known:
    """Names and descriptions of the state in some readings; calls with the same compiled step share them.

    Attributes:
        entries: The entries of each reading.
        exclusion: The names to leave out.
    """

    entries: Sequence[Sequence[Entry]]
    exclusion: Exclusion

    def are(self, readings: Sequence[Reading]) -> bool:
        """Returns whether readings have these entries, as readings of the same compiled step do."""
        return len(self.entries) == len(readings) and all(
            entries is reading.entries for entries, reading in zip(self.entries, readings, strict=True)
        )

    def has(self, name: str) -> bool:
        """Returns whether a name is that of a value of the state, or below it."""
        while name and name not in self.names:
            name = name.rpartition("/")[0]
        return bool(name)

    @functools.cached_property
    def names(self) -> Mapping[str, int]:
        """The index of the reading for each name.

        Raises:
            InvalidValueError: Two entries have the same name.
        """
        names: dict[str, int] = {}
        for number, entries in enumerate(self.entries):
            for entry in entries:
                if entry.name in names:
                    raise InvalidValueError(
                        entry.name,
                        "two values have this name.",
                        got="the same name in two objects",
                        fix="log a module that contains both: log(nnx.Dict(a=a, b=b))",
                    )
                names[entry.name] = number
        return names

    @functools.cached_property
    def state(self) -> Mapping[str, StateInfo]:
        """The description of each variable and statistic, by name."""
        entries = itertools.chain(*self.entries)
        return {entry.name: entry.description for entry in entries if entry.name not in self.exclusion}

    @functools.cached_property
    def keys(self) -> frozenset[str]:
        """The names of random keys."""
        return frozenset(name for name, info in self.state.items() if info.dtype.startswith("key<"))

    @functools.cached_property
    def counters(self) -> Mapping[str, Counter]:
        """The Counters with a single count, by name."""
        found = {entry.name: entry.item for entry in itertools.chain(*self.entries) if entry.owner is None}
        return {name: item for name, item in found.items() if isinstance(item, Counter) and not item.shape}


class Capture:
    """Captures the arguments of the calls of a Logger."""

    def __init__(self, counter: str | None, exclusion: Exclusion) -> None:
        self._asked, self._exclusion = counter, exclusion
        self._counter: str | None = None  # the name that was found
        self._known = Known((), exclusion)

    def capture(self, objects: Sequence[Any], scalars: Mapping[str, Any], *, explicit: bool) -> Captured:
        """Starts the copy to the host and returns the capture, without waiting.

        The step counter determines the step, unless it is `explicit`: the caller gave it.

        Raises:
            InvalidTypeError: An object is not a module.
            InvalidValueError: Two objects have state of the same name; no Counter has the name that the Logger was
                given, or several Counters match.
            TracedReadError: The call is inside a trace.
        """
        steps = [thing for thing in objects if isinstance(thing, CompiledStep)]
        modules = [thing for thing in objects if not isinstance(thing, CompiledStep)]
        # Arguments are checked before the copy starts, so an error captures nothing.
        taken, omissions = _taken(scalars, self._exclusion)
        readings = [step.collect() for step in steps]
        if modules:
            readings.append(collect(*modules))
        known = self._known
        if not known.are(readings):
            known = Known([reading.entries for reading in readings], self._exclusion)
            _ = known.names  # raises if two are equal
        counter = None if explicit else self._counter_among(known)
        self._known = known
        return Captured(0, counter, time.time(), readings, known, taken, _copies(taken), omissions)

    def _counter_among(self, known: Known) -> str | None:
        """Returns the name of the Counter that counts the steps of the run, or None."""
        counters = known.counters
        if self._counter in counters:
            return self._counter
        if self._asked is None:
            called = [name for name in counters if name.rpartition("/")[2] == "step"]
            shortest = min((name.count("/") for name in called), default=0)
            called = [name for name in called if name.count("/") == shortest]
        else:
            called = [name for name in counters if name == self._asked]
        if len(called) == 1:
            self._counter = called[0]
            return self._counter
        if self._counter is not None:  # for example, an evaluation of another model
            return None
        if called:
            raise InvalidValueError(
                "Logger",
                "several Counters could count the steps of the run.",
                got=", ".join(called),
                fix=f"Logger(..., step={called[0]!r})",
            )
        if self._asked is not None:
            raise InvalidValueError(
                "Logger",
                "step= must be the name of a scalar Counter.",
                got=describe(self._asked),
                expected=", ".join(counters) or "a model with a tallax.StepCounter",
                fix="one of these; or log(model, step=...) without it",
            )
        return None


def _taken(scalars: Mapping[str, Any], exclusion: Exclusion) -> tuple[dict[str, Any], list[Omission]]:
    """Returns the scalars that can be written, and the omissions for the others.

    Raises:
        TracedReadError: A scalar is traced.
    """
    taken, omissions = {}, []
    for name, value in scalars.items():
        if value.__class__ is float or value.__class__ is int:
            taken[name] = value
        elif name in exclusion:
            pass
        elif is_traced(value):
            raise TracedReadError(
                name,
                "has no value on the host inside a trace.",
                got="log(...) inside a compiled function",
                fix="return it from the function, and log the returned value",
            )
        elif isinstance(value, ARRAYS) and _is_number(value.dtype) and value.size != 1:
            fix = "its mean(); or a tallax.statistics.Histogram on the model, for how it is distributed"
            rule = "a Logger takes arrays of one number, and leaves others out of the records."
            omissions.append(Omission(name, rule, described(value), fix))
        elif _is_number(value.dtype) if isinstance(value, ARRAYS) else isinstance(value, int | float | complex):
            taken[name] = value.copy() if isinstance(value, np.ndarray) else value
        else:
            rule = "a Logger takes numbers, and arrays of one number, and leaves other values out of the records."
            omissions.append(Omission(name, rule, described(value), "a float, an int, or an array of shape ()"))
    return taken, omissions


def _is_number(dtype: Any) -> bool:
    return bool(jax.numpy.issubdtype(dtype, jax.numpy.number) or dtype == np.bool_)


def _copies(scalars: Mapping[str, Any]) -> Callable[[], Mapping[str, Any]]:
    """Starts to copy the scalars on the device to the host. The next step may reuse their memory (donation)."""
    arrays = {name: value for name, value in scalars.items() if isinstance(value, jax.Array)}
    if arrays:
        with contextlib.suppress(Exception):  # the program of an array has already failed
            return reading_of_arrays(arrays).outcomes
    return dict


def _twin(name: str) -> Omission:
    return Omission(
        name,
        "another value has this name or would have it, so the scalar is left out of the records.",
        "a scalar of this name",
        "another name for the scalar",
    )
