# SPDX-License-Identifier: Apache-2.0
"""Infers the results of calls of functions and classes, and the values of Variables."""

from __future__ import annotations

import ast
import dataclasses

from tallax.lint import _dtypes
from tallax.lint._bindings import initial
from tallax.lint._index import Scope
from tallax.lint._kinds import (
    NOTHING,
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
)
from tallax.lint._known_names import JITS, TRANSFORMS, VARIABLES
from tallax.lint._types import Types

# The maximum depth of calls within calls. Code farther away rarely matters.
_FARTHEST = 3
_MANY_RETURNS = 8
_BUILTINS = {
    "int": "int",
    "float": "float",
    "bool": "bool",
    "complex": "float",
    "round": "int",
    "len": "int",
    "ord": "int",
}
# Functions that return their argument, or an object that contains it.
_THROUGH = {
    "nnx.data",
    "nnx.static",
    "nnx.clone",
    "copy.deepcopy",
    "copy.copy",
    "jax.lax.stop_gradient",
    "jax.device_put",
    "jax.block_until_ready",
    "jax.lax.with_sharding_constraint",
}


# Methods that only arrays have. An unknown object with one of them is an array.
_OF_ARRAYS = {"sum", "mean", "var", "std", "prod", "max", "min", "argmax", "cumsum", "astype", "reshape", "ravel"}


def _is_still(layer: str, call: ast.Call) -> bool:
    """Returns whether a layer of Flax is made so that calling it changes nothing."""
    words = {word.arg: word.value for word in call.keywords}
    if None in words:
        return False
    on = {name for name, value in words.items() if isinstance(value, ast.Constant) and value.value is True}
    if layer == "nnx.Dropout":
        rate = call.args[0] if call.args else words.get("rate")
        never = isinstance(rate, ast.Constant) and rate.value == 0
        return "rngs" not in words or "deterministic" in on or never
    return layer == "nnx.BatchNorm" and "use_running_average" in on


def _is_class(name: str) -> bool:
    return name.startswith("nnx.") and name[4:5].isupper()


