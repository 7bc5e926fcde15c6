# SPDX-License-Identifier: Apache-2.0
"""Infers the values of names and attributes across functions, classes and files, lazily."""

from __future__ import annotations

import ast
from collections.abc import Sequence

from tallax.lint import _dtypes
from tallax.lint._bindings import default_of, given, reaching, spelled
from tallax.lint._classes import of_layer
from tallax.lint._expressions import EXPRESSIONS, Expressions
from tallax.lint._index import Binding, Scope, last_name
from tallax.lint._kinds import (
    Array,
    Callee,
    Frame,
    Instance,
    Items,
    Name,
    Number,
    Plain,
    Table,
    Type,
    Value,
    Variable,
    element,
    item,
    joined,
    name_of,
)
from tallax.lint._known_names import LIBRARIES, TRANSFORMS, VARIABLES, canonical
from tallax.lint._project import Tree

# The maximum depth of inference. Code farther away rarely matters.
_DEEPEST = 24
_EMPTY = Items()
_VARIABLE_WORDS = {name.rpartition(".")[2] for name in VARIABLES}
_OF_DICTS = frozenset(dir(dict))


class Values(Expressions):
    """The kinds of values of the expressions in a tree."""

    def __init__(self, tree: Tree):
        super().__init__()
        self.tree = tree
        self._depth = 0
        self._dotted: dict[tuple[Scope, str], Value | None] = {}

    def of(self, node: ast.expr | None, scope: Scope | Frame) -> Value | None:
        """Returns the value of an expression in a scope, or None if it is unknown."""
        if node is None:
            return None
        frame = scope if scope.__class__ is Frame else scope.frame or Frame.of(scope)  # type: ignore[union-attr,arg-type]
        memory = frame.memory
        if node in memory:
            return memory[node]
        if self._depth > _DEEPEST:
            return None
        work = _WORK.get(type(node))
        if work is None:
            return Plain("text") if isinstance(node, ast.JoinedStr) else None
        memory[node] = None  # a definition that refers to itself
        self._depth += 1
        try:
            value = work(self, node, frame)
        finally:
            self._depth -= 1
        memory[node] = value
        return value

    # Names

    def _name(self, node: ast.Name, frame: Frame) -> Value | None:
        return self.name(node.id, node.lineno, frame)

    def name(self, name: str, line: int, frame: Frame) -> Value | None:
        """Returns the value of a name at a line."""
        start: Scope | None = frame.scope
        scope = start
        while scope is not None:
            if scope.parent is None and name in scope.file.settled:
                return scope.file.settled[name]
            if name in scope.bindings and (scope.kind != "class" or scope is start):
                within = frame if scope is start else Frame.of(scope)
                found = scope.bindings[name]
                if len(found) == 1:  # usually true, and there is nothing to join
                    value = self.binding(found[0], within)
                    if scope.parent is None and value is not None and found[0].how in ("import", "def"):
                        scope.file.settled[name] = value
                else:
                    found = reaching(found, line)
                    value = joined([self.binding(b, within) for b in found])
                is_empty = value.__class__ is Items and value == _EMPTY
                return self._filled_here(name, scope) if is_empty else value
            scope = scope.parent
        for star in frame.scope.file.bindings.get("*", ()):
            starred = self.dotted(f"{star.what}.{name}", frame.scope)
            if not isinstance(starred, Name):
                return starred
        return name_of(name)

    def binding(self, binding: Binding, frame: Frame) -> Value | None:
        """Returns the value of a name by one of its bindings."""
        if binding.how == "import":
            return self.dotted(binding.what, frame.scope)
        if binding.how == "def":
            return self.defined(binding.what)
        if binding.how == "parameter":
            known = frame.arguments.get(binding.what.arg)
            return known if known is not None else self._parameter(binding.what, frame.scope)
        if binding.how == "annotation":
            return self.annotated(binding.what, frame.scope)
        if binding.how == "changed":
            return self._changed(binding.what, frame)
        if binding.how not in ("value", "element"):
            return None
        value = self.of(binding.what, frame)
        if binding.how == "element":
            value = element(value)
        for k in binding.item:
            value = item(value, k)
        return value

    def _filled_here(self, name: str, scope: Scope) -> Value | None:
        key = ("filled", name)
        if key not in scope.memory:
            scope.memory[key] = None  # a list that is extended from itself
            scope.memory[key] = self.filled(name, [scope])
        return scope.memory[key]

    def filled(self, name: str, scopes: Sequence[Scope]) -> Value:
        """Returns the elements of an initially empty list, to which some functions append by name or by
        `self.name`.
        """
        found: list[Value | None] = []
        for scope in scopes:
            if "appended" not in scope.memory:
                scope.memory["appended"] = _appended(scope)
            found += [self.of(argument, scope) for argument in scope.memory["appended"].get(name, ())]
        return Items(each=joined(found))

    def _parameter(self, argument: ast.arg, scope: Scope) -> Value | None:
        if argument not in scope.memory:
            scope.memory[argument] = None  # a function whose argument is its own result
            scope.memory[argument] = self.parameter(argument, scope)
        return scope.memory[argument]

    def _changed(self, node: ast.AugAssign, frame: Frame) -> Value | None:
        """Returns the value of a name after `+=`."""
        memory = frame.memory
        if node not in memory:
            memory[node] = None  # in a loop, the value depends on itself
            before = self.name(node.target.id, node.lineno - 1, frame)  # type: ignore[union-attr]
            if before is not None:
                memory[node] = _dtypes.combined(self.content_of(before), self.of(node.value, frame), node.op)
        return memory[node]

    def defined(self, scope: Scope) -> Value | None:
        """Returns the value of a class or function statement."""
        if scope.kind == "class":
            return Type(scope)
        return Callee(scope, transformed=next(filter(None, self.transforms_of(scope)), ""))

    def transforms_of(self, scope: Scope) -> list[str]:
        """Returns the transformation of each decorator of a function; empty for other decorators."""
        found = scope.memory.get("transforms")
        if found is None:
            found = [self.transform_of(decorator, scope.parent) for decorator in scope.decorators]
            scope.memory["transforms"] = found
        return found

    def transform_of(self, node: ast.expr, scope: Scope | None) -> str:
        """Returns the transformation of a decorator or callee: `jax.jit`, `partial(jax.jit, ...)`,
        `nnx.jit(...)`.
        """
        if scope is None:
            return ""
        if isinstance(node, ast.Call):
            inner = self.transform_of(node.func, scope)
            if inner:
                return inner
            value = self.of(node.func, scope)
            if isinstance(value, Name) and value.name == "functools.partial" and node.args:
                return self.transform_of(node.args[0], scope)
            return ""
        value = self.of(node, scope)
        return value.name if isinstance(value, Name) and value.name in TRANSFORMS else ""

    def dotted(self, dotted: str, scope: Scope) -> Value | None:
        """Returns the value of an imported name: a class or function of the project, or a name of another library."""
        name = canonical(dotted)
        if name.partition(".")[0] in LIBRARIES:
            return name_of(name)
        key = (scope.file, dotted)
        if key not in self._dotted:
            self._dotted[key] = None  # files that import each other
            self._dotted[key] = self._imported(dotted, scope)
        return self._dotted[key]

    def _imported(self, dotted: str, scope: Scope) -> Value | None:
        module, _, last = dotted.rpartition(".")
        if self.tree.path_of(dotted, scope.file) is not None:
            return Name(dotted)
        file = self.tree.module(module, scope.file) if module else None
        if file is None or last not in file.bindings:
            if file is not None:
                for star in file.bindings.get("*", ()):
                    found = self.dotted(f"{star.what}.{last}", file)
                    if not isinstance(found, Name):
                        return found
            return Name(dotted)
        return joined([self.binding(b, Frame.of(file)) for b in file.bindings[last][-1:]])

    def parameter(self, argument: ast.arg, scope: Scope) -> Value | None:
        """Returns the value of a parameter: by being `self`, by its annotation, its default, or the calls in
        sight.
        """
        if scope.self_name == argument.arg:
            assert scope.parent is not None
            return self.instance(scope.parent)
        if scope.cls_name == argument.arg and scope.method_of is not None:
            return Type(scope.method_of)
        if argument.annotation is not None:
            found = self.annotated(argument.annotation, scope.parent or scope)
            if found is not None:
                return found
        default = default_of(argument, scope)
        if default is not None:
            found = self.of(default, scope.parent or scope)
            return Number(found.type) if isinstance(found, Number) else None
        return self.passed(argument, scope)

    def passed(self, argument: ast.arg, scope: Scope) -> Value | None:
        """Returns the argument that calls in the outer function pass to a parameter of a nested function or lambda."""
        outer = scope.parent
        own = getattr(scope.node, "name", scope.node)
        if outer is None or argument not in scope.parameters or (outer.kind != "function" and own is not scope.node):
            return None
        place = scope.parameters.index(argument)
        found: list[Value | None] = []
        for around in outer.inside():
            if around is scope:
                continue
            for call in around.of(ast.Call):
                handed = given(call, own, place, argument.arg)
                if handed is not None:
                    found.append(self.of(handed, around))
        return joined(found)

    def makes_variable(self, node: ast.Call, scope: Scope) -> bool:
        """Returns whether a call is one of a Variable type, without a look at its arguments."""
        function = node.func
        if function.__class__ is ast.Attribute and function.attr not in _VARIABLE_WORDS:  # type: ignore[attr-defined]
            base = self.of(function.value, scope)  # type: ignore[attr-defined]
            if base.__class__ is Name and base.name in LIBRARIES:  # type: ignore[union-attr]
                return False  # `nnx.Linear(...)`: so it is with most
        callee = self.of(node.func, scope)
        if isinstance(callee, Type):
            return not isinstance(callee.cls, str) and bool(self.variable_type(callee.cls))
        return isinstance(callee, Name) and callee.name in VARIABLES

    # Attributes

    def _attribute(self, node: ast.Attribute, frame: Frame) -> Value | None:
        base = self.of(node.value, frame)
        return self.attribute(base, node.attr, node, frame)

    def attribute(self, base: Value | None, name: str, node: ast.Attribute, frame: Frame) -> Value | None:
        """Returns the value of an attribute of an object."""
        if isinstance(base, Name):
            return self.dotted(f"{spelled(base.name)}.{name}", frame.scope)
        if isinstance(base, Instance):
            if isinstance(base.cls, str):
                return of_layer(base.cls, name)
            return self.member(base.cls, name, base)
        if isinstance(base, Type) and not isinstance(base.cls, str):
            found = self.member(base.cls, name, None)
            if isinstance(found, Callee) and found.scope.cls_name:
                return Callee(found.scope, base, found.transformed)
            return found if isinstance(found, Callee) else None
        if isinstance(base, Variable):
            if base.cls is not None and self.defines(base.cls, name):
                return None
            if name in ("value", "raw_value"):
                return self.content(base)
            base = self.content(base)
            if base is None:
                base = Array(state="derived")
        if isinstance(base, Table):
            return base.under(name) if base.is_node and name not in _OF_DICTS else None
        if name in ("size", "ndim"):
            return Number("int", size=name == "size")
        if name == "shape":
            return Items(each=Number("int", size=True))
        if isinstance(base, Array):
            if name in ("T", "mT", "real", "imag", "at"):
                return Array(base.weak, base.dtype, "derived" if base.state else None)
            return Plain(name) if name in ("dtype", "sharding") else None
        return None

    def _lambda(self, node: ast.Lambda, frame: Frame) -> Value | None:
        return next((Callee(child) for child in frame.scope.children if child.node is node), None)


def _appended(scope: Scope) -> dict[str, list[ast.expr]]:
    """Returns the values that a function appends to lists, by the last part of the names of the lists."""
    found: dict[str, list[ast.expr]] = {}
    for call in scope.of(ast.Call):
        function = call.func
        if isinstance(function, ast.Attribute) and function.attr == "append" and len(call.args) == 1:
            found.setdefault(last_name(function.value), []).append(call.args[0])
    return found


_WORK = {
    **EXPRESSIONS,
    ast.Name: Values._name,
    ast.Attribute: Values._attribute,
    ast.Lambda: Values._lambda,
    ast.Call: Values.call,
}
