# SPDX-License-Identifier: Apache-2.0
"""TLX001: state that is kept as a trained parameter."""

from __future__ import annotations

import ast
import re

from tallax.lint._bindings import initial
from tallax.lint._check import CHECKS, Context
from tallax.lint._index import File, Scope, last_name
from tallax.lint._kinds import Array, Frame, Name, Variable
from tallax.lint._known_names import derives
from tallax.lint._rule import Rule
from tallax.lint._settings import MAKING
from tallax.lint.rules._evidence import read, written
from tallax.lint.rules._tables import table
from tallax.lint.rules._words import Start, is_chosen, named, said

RULE = Rule(
    code="TLX001",
    slug="param-state",
    title="State kept as nnx.Param",
    why="""\
The optimizer updates every `nnx.Param`, also one that holds state. A counter gets a gradient of zero and still decays:
after one step of AdamW, 10 becomes 9.9. A bound of infinity becomes NaN, and with it every weight that it clips.
Running statistics drift. `nnx.Param(x, trainable=False)` does not help, because Flax ignores this metadata. Use
`nnx.Variable`, a subclass of it, `nnx.BatchStat` or a tallax variable.

Many models learn their means, scales and temperatures, so a name alone is no evidence. The rule reports a Param if

- it is made with `trainable=False`, or a comment says that it is fixed or not trained
- its initial value is infinite, or consists of integers or booleans
- its initial value is a table that depends on positions only: sines of `arange`, powers of a base, a window
- the class counts it up, blends it (`m * old + (1 - m) * new`), or writes it in its forward path
- the class reads it only to update other state, only behind `stop_gradient`, or only as a tiny bound or epsilon
- the next lines set the attribute to another, untrained Variable
- its name and its initial value are those of a counter (`step` at 0), a running statistic (`running_mean` at zeros) or
  a buffer that a converted checkpoint fills (`latents_std` at ones)
- its name is one of a few that PyTorch models use for buffers only: `inv_freq`, `position_ids`,
  `e_score_correction_bias`

If a comment, the name or a condition around it says that the Param is learned, the rule reports nothing.
""",
    bad="""\
import jax.numpy as jnp
from flax import nnx


class Gate(nnx.Module):
    def __init__(self):
        self.limit = nnx.Param(jnp.array(jnp.inf, dtype=jnp.float32))

    def __call__(self, x):
        return jnp.minimum(x, self.limit[...])
""",
    good="""\
import jax.numpy as jnp
from flax import nnx


class Bound(nnx.Variable):
    pass


class Gate(nnx.Module):
    def __init__(self):
        self.limit = Bound(jnp.array(jnp.inf, dtype=jnp.float32))

    def __call__(self, x):
        return jnp.minimum(x, self.limit[...])
""",
    misses="Tables and constants of which only the name tells that they are not learned.",
)

_INTEGERS = {"int32", "int64", "uint32", "uint64", "int16", "bool", "bool_"}


@CHECKS.each_variable
def kept_as_parameter(node: ast.Call, scope: Scope, context: Context) -> None:
    """Reports a call that makes an nnx.Param of state."""
    variable = context.values.of(node, scope)
    if isinstance(variable, Variable) and variable.call is node:
        _judge(node, variable, scope, context)


@CHECKS.each_class
def made_by_a_function(cls: Scope, context: Context) -> None:
    """Reports `self.x = make(...)` if the function returns such an nnx.Param."""
    for settings in context.values.settings(cls).values():
        for setting in settings:
            node = setting.value
            if not isinstance(node, ast.Call) or setting.item != () or last_name(node.func)[:1].isupper():
                continue
            variable = context.values.of(node, setting.scope)
            if isinstance(variable, Variable) and variable.call is not None and variable.call is not node:
                if not isinstance(context.values.of(node.func, setting.scope), Name):  # `nnx.data(nnx.Param(...))`
                    _judge(node, variable, setting.scope, context)


def _judge(node: ast.Call, variable: Variable, scope: Scope, context: Context) -> None:
    if not derives(variable.type, "nnx.Param") or variable.type == "nnx.LoRAParam":
        return
    given = initial(variable.call) if variable.call is not None else None
    start = Start(given, variable.frame) if given is not None and variable.frame is not None else None
    evidence = _stated(node) or _by_use(node, start, scope, context)
    if evidence:
        name = _attribute(node, scope.file)
        shown = f"`self.{name}`" if name else "this"
        context.report(
            RULE,
            node,
            f"{shown} is kept as {variable.called}, which the optimizer updates and decays, but {evidence}; use "
            "nnx.Variable, a subclass of it or a tallax variable",
        )


