# SPDX-License-Identifier: Apache-2.0
"""Captures the arguments of a Logger call without waiting, so that later changes do not affect them."""

from __future__ import annotations

import contextlib
import functools
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
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


@dataclass(frozen=True)
class Captured:
    """The arguments of one call, with their copy to the host under way.

    Attributes:
        step: The step from the caller or the clock.
        counter: The name of the step counter, whose value replaces `step`, or None.
        time: The time of the call, in seconds since the epoch.
        readings: The readings of the state.
        known: The names and descriptions in these readings.
        scalars: Scalars that are on the host.
        arrays: Scalars that are being copied to the host.
        omissions: Scalars that cannot be written.
        exclusion: The names to leave out.
    """

    step: int
    counter: str | None
    time: float
    readings: Sequence[Reading]
    known: Known
    scalars: Mapping[str, int | float]
    arrays: _Arrays
    omissions: Sequence[Omission]
    exclusion: Exclusion

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
        numbers, errors, step = Numbers(), list[Exception](), self.step
        for reading, entries in zip(self.readings, self.known.entries, strict=True):
            try:
                values = reading.outcomes()
            except Exception as error:
                errors.append(error)
                numbers.omissions += [Omission.of_error(entry.name, error, doing="read") for entry in entries]
                continue
            if keys := self.known.keys & values.keys():
                numbers.omissions += [no_number(name, "a random key") for name in sorted(keys)]
            numbers.update({name: value for name, value in values.items() if name not in keys}, self.exclusion)
            if self.counter in values:
                step = values[self.counter]
        own = Numbers()
        for name, value in self.arrays.values():
            if isinstance(value, Exception):
                errors.append(value)
                own.omissions.append(Omission.of_error(name, value, doing="read"))
            else:
                own.add(name, value)
        for name, value in itertools.chain(self.scalars.items(), own.scalars.items()):
            if name in numbers.scalars or name in numbers.histograms:
                own.omissions.append(_twin(name))
            else:
                numbers.scalars[name] = value
        if self.exclusion:
            numbers.scalars = {name: value for name, value in numbers.scalars.items() if name not in self.exclusion}
            numbers.histograms = {name: bins for name, bins in numbers.histograms.items() if name not in self.exclusion}
        if errors and not numbers.scalars and not numbers.histograms:
            raise errors[0]
        omissions = [*self.omissions, *numbers.omissions, *own.omissions]
        if self.exclusion:
            omissions = [omission for omission in omissions if omission.name not in self.exclusion]
        numbers.scalars |= extra
        return Record(step, self.time, process, numbers.scalars, numbers.histograms, self.known.state), omissions


class _Arrays:
    """Arrays of one number by name, which are being copied to the host.

    The reading gathers them into a new array, because the next step may reuse their memory (donation).
    """

    def __init__(self, arrays: Mapping[str, jax.Array]):
        self._arrays = arrays
        self._reading: Reading | None = None
        if arrays:
            with contextlib.suppress(Exception):  # the program of an array has already failed; `values` reports it
                self._reading = reading_of_arrays(arrays)

    def values(self) -> Iterator[tuple[str, Any]]:
        """Yields names and arrays on the host, or the error of an array that could not be computed."""
        values: Mapping[str, Any] = self._arrays
        if self._reading is not None:
            with contextlib.suppress(Exception):  # if one array fails, the gathered array fails too
                values = self._reading.outcomes()
        for name, array in values.items():
            try:
                value: Any = np.asarray(array).reshape(())
            except Exception as error:
                value = error
            yield name, value


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
        entries = itertools.chain(*self.entries)
        return frozenset(entry.name for entry in entries if entry.description.dtype.startswith("key<"))

    @functools.cached_property
    def counters(self) -> Mapping[str, Counter]:
        """The Counters with a single count, by name."""
        return {
            entry.name: entry.item
            for entry in itertools.chain(*self.entries)
            if entry.owner is None and isinstance(entry.item, Counter) and not entry.item.shape
        }


