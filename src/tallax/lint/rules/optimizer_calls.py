# SPDX-License-Identifier: Apache-2.0
"""TLX013: the form of nnx.Optimizer that Flax 0.11 removed."""

from __future__ import annotations

import ast

from tallax.lint._bindings import reaching
from tallax.lint._check import CHECKS, Context, end_of, insertion
from tallax.lint._index import Scope, last_name
from tallax.lint._kinds import Instance, Name, Value
from tallax.lint._rule import Rule

RULE = Rule(
    code="TLX013",
    slug="optimizer-form",
    title="nnx.Optimizer without wrt, or update without the model (Flax 0.11 and later)",
    since="0.11",
    why="""\
Since Flax 0.11, `nnx.Optimizer(model, tx)` raises TypeError: `wrt` must be given. The optimizer no longer holds the
model, so `optimizer.update(grads)` raises TypeError too; it is `optimizer.update(model, grads)`. If you support an
older Flax, ignore the rule: `ignore = ["optimizer-form"]`.

The rule reports a call of `nnx.Optimizer` with a model and a transformation and without `wrt`, and a call of `update`
with one argument on an object that is surely an `nnx.Optimizer`. If the class of the object is unknown, it
reports `optimizer.update(grads)` with the gradients of `nnx.grad` in a file that names `nnx.Optimizer`. If the file
also names `nnx.ModelAndOptimizer`, which keeps the model, an annotation alone is not enough.
""",
    bad="""\
import optax
from flax import nnx


def make(model: nnx.Module):
    return nnx.Optimizer(model, optax.adamw(1e-3))
""",
    good="""\
import optax
from flax import nnx


def make(model: nnx.Module):
    return nnx.Optimizer(model, optax.adamw(1e-3), wrt=nnx.Param)
""",
    fix="""\
It adds `wrt=nnx.Param`, the default of older versions. `update` needs the model, so it is left to you.""",
    misses="Optimizers that unknown functions return, and calls with `*args` or `**kwargs`.",
)


@CHECKS.call("Optimizer")
def without_wrt(node: ast.Call, scope: Scope, context: Context) -> None:
    """Reports `nnx.Optimizer(model, tx)`."""
    callee = context.values.of(node.func, scope)
    if not isinstance(callee, Name) or callee.name != "nnx.Optimizer" or _is_open(node):
        return
    given = len(node.args) + sum(word.arg in ("model", "tx") for word in node.keywords)
    if given != 2 or any(word.arg == "wrt" for word in node.keywords) or context.is_version_guarded(node):
        return
    last = max([*node.args, *(word.value for word in node.keywords)], key=end_of)
    prefix = _module_name(node.func)
    # Parentheses around the last argument would enclose the keyword.
    bare = _ends_bare(last, node)
    edits = (insertion(last, f", wrt={prefix}.Param"),) if prefix and bare else ()
    context.report(
        RULE, node, "since Flax 0.11 nnx.Optimizer raises TypeError without `wrt`; write `wrt=nnx.Param`", edits
    )


@CHECKS.call("update")
def update_without_model(node: ast.Call, scope: Scope, context: Context) -> None:
    """Reports `optimizer.update(grads)`."""
    function = node.func
    given = [*node.args, *(word.value for word in node.keywords if word.arg == "grads")]
    if not isinstance(function, ast.Attribute) or len(given) != 1 or len(node.keywords) + len(node.args) != 1:
        return
    if _is_open(node):
        return
    owner = context.values.of(function.value, scope)
    if _is_optimizer(owner, context):
        # An annotation may be nnx.Optimizer for either of the two.
        found = not _is_handed_in(function.value, scope) or "ModelAndOptimizer" not in context.file.text
    else:
        found = not _is_known(owner) and _is_statement(node, context) and _are_gradients(given[0], scope, context)
    if found and not context.is_version_guarded(node):
        shown = context.source_of(function)
        context.report(
            RULE,
            node,
            f"since Flax 0.11 `{shown}({context.source_of(given[0])})` raises TypeError; write `{shown}(model, grads)`",
        )


def _is_optimizer(owner: Value | None, context: Context) -> bool:
    if not isinstance(owner, Instance):
        return False
    if isinstance(owner.cls, str):
        return owner.cls == "nnx.Optimizer"
    lineage = context.values.lineage(owner.cls)
    return "nnx.Optimizer" in lineage and context.values.find_method(owner.cls, "update") is None


def _is_handed_in(node: ast.expr, scope: Scope) -> bool:
    if not isinstance(node, ast.Name) or node.id == scope.self_name:
        return False
    return any(b.how == "parameter" for b in scope.bindings.get(node.id, ()))


def _is_known(owner: Value | None) -> bool:
    """Returns whether an object is surely something else. An optax transformation is not: its `update` returns."""
    return owner is not None and not (isinstance(owner, Name) and owner.name.startswith("optax."))


def _is_statement(node: ast.Call, context: Context) -> bool:
    return isinstance(context.file.parent_of(node), ast.Expr)


def _are_gradients(node: ast.expr, scope: Scope, context: Context) -> bool:
    """Returns whether an argument is the result of `nnx.grad`, in a file that makes or names an `nnx.Optimizer`.

    Of the objects that have an `update` with gradients alone, only the old nnx.Optimizer returns nothing.
    """
    text = context.file.text
    if not isinstance(node, ast.Name) or "Optimizer" not in text or "ModelAndOptimizer" in text:
        return False
    for binding in reaching(scope.bindings.get(node.id, ()), node.lineno):
        call = binding.what
        if binding.how != "value" or not isinstance(call, ast.Call):
            continue
        if context.values.transform_of(call.func, scope) in ("nnx.grad", "nnx.value_and_grad"):
            return True
        made = reaching(scope.bindings.get(last_name(call.func), ()), call.lineno)
        functions = [b.what.func for b in made if b.how == "value" and isinstance(b.what, ast.Call)]
        if any(context.values.transform_of(f, scope) in ("nnx.grad", "nnx.value_and_grad") for f in functions):
            return True
    return False


def _is_open(node: ast.Call) -> bool:
    """Returns whether a call has arguments that are not written out."""
    return any(isinstance(a, ast.Starred) for a in node.args) or any(word.arg is None for word in node.keywords)


def _module_name(function: ast.expr) -> str:
    """Returns the file's name for nnx in `nnx.Optimizer`; empty if the class was imported alone."""
    if isinstance(function, ast.Attribute) and last_name(function.value):
        return ast.unparse(function.value)
    return ""


def _ends_bare(last: ast.expr, node: ast.Call) -> bool:
    """Returns whether the call's parenthesis follows the last argument on its line, without another in between."""
    return node.end_lineno == last.end_lineno and node.end_col_offset == (last.end_col_offset or 0) + 1
