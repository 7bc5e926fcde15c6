# SPDX-License-Identifier: Apache-2.0
"""TLX008: a module that changes under a transformation of JAX, which hands the change to nobody."""

from __future__ import annotations

import ast

from tallax.lint._changes import changes, changes_when_called, is_evaluating, uses_references
from tallax.lint._check import CHECKS, Context
from tallax.lint._flow import origin, returned, root_of
from tallax.lint._index import Scope, last_name
from tallax.lint._kinds import Callee, Instance, Name
from tallax.lint._known_names import NODES, RAW_TRANSFORMS
from tallax.lint._outside_changes import called_object, is_in_evaluation, is_self_static, may_evaluate, outside_changes
from tallax.lint._rule import Rule

RULE = Rule(
    code="TLX008",
    slug="lost-update",
    title="A module's update is lost under a transformation of JAX",
    why="""\
`jax.jit`, `jax.checkpoint`, `jax.vmap`, `jax.grad` and the control flow of `jax.lax` do not know modules. If you pass a
module as an argument, the function gets a copy. The changes that a call makes in it, such as counts, running statistics
and random streams, are lost unless the function returns the module or its state. The updates of an `nnx.Optimizer` or a
metric are lost in the same way.

If the function closes over the module, its weights are constants of the compiled program, and a change raises
`TraceContextError` or is lost silently. `static_argnums=0` on a method makes `self` such a constant, and
`static_argnames="model"` makes the model one.

The rule reports functions under these transformations that change a module, or call a module that changes itself,
without returning it or its state. It also reports calls of an `nnx.Module` of unknown class, and `nnx.Rngs` that such a
function passes on to a module. If the call of a module changes nothing, or the function merges the module itself, the
rule reports nothing.
""",
    bad="""\
import jax
import jax.numpy as jnp
from flax import nnx


class Model(nnx.Module):
    def __init__(self):
        self.count = nnx.Variable(jnp.array(0, dtype=jnp.int32))

    def __call__(self, x):
        self.count[...] += 1
        return x


@jax.jit
def step(model: Model, x):
    return model(x)
""",
    good="""\
import jax.numpy as jnp
from flax import nnx


class Model(nnx.Module):
    def __init__(self):
        self.count = nnx.Variable(jnp.array(0, dtype=jnp.int32))

    def __call__(self, x):
        self.count[...] += 1
        return x


@nnx.jit
def step(model: Model, x):
    return model(x)
""",
    misses="Modules of unknown class, and modules that leave such a function through a global name.",
)

# `jax.lax.switch` takes a list of functions, and `jax.linearize` returns one: both are left to statecheck.
_RAW = RAW_TRANSFORMS - {"jax.lax.switch", "jax.linearize"}
# Which of their arguments are functions.
_FUNCTIONS = {"jax.lax.cond": slice(1, 3), "jax.lax.while_loop": slice(0, 2), "jax.lax.fori_loop": slice(2, 3)}
_FUNCTION_WORDS = {"f", "fun", "body_fun", "cond_fun", "true_fun", "false_fun"}
_TAKING_APART = {
    "nnx.split",
    "nnx.merge",
    "nnx.state",
    "nnx.update",
    "nnx.to_tree",
    "nnx.to_pure_dict",
    "nnx.graphdef",
    "nnx.call",
}
_DIFFERENTIATING = {"nnx.value_and_grad", "nnx.grad"}


@CHECKS.each_decorated
def decorated(scope: Scope, context: Context) -> None:
    """Reports a function under a decorator of JAX that changes a module."""
    transforms = context.values.transforms_of(scope)
    if not all(t or _is_harmless(d) for t, d in zip(transforms, scope.decorators, strict=True)):
        return  # another decorator may pass the state in and out
    for transform, decorator in zip(transforms, scope.decorators, strict=True):
        if transform in _RAW:
            _judge(scope, transform, scope.node, context, owns_self=is_self_static(scope, decorator))
            return


def _is_harmless(decorator: ast.expr) -> bool:
    return isinstance(decorator, ast.Name) and decorator.id in ("staticmethod", "classmethod", "override")


@CHECKS.call("jit", "pmap", "vmap", "checkpoint", "remat", "scan", "map", "cond", "while_loop", "fori_loop")
@CHECKS.call("grad", "value_and_grad", "vjp", "jvp", "shard_map")
def handed(node: ast.Call, scope: Scope, context: Context) -> None:
    """Reports a function or module that is passed to a transformation of JAX."""
    transform = context.values.transform_of(node.func, scope)
    if transform in _RAW:
        functions = node.args[_FUNCTIONS.get(transform, slice(0, 1))]
        for argument in [*functions, *(word.value for word in node.keywords if word.arg in _FUNCTION_WORDS)]:
            _judge_given(argument, node, transform, scope, context)


