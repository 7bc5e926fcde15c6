# SPDX-License-Identifier: Apache-2.0
"""Detects code that changes the state of a module."""

from __future__ import annotations

import ast
import re

from tallax.lint._check import Context
from tallax.lint._flow import root_of
from tallax.lint._index import Scope, targets
from tallax.lint._kinds import Instance, Variable
from tallax.lint._known_names import CHANGING_LAYERS, NODES

_REFERENCES = ("hijax", "ref=True", "use_refs", "mutable_array")
_BY_REFERENCE = re.compile(r"nnx\.(?<=^nnx\.)(?:var_defaults\(|use_hijax\(True|use_refs\(True|set_)", re.MULTILINE)


def changes_when_called(value: Instance, name: str, context: Context) -> bool:
    """Returns whether a call of an object's method surely changes its state."""
    if isinstance(value.cls, str):
        return name in CHANGING_LAYERS.get(value.cls, ()) and not value.still
    if context.values.is_node(value.cls):
        return changes(value.cls, name, context)
    # `state.apply(x)` of a dataclass with a module in a field; its `__call__` is left to its own methods.
    return name != "__call__" and context.values.is_struct(value.cls) and changes(value.cls, name, context)


def changes(cls: Scope, name: str, context: Context, seen: frozenset[tuple[Scope, str]] = frozenset()) -> bool:
    """Returns whether a method surely changes the state of its module, itself or through the modules it holds."""
    if (cls, name) in seen or len(seen) > 20:
        return False
    seen = seen | {(cls, name)}
    method = context.values.find_method(cls, name)
    if method is None:
        return any(name in CHANGING_LAYERS.get(b, ()) for b in context.values.lineage(cls) if isinstance(b, str))
    for scope in method.inside():
        for node in scope.of(ast.Assign, ast.AugAssign):
            for whole in node.targets if isinstance(node, ast.Assign) else [node.target]:
                for single, _ in targets(whole):
                    if (
                        root_of(single) == method.self_name
                        and not isinstance(single, ast.Name)
                        and is_written(single, scope, context)
                    ):
                        return True
        for call in scope.of(ast.Call):
            function = call.func
            if root_of(function) != method.self_name and not isinstance(function, ast.Name):
                continue
            if _is_conditional(call, scope):
                continue  # `if self.dropout is not None`: it may be None
            if isinstance(function, ast.Attribute):
                if function.attr in ("set_value", "sow") and root_of(function) == method.self_name:
                    return True
                if isinstance(function.value, ast.Name) and function.value.id == method.self_name:
                    if context.values.find_method(cls, function.attr) is not None:
                        if changes(cls, function.attr, context, seen):
                            return True
                        continue
            value = context.values.of(function, scope)
            if isinstance(value, Instance):
                if isinstance(value.cls, str):
                    if changes_when_called(value, "__call__", context):
                        return True
                elif changes(value.cls, "__call__", context, seen):
                    return True
    return False


def _is_conditional(node: ast.AST, scope: Scope) -> bool:
    """Returns whether a node stands in a branch of its function."""
    branch = scope.file.enclosing(node, ast.If, ast.IfExp, ast.FunctionDef, ast.AsyncFunctionDef)
    return isinstance(branch, (ast.If, ast.IfExp))


def is_written(target: ast.expr, scope: Scope, context: Context) -> bool:
    """Returns whether a target is a Variable's value, or an attribute that holds one."""
    if isinstance(target, (ast.Subscript, ast.Attribute)) and isinstance(
        context.values.of(target.value, scope), Variable
    ):
        return True
    return isinstance(target, ast.Attribute) and isinstance(context.values.of(target, scope), Variable)


def is_changed(target: ast.expr, scope: Scope, context: Context) -> bool:
    """Returns whether assigning to a target changes a module or a Variable."""
    if is_written(target, scope, context):
        return True
    owner = context.values.of(target.value, scope) if isinstance(target, ast.Attribute) else None
    if not isinstance(owner, Instance):
        return False
    return (
        owner.cls in NODES or owner.cls == "nnx.Module"
        if isinstance(owner.cls, str)
        else context.values.is_node(owner.cls)
    )


def is_evaluating(call: ast.Call) -> bool:
    """Returns whether a call asks for no randomness and no new statistics, or brings its own: `model(x,
    deterministic=True)`.
    """
    if any(word.arg == "rngs" for word in call.keywords):
        return True
    asks = {"deterministic": True, "use_running_average": True, "train": False, "training": False, "is_training": False}
    return any(
        isinstance(word.value, ast.Constant) and asks.get(word.arg or "") is word.value.value for word in call.keywords
    )


def uses_references(scope: Scope) -> bool:
    """Returns whether the code around, or the whole file, uses Variables that are references, which JAX tracks."""
    file = scope.file
    if "references" not in file.memory:
        file.memory["references"] = "nnx." in file.text and bool(_BY_REFERENCE.search(file.text))
        file.memory["names references"] = any(word in file.text for word in _REFERENCES)
    if file.memory["references"] or not file.memory["names references"]:
        return bool(file.memory["references"])
    outer = scope
    while outer.parent is not None and outer.parent.kind == "function":
        outer = outer.parent
    first, last = outer.node.lineno, outer.node.end_lineno  # type: ignore[attr-defined]
    text = "\n".join(file.lines[max(first - 6, 0) : last])
    return any(word in text for word in _REFERENCES)
