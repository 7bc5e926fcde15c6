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
_DIFFERENTIATING = {"nnx.grad", "nnx.value_and_grad"}
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


def differentiated_from_outside(function: Scope, context: Context, handled: set[str]) -> Iterator[Change]:
    """Yields the calls `nnx.grad(f)(model)` of a function whose `model` comes from outside: Flax raises ValueError."""
    for inner in function.inside():
        for call in inner.of(ast.Call):
            if not call.args or isinstance(call.func, ast.Attribute):
                continue
            root = origin(root_of(call.args[0]), inner, function)
            if root and root not in handled and context.values.transform_of(call.func, inner) in _DIFFERENTIATING:
                if _made_where_used(call, inner, context) and is_module(call.args[0], inner, context):
                    shown = context.source_of(call.args[0])
                    yield Change(call, root, f"this differentiates `{shown}`", True)


def _made_where_used(call: ast.Call, scope: Scope, context: Context) -> bool:
    """Returns whether a call is one of `nnx.grad(f)`, rather than a call of `nnx.grad` itself."""
    return not isinstance(context.values.of(call.func, scope), Name)


def is_module(node: ast.expr, scope: Scope, context: Context) -> bool:
    """Returns whether an expression is surely a module of the project or of Flax."""
    value = context.values.of(node, scope)
    if not isinstance(value, Instance):
        return False
    return value.cls.startswith("nnx.") if isinstance(value.cls, str) else context.values.is_module(value.cls)


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


def is_self_static(function: Scope, decorator: ast.expr) -> bool:
    """Returns whether a decorator declares the `self` of a method static: `partial(jax.jit, static_argnums=0)`."""
    if function.self_name is None or not isinstance(decorator, ast.Call):
        return False
    return bool(static_arguments(decorator) & {0, function.self_name})


def static_arguments(call: ast.Call) -> set[object]:
    """Returns the numbers and names of the arguments that a call of `jit` declares static."""
    found: set[object] = set()
    for word in call.keywords:
        if word.arg in ("static_argnums", "static_argnames", "static_broadcasted_argnums"):
            try:
                value = ast.literal_eval(word.value)
            except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
                continue
            found |= set(value) if isinstance(value, (tuple, list, set)) else {value}
    return found


def may_evaluate(function: Scope) -> bool:
    """Returns whether a method of the function's class puts a module into evaluation mode: `self.model.eval()`."""
    cls = function.method_of
    methods = [scope for method in cls.methods for scope in method.inside()] if cls is not None else []
    functions = [call.func for scope in methods for call in scope.of(ast.Call)]
    return any(isinstance(called, ast.Attribute) and called.attr in _EVALUATING for called in functions)
