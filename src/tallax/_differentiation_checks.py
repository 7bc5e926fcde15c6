# SPDX-License-Identifier: Apache-2.0
"""Checks of `value_and_grad`: of its own arguments, of the arguments of its function, and of the loss."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tallax._errors import InvalidTypeError, InvalidValueError, TraceError, describe
from tallax.variables import Buffer, Counter


def is_node(x: Any) -> bool:
    """Returns whether it is a module, another NNX object or a Variable. Flax threads these through transformations."""
    return isinstance(x, nnx.Pytree | nnx.Variable)


def refuse_bound(f: Callable[..., Any]) -> None:
    owner = f.__self__ if inspect.ismethod(f) else f
    if isinstance(owner, nnx.Pytree):
        kind, name = type(owner).__name__, getattr(f, "__name__", "__call__")
        raise InvalidTypeError(
            "value_and_grad",
            "requires a function with the model as an argument; other state belongs to another trace.",
            got=f"{name} of a {kind}",
            fix=f"tallax.value_and_grad({kind}.{name})(model, ...)",
        )


def checked_argnums(argnums: Any, wrt: Any) -> tuple[int, ...]:
    numbers: tuple[Any, ...] = tuple(argnums) if isinstance(argnums, Sequence) else (argnums,)
    for part in (*numbers, wrt):
        if isinstance(part, nnx.DiffState):
            raise InvalidTypeError(
                "value_and_grad",
                "does not accept nnx.DiffState; use wrt= and argnums=.",
                got=f"nnx.DiffState({part.argnum}, {_filter_text(part.filter)})",
                fix=f"wrt={_filter_text(part.filter)}, argnums={part.argnum}",
            )
    if not numbers or not all(isinstance(number, int) and not isinstance(number, bool) for number in numbers):
        raise InvalidTypeError(
            "argnums",
            "must be an integer or a tuple of integers.",
            got=describe(argnums),
            fix="argnums=0, argnums=(0, 1)",
        )
    return numbers


def checked_positions(numbers: tuple[int, ...], given: int) -> tuple[int, ...]:
    positions = tuple(number + given if number < 0 else number for number in numbers)
    if not all(0 <= position < given for position in positions):
        raise InvalidValueError(
            "argnums",
            "must be the position of a positional argument of the call.",
            got=f"{', '.join(map(str, numbers))}, where {given} were given by position",
            fix="f(model, x), where f(model=model, x=x) has none",
        )
    if len(set(positions)) < len(positions):
        raise InvalidValueError(
            "argnums", "must not name an argument twice.", got=", ".join(map(str, numbers)), fix="argnums=(0, 1)"
        )
    return positions


def check_threadable(tree: Any) -> None:
    for variable in _variables(tree):
        if variable.ref:
            raise InvalidTypeError(
                variable,
                "writes of the function to a Variable with ref=True would be lost.",
                got="ref=True",
                fix="a plain Variable: leave ref out, or nnx.with_vars(model, ref=False)",
            )
        try:
            variable.set_raw_value(variable.get_raw_value())  # changes nothing, and raises if a write would raise
        except flax.errors.TraceContextError:
            raise TraceError(
                variable,
                "belongs to a different trace than the call, so writes of the function would be lost.",
                got="a model that a transformed function closes over, as an argument of value_and_grad",
                fix="pass the model through each transformation in between, such as nnx.jit(step)(model, x)",
            ) from None


def check_floats(jax_path: Sequence[Any], part: Any) -> None:
    for inner, leaf in jax.tree.leaves_with_path(part, is_leaf=lambda x: isinstance(x, nnx.Variable)):
        for array in jax.tree.leaves(leaf):
            if _of_floats([array]):
                continue
            if isinstance(leaf, nnx.Variable):
                item = leaf
                # The fix selects by dtype, because another Variable of the same type may be differentiable, and other
                # types may store integers. The optimizer needs the same filter, because it pairs gradients with
                # parameters.
                floats = "lambda path, x: jnp.issubdtype(x.dtype, jnp.inexact)"
                if isinstance(leaf, nnx.Param):
                    fix = f"wrt=nnx.All(nnx.Param, {floats}), also for nnx.Optimizer; or a tallax.Buffer instead"
                else:
                    fix = f"wrt=nnx.Param, or wrt=nnx.All(..., {floats})"
            else:
                where = jax.tree_util.keystr((*jax_path[1:], *inner), simple=True, separator=".")
                item = f"argument {jax_path[0].key}{where and f', at {where}'}"
                fix = "x.astype(jnp.float32), or argnums= without this argument"
            raise InvalidTypeError(item, "only floats can be differentiated.", got=describe(array), fix=fix)


def check_any(position: int, argument: Any, matches: Callable[[Any, Any], bool]) -> None:
    """Raises if an argument has nothing to differentiate. A Variable that two arguments share counts for both."""
    held = nnx.to_flat_state(nnx.state((argument,), graph=True))
    if any(matches(path[1:], leaf) for path, leaf in held):
        return
    variables = [leaf for _, leaf in held if isinstance(leaf, nnx.Variable)]
    # A tallax variable stops gradients, so it is never part of the fix.
    floats = [v for v in variables if not isinstance(v, Buffer | Counter) and _of_floats(jax.tree.leaves(v))]
    kinds = {type(v): f"wrt={_filter_text(type(v))}" for v in floats}
    fix = kinds.get(nnx.Param) or " or ".join(sorted(kinds.values()))
    raise InvalidValueError(
        argument if is_node(argument) else f"argument {position}",
        "has no Variable that wrt matches, so there is nothing to differentiate.",
        got=", ".join(sorted({_filter_text(type(v)) for v in variables})) or "no state",
        fix=fix or "argnums= of the argument with the parameters",
    )


def _of_floats(arrays: Any) -> bool:
    return all(jnp.issubdtype(getattr(array, "dtype", type(array)), jnp.inexact) for array in arrays)


def checked_loss(f: Callable[..., Any], out: Any, *, has_aux: bool) -> tuple[Any, Any]:
    name = getattr(f, "__name__", "f")
    if has_aux and not (isinstance(out, tuple | list) and len(out) == 2):
        raise InvalidTypeError(
            name, "must return a pair if has_aux=True.", got=_kind(out), fix="return loss, aux; or has_aux=False"
        )
    loss, aux = out if has_aux else (out, None)
    is_number = isinstance(loss, jax.Array | np.ndarray | np.generic | float)
    if not is_number or np.shape(loss) or not jnp.issubdtype(getattr(loss, "dtype", float), jnp.floating):
        fix = "return loss.mean(), or another real scalar"
        if isinstance(loss, tuple | list):
            fix = "has_aux=True, for a function that returns (loss, aux)"
        raise InvalidTypeError(name, "the loss must be a real scalar.", got=_kind(loss), fix=fix)
    return loss, aux


def _kind(out: Any) -> str:
    return f"a {type(out).__name__} of {len(out)}" if isinstance(out, tuple | list) else describe(out)


def _filter_text(wrt: Any) -> str:
    name = getattr(wrt, "__name__", None) or repr(wrt)
    return f"nnx.{name}" if getattr(nnx, name, None) is wrt else name


def _variables(tree: Any) -> list[nnx.Variable[Any]]:
    leaves = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, nnx.Variable))
    return [leaf for leaf in leaves if isinstance(leaf, nnx.Variable)]
