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
    if len(bindings) == 1:
        return bindings
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


def given(call: ast.Call, function: str | ast.AST, place: int, keyword: str) -> ast.expr | None:
    """Returns the argument that a call passes to a parameter of a function, which is known by its name or is a lambda.

    The call may be `f(a)`, `nnx.jit(f)(a)`, `jax.vjp(f, a)`, `nnx.cond(p, f, g, a)` or `nnx.fori_loop(..., f, a)`.
    """
    called, arguments = call.func, call.args
    if any(isinstance(argument, ast.Starred) for argument in arguments):
        return None
    wrapped = isinstance(called, ast.Call) and _is_among(called.args[:1], function)
    if wrapped or (isinstance(called, ast.Name) and called.id == function):
        for word in call.keywords:
            if word.arg == keyword:
                return word.value
        return arguments[place] if place < len(arguments) else None
    last = last_name(called)
    if last not in _PASSING or not _is_among(arguments[_PASSING[last][0]], function):
        return None
    passed = arguments[_PASSING[last][1] :]
    if last in ("jvp", "while_loop", "scan") and passed:
        tangents = isinstance(passed[0], ast.Tuple) and last == "jvp"
        passed = passed[0].elts if tangents else passed[:1]  # type: ignore[attr-defined]
    elif last == "fori_loop":
        place -= 1  # the first parameter is the index
    return passed[place] if 0 <= place < len(passed) else None


# The arguments of these transformations that are functions, and the first argument that is passed to the functions.
_PASSING = {
    "cond": (slice(1, 3), 3),
    "switch": (slice(1, 2), 2),
    "fori_loop": (slice(2, 3), 3),
    "while_loop": (slice(0, 2), 2),
    "scan": (slice(0, 1), 1),
    "vjp": (slice(0, 1), 1),
    "jvp": (slice(0, 1), 1),
}


def _is_among(nodes: Sequence[ast.expr], function: str | ast.AST) -> bool:
    """Returns whether a function is one of some arguments, or part of a list among them."""
    names = [n for node in nodes for n in (node.elts if isinstance(node, (ast.Tuple, ast.List)) else [node])]
    return any(n is function or (isinstance(n, ast.Name) and n.id == function) for n in names)


def spelled(name: str) -> str:
    """Returns a canonical module name as Python imports it."""
    return _SPELLED.get(name, name)


_SPELLED = {"nnx": "flax.nnx", "jnp": "jax.numpy", "np": "numpy"}
