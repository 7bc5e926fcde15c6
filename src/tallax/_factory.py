# SPDX-License-Identifier: Apache-2.0
"""Finds the schedules among the arguments of a function that returns an optax transformation."""

from __future__ import annotations

import inspect
import numbers
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from tallax._errors import InvalidValueError

_NUMBERS = (numbers.Number, jax.Array, np.ndarray, np.generic)


class Factory:
    """A function and its arguments, some of which are schedules.

    Attributes:
        schedules: The arguments that are schedules, by name.
        takes_schedules: The names of the arguments for which the function accepts a schedule, by its annotations.
    """

    def __init__(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], static: Collection[str]
    ):
        self._function, self._args, self._kwargs = function, list(args), dict(kwargs)
        signature = _signature_of(function)
        signature.bind(*args, **kwargs)  # raises the same error as a call
        parameters = list(_each(signature, args, kwargs))
        _check_names(function, signature, static, {name for name, _, _ in parameters})
        self.schedules: dict[str, Any] = {}
        self.takes_schedules: set[str] = set()
        self._places: dict[str, int | str] = {}
        for name, place, annotation in parameters:
            value = self._args[place] if isinstance(place, int) else self._kwargs[place]
            takes_number, takes_callable = _takes(annotation)
            is_schedule = takes_number or not takes_callable or isinstance(value, optax.schedules.StatefulSchedule)
            if name not in static and callable(value) and not isinstance(value, type) and is_schedule:
                self.schedules[name], self._places[name] = value, place
                if takes_number and takes_callable:
                    self.takes_schedules.add(name)

    def make(self, given: Mapping[str, Any]) -> Any:
        """Calls the function with `given` instead of the schedules."""
        args, kwargs = list(self._args), dict(self._kwargs)
        for name, value in given.items():
            place = self._places[name]
            if isinstance(place, int):
                args[place] = value
            else:
                kwargs[place] = value
        return self._function(*args, **kwargs)


def _signature_of(function: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(function, eval_str=True)
    except NameError:  # a string annotation that names a type imported only for type checkers
        return inspect.signature(function)


def _each(
    signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Iterator[tuple[str, int | str, Any]]:
    """Yields the name, position and annotation of each argument. The arguments of `*args` are named `args_0`, ..."""
    parameters = list(signature.parameters.values())
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL)]
    for place in range(len(args)):
        parameter = positional[min(place, len(positional) - 1)]
        number = place - len(positional) + 1
        name = f"{parameter.name}_{number}" if parameter.kind is parameter.VAR_POSITIONAL else parameter.name
        yield name, place, parameter.annotation
    others = next((p for p in parameters if p.kind is p.VAR_KEYWORD), None)
    for name in kwargs:
        parameter = signature.parameters.get(name)
        named = parameter is not None and parameter.kind is not parameter.VAR_KEYWORD
        yield name, name, parameter.annotation if named else others.annotation  # pyright: ignore[reportOptionalMemberAccess]


def _check_names(
    function: Callable[..., Any], signature: inspect.Signature, static: Collection[str], given: set[str]
) -> None:
    unknown = sorted(set(static) - set(signature.parameters) - given)
    if unknown:
        raise InvalidValueError(
            "static_args",
            "every name must be an argument of the function that makes the transformation.",
            got=", ".join(map(repr, unknown)),
            expected=", ".join(signature.parameters),
            fix=f"leave out {unknown[0]!r}, which {getattr(function, '__name__', 'the function')} does not have",
        )


def _takes(annotation: Any) -> tuple[bool, bool]:
    """Returns whether an annotation accepts numbers, and whether it accepts callables; False twice if it is missing."""
    if isinstance(annotation, str):  # an annotation that could not be evaluated
        return "Schedule" in annotation, "Schedule" in annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        members = [_takes(member) for member in typing.get_args(annotation)]
        return any(number for number, _ in members), any(call for _, call in members)
    origin = typing.get_origin(annotation) or annotation
    if not isinstance(origin, type) or annotation is inspect.Parameter.empty:
        return False, False
    if issubclass(origin, _NUMBERS):
        return True, False
    return False, issubclass(origin, Callable)
