# SPDX-License-Identifier: Apache-2.0
"""TLX005: initial values of a weak type, and Python numbers where an array is expected."""

from __future__ import annotations

import ast

from tallax.lint._attribute_uses import Use
from tallax.lint._bindings import initial
from tallax.lint._check import CHECKS, Context, end_of, insertion, replacement
from tallax.lint._finding import Edit
from tallax.lint._index import Scope, last_name
from tallax.lint._kinds import Array, Frame, Number, Variable
from tallax.lint._known_names import derives
from tallax.lint._rule import Rule
from tallax.lint._settings import MAKING
from tallax.lint._steps import is_forward, is_test

RULE = Rule(
    code="TLX005",
    slug="weak-init",
    title="A weakly typed or Python number as initial value",
    why="""\
`jnp.array(0.5)`, `jnp.asarray(x)` of a Python number and `jnp.full(shape, 0.5)` are weakly typed: like a Python number,
they take the dtype of the values that they are combined with. The first optimizer step, or the first write of a
computed value, makes the Variable strongly typed. Its type has then changed, so a jitted training step is traced and
compiled again. With Adam, three traces were measured instead of one.

A Variable that holds a Python number, `nnx.Variable(0)`, does not support `[...]`: outside of a transformation,
`self.count[...] += 1` raises TypeError.

The rule reports a `nnx.Param` of a module with a weak initial value of floats, or with a Python float. It reports any
other Variable with a weak initial value if a strongly typed value is written into it later, and a Variable with a
Python number if it is indexed with `[...]` or written in the forward path. A weak count that changes only by `+= 1`
stays weak, and is not reported.
""",
    bad="""\
import jax.numpy as jnp
from flax import nnx


class Gate(nnx.Module):
    def __init__(self):
        self.threshold = nnx.Param(jnp.array(0.5))

    def __call__(self, x):
        return x > self.threshold[...]
""",
    good="""\
import jax.numpy as jnp
from flax import nnx


class Gate(nnx.Module):
    def __init__(self):
        self.threshold = nnx.Param(jnp.array(0.5, dtype=jnp.float32))

    def __call__(self, x):
        return x > self.threshold[...]
""",
    fix="""\
If the literal or the call is visible, it gets a dtype: `jnp.array(0.5, dtype=jnp.float32)`, or `int32` for a whole
number. A model in float64 needs another dtype.""",
    misses="Initial values of unknown type, such as an argument without an annotation.",
)


@CHECKS.each_variable
def weak_initial_value(node: ast.Call, scope: Scope, context: Context) -> None:
    """Reports a call that creates a Variable with such a value."""
    given = initial(node)
    if given is None:
        return
    variable = context.values.of(node, scope)
    if not isinstance(variable, Variable) or variable.call is not node:
        return
    value = context.values.of(given, scope)
    name, cls = _attribute_of(node, scope)
    if isinstance(value, Array) and value.weak:
        if derives(variable.type, "nnx.Param"):
            if cls is None or not name or not value.dtype.startswith("float"):
                return  # perhaps not part of a trained model, and no optimizer trains integers
            then = "the first optimizer step makes it strong"
        elif name and cls is not None and _is_written_strongly(cls, name, context):
            then = "the first write makes it strong"
        else:
            return
        context.report(
            RULE,
            node,
            f"the initial value of this {variable.called}, `{context.source_of(given)}`, is weakly typed: {then}, "
            "and the step is traced again; give it a dtype",
            _with_dtype(given, value, scope, context),
        )
    elif isinstance(value, Number) and value.type == "float" and name and derives(variable.type, "nnx.Param"):
        context.report(
            RULE,
            node,
            f"this {variable.called} holds a Python number, `{context.source_of(given)}`: the first optimizer step "
            "makes it an array of a strong type, and the step is traced again; give it an array with a dtype",
            _as_array(given, value, scope, context),
        )
    elif isinstance(value, Number) and name and cls is not None and _is_indexed(cls, name, node, context):
        context.report(
            RULE,
            node,
            f"this {variable.called} holds a Python number, `{context.source_of(given)}`, and is indexed with "
            "`[...]`, which raises "
            "TypeError; give it an array with a dtype",
            _as_array(given, value, scope, context),
        )
    elif (
        isinstance(value, Number) and value.type != "bool" and name and cls and _is_written_in_step(cls, name, context)
    ):
        context.report(
            RULE,
            node,
            f"this {variable.called} holds a Python number, `{context.source_of(given)}`, until a transformation "
            "makes it an array: the step is traced again; give it an array with a dtype",
            _as_array(given, value, scope, context),
        )


