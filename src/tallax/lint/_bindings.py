# SPDX-License-Identifier: Apache-2.0
"""Finds the bindings of a name that may apply at a place, and the arguments that calls pass to a parameter."""

from __future__ import annotations

import ast
import bisect
from collections.abc import Sequence

from tallax.lint._index import Binding, Lines, Scope, last_name

# If more bindings than this may apply, the value counts as unknown.
_FAR = 64


def initial(call: ast.Call) -> ast.expr | None:
    """Returns the initial value that a Variable is made with."""
    if call.args and not isinstance(call.args[0], ast.Starred):
        return call.args[0]
    return next((word.value for word in call.keywords if word.arg == "value"), None)


def reaching(bindings: Sequence[Binding], line: int) -> Sequence[Binding]:
    """Returns the bindings of a name that may apply at a line of its scope, or of an inner scope.

    The last binding before the line that certainly ran hides all earlier ones. If there is none before the line (a
    loop, a function that is called later), all may apply. If there are too many, none is returned.
    """
    # A generated file may bind a name thousands of times, but the relevant binding is near.
    end = bisect.bisect_left(bindings, line, key=_line)
    while end < len(bindings) and bindings[end].line == line and bindings[end].how in ("parameter", "element", "def"):
        end += 1
    for k in range(end - 1, max(end - _FAR, 0) - 1, -1):
        if all(first <= line <= last for first, last in bindings[k].branches) or _same_branch(bindings[k], line):
            return bindings[k:end]
    if end > _FAR:
        return ()
    return bindings[:end] or [b for b in bindings if b.how != "changed"] or bindings


def _line(binding: Binding) -> int:
    return binding.line


def _same_branch(binding: Binding, line: int) -> bool:
    innermost: Lines | None = binding.branches[-1] if binding.branches else None
    return innermost is None or innermost[0] <= line <= innermost[1]


def default_of(argument: ast.arg, scope: Scope) -> ast.expr | None:
    """Returns the default value of a parameter, or None."""
    arguments = scope.node.args  # type: ignore[attr-defined]
    positional = scope.parameters
    if argument in positional:
        k = positional.index(argument) - (len(positional) - len(arguments.defaults))
        return arguments.defaults[k] if k >= 0 else None
    if argument in arguments.kwonlyargs:
        return arguments.kw_defaults[arguments.kwonlyargs.index(argument)]
    return None


def given(call: ast.Call, name: str, place: int, keyword: str) -> ast.expr | None:
    """Returns the argument that a call passes to a parameter: `f(a)`, `nnx.jit(f)(a)`, `nnx.cond(p, f, g, a)`,
    `nnx.fori_loop(..., f, a)`.
    """
    function = call.func
    arguments = call.args
    if any(isinstance(argument, ast.Starred) for argument in arguments):
        return None
    direct = isinstance(function, ast.Name) and function.id == name
    wrapped = isinstance(function, ast.Call) and any(
        isinstance(a, ast.Name) and a.id == name for a in function.args[:1]
    )
    if direct or wrapped:
        for word in call.keywords:
            if word.arg == keyword:
                return word.value
        return arguments[place] if place < len(arguments) else None
    last = last_name(function)
    if last in ("cond", "switch"):
        branches = arguments[1:3] if last == "cond" else arguments[1:2]
        names = [n for b in branches for n in (b.elts if isinstance(b, (ast.Tuple, ast.List)) else [b])]
        if any(isinstance(n, ast.Name) and n.id == name for n in names):
            operands = arguments[3:] if last == "cond" else arguments[2:]
            return operands[place] if place < len(operands) else None
    if last == "fori_loop" and len(arguments) == 4 and isinstance(arguments[2], ast.Name) and arguments[2].id == name:
        return arguments[3] if place == 1 else None
    if (
        last == "while_loop"
        and len(arguments) == 3
        and any(isinstance(a, ast.Name) and a.id == name for a in arguments[:2])
    ):
        return arguments[2] if place == 0 else None
    return None


def spelled(name: str) -> str:
    """Returns a canonical module name as Python imports it."""
    return {"nnx": "flax.nnx", "jnp": "jax.numpy", "np": "numpy"}.get(name, name)
