# SPDX-License-Identifier: Apache-2.0
"""TLX001: state that is kept as a trained parameter."""

from __future__ import annotations

import ast
import re
from typing import NamedTuple

from tallax.lint._bindings import initial, reaching
from tallax.lint._check import CHECKS, Context
from tallax.lint._classes import MAKING
from tallax.lint._index import File, Scope, last_name
from tallax.lint._kinds import Array, Frame, Name, Number, Variable
from tallax.lint._known_names import derives
from tallax.lint._rule import Rule
from tallax.lint.rules._evidence import read, written
from tallax.lint.rules._tables import table

RULE = Rule(
    code="TLX001",
    slug="param-state",
    title="State kept as nnx.Param",
    why="""\
The optimizer updates every `nnx.Param`: a counter gets a gradient of zero and is still decayed (10 becomes 9.9 after
one step of AdamW), a clip bound of infinity becomes NaN and takes all weights along, running statistics drift. Flax
ignores `nnx.Param(x, trainable=False)`: it is metadata that nobody reads. Use `nnx.Variable`, a subclass of it,
`nnx.BatchStat`, or tallax's items.

A name proves nothing: means, scales and temperatures are learned in many models. The rule wants evidence:
`trainable=False`; an initial value that is infinite, or of integers or booleans; the class itself counts it up,
blends it (`m * old + (1 - m) * new`), writes it in its forward path, or puts a function of itself in its place; it is
read only to update other state, only behind `stop_gradient`, or only as a tiny bound or epsilon; it is set to
another, untrained Variable a few lines on; a comment there says that it is fixed or not trained; it is a table that
is computed from positions alone (sines of `arange`, powers of a base, a window); or it has the name *and* the start of
a counter (`step` at 0), a running statistic (`running_mean` at zeros) or a buffer that a converted checkpoint fills in
(`latents_std` at ones). Only few names of buffers are enough alone (`inv_freq`, `position_ids`,
`e_score_correction_bias`). A comment, name or condition that says it is learned silences the rule.
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
    misses="Tables and constants of which nothing but their name says that they are not learned.",
)

_UNTRAINED = re.compile(
    r"\b(?:non-?\s?(?:trainable|learnable|trained|learned)|un(?:trained|trainable)|frozen|buffers?|"
    # Many things are fixed: a size, a bug. The word counts before a kind of values, and at the end of a clause.
    r"fixed(?=\s*(?:$|[,.;)(/#]|(?:and |but |or )?(?:not|non)\b|(?:[\w-]+\s+){0,2}(?:random|sin\w*|positions?|"
    r"positional|weights?|values?|tables?|embed\w*|buffers?|freq\w*|basis|matri\w*|param\w*|constants?|kernels?|filters?|"
    r"projections?|codebooks?)\b))|"
    r"(?:not|never|isn't|n't)(?: be)? (?:a )?"
    r"(?:train\w*|learn\w*|optimi[sz]ed|updated by (?:the )?(?:optimi[sz]er|gradient))|"
    r"only train it if|no gradients?|without gradients?)\b",
    re.IGNORECASE,
)
_TRAINED = re.compile(
    r"(?<!non-)(?<!non )(?<!not )(?<!not be )(?<!n't )(?<!never )(?<!n't be )"
    r"\b(?:learn(?:ed|able|t)|trainable|trained)\b",
    re.IGNORECASE,
)
# A comment that speaks of another attribute than the one it stands beside.
_ELSEWHERE = re.compile(r"\b(?:above|below|others?|previous|following|next|unlike|rest)\b", re.IGNORECASE)
_RUNNING = re.compile(
    r"^_?(?:(?:running|moving)_(?:mean|var|variance|std|avg|average|sum|min|max|count)|num_batches_tracked)$"
)
_COUNTER = re.compile(
    r"^_?(?:count|counter|step|steps|step_count|global_step|num_steps|n_steps|num_updates|num_calls|n_calls|iteration|"
    r"iterations|epoch|call_count|update_count|\w+_(?:count|counter))$"
)
# Names under which PyTorch models register buffers, which a converted checkpoint fills: names that are always buffers,
# and names that must also start as zeros or ones.
_BUFFER = re.compile(
    r"^_?(?:(?:original_)?inv_freqs?|freqs_cis|position_ids|relative_position_index|attn_mask|causal_mask|"
    r"(?:e_score_)?correction_bias|(?:positional_encoding_)?gaussian_matrix)$"
)
_FILLED = re.compile(
    r"^_?(?:(?:hann_)?window|mel_(?:basis|filters?)|(?:forward|inverse)_basis|std_(?:bias|scale)|"
    r"(?:latents?|pixel|image|data|obs|input)_(?:mean|std|var)|(?:ema_)?cluster_size|embed_avg|final_logits_bias)$"
)
_INTEGERS = {"int32", "int64", "uint32", "uint64", "int16", "bool", "bool_"}


@CHECKS.call()
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


class _Start(NamedTuple):
    """The initial value, and its frame: that of the function that makes the parameter, if there is one."""

    node: ast.expr
    frame: Frame


def _judge(node: ast.Call, variable: Variable, scope: Scope, context: Context) -> None:
    if not derives(variable.type, "nnx.Param") or variable.type == "nnx.LoRAParam":
        return
    given = initial(variable.call) if variable.call is not None else None
    start = _Start(given, variable.frame) if given is not None and variable.frame is not None else None
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


def _by_value(start: _Start | None, context: Context) -> str:
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


def _by_use(node: ast.Call, start: _Start | None, scope: Scope, context: Context) -> str:
    """Returns the evidence in the uses by the class."""
    name = _attribute(node, scope.file)
    method: Scope | None = scope
    while method is not None and method.method_of is None:
        method = method.parent
    cls = method.method_of if method is not None else None
    if not name or cls is None:
        return ""
    said = _said(node, scope, context)
    if said == "learned":
        return ""
    evidence = said or _by_value(start, context)
    if evidence:
        return evidence
    statement = scope.file.statement_of(node)
    if _is_replaced_by_state(statement, name, cls, context):
        return "a few lines on it is made an untrained Variable"
    return (
        written(name, cls, context)
        or read(start.node if start is not None else None, name, cls, context)
        or _computed(node, start, name, scope, context)
        or _named(node, start, name, context)
    )


def _said(node: ast.Call, scope: Scope, context: Context) -> str:
    """Returns the evidence in a comment at the statement, or above the value that it uses."""
    comment = context.comments_at(scope.file.statement_of(node).lineno)
    given = initial(node)
    if isinstance(given, ast.Name) and given.id in scope.bindings:
        for binding in reaching(scope.bindings[given.id], node.lineno):
            if binding.how == "value" and 0 <= node.lineno - binding.line <= 8:
                comment += " " + context.comments_at(binding.line)
                first = _first_of_block(binding.line, given.id, scope)
                comment += " " + context.comments_at(first)
    if _TRAINED.search(comment):
        return "learned"
    if _ELSEWHERE.search(comment):
        return ""
    found = _UNTRAINED.search(comment)
    return f'its comment says "{found.group(0)}"' if found else ""


def _first_of_block(line: int, name: str, scope: Scope) -> int:
    """Returns the line of the first assignment to a name in the block directly above a line."""
    lines = sorted(b.line for b in scope.bindings[name] if 0 <= line - b.line <= 6)
    return lines[0] if lines else line


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


def _computed(node: ast.Call, start: _Start | None, name: str, scope: Scope, context: Context) -> str:
    """Returns the evidence in the computation of the initial value."""
    method = scope.name.rpartition(".")[2]
    if start is None or method not in MAKING or _is_chosen(node, name, context):
        return ""
    return table(start.node, start.frame, context)


def _is_chosen(node: ast.Call, name: str, context: Context) -> bool:
    """Returns whether the name, or a condition around it, says that it is learned."""
    branch = context.file.enclosing(node, ast.If, ast.IfExp, ast.FunctionDef)
    condition = ast.dump(branch.test) if isinstance(branch, (ast.If, ast.IfExp)) else ""
    return re.search("train|learn", f"{name} {condition}", re.IGNORECASE) is not None


def _named(node: ast.Call, start: _Start | None, name: str, context: Context) -> str:
    """Returns the evidence in the name, or in name and initial value together."""
    if _BUFFER.match(name) and not _is_chosen(node, name, context):
        return "it has the name of a buffer"
    if start is None:
        return ""
    given, frame = start
    value = context.values.of(given, frame)
    if not isinstance(value, (Array, Number)):
        return ""
    maker = given.func.attr if isinstance(given, ast.Call) and isinstance(given.func, ast.Attribute) else ""
    if _RUNNING.match(name) and maker in ("zeros", "ones", "full", "array", "zeros_like", "ones_like"):
        return "it has the name and the start of a running statistic"
    if _FILLED.match(name) and maker in ("zeros", "ones", "full", "zeros_like", "ones_like"):
        return "it has the name and the start of a buffer that a checkpoint fills in"
    zero = isinstance(value, Number) and value.value == 0
    if maker in ("array", "asarray") and isinstance(given, ast.Call) and given.args:
        inner = context.values.of(given.args[0], frame)
        zero = isinstance(inner, Number) and inner.value == 0
    if maker in ("zeros", "ones"):
        zero = isinstance(value, Array) and bool(value.scalar)
    return "it has the name and the start of a counter" if zero and _COUNTER.match(name) else ""
