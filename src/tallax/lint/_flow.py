# SPDX-License-Identifier: Apache-2.0
"""The origins of the values in a function, and its return values."""

from __future__ import annotations

import ast

from tallax.lint._bindings import given, reaching
from tallax.lint._index import Scope


def root_of(node: ast.expr) -> str:
    """Returns the name that an expression of attributes and items starts from."""
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def origin(name: str, inner: Scope, outermost: Scope) -> str:
    """Returns the parameter or closed-over name that a name within a function refers to; empty if it is a new object.

    The parameter of an inner function refers to the argument of its calls: `loss_fn(m)`, `nnx.grad(loss_fn)(model)`.
    """
    scope: Scope | None = inner
    while scope is not None:
        if name in scope.bindings and scope.kind != "class":
            parameter = next((b.what for b in scope.bindings[name] if b.how == "parameter"), None)
            if scope is outermost:
                return name if parameter is not None else ""
            if _is_within(scope, outermost):
                return _handed_down(parameter, scope, outermost) if parameter is not None else ""
            return name if scope.kind == "function" or any(b.how == "value" for b in scope.bindings[name]) else ""
        scope = scope.parent
    return ""


def _handed_down(parameter: ast.arg, scope: Scope, outermost: Scope) -> str:
    own = getattr(scope.node, "name", scope.node)
    if parameter not in scope.parameters or scope.parent is None:
        return ""
    place = scope.parameters.index(parameter)
    for around in outermost.inside():
        if around is not scope:
            for call in around.of(ast.Call):
                expression = given(call, own, place, parameter.arg)
                if isinstance(expression, ast.Name):
                    return origin(expression.id, around, outermost)
    return ""


def _is_within(scope: Scope, outermost: Scope) -> bool:
    current: Scope | None = scope
    while current is not None:
        if current is outermost:
            return True
        current = current.parent
    return False


def returned(scope: Scope) -> set[str]:
    """Returns the names that a function returns."""
    nodes = (
        [scope.node.body]
        if isinstance(scope.node, ast.Lambda)
        else [r.value for r in scope.of(ast.Return) if r.value is not None]
    )
    found: set[str] = set()
    waiting = [
        element for node in nodes for element in (node.elts if isinstance(node, (ast.Tuple, ast.List)) else [node])
    ]
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.Tuple, ast.List)):
            waiting += node.elts
        elif isinstance(node, ast.Name):
            found.add(node.id)
            for binding in reaching(scope.bindings.get(node.id, ()), node.lineno):
                if binding.how == "value" and isinstance(binding.what, (ast.Tuple, ast.List)):
                    waiting += binding.what.elts
    return found
