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
        self._function, self._signature = function, _signature_of(function)
        self._arguments = self._signature.bind(*args, **kwargs).arguments  # raises the same error as a call
        found = list(self._each())
        _check_names(function, self._signature, static, {name for name, _, _ in found})
        self.schedules: dict[str, Any] = {}
        self.takes_schedules: set[str] = set()
        for name, value, annotation in found:
            takes_number, takes_callable = _takes(annotation)
            is_schedule = takes_number or not takes_callable or isinstance(value, optax.schedules.StatefulSchedule)
            if name not in static and callable(value) and not isinstance(value, type) and is_schedule:
                self.schedules[name] = value
                if takes_number and takes_callable:
                    self.takes_schedules.add(name)

    def _each(self) -> Iterator[tuple[str, Any, Any]]:
        """Yields the name, value and annotation of each argument. Those of `*args` are named `args_0`, ..."""
        for name, value in self._arguments.items():
            parameter = self._signature.parameters[name]
            many: Any = {name: value}
            if parameter.kind is parameter.VAR_POSITIONAL:
                many = {f"{name}_{k}": entry for k, entry in enumerate(value)}
            elif parameter.kind is parameter.VAR_KEYWORD:
                many = value
            for own, entry in many.items():
                yield own, entry, parameter.annotation

    def make(self, given: Mapping[str, Any]) -> Any:
        """Calls the function with `given` instead of the schedules."""
        arguments = dict(self._arguments)
        for name, value in arguments.items():
            kind = self._signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_POSITIONAL:
                arguments[name] = tuple(given.get(f"{name}_{k}", entry) for k, entry in enumerate(value))
            elif kind is inspect.Parameter.VAR_KEYWORD:
                arguments[name] = {own: given.get(own, entry) for own, entry in value.items()}
            else:
                arguments[name] = given.get(name, value)
        bound = inspect.BoundArguments(self._signature, arguments)  # pyright: ignore[reportArgumentType]
        return self._function(*bound.args, **bound.kwargs)


def _signature_of(function: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(function, eval_str=True)
    except NameError:  # a string annotation that names a type imported only for type checkers
        return inspect.signature(function)


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
