# SPDX-License-Identifier: Apache-2.0
"""TLX006: `.value` of a Variable."""

from __future__ import annotations

import ast

from tallax_lint._check import CHECKS, Context, end_of, replacement
from tallax_lint._finding import Edit
from tallax_lint._index import Scope, parent_of
from tallax_lint._kinds import Array, Instance, Number, Variable
from tallax_lint._rule import Rule

RULE = Rule(
    code="TLX006",
    slug="deprecated-value",
    title="`.value` of a Variable",
    why="""\
Flax has deprecated `.value`: `variable[...]` reads an array, `variable[...] = x` writes it and keeps shape and dtype, and
`get_value()` and `set_value(x)` do the same for whatever else a Variable holds (a Python number, a dict).

The rule reports `.value` where what stands before it is a Variable: an attribute that a class of the project sets to one
(or that every class which has an attribute of that name does), a parameter annotated as one, a local name. An enum
member, a field called `value` and a submodule called `value` are none.
""",
    bad="""\
import jax.numpy as jnp
from flax import nnx


class Gate(nnx.Module):
    def __init__(self):
        self.scale = nnx.Param(jnp.ones(4))

    def __call__(self, x):
        return x * self.scale.value
""",
    good="""\
import jax.numpy as jnp
from flax import nnx


class Gate(nnx.Module):
    def __init__(self):
        self.scale = nnx.Param(jnp.ones(4))

    def __call__(self, x):
        return x * self.scale[...]
""",
    fix="""\
A read becomes `[...]` where the Variable is known to hold an array, else `get_value()`. `x.value += 1` becomes
`x[...] += 1` for an array, and every other write `x.set_value(...)`, which does what the old write did.""",
    misses="Objects whose class can't be told, such as an unannotated `model` of a class in a file that is not imported.",
)


_LAYERS_OWN = {"kernel", "bias", "scale", "embedding", "lora_a", "lora_b"}


@CHECKS.node(ast.Attribute)
def value_of_a_variable(node: ast.Attribute, scope: Scope, context: Context) -> None:
    """Reports `x.value` where `x` is a Variable."""
    if node.attr != "value":
        return
    variable = context.values.of(node.value, scope)
    if variable is None:
        variable = (
            _as_told_apart(node, scope, context)
            or _as_one_of_its_kinds(node.value, scope, context)
            or _by_its_name(node.value, scope, context)
        )
    if not isinstance(variable, Variable) or (variable.cls is not None and context.values.defines(variable.cls, "value")):
        return
    shown = context.source_of(node.value)
    held = context.values.content(variable)
    instead = f"{shown}[...]" if isinstance(held, Array) else f"{shown}.get_value()"
    if isinstance(node.ctx, ast.Store):
        instead = f"{shown}[...] = ..." if isinstance(held, Array) else f"{shown}.set_value(...)"
    context.report(RULE, node, f"`{shown}.value` is deprecated; write `{instead}`", _edits(node, held, context))


def _as_told_apart(node: ast.Attribute, scope: Scope, context: Context) -> Variable | None:
    """Returns the Variable that `isinstance` has told an object to be: `x.value if isinstance(x, nnx.Variable) else x`."""
    own = ast.dump(node.value)
    inner: ast.AST = node
    above = parent_of(node)
    while above is not None and not isinstance(above, (ast.FunctionDef, ast.AsyncFunctionDef)):
        if isinstance(above, (ast.If, ast.IfExp)) and _is_in_body(inner, above):
            for call in ast.walk(above.test):
                if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "isinstance" and len(call.args) == 2:
                    if ast.dump(call.args[0]) == own:
                        told = context.values.annotated(call.args[1], scope)
                        return told if isinstance(told, Variable) else None
        inner, above = above, parent_of(above)
    return None


def _is_in_body(node: ast.AST, branch: ast.If | ast.IfExp) -> bool:
    return node in branch.body if isinstance(branch, ast.If) else node is branch.body


def _as_one_of_its_kinds(node: ast.expr, scope: Scope, context: Context) -> Variable | None:
    """Returns the Variable that an attribute holds in one branch of the class's `__init__`: an array in another has no `.value`."""
    if not isinstance(node, ast.Attribute):
        return None
    owner = context.values.of(node.value, scope)
    if not isinstance(owner, Instance) or isinstance(owner.cls, str):
        return None
    for cls in context.values.lineage(owner.cls):
        settings = context.values.settings(cls).get(node.attr) if not isinstance(cls, str) else None
        if settings:
            held = [context.values.value_of(s) for s in settings if not s.augmented]
            if any(isinstance(value, Instance) for value in held):
                return None
            return next((Variable(value.type) for value in held if isinstance(value, Variable)), None)
    return None


def _by_its_name(node: ast.expr, scope: Scope, context: Context) -> Variable | None:
    """Returns the Variable that an attribute of an unknown object is, if every class at hand that sets it holds one there."""
    if not isinstance(node, ast.Attribute):
        return None
    owner = context.values.of(node.value, scope)
    if owner is not None and not (isinstance(owner, Instance) and isinstance(owner.cls, str)):
        return None
    found: list[Variable] = []
    for cls in context.classes_at_hand():
        value = context.values.own_member(cls, node.attr)
        if value is False:
            continue
        if not isinstance(value, Variable):
            return None
        found.append(value)
    if not found:
        # Flax's own layers call their parameters so, and nothing else in such code has a `.kernel.value`.
        return Variable("nnx.Param") if node.attr in _LAYERS_OWN and owner is None else None
    return found[0] if len(found) == 1 else Variable(found[0].type)


def _edits(node: ast.Attribute, held: object, context: Context) -> tuple[Edit, ...]:
    statement = parent_of(node)
    if isinstance(node.ctx, ast.Load):
        return (replacement(end_of(node.value), end_of(node), "[...]" if isinstance(held, Array) else ".get_value()"),)
    if isinstance(statement, ast.AugAssign) and isinstance(held, Array):
        given = context.values.of(statement.value, context.scope_of(statement))
        whole = isinstance(given, Number) and given.type in ("int", "bool")
        if whole or held.dtype.startswith("float"):
            return (replacement(end_of(node.value), end_of(node), "[...]"),)
    if isinstance(statement, ast.Assign) and statement.targets == [node] and not _mentions(statement.value, node):
        if statement.value.lineno == statement.lineno:
            before = replacement(end_of(node.value), (statement.value.lineno, statement.value.col_offset), ".set_value(")
            behind = end_of(statement.value)
            return (before, replacement(behind, behind, ")"))
    return ()


def _mentions(value: ast.expr, node: ast.Attribute) -> bool:
    """Says whether an assigned value has `.value`s of its own, which are mended first."""
    del node
    return any(isinstance(inner, ast.Attribute) and inner.attr == "value" for inner in ast.walk(value))


