# SPDX-License-Identifier: Apache-2.0
"""Code that runs at every training step: forward paths, functions under a transformation, and training loops."""

from __future__ import annotations

import ast
import functools
import re

from tallax.lint._check import Context
from tallax.lint._index import Scope
from tallax.lint._kinds import Callee, Instance, Name
from tallax.lint._known_names import JITS, TRANSFORMS

_SCOPES = {ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef}
_TEST_FILE = re.compile(r"(?:^|[/\\])(?:test_[^/\\]*|[^/\\]*_test|conftest)\.py$")


@functools.lru_cache(maxsize=64)
def is_test(path: str) -> bool:
    """Returns whether a file holds tests, by its name."""
    return _TEST_FILE.search(path) is not None


def loop_around(node: ast.AST, scope: Scope) -> ast.While | ast.For | None:
    """Returns the loop that evaluates an expression at every step.

    It does not within a branch, behind the first operand of `and` and `or`, or in the sequence that it runs over. The
    condition of a branch it does.
    """
    parents = scope.file.parents
    inner, outer = node, parents.get(node)
    while outer is not None:
        kind = outer.__class__
        if kind in _SCOPES:
            return None
        if kind is ast.If or kind is ast.IfExp:
            if inner is not outer.test:  # type: ignore[attr-defined]
                return None
        elif kind is ast.BoolOp:
            if inner is not outer.values[0]:  # type: ignore[attr-defined]
                return None
        elif kind is ast.While or (kind is ast.For and inner is not outer.iter):  # type: ignore[attr-defined]
            return outer  # type: ignore[return-value]
        inner, outer = outer, parents.get(outer)
    return None


def is_forward(scope: Scope, context: Context) -> bool:
    """Returns whether a function is part of a module's forward path or runs under a transformation."""
    if "forward" not in scope.memory:
        scope.memory["forward"] = _is_forward_path(scope, context)
    return bool(scope.memory["forward"])


def runs_once(scope: Scope, context: Context) -> bool:
    """Returns whether a function has no loop and is no forward path, so that nothing directly in it is a step."""
    known = scope.memory.get("runs once")
    if known is None:
        looping = ast.For in scope.nodes or ast.While in scope.nodes
        known = scope.memory["runs once"] = not looping and not is_forward(scope, context)
    return known


def _is_forward_path(scope: Scope, context: Context) -> bool:
    current: Scope | None = scope
    while current is not None and current.kind == "function":
        if _is_called_back(current):
            return False
        if is_transformed(current, context):
            return True
        cls = current.method_of
        if cls is not None:
            runs = current.name.endswith("_jit") or current in context.values.forward(cls)
            return context.values.is_module(cls) and runs
        current = current.parent
    return False


def is_transformed(scope: Scope, context: Context) -> bool:
    """Returns whether a function is decorated with a transformation, or handed to one where it is defined."""
    if "transformed" not in scope.memory:
        scope.memory["transformed"] = None
        outer = scope.parent
        found = any(context.values.transforms_of(scope))
        if not found and outer is not None and outer.kind != "class":
            callees = (context.values.of(call.func, outer) for call in calls_with(scope, outer))
            found = any(isinstance(callee, Name) and callee.name in TRANSFORMS for callee in callees)
        scope.memory["transformed"] = found
    return bool(scope.memory["transformed"])


def calls_with(function: Scope, outer: Scope) -> list[ast.Call]:
    """Returns the calls in a scope that pass a function on, by its name or as a lambda."""
    passed: dict[object, list[ast.Call]] | None = outer.memory.get("passed")
    if passed is None:
        passed = outer.memory["passed"] = {}
        for call in outer.of(ast.Call):
            for argument in call.args:
                kind = argument.__class__
                if kind is ast.Name:
                    passed.setdefault(argument.id, []).append(call)
                elif kind is ast.Lambda:
                    passed.setdefault(argument, []).append(call)
    return passed.get(getattr(function.node, "name", function.node), [])


def _is_called_back(scope: Scope) -> bool:
    """Returns whether a function is handed to a callback, and so runs on the host."""
    outer = scope.parent
    if outer is None or outer.kind == "class":
        return False
    functions = [call.func for call in calls_with(scope, outer)]
    return any(isinstance(function, ast.Attribute) and "callback" in function.attr for function in functions)


def is_training(loop: ast.AST, scope: Scope, context: Context) -> bool:
    """Returns whether a loop calls a jitted function or an optimizer's update."""
    key = ("training", loop)
    if key not in scope.memory:
        scope.memory[key] = _trains(loop, scope, context)
    return bool(scope.memory[key])


def _trains(loop: ast.AST, scope: Scope, context: Context) -> bool:
    first, last = loop.lineno, loop.end_lineno or loop.lineno  # type: ignore[attr-defined]
    for call in scope.of(ast.Call):
        if first <= call.lineno <= last:
            callee = context.values.of(call.func, scope)
            if isinstance(callee, Callee) and callee.transformed in JITS:
                return True
            if isinstance(call.func, ast.Attribute) and call.func.attr == "update":
                owner = context.values.of(call.func.value, scope)
                if isinstance(owner, Instance) and owner.cls in ("nnx.Optimizer", "nnx.ModelAndOptimizer"):
                    return True
    return False
