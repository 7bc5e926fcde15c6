# SPDX-License-Identifier: Apache-2.0
"""TLX017: random numbers that are the same at every call."""

from __future__ import annotations

import ast
import re

from tallax.lint._check import CHECKS, Context
from tallax.lint._index import Scope, last_name
from tallax.lint._kinds import Instance, Name, Number, Plain, Type
from tallax.lint._rule import Rule
from tallax.lint._settings import MAKING, is_self
from tallax.lint._steps import is_test, is_transformed

RULE = Rule(
    code="TLX017",
    slug="constant-randomness",
    title="Random numbers from a constant seed in a step, or nnx.Rngs as a default argument",
    reports="""\
- a constant seed, `nnx.Rngs(0)` or `jax.random.key(0)`, in the forward path of a module, in its methods under a
  transformation, and in functions under a transformation that compute gradients, unless it is passed to the
  constructor of a module
- a draw in the forward path with a key in an attribute that nothing sets after construction
- `nnx.Rngs(...)` as the default of a parameter

Tests are not reported.
""",
    why="""\
A constant seed in the forward path gives the same random numbers at every call. At each step the same units are
dropped and the same noise is added. Nothing is raised. Draw from a stream that the model owns, or take a key as an
argument.

A default argument `rngs=nnx.Rngs(0)` is created once, when the function is defined. All models that use it share one
stream: the second one starts with different parameters than the first, and two models in one step alias each other.
""",
    bad="""\
import jax
from flax import nnx


class Noise(nnx.Module):
    def __call__(self, x):
        return x + jax.random.normal(jax.random.key(0), x.shape)
""",
    good="""\
from flax import nnx


class Noise(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.rngs = rngs.fork()

    def __call__(self, x):
        return x + self.rngs.normal(x.shape)
""",
    limits="""\
If a seed is not a literal, it is not reported. Evaluation outside of a module, which may repeat its noise on purpose,
is not reported either.
""",
)

_SEEDED = {"nnx.Rngs", "nnx.RngStream", "jax.random.key", "jax.random.PRNGKey"}
_GRADIENTS = {"grad", "value_and_grad"}


@CHECKS.call("Rngs", "RngStream", "key", "PRNGKey")
def constant_seed(node: ast.Call, scope: Scope, context: Context) -> None:
    """Reports `nnx.Rngs(0)` and `jax.random.key(0)` in a step."""
    given = [*node.args, *(word.value for word in node.keywords)]
    if not given or is_test(context.file.path) or not all(_is_constant(a, scope, context) for a in given):
        return
    callee = context.values.of(node.func, scope)
    name = callee.name if isinstance(callee, Name) else callee.cls if isinstance(callee, Type) else ""
    if name not in _SEEDED or _is_folded(scope) or not _is_in_step(scope, context):
        return
    if not _makes_a_module(node, scope, context) and not _is_stand_in(node, scope, context):
        context.report(
            RULE,
            node,
            f"`{context.source_of(node)}` in a step gives the same random numbers at every call; draw from a stream "
            "that the module owns, or take a key as an argument",
        )


@CHECKS.call("normal", "uniform", "bernoulli", "categorical", "randint", "permutation", "truncated_normal", "split")
def constant_key(node: ast.Call, scope: Scope, context: Context) -> None:
    """Reports `jax.random.normal(self.key, ...)` in the forward path if only the construction sets the key."""
    if not node.args or not isinstance(node.args[0], ast.Attribute):
        return
    name, method = node.args[0].attr, is_self(node.args[0].value, scope)
    cls = method.method_of if method is not None else None
    callee = context.values.of(node.func, scope) if cls is not None else None
    if cls is None or not isinstance(callee, Name) or not callee.name.startswith("jax.random."):
        return
    if not _is_set_once(name, cls, context) or not _is_in_step(scope, context):
        return
    held = context.values.member(cls, name, None)
    if (held is None or held == Plain("key")) and not is_test(context.file.path):
        context.report(
            RULE,
            node,
            f"`{context.source_of(node.args[0])}` is the same key at every call, and gives the same random numbers; "
            "draw from a stream that the module owns, or take a key as an argument",
        )


def _is_constant(node: ast.expr, scope: Scope, context: Context) -> bool:
    """Returns whether a seed is a number that is written out, also under a name that is bound once, such as `SEED`, or
    a number in an attribute that only the construction sets.
    """
    if isinstance(node, ast.Name):
        value = context.values.of(node, scope)
        return isinstance(value, Number) and value.value is not None
    if isinstance(node, ast.Attribute):
        method = is_self(node.value, scope)
        cls = method.method_of if method is not None else None
        if cls is None or not _is_set_once(node.attr, cls, context):
            return False
        value = context.values.member(cls, node.attr, None)
        return isinstance(value, Number) and value.type == "int"
    return isinstance(node, ast.Constant)


