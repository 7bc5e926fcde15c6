# SPDX-License-Identifier: Apache-2.0
"""TLX002: a Variable replaced by what was to be written into it."""

from __future__ import annotations

import ast

from tallax.lint._bindings import reaching
from tallax.lint._check import CHECKS, Context, insertion
from tallax.lint._finding import Edit
from tallax.lint._index import Scope, targets
from tallax.lint._kinds import Array, Frame, Items, Number, Table, Value, Variable, element, item
from tallax.lint._rule import Rule
from tallax.lint._settings import MAKING, Setting, is_self, line_of_super

RULE = Rule(
    code="TLX002",
    slug="replaced-variable",
    title="A Variable is replaced instead of written",
    reports="""\
An assignment of an array or a number to an attribute, an element of a list or dict, or a parameter of a function that
holds a Variable. The Variable may be created in this class, or in a base class in any file. In `__init__` the
assignment is reported if `super().__init__()` has already created the Variable. `setattr(self, "mean", x)`, and a
list of arrays in place of a list of Variables, are reported too.

A new Variable (`self.losses = nnx.Intermediate(x)`), a choice between branches of `__init__`, and a Variable whose
own class defines `+=`, such as a `tallax.Counter`, are not reported.
""",
    why="""\
`self.mean = 0.9 * self.mean + 0.1 * x` replaces the Variable by an array, and nothing is raised. From then on,
transformations do not return the value, `nnx.state(model, nnx.BatchStat)` does not contain it, and checkpoints leave
it out. `self.count += 1`, which Flax once advertised, raises NotImplementedError now.
""",
    bad="""\
import jax.numpy as jnp
from flax import nnx


class Model(nnx.Module):
    def __init__(self):
        self.count = nnx.Variable(jnp.zeros((), jnp.int32))

    def __call__(self, x):
        self.count += 1
        return x
""",
    good="""\
import jax.numpy as jnp
from flax import nnx


class Model(nnx.Module):
    def __init__(self):
        self.count = nnx.Variable(jnp.zeros((), jnp.int32))

    def __call__(self, x):
        self.count[...] += 1
        return x
""",
    fix="`self.x += y` becomes `self.x[...] += y` if the Variable is known to hold an array.",
    limits="""\
If a function is unknown, its result is not reported, because it may be a Variable. The same holds for objects whose
class is unknown.
""",
)


@CHECKS.node(ast.AugAssign)
def changed_in_place(node: ast.AugAssign, scope: Scope, context: Context) -> None:
    """Reports `self.x += y` on a Variable, and `x += y` if `x` is one."""
    target = node.target
    if isinstance(target, ast.Attribute) or _is_element(target, scope, context):
        value = context.values.of(target, scope)
    elif isinstance(target, ast.Name):
        value = context.values.name(target.id, node.lineno - 1, Frame.of(scope))
    else:
        return
    if not isinstance(value, Variable) or _takes(value, node.op, context):
        return
    shown = context.source_of(target)
    operator = _OPERATORS.get(type(node.op), "...")
    context.report(
        RULE,
        node,
        f"`{shown} {operator}= ...` on a Variable ({value.called}) raises NotImplementedError, and "
        "in older Flax changed it in "
        f"place; write `{shown}[...] {operator}= ...`",
        _in_place(target, value, context),
    )


@CHECKS.node(ast.Assign, ast.AnnAssign)
def assigned_over(node: ast.Assign | ast.AnnAssign, scope: Scope, context: Context) -> None:
    """Reports `self.x = array`, also within tuples, if the attribute is a Variable."""
    if node.value.__class__ is ast.Constant and not isinstance(node.value.value, (bool, int, float)):  # type: ignore[union-attr]
        return  # neither an array nor a number
    for whole in node.targets if isinstance(node, ast.Assign) else [node.target]:
        if isinstance(whole, ast.Name):
            continue  # usually true, and this runs for every assignment
        for single, place in ((whole, ()),) if whole.__class__ is ast.Attribute else targets(whole):
            if place is None or not (isinstance(single, ast.Attribute) or _is_element(single, scope, context)):
                continue
            value = _before(single, node, scope, context)
            if value is None or _is_for_types_only(node, context):
                continue
            given: Value | None = context.values.of(node.value, scope)
            for k in place:
                given = item(given, k)
            if given is None and place == () and isinstance(node.value, _ARITHMETIC):
                given = Array()  # arithmetic with a Variable gives an array, as arithmetic with anything else here does
            if _replaces(value, given, node, context.source_of(single), context):
                return


def _before(target: ast.expr, node: ast.stmt, scope: Scope, context: Context) -> Variable | Items | Table | None:
    """Returns the Variables of an attribute or element before an assignment to it.

    A subclass that replaces a Variable of its base by an array hides the Variable from every other method too. So if
    the class itself makes the attribute an array, the bases are searched.
    """
    if not isinstance(target, ast.Attribute):
        return _held(context.values.of(target, scope))
    method = is_self(target.value, scope)
    if method is None or method.method_of is None:
        return _held(context.values.of(target, scope))
    if not _is_making(target, scope):
        value = _held(context.values.of(target, scope))
        return value if value is not None else _held(context.values.inherited(method.method_of, target.attr))
    after = line_of_super(method)
    if after is None or node.lineno <= after:
        return None  # branches of `__init__` choose a value, and a base's `__init__` runs later
    if any(isinstance(context.values.value_of(s), Variable) for s in _own(method.method_of, target.attr, context)):
        return None  # the class creates its own Variable in another branch
    return _held(context.values.inherited(method.method_of, target.attr))


