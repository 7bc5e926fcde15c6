# SPDX-License-Identifier: Apache-2.0
"""TLX010: an optimizer or moving average of all state of a module."""

from __future__ import annotations

import ast

from tallax.lint._check import CHECKS, Context
from tallax.lint._index import Scope
from tallax.lint._kinds import Instance, Name, Variable
from tallax.lint._known_names import derives
from tallax.lint._rule import Rule

RULE = Rule(
    code="TLX010",
    slug="unfiltered",
    title="nnx.Optimizer or nnx.EMA over more than parameters",
    why="""\
`nnx.Optimizer(model, tx, wrt=nnx.Variable)` and `wrt=...` train and decay counts, statistics and bounds as well.
`nnx.EMA(model, decay)` averages every Variable: for an integer counter at 10, the average reads 1.

The rule reports an optimizer whose `wrt` is `nnx.Variable` or `...`, and an EMA without `only=` if the module certainly
holds Variables that are not parameters.
""",
    bad="""\
import optax
from flax import nnx


def make(model: nnx.Module):
    return nnx.Optimizer(model, optax.adamw(1e-3), wrt=nnx.Variable)
""",
    good="""\
import optax
from flax import nnx


def make(model: nnx.Module):
    return nnx.Optimizer(model, optax.adamw(1e-3), wrt=nnx.Param)
""",
    misses="An EMA of a module of unknown class, and filters that are made elsewhere.",
)

_OPTIMIZERS = {"nnx.Optimizer", "nnx.ModelAndOptimizer"}


@CHECKS.call("Optimizer", "ModelAndOptimizer", "EMA")
def unfiltered(node: ast.Call, scope: Scope, context: Context) -> None:
    """Reports `nnx.Optimizer(..., wrt=nnx.Variable)` and `nnx.EMA(model, decay)`."""
    function = node.func
    callee = context.values.of(function, scope)
    if not isinstance(callee, Name):
        return
    words = {word.arg: word.value for word in node.keywords}
    if callee.name in _OPTIMIZERS and "wrt" in words and _is_all(words["wrt"], scope, context):
        context.report(
            RULE,
            node,
            f"`wrt={context.source_of(words['wrt'])}` trains every Variable, counts and statistics "
            "too; write `wrt=nnx.Param`",
        )
    elif callee.name == "nnx.EMA" and node.args and ("only" not in words or _is_all(words["only"], scope, context)):
        model = context.values.of(node.args[0], scope)
        if isinstance(model, Instance) and not isinstance(model.cls, str):
            held = _state_of(model.cls, context)
            if held:
                context.report(RULE, node, f"nnx.EMA averages every Variable, `{held}` too; write `only=nnx.Param`")


def _is_all(node: ast.expr, scope: Scope, context: Context) -> bool:
    if isinstance(node, ast.Constant):
        return node.value is Ellipsis
    value = context.values.of(node, scope)
    return isinstance(value, Name) and value.name in ("nnx.Variable", "nnx.Everything")


def _state_of(cls: Scope, context: Context) -> str:
    """Returns an attribute with state other than parameters; empty if none is known."""
    for current in context.values.lineage(cls):
        for name in context.values.settings(current) if not isinstance(current, str) else ():
            value = context.values.member(cls, name, None)
            if isinstance(value, Variable) and not derives(value.type, "nnx.Param"):
                return name
            if isinstance(value, Instance) and value.cls == "nnx.BatchNorm":
                return name
    return ""
