# SPDX-License-Identifier: Apache-2.0
"""Returns whether an initial value is a table that is computed from positions alone, which nobody learns."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tallax.lint._bindings import reaching
from tallax.lint._check import Context
from tallax.lint._index import last_name
from tallax.lint._kinds import Callee, Frame, Variable

_POSITIONS = {"arange", "linspace", "iota", "meshgrid", "mgrid", "indices"}
_WINDOWS = {"hanning", "hamming", "blackman", "bartlett", "kaiser", "hann"}
_RANDOM = {"normal", "uniform", "truncated_normal", "randn", "rand", "permutation", "orthogonal", "bernoulli"}
# The most expressions to follow, through local names and the project's functions.
_FARTHEST = 600


def table(given: ast.expr, frame: Frame, context: Context) -> str:
    """Returns the kind of table of an initial value; empty if it is not a table, or that is unknown.

    Sines of positions and powers with positions in the exponent are tables. Other functions of positions are not: the
    decay rates of state space models start as `log(arange(n))`, and are learned.
    """
    parts = list(_parts(given, frame, context))
    names = {last_name(node.func) for node, _ in parts if isinstance(node, ast.Call)}
    if len(parts) >= _FARTHEST or names & _RANDOM or any(_is_state(node, within, context) for node, within in parts):
        return ""
    if names & _WINDOWS:
        return "it is a window function, computed and not learned"
    if not names & _POSITIONS:
        return ""
    for node, within in parts:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow) and _has_positions(node.right, within, context):
            return "it is a table of powers, computed from positions"
        if not isinstance(node, ast.Call) or not node.args:
            continue
        name, first = last_name(node.func), node.args[0]
        if name in ("sin", "cos") and _has_positions(first, within, context):
            return "it is a table of sines or cosines, computed from positions"
        if name == "exp" and _has_positions(first, within, context) and _has_logarithm(first, within, context):
            return "it is a table of powers, computed from positions"
        if name == "power" and len(node.args) == 2 and _has_positions(node.args[1], within, context):
            return "it is a table of powers, computed from positions"
    return ""


def _is_state(node: ast.AST, frame: Frame, context: Context) -> bool:
    return isinstance(node, ast.Attribute) and isinstance(context.values.of(node, frame), Variable)


def _has_positions(node: ast.expr, frame: Frame, context: Context) -> bool:
    return any(isinstance(n, ast.Call) and last_name(n.func) in _POSITIONS for n, _ in _parts(node, frame, context))


def _has_logarithm(node: ast.expr, frame: Frame, context: Context) -> bool:
    """Returns whether the logarithm of a number is part of an expression: `exp(-log(10000) * positions / n)`."""
    return any(isinstance(n, ast.Call) and last_name(n.func) == "log" for n, _ in _parts(node, frame, context))


def _parts(node: ast.expr, frame: Frame, context: Context) -> Iterator[tuple[ast.AST, Frame]]:
    """Yields the expressions that a value is computed from, through local names and the project's functions."""
    waiting: list[tuple[ast.AST, Frame]] = [(node, frame)]
    seen: set[ast.AST] = set()
    while waiting and len(seen) < _FARTHEST:
        current, within = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        yield current, within
        if isinstance(current, ast.Name):
            waiting += [
                (binding.what, within)
                for binding in reaching(within.scope.bindings.get(current.id, ()), current.lineno)
                if binding.how == "value"
            ]
            continue
        if isinstance(current, ast.Call):
            callee = context.values.of(current.func, within)
            if isinstance(callee, Callee) and not isinstance(callee.scope.node, ast.Lambda):
                inner = context.values.frame_of(callee, current, within)
                waiting += [(r.value, inner) for r in callee.scope.of(ast.Return) if r.value is not None]
        waiting += [(child, within) for child in ast.iter_child_nodes(current)]
