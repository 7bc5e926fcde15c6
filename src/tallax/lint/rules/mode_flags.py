# SPDX-License-Identifier: Apache-2.0
"""TLX018: the methods `train` and `eval` of a module, used as if they were flags."""

from __future__ import annotations

import ast

from tallax.lint._check import CHECKS, Context
from tallax.lint._index import Scope
from tallax.lint._kinds import Instance
from tallax.lint._rule import Rule
from tallax.lint._settings import is_self

RULE = Rule(
    code="TLX018",
    slug="mode-flag",
    title="The methods train and eval of a module used as a flag",
    why="""\
Every `nnx.Module` has the methods `train()` and `eval()`. `if self.train:` asks whether there is such a method, which
is always true, so the model behaves at evaluation as in training, and nothing is raised. `self.train = True` hides the
method: `model.train()` then raises TypeError, and `train()` and `eval()` of a module around it do not change the
flag. `model.eval()` sets the attributes `deterministic` and `use_running_average`; give yours one of these names, or
another one that is not a method, such as `training`.

The rule reports `self.train` and `self.eval`, and the same attributes of an object that is surely a module, if they are
read without a call or assigned, and no class in sight defines them.
""",
    bad="""\
import jax.numpy as jnp
from flax import nnx


class Scale(nnx.Module):
    def __call__(self, x):
        return 2 * x if self.train else x
""",
    good="""\
import jax.numpy as jnp
from flax import nnx


class Scale(nnx.Module):
    def __init__(self):
        self.deterministic = False

    def __call__(self, x):
        return x if self.deterministic else 2 * x
""",
    misses="Objects of unknown class.",
)


@CHECKS.attribute("train", "eval")
def used_as_flag(node: ast.Attribute, scope: Scope, context: Context) -> None:
    """Reports `if self.train`, `self.train = True` and the like."""
    above = context.file.parent_of(node)
    if isinstance(above, ast.Call) and above.func is node:
        return
    owner = context.values.of(node.value, scope)
    if not isinstance(owner, Instance):
        return
    if isinstance(owner.cls, str):
        if owner.cls != "nnx.Module":
            return
    elif not context.values.is_module(owner.cls) or context.values.defines(owner.cls, node.attr):
        return
    shown = context.source_of(node)
    if isinstance(node.ctx, ast.Store):
        if _is_first_write(node, scope, context):
            context.report(
                RULE,
                node,
                f"`{shown}` hides the module's method: `model.{node.attr}()` raises TypeError, and train() and eval() "
                "of a module around it do not change the flag; call it `deterministic`, which they set",
            )
    elif not _is_flag_of_its_own(owner, node.attr, context) and _is_asked(above):
        context.report(
            RULE,
            node,
            f"`{shown}` is a method, which is always true; ask a flag such as `deterministic`, which "
            f"`model.{node.attr}()` sets",
        )


def _is_flag_of_its_own(owner: Instance, name: str, context: Context) -> bool:
    """Returns whether the class assigns the attribute: then the assignment is reported, and the flag works."""
    lineage = [] if isinstance(owner.cls, str) else context.values.lineage(owner.cls)
    return any(not isinstance(c, str) and name in context.values.settings(c) for c in lineage)


def _is_first_write(node: ast.Attribute, scope: Scope, context: Context) -> bool:
    """Returns whether it is the first assignment to the attribute in its class: one finding for each flag is enough."""
    method = is_self(node.value, scope)
    if method is None or method.method_of is None:
        return True
    settings = context.values.settings(method.method_of).get(node.attr, [])
    return not settings or settings[0].node is context.file.statement_of(node)


def _is_asked(above: ast.AST | None) -> bool:
    """Returns whether an expression is used for its truth, or passed on as a value."""
    if isinstance(above, ast.Attribute):
        return False  # `self.train.__func__`
    if isinstance(above, ast.Call):
        return True
    return isinstance(
        above, (ast.If, ast.IfExp, ast.While, ast.BoolOp, ast.UnaryOp, ast.keyword, ast.Compare, ast.Assert)
    )
