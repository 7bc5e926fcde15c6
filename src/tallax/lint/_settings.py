# SPDX-License-Identifier: Apache-2.0
"""The assignments to `self.name` in the methods of a class."""

from __future__ import annotations

import ast
from typing import Any, NamedTuple

from tallax.lint._index import Scope, targets

# These methods run before a module is used, so they determine its attributes.
MAKING = {"__init__", "__post_init__", "setup", "__new__", "__init_subclass__"}


class Setting(NamedTuple):
    """One assignment to `self.name`.

    Attributes:
        method: The method of the class that contains it, at any depth.
        scope: The innermost function that contains it: the method or an inner function.
        node: The statement.
        value: The assigned value; None in `self.name: Type` and for the targets of loops.
        item: The position of the value in a tuple, or None after a star.
        annotation: The declared type.
    """

    method: Scope | None
    scope: Scope
    node: ast.stmt
    value: ast.expr | None
    item: tuple[int, ...] | None
    annotation: ast.expr | None = None

    @property
    def augmented(self) -> bool:
        """Returns whether it is a `+=` or the like."""
        return isinstance(self.node, ast.AugAssign)

    @property
    def making(self) -> bool:
        """Returns whether it is part of making the object."""
        return self.method is None or self.method.name.rpartition(".")[2] in MAKING


_setting: Any = tuple.__new__  # makes a `Setting` without a call of Python code


def is_self(node: ast.expr, scope: Scope) -> Scope | None:
    """Returns the method whose `self` a name is, also from inner functions of the method."""
    if not isinstance(node, ast.Name):
        return None
    current: Scope | None = scope
    while current is not None and current.kind == "function":
        if node.id in current.bindings:
            return current if current.self_name == node.id else None
        current = current.parent
    return None


def is_seen(method: Scope, scope: Scope) -> bool:
    """Returns whether the name of `self` in a function within a method is that of the method."""
    current: Scope | None = scope
    while current is not None and current is not method:
        if current.kind != "function" or method.self_name in current.bindings:
            return False
        current = current.parent
    return current is method


def settings_in(scope: Scope, method: Scope, found: dict[str, list[Setting]]) -> None:
    """Adds the assignments to `self.name` in a method, or in a function within it."""
    if not is_seen(method, scope):
        return
    own = method.self_name
    for node in scope.of(ast.Assign, ast.AnnAssign, ast.AugAssign):
        annotation = node.annotation if isinstance(node, ast.AnnAssign) else None
        for whole in node.targets if isinstance(node, ast.Assign) else [node.target]:
            if isinstance(whole, ast.Name):
                continue  # usually true, and this runs for every assignment
            for single, place in ((whole, ()),) if whole.__class__ is ast.Attribute else targets(whole):
                if isinstance(single, ast.Attribute) and isinstance(single.value, ast.Name) and single.value.id == own:
                    setting = _setting(Setting, (method, scope, node, node.value, place, annotation))
                    found.setdefault(single.attr, []).append(setting)


def calls_super(init: Scope | None) -> bool:
    """Returns whether an `__init__` runs that of a base: `super().__init__(...)`, `Base.__init__(self, ...)`."""
    assert init is not None
    return line_of_super(init) is not None


def line_of_super(init: Scope) -> int | None:
    """Returns the line at which a method first calls the constructor of a base, or None."""
    if "super" not in init.memory:
        lines = [
            call.lineno
            for scope in init.inside()
            for call in scope.of(ast.Call)
            if isinstance(call.func, ast.Attribute) and call.func.attr in ("__init__", "__post_init__", "setup")
        ]
        init.memory["super"] = min(lines, default=None)
    return init.memory["super"]


def is_guarded(setting: Setting) -> bool:
    """Returns whether an argument is kept as it is where it is a Variable already: `if isinstance(x, nnx.Variable):
    self.x = x`.
    """
    if not isinstance(setting.value, ast.Name):
        return False
    node: Any = setting.node
    while node is not None and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        node = setting.scope.file.parent_of(node)
        if isinstance(node, ast.If) and any(
            isinstance(inner, ast.Call) and isinstance(inner.func, ast.Name) and inner.func.id == "isinstance"
            for inner in ast.walk(node.test)
        ):
            return True
    return False