def _own(cls: Scope, name: str, context: Context) -> list[Setting]:
    return [setting for setting in context.values.settings(cls).get(name, ()) if setting.making]


@CHECKS.call("setattr", "__setattr__")
def assigned_by_name(node: ast.Call, scope: Scope, context: Context) -> None:
    """Reports `setattr(self, "x", array)`, `object.__setattr__(self, "x", array)` and `self.__setattr__("x", array)`
    where the attribute holds a Variable.
    """
    arguments = list(node.args)
    if len(arguments) == 2 and isinstance(node.func, ast.Attribute):
        arguments.insert(0, node.func.value)
    if len(arguments) != 3:
        return
    owner = arguments[0]
    if isinstance(owner, ast.Call) and isinstance(owner.func, ast.Name) and owner.func.id == "super":
        method = scope if scope.self_name else None
        if method is None:
            return
        owner = ast.copy_location(ast.Name(method.self_name or "self", ast.Load()), owner)
    for name in _words(arguments[1], scope):
        target = ast.copy_location(ast.Attribute(owner, name, ast.Load()), node)
        if _is_making(target, scope):
            return
        value = _held(context.values.attribute(context.values.of(owner, scope), name, target, Frame.of(scope)))
        if value is not None and not _is_for_types_only(node, context):
            given = context.values.of(arguments[2], scope)
            if _replaces(value, given, node, context.source_of(target), context):
                return


def _words(node: ast.expr, scope: Scope) -> list[str]:
    """Returns the strings that an expression may be: one that is written out, or those that a loop runs over."""
    if isinstance(node, ast.Name):
        found = reaching(scope.bindings.get(node.id, ()), node.lineno)
        nodes = [e for b in found if b.how == "element" and not b.item for e in getattr(b.what, "elts", ())]
    else:
        nodes = [node]
    return [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]


def _held(value: Value | None) -> Variable | Items | Table | None:
    """Returns a Variable, or a list or dict of Variables; None for anything else."""
    if isinstance(value, (Items, Table)):
        return value if isinstance(_each(value), Variable) else None
    return value if isinstance(value, Variable) else None


def _each(value: Items | Table) -> Value | None:
    return value.each if isinstance(value, Table) else element(value)


def _replaces(
    value: Variable | Items | Table, given: Value | None, node: ast.AST, shown: str, context: Context
) -> bool:
    """Reports an assignment that replaces Variables by arrays or numbers."""
    if isinstance(value, Variable):
        if isinstance(given, (Array, Number)):
            what = "an array" if isinstance(given, Array) else "a number"
            message = f"this assignment replaces the {value.called} in `{shown}` by {what}; write `{shown}[...] = ...`"
            context.report(RULE, node, message)
            return True
        return False
    held = _each(value)
    if type(given) is type(value) and isinstance(held, Variable) and isinstance(_each(given), Array):  # type: ignore[arg-type]
        message = (
            f"this assignment replaces each {held.called} in `{shown}` by an array; write into each, "
            "`variable[...] = ...`"
        )
        context.report(RULE, node, message)
        return True
    return False


def _is_element(target: ast.expr, scope: Scope, context: Context) -> bool:
    """Returns whether a target is an element of a list or dict that a module holds."""
    if not isinstance(target, ast.Subscript) or not isinstance(target.value, (ast.Attribute, ast.Subscript)):
        return False
    return isinstance(context.values.of(target.value, scope), (Items, Table))


def _takes(value: Variable, operator: ast.operator, context: Context) -> bool:
    """Returns whether the Variable's own class says what `+=` does."""
    if value.cls is None:
        return False
    known = {ast.Add: "__iadd__", ast.Sub: "__isub__", ast.Mult: "__imul__"}.get(type(operator), "__iadd__")
    return context.values.defines(value.cls, known)


def _in_place(target: ast.expr, value: Variable, context: Context) -> tuple[Edit, ...]:
    return (insertion(target, "[...]"),) if isinstance(context.values.content(value), Array) else ()


def _is_making(target: ast.Attribute, scope: Scope) -> bool:
    method = is_self(target.value, scope)
    return method is not None and method.name.rpartition(".")[2] in MAKING


def _is_for_types_only(node: ast.AST, context: Context) -> bool:
    current: ast.AST | None = node
    while current is not None:
        if isinstance(current, ast.If) and "TYPE_CHECKING" in ast.dump(current.test):
            return True
        current = context.file.parent_of(current)
    return False


_ARITHMETIC = (ast.BinOp, ast.UnaryOp, ast.Compare)
_OPERATORS = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.FloorDiv: "//",
    ast.Mod: "%",
    ast.Pow: "**",
    ast.BitOr: "|",
    ast.BitAnd: "&",
    ast.BitXor: "^",
    ast.MatMult: "@",
    ast.LShift: "<<",
    ast.RShift: ">>",
}
