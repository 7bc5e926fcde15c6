# SPDX-License-Identifier: Apache-2.0
"""TLX006: `.value` of a Variable."""

from __future__ import annotations

import ast
import re

from tallax.lint._bindings import reaching
from tallax.lint._check import CHECKS, Context, end_of, replacement
from tallax.lint._finding import Edit
from tallax.lint._index import Scope, last_name
from tallax.lint._kinds import Array, Instance, Name, Number, Variable
from tallax.lint._rule import Rule

RULE = Rule(
    code="TLX006",
    slug="deprecated-value",
    title="`.value` of a Variable",
    reports="""\
`.value` of a Variable: of an attribute that a class of the project sets to a Variable, of an attribute that is a
Variable in every class that has it, of a parameter that is annotated as a Variable, and of local names. An enum
member, a field or a submodule called `value` is not reported.
""",
    why="""\
Flax has deprecated `.value`. `variable[...]` reads an array, and `variable[...] = x` writes one and keeps shape and
dtype. `get_value()` and `set_value(x)` do the same for anything else that a Variable holds, such as a Python number
or a dict.
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
A read becomes `[...]` if the Variable is known to hold an array, and `get_value()` otherwise. `x.value.shape`,
`x.value.dtype` and the like also become `get_value()`, and so does `isinstance(x.value, ...)`, because it may run on
a model without arrays. A write becomes `x.set_value(...)`, which does the same as before. Only `x.value += 1` on an
array that keeps its dtype and shape becomes `x[...] += 1`.
""",
    limits="""\
If the class of an object is unknown, for example of a `model` without an annotation from a file that is not imported,
it is not reported.
""",
)


# The values of an abstract model also have these attributes, but do not support `[...]`.
_ABSTRACT = {"shape", "dtype", "ndim", "size", "sharding", "aval", "weak_type", "nbytes"}
_TYPE_TESTS = {"isinstance", "type", "hasattr", "getattr"}
_OPTIMIZER = re.compile(r"optim(?:izer)?$|^opt$", re.IGNORECASE)
_LINEN = re.compile(r"flax\.linen|import linen")
_LAYERS_OWN = {"kernel", "bias", "scale", "embedding", "lora_a", "lora_b"}


@CHECKS.attribute("value")
def value_of_a_variable(node: ast.Attribute, scope: Scope, context: Context) -> None:
    """Reports `x.value` if `x` is a Variable."""
    variable = context.values.of(node.value, scope)
    if variable is None:
        variable = (
            _as_told_apart(node, scope, context)
            or _as_one_of_its_kinds(node.value, scope, context)
            or _by_its_name(node.value, scope, context)
            or _in_a_state(node.value, scope, context)
            or _as_a_leaf(node.value, scope, context)
        )
    if not isinstance(variable, Variable) or (
        variable.cls is not None and context.values.defines(variable.cls, "value")
    ):
        return
    shown = context.source_of(node.value)
    held = context.values.content(variable)
    if isinstance(node.ctx, ast.Load) and _is_asked_what_it_is(node, context):
        held = None
    edits = _edits(node, held, context)
    instead = f"{shown}[...]" if isinstance(held, Array) else f"{shown}.get_value()"
    if isinstance(node.ctx, ast.Store):
        kept = bool(edits) and edits[0].text == "[...]"
        instead = f"{shown}[...] += ..." if kept else f"{shown}.set_value(...)"
    context.report(RULE, node, f"`{shown}.value` is deprecated; write `{instead}`", edits)


def _is_asked_what_it_is(node: ast.Attribute, context: Context) -> bool:
    """Returns whether a read asks for what abstract values have as well, `x.value.shape`, or for its type."""
    above = context.file.parent_of(node)
    if isinstance(above, ast.Attribute):
        return above.attr in _ABSTRACT
    return isinstance(above, ast.Call) and node in above.args[:1] and last_name(above.func) in _TYPE_TESTS


def _as_told_apart(node: ast.Attribute, scope: Scope, context: Context) -> Variable | None:
    """Returns the Variable of an object that `isinstance` identifies: `x.value if isinstance(x, nnx.Variable) else
    x`.
    """
    own = ast.dump(node.value)
    inner: ast.AST = node
    above = context.file.parent_of(node)
    while above is not None and not isinstance(above, (ast.FunctionDef, ast.AsyncFunctionDef)):
        if isinstance(above, (ast.If, ast.IfExp)) and _is_in_body(inner, above):
            for call in ast.walk(above.test):
                if (
                    isinstance(call, ast.Call)
                    and isinstance(call.func, ast.Name)
                    and call.func.id == "isinstance"
                    and len(call.args) == 2
                ):
                    if ast.dump(call.args[0]) == own:
                        told = context.values.annotated(call.args[1], scope)
                        return told if isinstance(told, Variable) else None
        inner, above = above, scope.file.parent_of(above)
    return None


def _is_in_body(node: ast.AST, branch: ast.If | ast.IfExp) -> bool:
    return node in branch.body if isinstance(branch, ast.If) else node is branch.body


