# SPDX-License-Identifier: Apache-2.0
"""TLX016: a transformation that is applied to a module object, or to a method of one, rather than to a function."""

from __future__ import annotations

import ast

from tallax.lint._check import CHECKS, Context
from tallax.lint._index import Scope
from tallax.lint._kinds import Callee, Instance
from tallax.lint._known_names import JITS, NNX_TRANSFORMS, NODES
from tallax.lint._rule import Rule
from tallax.lint._settings import MAKING, is_self
from tallax.lint.rules.closures import is_expected_to_raise

RULE = Rule(
    code="TLX016",
    slug="transformed-object",
    title="A transformation applied to a module object instead of a function",
    why="""\
`self.block = nnx.remat(Block(...))` stores a function. The module inside it is no longer part of the model: its
parameters are missing from `nnx.state`, so they are not trained and not saved, and nothing is raised. The same is true
of `nnx.jit`, `jax.jit` and `jax.checkpoint`. Keep the module, and transform a function that takes it as an argument:
`nnx.remat(Block.__call__)(self.block, x)`, or decorate `Block.__call__`.

A method that is bound to a module, `nnx.jit(model.step)`, raises ValueError since Flax 0.12. Write
`nnx.jit(Model.step)(model, x)`.

The rule reports a transformed module that a module keeps in an attribute, and transformations of Flax that get a
bound method of a module. `nnx.jit(model)` in a script is not reported if the result is not kept in a module.
""",
    bad="""\
from flax import nnx


class Stack(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.block = nnx.remat(nnx.Linear(4, 4, rngs=rngs))

    def __call__(self, x):
        return self.block(x)
""",
    good="""\
from flax import nnx


class Stack(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.block = nnx.Linear(4, 4, rngs=rngs)

    def __call__(self, x):
        return nnx.remat(nnx.Linear.__call__)(self.block, x)
""",
    misses="Modules of unknown class.",
)

_KEEPING = NNX_TRANSFORMS | {"jax.jit", "jax.checkpoint", "jax.remat", "jax.vmap", "jax.pmap"}
# Their first argument is not a function, or they accept bound methods.
_OTHERS = {"nnx.cond", "nnx.switch", "nnx.while_loop", "nnx.fori_loop", "nnx.jit_partial"}


@CHECKS.call(*{name.rpartition(".")[2] for name in _KEEPING - _OTHERS})
def transformed(node: ast.Call, scope: Scope, context: Context) -> None:
    """Reports `self.block = nnx.remat(Block(...))` and `nnx.jit(model.step)`."""
    if not node.args or isinstance(node.args[0], ast.Starred):
        return
    transform = context.values.transform_of(node.func, scope)
    if transform not in _KEEPING - _OTHERS:
        return
    given = context.values.of(node.args[0], scope) or _before(node, scope, context)
    shown = context.source_of(node.args[0])
    if isinstance(given, Instance) and _is_module(given, context) and _is_kept(node, scope, context):
        if not _is_kept_twice(node, scope):
            harm = "the module in it is no longer part of this one: its parameters are neither trained nor saved"
        elif transform in JITS:
            harm = "its first call makes constants of the module's parameters: it does not see them change"
        else:
            return  # the other transformations read the parameters at each call
        context.report(
            RULE,
            node,
            f"{transform} returns a function, and {harm}; transform a function that takes `{shown}` as an argument",
        )
    elif isinstance(given, Callee) and transform in NNX_TRANSFORMS and _is_bound(given, context):
        if not is_expected_to_raise(node, context):
            method = shown.rpartition(".")[2]
            context.report(
                RULE,
                node,
                f"since Flax 0.12 {transform} raises ValueError for a bound method of a module, `{shown}`; write "
                f"`{transform}(Class.{method})` and pass the module as the first argument",
            )


def _before(node: ast.Call, scope: Scope, context: Context) -> Instance | None:
    """Returns the module that `self.x` holds before `self.x = nnx.jit(self.x)`."""
    argument = node.args[0]
    method = is_self(argument.value, scope) if isinstance(argument, ast.Attribute) else None
    if not isinstance(argument, ast.Attribute) or method is None or method.method_of is None:
        return None
    for cls in context.values.lineage(method.method_of):
        for setting in [] if isinstance(cls, str) else context.values.settings(cls).get(argument.attr, []):
            value = context.values.value_of(setting) if setting.value is not node else None
            if isinstance(value, Instance):
                return value
    return None


def _is_kept_twice(node: ast.Call, scope: Scope) -> bool:
    """Returns whether the module stays in another attribute: `self.run = nnx.jit(self.model)`."""
    argument, statement = node.args[0], scope.file.statement_of(node)
    if not isinstance(argument, ast.Attribute) or not is_self(argument.value, scope):
        return False
    written = statement.targets if isinstance(statement, ast.Assign) else []
    return not any(isinstance(target, ast.Attribute) and target.attr == argument.attr for target in written)


def _is_module(given: Instance, context: Context) -> bool:
    if isinstance(given.cls, str):
        return given.cls.startswith("nnx.") and given.cls not in NODES
    return context.values.is_module(given.cls)


def _is_bound(given: Callee, context: Context) -> bool:
    bound = given.bound
    return (
        given.scope.self_name is not None
        and isinstance(bound, Instance)
        and not isinstance(bound.cls, str)
        and context.values.is_module(bound.cls)
    )


def _is_kept(node: ast.Call, scope: Scope, context: Context) -> bool:
    """Returns whether a module keeps the result in an attribute, also within a list."""
    above = context.file.parent_of(node)
    if isinstance(above, ast.Call) and above.func is node:
        return False  # called at once: the weights are read through the closure, and nothing is lost
    method = scope
    while method.method_of is None and method.parent is not None:
        method = method.parent
    cls = method.method_of
    if cls is None or not context.values.is_module(cls):
        return False
    statement = context.file.statement_of(node)
    written = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    if any(isinstance(target, ast.Attribute) and is_self(target.value, scope) for target in written):
        return True
    return method.name.rpartition(".")[2] in MAKING  # in a local name or a list, to be kept a few lines on