class Capture:
    """Captures the arguments of the calls of a Logger."""

    def __init__(self, counter: str | None, exclusion: Exclusion) -> None:
        self._asked, self._exclusion = counter, exclusion
        self._counter: str | None = None  # the name that was found
        self._known = Known((), exclusion)

    def capture(self, objects: Sequence[Any], scalars: Mapping[str, Any], step: int, *, explicit: bool) -> Captured:
        """Starts the copy to the host and returns the capture, without waiting.

        A step counter replaces `step`, unless the caller gave the step, so that it is `explicit`.

        Raises:
            InvalidTypeError: An object is not a module.
            InvalidValueError: Two objects have state of the same name; no Counter has the name that the Logger was
                given, or several Counters match.
            TracedReadError: The call is inside a trace.
        """
        steps = [thing for thing in objects if isinstance(thing, CompiledStep)]
        modules = [thing for thing in objects if not isinstance(thing, CompiledStep)]
        # Arguments are checked before the copy starts, so an error captures nothing.
        omissions: list[Omission] = []
        numbers = dict(_numbers(scalars, self._exclusion, omissions))
        readings = [step.collect() for step in steps]
        if modules:
            readings.append(collect(*modules))
        known = self._known
        if not known.are(readings):
            known = Known([reading.entries for reading in readings], self._exclusion)
        for name in _twins_among(numbers, known.names):
            omissions.append(_twin(name))
            del numbers[name]
        counter = None if explicit else self._counter_among(known)
        self._known = known
        arrays = _Arrays({name: value for name, value in numbers.items() if isinstance(value, jax.Array)})
        here = {name: value for name, value in numbers.items() if not isinstance(value, jax.Array)}
        return Captured(step, counter, time.time(), readings, known, here, arrays, omissions, self._exclusion)

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


def _numbers(
    scalars: Mapping[str, Any], exclusion: Exclusion, omissions: list[Omission]
) -> Iterator[tuple[str, int | float | jax.Array]]:
    """Yields the scalars that can be written, on the host or on the device. Adds the others to `omissions`.

    Raises:
        TracedReadError: A scalar is traced.
    """
    for name, value in scalars.items():
        if value.__class__ is float or value.__class__ is int:
            yield name, value
        elif name in exclusion:
            pass
        elif is_traced(value):
            raise TracedReadError(
                name,
                "has no value on the host inside a trace.",
                got="log(...) inside a compiled function",
                fix="return it from the function, and log the returned value",
            )
        elif isinstance(value, jax.Array | np.ndarray | np.generic) and not _is_number(value.dtype):
            omissions.append(_no_scalar(name, described(value)))
        elif isinstance(value, jax.Array | np.ndarray) and value.size != 1:
            fix = "its mean(); or a tallax.statistics.Histogram on the model, for how it is distributed"
            rule = "a Logger takes arrays of one number, and leaves others out of the records."
            omissions.append(Omission(name, rule, described(value), fix))
        elif isinstance(value, jax.Array):
            yield name, value
        elif isinstance(value, int | float | complex | np.ndarray | np.generic):
            found = Numbers()
            found.add(name, value.reshape(()) if isinstance(value, np.ndarray) else value)
            omissions += found.omissions
            for part, number in found.scalars.items():
                if part == name or part not in scalars:
                    yield part, number
                else:  # the real part of a complex number
                    omissions.append(_twin(part))
        else:
            omissions.append(_no_scalar(name, described(value)))


def _no_scalar(name: str, got: str) -> Omission:
    rule = "a Logger takes numbers, and arrays of one number, and leaves other values out of the records."
    return Omission(name, rule, got, "a float, an int, or an array of shape ()")


def _is_number(dtype: Any) -> bool:
    return bool(jax.numpy.issubdtype(dtype, jax.numpy.number) or dtype == np.bool_)


def _twins_among(scalars: Mapping[str, Any], items: Mapping[str, int]) -> list[str]:
    """Returns the scalars that have the name of a value of the state, or a name below it."""
    twins = []
    for name in scalars:
        above = name
        while above and above not in items:
            above = above.rpartition("/")[0]
        if above:
            twins.append(name)
    return twins


def _twin(name: str) -> Omission:
    return Omission(
        name,
        "another value has this name or would have it, so the scalar is left out of the records.",
        "a scalar of this name",
        "another name for the scalar",
    )