def _judge_given(argument: ast.expr, node: ast.Call, transform: str, scope: Scope, context: Context) -> None:
    given = context.values.of(argument, scope)
    if isinstance(given, Callee):
        if not given.transformed:
            bound = given.bound
            if isinstance(bound, Instance) and not isinstance(bound.cls, str) and context.values.is_node(bound.cls):
                if not uses_references(bound.cls) and changes(bound.cls, given.scope.name.rpartition(".")[2], context):
                    _report(node, f"`{context.source_of(argument)}` changes its module", transform, context)
            else:
                owns_self = isinstance(bound, Instance) and given.scope.self_name is not None
                _judge(given.scope, transform, given.scope.node, context, owns_self=owns_self)
    elif isinstance(given, Instance) and changes_when_called(given, "__call__", context):
        _report(node, f"calling `{context.source_of(argument)}` changes it", transform, context)


def _judge(scope: Scope, transform: str, place: ast.AST, context: Context, owns_self: bool = False) -> None:
    """Reports the changes of a function to modules that it closes over, or gets as arguments and does not return.

    If `owns_self`, then `self` is a constant for the transformation, and modules in it are closed over.
    """
    if scope.file is not context.file or scope.memory.get("judged"):
        return
    scope.memory["judged"] = True
    if uses_references(scope) or (owns_self and may_evaluate(scope)):
        return
    own_self = {scope.self_name or ""}
    handled = _taken_apart(scope, context) | returned(scope) | (set() if owns_self else own_self)
    own = scope.parameter_names - own_self
    for change in outside_changes(scope, context, handled):
        _report(change.node if change.is_direct else place, change.said, transform, context, change.root not in own)
    for inner in scope.inside():
        for call in inner.of(ast.Call):
            root = origin(root_of(call.func), inner, scope)
            if root and root not in handled and not is_evaluating(call):
                _judge_unknown(call, root, inner, scope, transform, context)
            for stream in _streams_handed_on(call, inner, scope, context) - handled:
                _report(place, f"`{context.source_of(call.func)}` draws from `{stream}`", transform, context)
    for parameter in scope.parameters:
        if parameter.arg not in handled and not is_in_evaluation(parameter.arg, scope):
            if _is_differentiated(parameter.arg, scope, context) and context.values.parameter(parameter, scope) is None:
                _report(place, f"`{parameter.arg}` is a module whose updates are not returned", transform, context)
                return


def _judge_unknown(call: ast.Call, root: str, scope: Scope, judged: Scope, transform: str, context: Context) -> None:
    """Reports a call of something that is an `nnx.Module` and of which no more is known."""
    owner, _, value = called_object(call, scope, context)
    closed = root not in judged.parameter_names
    if (
        isinstance(value, Instance)
        and value.cls == "nnx.Module"
        and (closed or _is_differentiated(root, judged, context))
        and transform in ("jax.jit", "jax.pmap", "jax.checkpoint", "jax.remat")
        and isinstance(owner, ast.Name)
        and not is_in_evaluation(root, judged)
    ):
        _report(judged.node, f"`{root}` may be any module, and calling it may change it", transform, context, closed)


def _streams_handed_on(call: ast.Call, inner: Scope, scope: Scope, context: Context) -> set[str]:
    """Returns the function's own `nnx.Rngs` that it passes to a call of a module. Constructors may get them."""
    value = context.values.of(call.func, inner)
    merged = isinstance(call.func, ast.Name) and any(
        isinstance(b.what, ast.Call) and last_name(b.what.func) == "merge" for b in inner.bindings.get(call.func.id, ())
    )
    if not merged and not (isinstance(value, Instance) and value.cls not in NODES):
        return set()
    given = [*call.args, *(word.value for word in call.keywords)]
    roots = {origin(argument.id, inner, scope) for argument in given if isinstance(argument, ast.Name)}
    return {
        parameter.arg
        for parameter in scope.parameters
        if parameter.arg in roots and parameter.annotation is not None
        if context.values.parameter(parameter, scope) == Instance("nnx.Rngs")
    }


def _report(node: ast.AST, what: str, transform: str, context: Context, closed: bool = False) -> None:
    last = transform.rpartition(".")[2]
    remedy = {"checkpoint": "nnx.remat", "map": "nnx.scan"}.get(last, f"nnx.{last}")
    then = (
        "which closes over it: Flax raises TraceContextError, or the update is lost; hand it to "
        f"{remedy} as an argument"
        if closed
        else f"and the update is lost; use {remedy}, or return nnx.state(...) and nnx.update"
    )
    context.report(RULE, node, f"{what} under {transform}, {then}")


def _taken_apart(scope: Scope, context: Context) -> set[str]:
    """Returns the names whose state a function splits and handles itself."""
    found: set[str] = set()
    for inner in scope.inside():
        for call in inner.of(ast.Call):
            function = call.func
            if isinstance(function, ast.Attribute) and function.attr in {n.partition(".")[2] for n in _TAKING_APART}:
                callee = context.values.of(function, inner)
                if isinstance(callee, Name) and callee.name in _TAKING_APART:
                    found |= {a.id for a in call.args if isinstance(a, ast.Name)}
    return found


def _is_differentiated(name: str, scope: Scope, context: Context) -> bool:
    """Returns whether a name is handed to what nnx.grad made: then it is a module, or Variables."""
    for call in scope.of(ast.Call):
        if any(isinstance(a, ast.Name) and a.id == name for a in call.args[:1]):
            if context.values.transform_of(call.func, scope) in _DIFFERENTIATING and not isinstance(
                call.func, ast.Attribute
            ):
                return True
    return False
