# SPDX-License-Identifier: Apache-2.0
"""Changes that a function makes to objects from outside of it, which it was handed or closes over."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import NamedTuple

from tallax.lint._changes import changes_when_called, is_changed, is_evaluating
from tallax.lint._check import Context
from tallax.lint._flow import origin, root_of
from tallax.lint._index import Scope, last_name, targets
from tallax.lint._kinds import Instance, Name, Value, Variable

_STREAMS = ("nnx.Rngs", "nnx.RngStream")
# Calls that put a module into evaluation mode; `nnx.view` returns a module in that mode.
_EVALUATING = {"eval", "set_attributes"}


class Change(NamedTuple):
    """One change of an object from outside.

    Attributes:
        node: The statement or call that makes it.
        root: The parameter, or the closed-over name, that the object is reached by.
        said: The change in words, for messages: "this changes `model`".
        is_direct: Whether the node writes or draws itself, rather than calls a module that does.
    """

    node: ast.AST
    root: str
    said: str
    is_direct: bool


def outside_changes(function: Scope, context: Context, handled: set[str]) -> Iterator[Change]:
    """Yields the sure changes that a function makes to objects from outside of it, except to those in `handled`."""
    for inner in function.inside():
        for node in inner.of(ast.Assign, ast.AugAssign, ast.AnnAssign):
            for whole in node.targets if isinstance(node, ast.Assign) else [node.target]:
                for single, _ in targets(whole):
                    root = "" if isinstance(single, ast.Name) else origin(root_of(single), inner, function)
                    if root and root not in handled and is_changed(single, inner, context):
                        yield Change(node, root, f"this changes `{root}`", True)
        for call in inner.of(ast.Call):
            updated = _updated_from_outside(call, inner, function, context)
            if updated:
                yield Change(call, updated, f"nnx.update changes `{updated}`", True)
            root = origin(root_of(call.func), inner, function)
            if root and root not in handled and not is_evaluating(call):
                change = _of_call(call, root, inner, context)
                if change is not None and (change.is_direct or not is_in_evaluation(root, function)):
                    yield change


def _updated_from_outside(call: ast.Call, inner: Scope, function: Scope, context: Context) -> str:
    """Returns the closed-over name that `nnx.update(model, ...)` writes to, empty if there is none."""
    if last_name(call.func) != "update" or not call.args or not isinstance(call.args[0], ast.Name):
        return ""
    if context.values.of(call.func, inner) != Name("nnx.update"):
        return ""
    root = origin(call.args[0].id, inner, function)
    return "" if root in function.parameter_names else root


def called_object(call: ast.Call, scope: Scope, context: Context) -> tuple[ast.expr, str, Value | None]:
    """Returns the expression of the object that a call is made on, the name of the method, and what the object is."""
    function = call.func
    if isinstance(function, ast.Attribute):
        owner = context.values.of(function.value, scope)
        if isinstance(owner, Instance):
            own = owner.cls if not isinstance(owner.cls, str) else None
            if own is None or context.values.find_method(own, function.attr):
                return function.value, function.attr, owner
    return function, "__call__", context.values.of(function, scope)


def _of_call(call: ast.Call, root: str, scope: Scope, context: Context) -> Change | None:
    """Returns the change that a call makes to what it is called on, None if it surely makes none that is known."""
    function = call.func
    if isinstance(function, ast.Attribute):
        value = context.values.of(function.value, scope)
        if isinstance(value, Variable) and function.attr in ("set_value", "set_raw_value"):
            return Change(call, root, f"this changes `{root}`", True)
        if isinstance(value, Instance) and value.cls in _STREAMS:
            return Change(call, root, f"drawing from `{root}` changes it", True)
        if isinstance(value, Instance) and isinstance(value.cls, str):
            if changes_when_called(value, function.attr, context):
                return Change(call, root, f"calling `{context.source_of(function)}` changes `{root}`", False)
    owner, name, value = called_object(call, scope, context)
    if isinstance(owner, ast.Attribute) and isinstance(value, Instance) and isinstance(value.cls, str):
        owner, name, value = function, "__call__", context.values.of(function, scope)
    if not isinstance(value, Instance):
        return None
    if value.cls in _STREAMS:
        return Change(call, root, f"drawing from `{root}` changes it", True)
    if changes_when_called(value, name, context):
        return Change(call, root, f"calling `{context.source_of(function)}` changes `{root}`", False)
    return None


def is_in_evaluation(root: str, function: Scope) -> bool:
    """Returns whether the function, or one around it, puts a module into evaluation mode: `model.eval()`.

    A call in that mode draws nothing and keeps the running statistics. The order of the statements is not looked at: a
    function that does both is rather left alone.
    """
    scope: Scope | None = function
    inside = list(function.inside())
    while scope is not None and scope.kind == "function":
        for within in inside if scope is function else [scope]:
            for call in within.of(ast.Call):
                called = call.func
                if isinstance(called, ast.Attribute) and called.attr in _EVALUATING and root_of(called) == root:
                    return True
            if any(_is_view(b.what) for b in within.bindings.get(root, ()) if b.how == "value"):
                return True
        scope = scope.parent
    return False


def _is_view(made: ast.expr) -> bool:
    return isinstance(made, ast.Call) and last_name(made.func) == "view" and is_evaluating(made)