def _attribute(node: ast.Call, file: File) -> str:
    statement = file.parent_of(node)
    if isinstance(statement, ast.Call):  # nnx.data(nnx.Param(...))
        statement = file.parent_of(statement)
    target = statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, "target", None)
    return target.attr if isinstance(target, ast.Attribute) else ""


def _stated(node: ast.Call) -> str:
    """Returns the evidence in the call itself: `trainable=False`."""
    for word in node.keywords:
        if word.arg in ("trainable", "requires_grad", "learnable", "is_trainable"):
            if isinstance(word.value, ast.Constant) and word.value.value is False:
                return f"`{word.arg}=False` is metadata that Flax ignores"
    return ""


def _by_value(start: Start | None, context: Context) -> str:
    """Returns the evidence in the initial value: infinities, integers, masks."""
    if start is None:
        return ""
    given, frame = start
    value = context.values.of(given, frame)
    if isinstance(value, Array) and value.dtype in _INTEGERS:
        return f"it holds {value.dtype.rstrip('_')}, which has no gradient"
    if isinstance(value, Array) and value.dtype == "int" and _is_arange(given, frame, context):
        return "it holds integers, which have no gradient"
    if _is_infinite(given, frame, context):
        return "it starts at infinity, as a bound does"
    inner = given.func if isinstance(given, ast.Call) else None
    if (
        isinstance(inner, ast.Attribute)
        and inner.attr in ("tril", "triu")
        and isinstance(given, ast.Call)
        and given.args
    ):
        made = given.args[0]
        if isinstance(made, ast.Call) and isinstance(made.func, ast.Attribute) and made.func.attr == "ones":
            return "it is a mask of zeros and ones"
    return ""


def _is_arange(given: ast.expr, frame: Frame, context: Context) -> bool:
    node = context.uses.expanded(given, frame)[0]
    return any(isinstance(n, ast.Attribute) and n.attr == "arange" for n in ast.walk(node))


def _is_infinite(given: ast.expr, frame: Frame, context: Context) -> bool:
    """Returns whether an array is made of infinities: `jnp.array(-float("inf"))`, `jnp.full(n, jnp.inf)`."""
    if (
        not isinstance(given, ast.Call)
        or not isinstance(given.func, ast.Attribute)
        or given.func.attr not in ("array", "asarray", "full")
    ):
        return False
    for argument in given.args:
        if isinstance(argument, ast.UnaryOp):
            argument = argument.operand
        if (
            isinstance(argument, ast.Call)
            and isinstance(argument.func, ast.Name)
            and argument.func.id == "float"
            and argument.args
        ):
            text = argument.args[0]
            if isinstance(text, ast.Constant) and str(text.value).strip("+-").lower() in ("inf", "infinity"):
                return True
        value = context.values.of(argument, frame)
        if isinstance(value, Name) and value.name in ("jnp.inf", "np.inf", "math.inf"):
            return True
    return False


def _by_use(node: ast.Call, start: Start | None, scope: Scope, context: Context) -> str:
    """Returns the evidence in the uses by the class."""
    name = _attribute(node, scope.file)
    method: Scope | None = scope
    while method is not None and method.method_of is None:
        method = method.parent
    cls = method.method_of if method is not None else None
    if not name or cls is None:
        return ""
    comment = said(node, scope, context)
    if comment == "learned":
        return ""
    evidence = comment or _by_value(start, context)
    if evidence:
        return evidence
    statement = scope.file.statement_of(node)
    if _is_replaced_by_state(statement, name, cls, context):
        return "a few lines on it is made an untrained Variable"
    return (
        written(name, cls, context)
        or read(start.node if start is not None else None, name, cls, context)
        or _computed(node, start, name, scope, context)
        or named(node, start, name, context)
    )


def _is_replaced_by_state(statement: ast.stmt, name: str, cls: Scope, context: Context) -> bool:
    """Returns whether an `if` behind the statement, in the same block, makes the attribute an untrained Variable after
    all.
    """
    file = cls.file
    for setting in context.values.settings(cls).get(name, ()):
        other = setting.node
        if other is statement or other.lineno < statement.lineno or setting.value is None:
            continue
        branch, above = file.parent_of(other), file.parent_of(statement)
        if isinstance(branch, ast.If) and file.parent_of(branch) is above and other in branch.body:
            made = context.values.of(setting.value, setting.scope)
            text = ast.dump(branch.test)
            if (
                isinstance(made, Variable)
                and not derives(made.type, "nnx.Param")
                and not re.search("train|learn", text, re.IGNORECASE)
            ):
                return True
    return False


def _computed(node: ast.Call, start: Start | None, name: str, scope: Scope, context: Context) -> str:
    """Returns the evidence in the computation of the initial value."""
    method = scope.name.rpartition(".")[2]
    if start is None or method not in MAKING or is_chosen(node, name, context):
        return ""
    return table(start.node, start.frame, context)