def _is_set_once(name: str, cls: Scope, context: Context) -> bool:
    """Returns whether only the construction sets an attribute, as far as the file shows."""
    lineage = [c for c in context.values.lineage(cls) if not isinstance(c, str)]
    settings = [setting for c in lineage for setting in context.values.settings(c).get(name, ())]
    outside = re.search(rf"(?<!self)\.{re.escape(name)}\b[^=\n]*=(?!=)", context.file.text)
    return bool(settings) and all(s.making for s in settings) and not outside


def _is_folded(scope: Scope) -> bool:
    """Returns whether a function folds other data into a key, which gives other numbers at each call."""
    return any(last_name(call.func) == "fold_in" for call in scope.of(ast.Call))


@CHECKS.call("Rngs")
def shared_default(node: ast.Call, scope: Scope, context: Context) -> None:
    """Reports `def f(rngs=nnx.Rngs(0))`."""
    arguments = context.file.parent_of(node)
    if not isinstance(arguments, ast.arguments) or isinstance(context.file.parent_of(arguments), ast.Lambda):
        return
    if context.values.of(node, scope) != Instance("nnx.Rngs"):
        return
    positional = [*arguments.posonlyargs, *arguments.args][-len(arguments.defaults) or None :]
    defaults = [*zip(positional, arguments.defaults), *zip(arguments.kwonlyargs, arguments.kw_defaults)]  # noqa: B905
    name = next(argument.arg for argument, default in defaults if default is node)
    context.report(
        RULE,
        node,
        f"the default of `{name}` is made once and shared by all calls, each of which changes it; "
        "make it None, and `nnx.Rngs(...)` in the body",
    )


def _is_in_step(scope: Scope, context: Context) -> bool:
    """Returns whether a function is part of a module's forward path, or differentiates under a transformation."""
    current: Scope | None = scope
    while current is not None and current.kind == "function":
        cls = current.method_of
        if cls is not None:
            making = current.name.rpartition(".")[2] in MAKING
            runs = current in context.values.forward(cls) or is_transformed(current, context)
            return runs and not making and context.values.is_module(cls)
        if is_transformed(current, context) and any(
            isinstance(call.func, ast.Attribute) and call.func.attr in _GRADIENTS
            for inner in current.inside()
            for call in inner.of(ast.Call)
        ):
            return True
        current = current.parent
    return False


def _makes_a_module(node: ast.Call, scope: Scope, context: Context) -> bool:
    """Returns whether the seed goes to the constructor of a module, which makes parameters only once."""
    current: ast.AST | None = node
    while current is not None and not isinstance(current, ast.stmt):
        current = context.file.parent_of(current)
        if isinstance(current, ast.Call):
            made = context.values.of(current.func, scope)
            if _is_class(current, scope, context) and not (isinstance(made, Name) and made.name in _SEEDED):
                return True
    return False


def _is_class(call: ast.Call, scope: Scope, context: Context) -> bool:
    """Returns whether a call makes an object: of a class in sight, or of one that is named like a class."""
    return isinstance(context.values.of(call.func, scope), Type) or last_name(call.func)[:1].isupper()


def _is_stand_in(node: ast.Call, scope: Scope, context: Context) -> bool:
    """Returns whether the seed only stands in for one that was not given, or makes a module by its name:
    `rngs = rngs or nnx.Rngs(0)`, `if rng is None: rng = jax.random.key(0)`.
    """
    above = context.file.parent_of(node)
    while isinstance(above, (ast.keyword, ast.Call)):  # `nnx.Rngs(params=jax.random.key(0))`
        above = context.file.parent_of(above)
    if isinstance(above, (ast.BoolOp, ast.IfExp, ast.Tuple, ast.List)):
        return True
    branch = context.file.enclosing(node, ast.If, ast.FunctionDef)
    if isinstance(branch, ast.If) and any(
        isinstance(inner, ast.Constant) and inner.value is None for inner in ast.walk(branch.test)
    ):
        return True
    if isinstance(above, ast.Assign) and len(above.targets) == 1 and isinstance(above.targets[0], ast.Name):
        name = above.targets[0].id
        for call in scope.of(ast.Call):
            given = [*call.args, *(word.value for word in call.keywords)]
            if any(isinstance(argument, ast.Name) and argument.id == name for argument in given):
                if _is_class(call, scope, context):
                    return True
    return False