class Calls(Types):
    """The results of calls, and the values of Variables."""

    def call(self, node: ast.Call, frame: Frame) -> Value | None:
        """Returns the result of a call."""
        function = node.func
        callee = self.of(function, frame)
        if isinstance(callee, Name):
            return self._library(callee.name, node, frame)
        if isinstance(callee, Type):
            if isinstance(callee.cls, str):
                return self.named(callee.cls)
            made = self.instance(callee.cls)
            return Variable(made.type, node, frame, callee.cls) if isinstance(made, Variable) else made
        if isinstance(callee, Callee):
            return self.returned(callee, node, frame)
        if isinstance(function, ast.Attribute):
            return self._method(self.of(function.value, frame), function.attr, node, frame)
        return None

    def _method(self, base: Value | None, name: str, node: ast.Call, frame: Frame) -> Value | None:
        if isinstance(base, Table):
            if name in ("values", "items"):
                return Items(each=base.each if name == "values" else Items((None, base.each)))
            if name in ("get", "pop", "setdefault") and node.args:
                key = node.args[0].value if isinstance(node.args[0], ast.Constant) else None
                return (base.under(key) if isinstance(key, str) else base.each) if len(node.args) == 1 else None
            return None
        if isinstance(base, Variable):
            if name in ("get_value", "get_raw_value"):
                return self.content(base)
            if name in ("replace", "copy"):
                return Variable(base.type, None, None, base.cls)
            if name in ("set_value", "set_metadata"):
                return NOTHING
            base = self.content(base) or Array(state="derived")
        if name == "item":
            return Number("", state=base.state if isinstance(base, Array) else None)
        if isinstance(base, Array):
            return _dtypes.method(base, name, node, lambda argument: self.of(argument, frame))
        if name in _OF_ARRAYS and base is None:
            return _dtypes.method(Array(), name, node, lambda argument: self.of(argument, frame))
        return None

    def _library(self, name: str, node: ast.Call, frame: Frame) -> Value | None:
        if name in VARIABLES:
            return Variable(name, node, frame)
        if name in _BUILTINS:
            argument = self.content_of(self.of(node.args[0], frame)) if node.args else None
            state = "derived" if isinstance(argument, (Array, Number)) and argument.state else None
            size = name == "len" or (isinstance(argument, Number) and argument.size)
            return Number(_BUILTINS[name], size, state if name != "len" else None)
        if name in ("min", "max", "sum", "abs") and node.args:
            parts = [self.content_of(self.of(argument, frame)) for argument in node.args]
            return joined([element(part) if isinstance(part, Items) else part for part in parts])
        if name == "super":
            return self._super(frame)
        if name in _THROUGH and node.args:
            return self.of(node.args[0], frame)
        if name in ("typing.cast", "cast") and len(node.args) == 2:
            return self.annotated(node.args[0], frame.scope)
        if name in ("list", "tuple", "reversed", "sorted", "nnx.List") and node.args:
            return self.of(node.args[0], frame)
        if name == "map" and len(node.args) >= 2:
            return Items(each=self._made_by(self.of(node.args[0], frame), frame))
        if name == "enumerate" and node.args:
            return Items(each=Items((Number("int"), element(self.of(node.args[0], frame)))))
        if name == "zip":
            return Items(each=Items(tuple(element(self.of(argument, frame)) for argument in node.args)))
        if name == "range":
            return Items(each=Number("int"))
        if name == "nnx.to_flat_state":
            return Items(each=Items((None, Variable("nnx.Variable"))))
        if name in ("dict", "nnx.Dict") and len(node.args) <= 1 and (node.args or node.keywords):
            return self._table(name, node, frame)
        if name == "getattr" and len(node.args) == 2 and isinstance(node.args[1], ast.Constant):
            return self.attribute(self.of(node.args[0], frame), str(node.args[1].value), node, frame)
        if name in ("str", "dict", "set", "repr", "hasattr", "isinstance", "format"):
            return Number("bool") if name in ("hasattr", "isinstance") else Plain(name)
        if name == "functools.partial" and node.args:
            made = self.of(node.args[0], frame)  # a class with arguments is still called like the class
            return made if isinstance(made, Type) or (isinstance(made, Name) and _is_class(made.name)) else None
        if name in TRANSFORMS:
            inner = self.of(node.args[0], frame) if node.args else None
            return Callee(inner.scope, inner.bound, name) if isinstance(inner, Callee) else None
        if name.startswith(("jnp.", "np.", "jax.", "nnx.initializers", "math.")):
            return _dtypes.made(name, node, lambda argument: self.content_of(self.of(argument, frame)))
        made = self.named(name) if name.startswith("nnx.") else None
        return dataclasses.replace(made, still=True) if isinstance(made, Instance) and _is_still(name, node) else made

    def _made_by(self, function: Value | None, frame: Frame) -> Value | None:
        """Returns the result of a function or class that is called with unknown arguments."""
        if isinstance(function, Callee):
            return self.returned(function, ast.Call(ast.Name(""), [], []), frame)
        if isinstance(function, Type):
            return self.named(function.cls) if isinstance(function.cls, str) else self.instance(function.cls)
        return None

    def _table(self, name: str, node: ast.Call, frame: Frame) -> Table:
        """Returns the result of `dict(...)` or `nnx.Dict(...)` for a mapping, pairs and keywords."""
        given = Table()
        if node.args:
            value = self.of(node.args[0], frame)
            given = value if isinstance(value, Table) else Table(item(element(value), 1))
        words = [(word.arg, self.of(word.value, frame)) for word in node.keywords]
        named = tuple((key, value) for key, value in words if key is not None)
        each = joined([*([given.each] if node.args else []), *(value for _, value in words)])
        if len(named) < len(words) or (node.args and not given.named and named):
            named = ()  # an unknown mapping may contain any key
        return Table(each, (*given.named, *named) if named or not words else (), name == "nnx.Dict")

    def _super(self, frame: Frame) -> Value | None:
        scope: Scope | None = frame.scope
        while scope is not None and scope.method_of is None:
            scope = scope.parent
        bases = self.bases(scope.method_of) if scope is not None and scope.method_of is not None else []
        first = next((base for base in bases if not isinstance(base, str)), None)
        if first is None and len(bases) == 1 and _is_class(str(bases[0])):
            return self.named(str(bases[0]))
        return Instance(first) if first is not None else None

    def returned(self, callee: Callee, node: ast.Call, frame: Frame) -> Value | None:
        """Returns the result of a call of one of the project's functions."""
        scope = callee.scope
        if frame.depth >= _FARTHEST:
            return None
        if (
            callee.transformed
            and callee.transformed not in JITS
            and not callee.transformed.endswith(("checkpoint", "remat"))
        ):
            return None
        inner = self.frame_of(callee, node, frame)
        if isinstance(scope.node, ast.Lambda):
            return self.of(scope.node.body, inner)
        results = [result.value for result in scope.of(ast.Return)]
        found = None
        if len(results) <= _MANY_RETURNS:
            found = joined([self.of(result, inner) if result is not None else NOTHING for result in results])
        declared = getattr(scope.node, "returns", None)
        if found is None and declared is not None:
            found = self.annotated(declared, scope.parent or scope)
        return found

    def of_property(self, method: Scope) -> Value | None:
        """Returns the value of a property, by the expressions that it returns."""
        results = [result.value for result in method.of(ast.Return)]
        if not results or len(results) > _MANY_RETURNS or None in results:
            return None
        return joined([self.of(result, method) for result in results])

    def frame_of(self, callee: Callee, node: ast.Call, frame: Frame) -> Frame:
        """Returns the frame of a called function: its scope, with the known arguments."""
        scope = callee.scope
        arguments: dict[str, Value | None] = {}
        parameters = scope.parameters
        bound = callee.bound if scope.self_name else self.class_of(callee) if scope.cls_name else None
        if bound is not None:
            arguments[parameters[0].arg] = bound
            parameters = parameters[1:]
        for parameter, argument in zip(parameters, node.args, strict=False):
            if isinstance(argument, ast.Starred):
                break
            arguments[parameter.arg] = self.of(argument, frame)
        arguments |= {word.arg: self.of(word.value, frame) for word in node.keywords if word.arg}
        # An argument of unknown kind may still be annotated.
        return Frame(scope, {name: value for name, value in arguments.items() if value is not None}, frame.depth + 1)

    def class_of(self, callee: Callee) -> Type | None:
        """Returns the class that a class method is called on."""
        if isinstance(callee.bound, Type):
            return callee.bound
        if isinstance(callee.bound, (Instance, Variable)) and callee.bound.cls is not None:
            return Type(callee.bound.cls)
        return Type(callee.scope.method_of) if callee.scope.method_of is not None else None

    # values of Variables

    def content(self, variable: Variable) -> Value | None:
        """Returns the initial value of a Variable, marked as its state."""
        if variable.or_else:
            return joined(
                [
                    self.content(dataclasses.replace(v, home=variable.home, or_else=()))
                    for v in (variable, *variable.or_else)
                ]
            )
        value = variable.held
        if variable.call is not None and variable.frame is not None:
            value = self.of(initial(variable.call), variable.frame)
        state = variable.home or "derived"
        if isinstance(value, Array):
            return Array(value.weak, value.dtype, state, value.scalar)
        if isinstance(value, Number):
            return Number(value.type, False, state, value.value)
        return value

    def content_of(self, value: Value | None) -> Value | None:
        """Returns the value of a Variable for arithmetic, and anything else unchanged."""
        if isinstance(value, Variable):
            content = self.content(value)
            return content if content is not None else Array(state=value.home or "derived")
        return value
