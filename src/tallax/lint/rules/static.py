# SPDX-License-Identifier: Apache-2.0
"""TLX008 as well: a module that a compiled function takes as a static argument."""

from __future__ import annotations

import ast

from tallax.lint._check import CHECKS, Context
from tallax.lint._index import Scope
from tallax.lint._kinds import Callee, Instance
from tallax.lint._known_names import CHANGING_LAYERS, LAYERS, NODES
from tallax.lint._outside_changes import is_module, static_arguments
from tallax.lint.rules.lost import RULE

_COMPILING = {"jax.jit", "jax.pmap", "nnx.jit", "nnx.pmap"}


@CHECKS.each_decorated
def decorated(scope: Scope, context: Context) -> None:
    """Reports a function whose decorator declares a module static."""
    for decorator, transform in zip(scope.decorators, context.values.transforms_of(scope), strict=True):
        if transform in _COMPILING:
            if isinstance(decorator, ast.Call):
                _judge(decorator, transform, scope.parameters, scope, scope.node, context)
            _judge_fields(transform, scope, context)


@CHECKS.call("jit", "pmap")
def handed(node: ast.Call, scope: Scope, context: Context) -> None:
    """Reports `jax.jit(f, static_argnums=0)` if the argument is a module."""
    transform = context.values.transform_of(node.func, scope)
    if transform not in _COMPILING or not node.args:
        return
    given = context.values.of(node.args[0], scope)
    if isinstance(given, Callee) and not isinstance(given.scope.node, ast.Lambda):
        parameters = given.scope.parameters
        _judge(node, transform, parameters[given.bound is not None :], given.scope, node, context)


def _judge(
    call: ast.Call, transform: str, parameters: list[ast.arg], scope: Scope, place: ast.AST, context: Context
) -> None:
    static = static_arguments(call)
    for k, parameter in enumerate(parameters):
        if (k in static or k - len(parameters) in static or parameter.arg in static) and _is_module(
            parameter, scope, context
        ):
            context.report(
                RULE,
                place,
                f"`{parameter.arg}` is static under {transform}: the module's values are constants of the compiled "
                "program, and its updates are lost; "
                + ("use nnx.jit" if transform.startswith("jax.") else "leave it out of the static arguments"),
            )


def _judge_fields(transform: str, scope: Scope, context: Context) -> None:
    """Reports a function that calls a module in a static field of a dataclass that it is passed."""
    for inner in scope.inside():
        for call in inner.of(ast.Call):
            field = call.func
            while isinstance(field, ast.Attribute) and not isinstance(field.value, ast.Name):
                field = field.value
            if not isinstance(field, ast.Attribute) or field.value.id not in scope.parameter_names:  # type: ignore[attr-defined]
                continue
            owner = context.values.of(field.value, inner)
            if not isinstance(owner, Instance) or isinstance(owner.cls, str) or not context.values.is_struct(owner.cls):
                continue
            if _is_static_field(owner.cls, field.attr) and is_module(field, inner, context):
                context.report(
                    RULE,
                    scope.node,
                    f"`{context.source_of(field)}` is a static field, `pytree_node=False`: under {transform} the "
                    "module's values are constants of the compiled program, and its updates are lost or raise; make it "
                    "a pytree field under nnx.jit, or keep its state in the field",
                )
                return


def _is_static_field(cls: Scope, name: str) -> bool:
    """Returns whether a class declares a field with `pytree_node=False`."""
    return any(
        word.arg == "pytree_node" and isinstance(word.value, ast.Constant) and word.value.value is False
        for binding in cls.bindings.get(name, ())
        if binding.how == "value" and isinstance(binding.what, ast.Call)
        for word in binding.what.keywords
    )


def _is_module(parameter: ast.arg, scope: Scope, context: Context) -> bool:
    """Returns whether a parameter is a module or a stream of random numbers: by its type, or by the methods it is asked
    for, where every class at hand that has them is a module.
    """
    values = context.values
    value = values.parameter(parameter, scope)
    if isinstance(value, Instance):
        if isinstance(value.cls, str):
            return value.cls in {"nnx.Module", *NODES, *LAYERS, *CHANGING_LAYERS}
        return values.is_node(value.cls)
    if value is not None or parameter.annotation is not None:
        return False
    asked = {
        function.attr
        for call in scope.of(ast.Call)
        if isinstance(function := call.func, ast.Attribute)
        and isinstance(function.value, ast.Name)
        and function.value.id == parameter.arg
    }
    able = [c for c in context.classes_at_hand() if asked and all(values.find_method(c, name) for name in asked)]
    return bool(able) and all(values.is_module(c) for c in able)