def _as_one_of_its_kinds(node: ast.expr, scope: Scope, context: Context) -> Variable | None:
    """Returns the Variable that an attribute holds in one branch of the class's `__init__`: an array in another has no
    `.value`.
    """
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
    """Returns the Variable that an attribute of an unknown object is, if every class at hand that sets it holds one
    there.
    """
    if not isinstance(node, ast.Attribute):
        return None
    owner = context.values.of(node.value, scope)
    if owner is not None and not (isinstance(owner, Instance) and isinstance(owner.cls, str)):
        return None
    found = False
    for cls in context.classes_at_hand():
        value = context.values.own_member(cls, node.attr)
        if value is False:
            continue
        if not isinstance(value, Variable):
            return None
        found = True
    # Parameters of Flax's own layers have these names, and nothing else in such code has a `.kernel.value`. But beside
    # Linen, the `scale` of a quantized array may be an `nn.Partitioned`, whose `.value` is not deprecated.
    if not found and node.attr == "scale" and _LINEN.search(context.file.text):
        return None
    if not found and node.attr == "step" and _OPTIMIZER.search(last_name(node.value)):
        return Variable("nnx.OptState", held=Array(False, "uint32", "derived"))
    if not found and (node.attr not in _LAYERS_OWN or owner not in (None, Instance("nnx.Module"))):
        return None
    return Variable("nnx.Variable")  # its value is unknown


def _in_a_state(node: ast.expr, scope: Scope, context: Context) -> Variable | None:
    """Returns the Variable at a path of a state: `nnx.state(model)["layer"]["kernel"]`."""
    steps = 0
    while isinstance(node, (ast.Subscript, ast.Attribute)):
        node, steps = node.value, steps + 1
    if not steps or not isinstance(node, ast.Name):
        return None
    made = reaching(scope.bindings.get(node.id, ()), node.lineno)
    if len(made) != 1 or made[0].how != "value" or not isinstance(made[0].what, ast.Call):
        return None
    function = context.values.of(made[0].what.func, scope)
    is_state = function == Name("nnx.state") and not made[0].item
    is_state = is_state or (function == Name("nnx.split") and made[0].item not in ((), (0,)))
    return Variable("nnx.Variable") if is_state else None


def _as_a_leaf(node: ast.expr, scope: Scope, context: Context) -> Variable | None:
    """Returns the Variable that a function or loop gets from `jax.tree.map(..., is_leaf=...)` or `jax.tree.leaves`."""
    if not isinstance(node, ast.Name):
        return None
    inner: Scope | None = scope
    while inner is not None and node.id not in inner.bindings:
        inner = inner.parent
    made = reaching(inner.bindings[node.id], node.lineno) if inner is not None else ()
    if inner is None or len(made) != 1:
        return None
    if made[0].how == "element" and not made[0].item:
        return _leaf_of(made[0].what, inner, context)
    is_function = made[0].how == "parameter" and isinstance(inner.node, ast.Lambda)
    return _leaf_of(context.file.parent_of(inner.node), inner, context) if is_function else None


def _leaf_of(call: ast.AST | None, scope: Scope, context: Context) -> Variable | None:
    """Returns the Variable type that a call of `jax.tree` takes for a leaf."""
    if not isinstance(call, ast.Call):
        return None
    for word in call.keywords:
        asked = word.value.body if word.arg == "is_leaf" and isinstance(word.value, ast.Lambda) else None
        if isinstance(asked, ast.Call) and last_name(asked.func) == "isinstance" and len(asked.args) == 2:
            told = context.values.annotated(asked.args[1], scope)
            return Variable(told.type) if isinstance(told, Variable) else None
    return None


def _edits(node: ast.Attribute, held: object, context: Context) -> tuple[Edit, ...]:
    statement = context.file.parent_of(node)
    if isinstance(node.ctx, ast.Load):
        return (replacement(end_of(node.value), end_of(node), "[...]" if isinstance(held, Array) else ".get_value()"),)
    if isinstance(statement, ast.AugAssign):
        given = context.values.of(statement.value, context.scope_of(statement))
        if isinstance(held, Array) and isinstance(given, Number) and _keeps(held, given, statement.op):
            return (replacement(end_of(node.value), end_of(node), "[...]"),)
        if not _is_path(node.value):
            return ()
        operator = _OPERATORS.get(type(statement.op))
        return (
            _written(node, statement, f".set_value({ast.unparse(node.value)}.get_value() {operator} ", context)
            if operator
            else ()
        )
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        return _written(node, statement, ".set_value(", context)
    return ()


_OPERATORS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}


def _keeps(held: Array, given: Number, operator: ast.operator) -> bool:
    """Returns whether arithmetic with a Python number leaves an array its dtype: it always leaves the shape."""
    if held.dtype.startswith(("float", "bfloat")):
        return given.type in ("int", "float", "bool")
    return (
        held.dtype.startswith(("int", "uint")) and given.type in ("int", "bool") and not isinstance(operator, ast.Div)
    )


def _is_path(node: ast.expr) -> bool:
    """Returns whether an expression is of names and attributes only, and can be worked out twice."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name)


def _written(
    node: ast.Attribute, statement: ast.Assign | ast.AugAssign, call: str, context: Context
) -> tuple[Edit, ...]:
    """Returns the edits that replace `.value =` by `call`, and add the closing parenthesis after the statement."""
    line, column = end_of(node)
    behind = context.file.lines[line - 1].encode()[column:]
    sign = re.match(rb"[ \t]*[-+*/]?=[ \t]*", behind)
    value = statement.value
    # A bare tuple would become several arguments, and fixes within the value come first.
    if sign is None or isinstance(value, (ast.Tuple, ast.Yield, ast.YieldFrom, ast.Await, ast.Starred, ast.NamedExpr)):
        return ()
    if any(isinstance(inner, ast.Attribute) and inner.attr == "value" for inner in ast.walk(value)):
        return ()
    wrapped = isinstance(statement, ast.AugAssign) and not isinstance(
        value, (ast.Constant, ast.Name, ast.Attribute, ast.Call)
    )
    last = (statement.end_lineno or line, statement.end_col_offset or 0)
    return (
        replacement(end_of(node.value), (line, column + sign.end()), call + "(" * wrapped),
        replacement(last, last, ")" + ")" * wrapped),
    )
