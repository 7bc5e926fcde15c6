# SPDX-License-Identifier: Apache-2.0
"""TLX015: a module, optimizer or metric that is changed through a closure under a transformation of Flax."""

from __future__ import annotations

import ast
import itertools

from tallax.lint._changes import uses_references
from tallax.lint._check import CHECKS, Context
from tallax.lint._index import Scope
from tallax.lint._kinds import Callee, Instance, Value
from tallax.lint._known_names import JITS, NNX_TRANSFORMS
from tallax.lint._outside_changes import differentiated_from_outside, is_self_static, may_evaluate, outside_changes
from tallax.lint._rule import Rule

RULE = Rule(
    code="TLX015",
    slug="changed-closure",
    title="A module changed through a closure under a transformation of Flax",
    why="""\
`nnx.jit`, `nnx.grad` and the other transformations track the modules that a function takes as arguments. If the
function closes over a module, an optimizer, a metric or `nnx.Rngs` and changes it, Flax raises `TraceContextError`. A
call of a model that contains BatchNorm, Dropout or a counter is such a change, unless the model is in evaluation mode.
Pass the object as an argument.

`nnx.grad(loss)(model)` with a closed-over `model` raises ValueError in a jitted function. A method of a plain class
under `nnx.jit(self.step)`, or with a static `self`, closes over the modules in `self`.

The rule reports the change, if the function surely makes it and the object surely comes from outside. Reading from a
closed-over module is allowed, and is not reported.
""",
    bad="""\
import optax
from flax import nnx

model = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
optimizer = nnx.Optimizer(model, optax.adamw(1e-3), wrt=nnx.Param)


@nnx.jit
def step(model: nnx.Linear, x):
    grads = nnx.grad(lambda model: model(x).mean())(model)
    optimizer.update(model, grads)
""",
    good="""\
import optax
from flax import nnx

model = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
optimizer = nnx.Optimizer(model, optax.adamw(1e-3), wrt=nnx.Param)


@nnx.jit
def step(model: nnx.Linear, optimizer: nnx.Optimizer, x):
    grads = nnx.grad(lambda model: model(x).mean())(model)
    optimizer.update(model, grads)
""",
    misses="Objects of unknown class, and `rngs` that a function passes on to a model.",
)

# These make modules rather than change them.
_TRANSFORMS = NNX_TRANSFORMS - {"nnx.eval_shape", "nnx.custom_vjp"}
# The arguments that are functions, of the transformations whose first argument is not a function.
_FUNCTIONS = {
    "nnx.cond": slice(1, 3),
    "nnx.switch": slice(1, 2),
    "nnx.while_loop": slice(0, 2),
    "nnx.fori_loop": slice(2, 3),
}


@CHECKS.each_decorated
def decorated(scope: Scope, context: Context) -> None:
    """Reports a function under a decorator of Flax that changes what it closes over."""
    if scope.parent is not None:
        transforms = context.values.transforms_of(scope)
        for transform, decorator in zip(transforms, scope.decorators, strict=True):
            if transform in _TRANSFORMS:
                _judge(scope, transform, context, owns_self=is_self_static(scope, decorator))
                return


@CHECKS.call(*{name.partition(".")[2] for name in _TRANSFORMS})
def passed(node: ast.Call, scope: Scope, context: Context) -> None:
    """Reports a function that is passed to a transformation of Flax and changes what it closes over."""
    transform = context.values.transform_of(node.func, scope)
    if transform not in _TRANSFORMS:
        return
    for argument in node.args[_FUNCTIONS.get(transform, slice(0, 1))]:
        for single in argument.elts if isinstance(argument, (ast.List, ast.Tuple)) else [argument]:
            given = context.values.of(single, scope)
            if isinstance(given, Callee) and (given.bound is None or _is_plain(given.bound, context)):
                owns_self = given.bound is not None and given.scope.self_name is not None
                _judge(given.scope, transform, context, owns_self)


def _is_plain(bound: Value, context: Context) -> bool:
    """Returns whether an object is of a class of the project outside of models, such as a trainer."""
    return isinstance(bound, Instance) and not isinstance(bound.cls, str) and not context.values.is_node(bound.cls)


def _judge(function: Scope, transform: str, context: Context, owns_self: bool = False) -> None:
    if function.file is not context.file or function.memory.get("judged for closures") or uses_references(function):
        return
    function.memory["judged for closures"] = True
    if owns_self and may_evaluate(function):
        return
    handled = function.parameter_names - ({function.self_name} if owns_self else set())
    changes = outside_changes(function, context, handled)
    if transform in JITS:
        changes = itertools.chain(changes, differentiated_from_outside(function, context, handled))
    seen: set[ast.AST] = set()
    for change in changes:
        if change.node in seen:
            continue
        seen.add(change.node)
        if not is_expected_to_raise(change.node, context):
            context.report(
                RULE,
                change.node,
                f"{change.said} in a function under {transform}, which closes over it: Flax raises an error; "
                "pass it as an argument",
            )


def is_expected_to_raise(node: ast.AST, context: Context) -> bool:
    """Returns whether code stands in a test's `with pytest.raises(...)`, or in a function that is defined there."""
    current = context.file.parent_of(node)
    while current is not None:
        if isinstance(current, ast.With) and any("raises" in ast.dump(w.context_expr).lower() for w in current.items):
            return True
        if isinstance(current, ast.FunctionDef) and any(
            isinstance(inner, ast.With) and any("raises" in ast.dump(w.context_expr).lower() for w in inner.items)
            for inner in current.body
        ):
            return True
        current = context.file.parent_of(current)
    return False
