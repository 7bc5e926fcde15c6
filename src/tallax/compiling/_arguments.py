# SPDX-License-Identifier: Apache-2.0
"""The arguments of a step: their names, the static ones, and errors that name them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from tallax._arrays import NEEDS_A_VALUE
from tallax._errors import InvalidTypeError, InvalidValueError, StateOwnedByStepError, TallaxError, describe
from tallax.compiling._results import Static

_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Arguments:
    """The parameters of the function of a step.

    Attributes:
        function: The function itself.
        names: The names of the bound objects.
        count: The number of bound objects that the step passes to the function, as its first arguments.
        has_static: Whether any argument is static.
        has_bound: Whether the arguments of a call may contain bound objects.

    Raises:
        InvalidTypeError: A position is not an integer, or a name is not a string.
        InvalidValueError: The function does not have the parameter, or the parameter is a bound object.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        objects: Sequence[Any],
        static_argnums: int | Iterable[int] | None,
        static_argnames: str | Iterable[str] | None,
        *,
        other_names: Sequence[str] = (),
    ):
        try:
            parameters = list(inspect.signature(function).parameters.values())
        except (TypeError, ValueError):  # some builtins have no signature
            parameters = list(inspect.signature(_any).parameters.values())
        self.function: Callable[..., Any] = function
        self._parameters = parameters
        self.count: int = len(objects)
        self._positional = [p.name for p in parameters if p.kind in _BY_POSITION]
        unnamed = [type(thing).__name__.lower() for thing in objects[len(self._positional) :]]
        self.names: list[str] = [*self._positional[: self.count], *unnamed]
        self.has_bound: bool = bool(other_names)
        self._numbers = {self._checked_number(number) for number in _listed(static_argnums)}
        self._labels = {self._checked_name(name) for name in _listed(static_argnames)}
        # As in `jax.jit`, a static parameter is static by position and by name.
        self._labels |= {self._positional[k] for k in self._numbers if k < len(self._positional)}
        self._numbers |= {k for k, name in enumerate(self._positional) if name in self._labels}
        self.has_static: bool = bool(self._numbers or self._labels)
        self.names += other_names

    def with_static(self, batch: tuple[Any, ...], options: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns the arguments of a call with the static ones marked.

        Raises:
            InvalidTypeError: A static value cannot be hashed.
        """
        marked = [
            self._static(self._name_at(k), value) if k + self.count in self._numbers else value
            for k, value in enumerate(batch)
        ]
        named = {name: self._static(name, x) if name in self._labels else x for name, x in options.items()}
        return tuple(marked), named

    def named(self, run: Callable[..., Any], *leading: str) -> Callable[..., Any]:
        """Returns a function like `run` for which JAX uses the user's names: in errors, logs and profiles."""

        def program(*args: Any, **options: Any) -> Any:
            return run(*args, **options)

        given = [p for p in self._parameters if p.name not in self._positional[: self.count]]
        taken = {p.name for p in given}
        state = [inspect.Parameter(_free(name, taken), inspect.Parameter.POSITIONAL_ONLY) for name in leading]
        facts: dict[str, Any] = {
            "__name__": self.label,
            "__qualname__": self.label,
            "__wrapped__": self.function,  # JAX's errors show this file and line
            "__signature__": inspect.Signature([*state, *(p.replace(default=p.empty) for p in given)]),
        }
        vars(program).update({k: v for k, v in facts.items() if k in ("__wrapped__", "__signature__")})
        program.__name__ = program.__qualname__ = self.label
        return program

    @property
    def label(self) -> str:
        """The name of the function."""
        return getattr(self.function, "__name__", type(self.function).__name__)

    def explain(
        self, error: Exception, batch: tuple[Any, ...], options: Mapping[str, Any], bound: Mapping[int, Any]
    ) -> None:
        """Raises an error that names the argument by which JAX's error came about; returns if it is another one."""
        explained = self._explained(error, batch, options, bound)
        if explained is not None:
            raise explained from error

    def _explained(
        self, error: Exception, batch: tuple[Any, ...], options: Mapping[str, Any], bound: Mapping[int, Any]
    ) -> Exception | None:
        given = {self._name_at(k): value for k, value in enumerate(batch)} | dict(options)
        for value in given.values():
            for leaf in jax.tree.leaves(value, is_leaf=lambda leaf: id(leaf) in bound):
                if id(leaf) in bound:
                    return self._twice(leaf)
        if isinstance(error, StateOwnedByStepError):
            return None
        for name, value in given.items():
            for path, leaf in jax.tree_util.tree_leaves_with_path(value):
                if not _is_array(leaf):
                    return self._refusal(name, jax.tree_util.keystr(path), leaf)
        scalars = {name: x for name, x in given.items() if isinstance(x, bool | int | float | np.generic)}
        # JAX's errors name the argument, unless a transformation inside the step has wrapped it.
        told = [name for name in scalars if f" argument {name}." in str(error)]
        name = next(iter(told or scalars if isinstance(error, NEEDS_A_VALUE) else told), None)
        if name is None:
            return None
        return InvalidTypeError(
            name,
            "is an array inside the compiled step, so Python code cannot use its value.",
            got=f"{describe(scalars[name])}, and {self.label} branches on a traced value or converts it",
            fix=f"{self._remedy(name)}; or jnp.where, jax.lax.cond",
        )

    def _twice(self, thing: Any) -> Exception:
        return InvalidTypeError(
            self.label,
            "is called without its bound objects, because the step passes them.",
            got=f"the bound {type(thing).__name__} among the arguments of a call",
            fix="step(x); or compile_step(train_step, bound=model), and then step(model, x)",
        )

    def refuse_scalars(self, batches: tuple[Any, ...], options: Mapping[str, Any]) -> None:
        """Raises if an argument of a scan has an array without a first axis."""
        given = {self._name_at(k): value for k, value in enumerate(batches)} | dict(options)
        for name, value in given.items():
            for path, leaf in jax.tree_util.tree_leaves_with_path(value):
                if jax.numpy.ndim(leaf) == 0:
                    raise InvalidValueError(
                        name + jax.tree_util.keystr(path),
                        "step.scan requires arrays with one entry for each step on their first axis.",
                        got=describe(leaf),
                        fix=f"jnp.full(steps, {name}); or {self._remedy(name)}",
                    )

    def _remedy(self, name: str) -> str:
        key = f'static_argnames=("{name}",)'
        if not name.isidentifier():
            place = max(len(self._positional), self.count) + int(name.rpartition("[")[2].removesuffix("]"))
            key = f"static_argnums=({place},)"
        return f"compile_step(..., {key}), which traces once for each value"

    def _refusal(self, name: str, path: str, leaf: Any) -> Exception:
        fix = self._remedy(name)
        if path:
            fix = "pass it as an argument of its own, and name that in compile_step(..., static_argnames=...)"
        return InvalidTypeError(
            name + path,
            "the arguments of a compiled step must be arrays, numbers or static values.",
            got=describe(leaf),
            fix=fix,
        )

    def _static(self, name: str, value: Any) -> Static:
        try:
            hash(value)
        except TypeError:
            raise InvalidTypeError(
                name,
                "is a static argument, which must be hashable.",
                got=describe(value),
                fix="a string, a number, a tuple or a frozen dataclass; arrays go in without static_argnames",
            ) from None
        return Static(value)

    def _name_at(self, number: int) -> str:
        """Returns the name of an argument of a call by its position there."""
        place = number + self.count
        if place < len(self._positional):
            return self._positional[place]
        variadic = next((p.name for p in self._parameters if p.kind is p.VAR_POSITIONAL), "args")
        return f"{variadic}[{place - max(len(self._positional), self.count)}]"

    def _checked_number(self, number: Any) -> int:
        if isinstance(number, bool) or not isinstance(number, int):
            raise _bad("static_argnums", "takes positions of parameters.", describe(number), InvalidTypeError)
        place = number + len(self._positional) if number < 0 else number
        is_there = place < len(self._positional) or any(p.kind is p.VAR_POSITIONAL for p in self._parameters)
        if place < 0 or not is_there:
            raise _bad(
                "static_argnums", f"{self.label} has no parameter at this position.", str(number), InvalidValueError
            )
        if place < self.count:
            raise self._bound("static_argnums", self.names[place])
        return place

    def _checked_name(self, name: Any) -> str:
        if not isinstance(name, str):
            raise _bad("static_argnames", "takes names of parameters.", describe(name), InvalidTypeError)
        if name in self.names:
            raise self._bound("static_argnames", name)
        takes_any = any(p.kind is p.VAR_KEYWORD for p in self._parameters)
        keywords = [p.name for p in self._parameters if p.kind is p.KEYWORD_ONLY]
        if not takes_any and name not in (*self._positional, *keywords):
            raise _bad("static_argnames", f"{self.label} has no parameter of this name.", repr(name), InvalidValueError)
        return name

    def _bound(self, argument: str, name: str) -> Exception:
        return InvalidValueError(
            argument,
            "a bound object cannot be static; its structure is, and its values are arrays.",
            got=name,
            fix="positions count the bound objects, too: train_step(model, x, mode) has mode at 2",
        )


class ReadArguments(Arguments):
    """The parameters of a function that `step.read` runs; a value that Python needs is closed over."""

    def __init__(self, function: Callable[..., Any], objects: Sequence[Any]):
        super().__init__(function, objects, None, None)

    def _remedy(self, name: str) -> str:
        return f"step.read(lambda *objects: function(*objects, {name})), which traces once for each value"


def _listed(value: Any) -> list[Any]:
    return (
        [] if value is None else list(value) if isinstance(value, Iterable) and not isinstance(value, str) else [value]
    )


def _any(*args: Any, **options: Any) -> None:
    """Stands for a function that has no signature."""


def _bad(argument: str, rule: str, got: str, kind: type[TallaxError]) -> Exception:
    return kind(
        argument,
        rule,
        got=got,
        fix='compile_step(train_step, model, static_argnames=("mode",)) for train_step(model, x, mode)',
    )


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name


def _is_array(leaf: Any) -> bool:
    """Returns whether JAX accepts a leaf as an array."""
    if isinstance(leaf, np.ndarray | np.generic):
        return leaf.dtype.kind in "biufcV"
    is_number = isinstance(leaf, bool | int | float | complex | jax.Array | nnx.Variable)
    return is_number or hasattr(leaf, "__jax_array__") or hasattr(leaf, "aval")