def _is_written_in_step(cls: Scope, name: str, context: Context) -> bool:
    """Returns whether the forward path writes a Variable, or a method that also writes arrays into other ones.

    A test may run its modules without a transformation.
    """
    if is_test(context.file.path):
        return False
    methods = {write.use.method for write in context.uses.writes(cls, name) if not write.replaces} - {
        cls.method(made) for made in MAKING
    }
    if any(is_forward(method, context) for method in methods):
        return True
    for other in context.uses.written(cls) - {name} if methods else ():
        held = context.values.member(cls, other, None)
        if isinstance(held, Variable) and isinstance(context.values.content(held), Array):
            writes = [w for w in context.uses.writes(cls, other) if not w.replaces and w.use.method in methods]
            if any(isinstance(context.values.of(w.value, Frame.of(w.use.scope)), Array) for w in writes):
                return True
    return False


def _attribute_of(node: ast.Call, scope: Scope) -> tuple[str, Scope | None]:
    """Returns the attribute of `self` that a value is assigned to, and the class."""
    above = scope.file.parent_of(node)
    if isinstance(above, ast.Call) and last_name(above.func) in ("data", "static"):  # nnx.data(nnx.Param(...))
        above = scope.file.parent_of(above)
    target = None
    if isinstance(above, ast.Assign) and len(above.targets) == 1:
        target = above.targets[0]
    elif isinstance(above, ast.AnnAssign):
        target = above.target
    current: Scope | None = scope
    while current is not None and current.method_of is None:
        current = current.parent
    cls = current.method_of if current is not None else None
    if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and current is not None:
        if target.value.id == current.self_name:
            return target.attr, cls
    return "", None


def _is_written_strongly(cls: Scope, name: str, context: Context) -> bool:
    for write in context.uses.writes(cls, name):
        if write.replaces or write.value is None:
            continue
        value = context.values.content_of(context.values.of(write.value, Frame.of(write.use.scope)))
        for k in write.item:
            value = None if k < 0 else value
        if isinstance(value, Array) and value.weak is False and not write.item:
            return True
    return False


def _is_indexed(cls: Scope, name: str, made: ast.Call, context: Context) -> bool:
    """Returns whether the attribute is read or written with `[...]`, by its class or one that derives from it in the
    file.
    """
    del made
    heirs = [c for c in context.file.classes if c is not cls and cls in context.values.lineage(c)]
    if any(_has_ellipsis(use) for c in (cls, *heirs) for use in context.uses.of(c, name)):
        return True
    for scope in context.file.inside():
        for node in scope.of(ast.Subscript):
            inner = node.value
            if isinstance(inner, ast.Attribute) and inner.attr == name and _is_ellipsis(node):
                value = context.values.of(inner, scope)
                if isinstance(value, Variable) and value.home == (cls, name):
                    return True
    return False


def _has_ellipsis(use: Use) -> bool:
    above = use.scope.file.parent_of(use.node)
    return isinstance(above, ast.Subscript) and above.value is use.node and _is_ellipsis(above)


def _is_ellipsis(node: ast.Subscript) -> bool:
    return isinstance(node.slice, ast.Constant) and node.slice.value is Ellipsis


def _numpy_name(scope: Scope, context: Context) -> str:
    """Returns the file's name for jax.numpy; empty if it is not imported."""
    for name, bindings in context.file.bindings.items():
        if any(b.how == "import" and b.what == "jax.numpy" for b in bindings):
            return name
    return ""


def _dtype(kind: str, jnp: str) -> str:
    return f"{jnp}.{'int32' if kind == 'int' else 'float32'}"


def _with_dtype(given: ast.expr, value: Array, scope: Scope, context: Context) -> tuple[Edit, ...]:
    jnp = _numpy_name(scope, context)
    function = given.func if isinstance(given, ast.Call) else None
    made = function.attr if isinstance(function, ast.Attribute) else ""
    if (
        not jnp
        or not isinstance(given, ast.Call)
        or made not in ("array", "asarray", "full")
        or value.dtype not in ("int", "float")
    ):
        return ()
    last = [*given.args, *(word.value for word in given.keywords)]
    if (
        not last
        or any(isinstance(a, ast.Starred) for a in given.args)
        or any(w.arg in (None, "dtype") for w in given.keywords)
    ):
        return ()
    return (insertion(max(last, key=end_of), f", dtype={_dtype(value.dtype, jnp)}"),)


def _as_array(given: ast.expr, value: Number, scope: Scope, context: Context) -> tuple[Edit, ...]:
    jnp = _numpy_name(scope, context)
    if not jnp or value.type not in ("int", "float") or given.lineno != given.end_lineno:
        return ()
    start = (given.lineno, given.col_offset)
    return (replacement(start, start, f"{jnp}.array("), insertion(given, f", dtype={_dtype(value.type, jnp)})"))
