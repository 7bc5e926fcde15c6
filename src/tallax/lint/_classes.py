# SPDX-License-Identifier: Apache-2.0
"""Classes across files: their bases, their attributes, and the methods that their methods call."""

from __future__ import annotations

import ast
import dataclasses
from typing import Any

from tallax.lint._index import Scope
from tallax.lint._kinds import NOTHING, Array, Callee, Frame, Items, Name, Type, Value, Variable, item, joined
from tallax.lint._known_names import (
    ALWAYS_ARRAYS,
    LAYER_VARIABLES,
    LAYERS,
    NODES,
    NOT_NODES,
    STRUCT_BASES,
    STRUCT_DECORATORS,
    VARIABLES,
)
from tallax.lint._settings import Setting, calls_super, is_guarded, is_self, settings_in


def of_layer(layer: str, name: str) -> Variable | None:
    """Returns the Variable of an attribute of a Flax layer, or None if the attribute may have none."""
    if name not in LAYERS.get(layer, ()):
        return None
    held = Array(False, ALWAYS_ARRAYS[name], "derived") if name in ALWAYS_ARRAYS else None
    return Variable(LAYER_VARIABLES[name], held=held)


class Classes:
    """The knowledge about the classes of a tree."""

    def __init__(self) -> None:
        self._bases: dict[Scope, list[Scope | str]] = {}
        self._unfinished = 0  # the number of classes whose bases are being inferred
        self._lineages: dict[Scope, list[Scope | str]] = {}
        self._modules: dict[Scope, bool] = {}
        self._settings: dict[Scope, dict[str, list[Setting]]] = {}
        self._heirs: dict[Scope, list[Scope]] = {}
        self._members: dict[tuple[Scope, str], Value | None] = {}
        self._forward: dict[tuple[Scope, tuple[str, ...]], set[Scope]] = {}

    # `Values` infers these.
    of: Any
    attribute: Any
    binding: Any
    annotated: Any
    defined: Any
    instance: Any
    transform_of: Any
    filled: Any
    of_property: Any

    def bases(self, cls: Scope) -> list[Scope | str]:
        """Returns the direct bases of a class: classes of the project, or names of other libraries."""
        if cls not in self._bases:
            self._bases[cls] = []  # a class that derives from itself
            self._unfinished += 1
            found: list[Scope | str] = []
            for base in cls.node.bases:  # type: ignore[attr-defined]
                value = self.of(base, cls.parent)
                if isinstance(value, Type):
                    found.append(value.cls)
                elif isinstance(value, Name):
                    found.append(value.name)
                else:
                    found.append("")
            self._bases[cls] = found
            self._unfinished -= 1
        return self._bases[cls]

    def lineage(self, cls: Scope) -> list[Scope | str]:
        """Returns a class and all its bases, nearest first."""
        if cls in self._lineages:
            return self._lineages[cls]
        found: list[Scope | str] = []
        waiting: list[Scope | str] = [cls]
        while waiting and len(found) < 200:
            current = waiting.pop(0)
            if current not in found:
                found.append(current)
                if not isinstance(current, str):
                    waiting = [*self.bases(current), *waiting]
        if not self._unfinished:  # otherwise some of the bases may not be known yet
            self._lineages[cls] = found
        return found

    def variable_type(self, cls: Scope) -> str:
        """Returns the Flax Variable type that a class derives from; empty if it is not a Variable."""
        own = f"{cls.file.module}.{cls.name}"
        if own.startswith("tallax."):
            return ""  # tallax's own variables raise for a wrong use
        if own.startswith("flax.nnx.") and f"nnx.{cls.name}" in VARIABLES:
            return f"nnx.{cls.name}"
        return next((base for base in self.lineage(cls)[1:] if isinstance(base, str) and base in VARIABLES), "")

    def is_module(self, cls: Scope) -> bool:
        """Returns whether a class is an nnx.Module."""
        known = self._modules.get(cls)
        if known is None:
            known = any(
                isinstance(b, str)
                and b.startswith("nnx.")
                and b[4:5].isupper()
                and b not in VARIABLES
                and b not in NODES
                and b not in NOT_NODES
                for b in self.lineage(cls)
            )
            if cls in self._lineages:
                self._modules[cls] = known
        return known

    def is_node(self, cls: Scope) -> bool:
        """Returns whether a class is an nnx.Module or another node of the graph."""
        return self.is_module(cls) or any(isinstance(b, str) and b in NODES for b in self.lineage(cls))

    def is_struct(self, cls: Scope) -> bool:
        """Returns whether a class is a dataclass that JAX takes apart, such as a `flax.struct.dataclass`."""
        if any(base in STRUCT_BASES for base in self.lineage(cls)):
            return True
        functions = [d.func if isinstance(d, ast.Call) else d for d in cls.decorators]
        names = [self.of(function, cls.parent) for function in functions]
        return any(isinstance(name, Name) and name.name in STRUCT_DECORATORS for name in names)

    def settings(self, cls: Scope) -> dict[str, list[Setting]]:
        """Returns the assignments to attributes of `self` in a class's own methods and body, by name."""
        if cls not in self._settings:
            found: dict[str, list[Setting]] = {}
            for method in cls.methods:
                if method.self_name is not None:
                    for scope in method.inside():
                        settings_in(scope, method, found)
            self._settings[cls] = found
        return self._settings[cls]

    def member(self, cls: Scope, name: str, bound: Value | None) -> Value | None:
        """Returns the value of an attribute of a class's objects, or None if it is unknown."""
        key = (cls, name)
        if key not in self._members:
            self._members[key] = None
            value = self._member(cls, name)
            if value is None and name not in cls.bindings:
                value = joined([self.member(heir, name, None) for heir in self.heirs(cls)])
            self._members[key] = value
        value = self._members[key]
        if isinstance(value, Callee) and value.bound is None and bound is not None:
            return Callee(value.scope, bound, value.transformed)
        return value

    def heirs(self, cls: Scope) -> list[Scope]:
        """Returns the modules in its file that a mixin is part of; none if another class there derives from it too."""
        if cls not in self._heirs:
            self._heirs[cls] = []
            if not self.is_node(cls):
                found = [c for c in cls.file.classes if c is not cls and cls in self.lineage(c)]
                self._heirs[cls] = found if all(self.is_module(c) for c in found) else []
        return self._heirs[cls]

    def own_member(self, cls: Scope, name: str) -> Value | bool | None:
        """Returns the value of an attribute that a class itself sets or declares, or False if it does neither."""
        if name not in self.settings(cls) and name not in cls.bindings:
            return False
        return self.member(cls, name, None)

    def _member(self, cls: Scope, name: str) -> Value | None:
        later: list[Setting] = []  # the values that methods of the nearest such class assign after construction
        for current in self.lineage(cls):
            if isinstance(current, str):
                held = of_layer(current, name)
                if held is not None:
                    return held
                continue
            settings = [s for s in self.settings(current).get(name, ()) if not s.augmented]
            making = [s for s in settings if s.making]
            later = later or [s for s in settings if not s.making]
            if making:
                held = self._set(making, current, name)
                return self._set([*making, *later], current, name) if held == NOTHING else held
            if name in current.bindings:
                return self._of_body(current, name)
            if current.method("__init__") is not None and not calls_super(current.method("__init__")):
                # Its own __init__ replaces those of its bases, so their attributes do not exist.
                declared = [c for c in self.lineage(current)[1:] if not isinstance(c, str) and name in c.bindings]
                if declared:
                    return self._of_body(declared[0], name)
                break
        owner = later[0].method.method_of if later and later[0].method is not None else None
        return self._set(later, owner, name) if owner is not None else None

    def _set(self, settings: list[Setting], cls: Scope, name: str) -> Value | None:
        values: list[Value | None] = []
        for setting in settings:
            if is_guarded(setting):
                continue
            values.append(self.value_of(setting))
        value = joined(values)
        if isinstance(value, Variable):
            return dataclasses.replace(value, home=(cls, name))
        return (
            self.filled(name, [scope for method in cls.methods for scope in method.inside()])
            if value == Items()
            else value
        )

    def value_of(self, setting: Setting) -> Value | None:
        """Returns the value of one assignment to an attribute."""
        value = None
        if setting.value is not None and setting.item is not None:
            value = self.of(setting.value, setting.scope)
            for k in setting.item:
                value = item(value, k)
        if value is None and setting.annotation is not None:
            value = self.annotated(setting.annotation, setting.scope)
        return value

    def _of_body(self, cls: Scope, name: str) -> Value | None:
        """Returns the value on the objects of a name that is bound in the body of the class."""
        values: list[Value | None] = []
        for binding in cls.bindings[name]:
            if binding.how == "annotation":
                values.append(self.annotated(binding.what, cls))
            elif binding.how == "def":
                decorated = {
                    d.id if isinstance(d, ast.Name) else getattr(d, "attr", "") for d in binding.what.decorators
                }
                if binding.what.kind == "function" and decorated & {"property", "cached_property", "setter"}:
                    declared = getattr(binding.what.node, "returns", None)
                    found = self.annotated(declared, cls) if declared is not None else None
                    values.append(self.of_property(binding.what) if found is None else found)
                else:
                    values.append(self.defined(binding.what))
            else:
                value = self.binding(binding, Frame.of(cls))
                values.append(self._declared(cls, name) if value is None or value == NOTHING else value)
        value = joined(values)
        if isinstance(value, Variable):
            return dataclasses.replace(value, home=(cls, name))
        return value

    def _declared(self, cls: Scope, name: str) -> Value | None:
        """Returns the value that the body of a class declares with a default: `model: Net = struct.field(...)`."""
        for node in cls.of(ast.AnnAssign):
            if isinstance(node.target, ast.Name) and node.target.id == name:
                return self.annotated(node.annotation, cls)
        return None

    def defines(self, cls: Scope, name: str) -> bool:
        """Returns whether a class of the project or one of its bases there has a method or attribute of a name in its
        body.
        """
        return any(not isinstance(c, str) and name in c.bindings for c in self.lineage(cls))

    def find_method(self, cls: Scope, name: str) -> Scope | None:
        """Returns a class's method, its own or inherited within the project."""
        for current in self.lineage(cls):
            if not isinstance(current, str):
                method = current.method(name)
                if method is not None:
                    return method
        return None

    def inherited(self, cls: Scope, name: str) -> Value | None:
        """Returns the value that the `__init__` of a base assigns to an attribute before methods of the class do.

        Returns None if a class in between has an `__init__` that does not call that of its base, so that the attribute
        of the base does not exist.
        """
        for current in self.lineage(cls):
            if isinstance(current, str):
                continue
            if current is not cls:
                held = self.member(current, name, None)
                if isinstance(held, Variable):
                    return held
            init = current.method("__init__")
            if init is not None and not calls_super(init):
                return None
        return None

    def forward(self, cls: Scope) -> set[Scope]:
        """Returns the methods that a call of a module runs: `__call__` and the methods that it calls through `self`."""
        return self._reached(cls, ("__call__",))

    def forward_by_any_name(self, cls: Scope) -> set[Scope]:
        """Like `forward`, but also starting from a method named `forward`, which a base of another project may call."""
        return self._reached(cls, ("__call__", "forward"))

    def _reached(self, cls: Scope, entries: tuple[str, ...]) -> set[Scope]:
        key = (cls, entries)
        if key not in self._forward:
            found: set[Scope] = set()
            waiting = [*entries]
            while waiting:
                method = self.find_method(cls, waiting.pop())
                if method is None or method in found:
                    continue
                found.add(method)
                for scope in method.inside():
                    functions = (call.func for call in scope.of(ast.Call) if isinstance(call.func, ast.Attribute))
                    waiting += [function.attr for function in functions if is_self(function.value, scope) is method]
            self._forward[key] = found
        return self._forward[key]
