# SPDX-License-Identifier: Apache-2.0
"""Evidence in a class's own reads and writes of a parameter that it is state."""

from __future__ import annotations

import ast
import re

from tallax.lint._attribute_uses import Use, Write
from tallax.lint._check import Context
from tallax.lint._index import File, Scope
from tallax.lint._kinds import Frame, Name, Number, Variable
from tallax.lint._known_names import derives
from tallax.lint._settings import MAKING

_EPSILON = re.compile(r"(?:^|_)eps(?:ilon)?$")
_GRADIENT = re.compile(r"grad|learning_rate|\blr\b|optimi|normali[sz]e|clip|project|load|assign|quant", re.IGNORECASE)
_LOADING = re.compile(r"load|assign|init|restore|from_", re.IGNORECASE)
_TINY = 1e-4


def written(name: str, cls: Scope, context: Context) -> str:
    """Returns the evidence in the class's own writes."""
    home = (cls, name)
    for write in context.uses.writes(cls, name):
        method = write.use.method.name.rpartition(".")[2]
        if method in MAKING or _LOADING.search(method) or _GRADIENT.search(_text(write, context)):
            continue
        for node, frame in context.uses.increments(write, home) or ():
            value = context.values.of(node, frame)
            if isinstance(value, Number) and (value.size or value.type in ("int", "bool") or value.value == 1.0):
                return "the class counts it up"
        if write.value is not None and _is_blend(write.value, home, write, context):
            return "the class blends it as a running statistic"
        if write.replaces and write.operator is None and write.value is not None and _depends(write, home):
            return "the class puts a function of itself in its place, as of a statistic"
        if write.use.method in context.values.forward(cls) and not write.replaces and not _is_initialising(write):
            return "the forward path writes it"
    return ""


def _text(write: Write, context: Context) -> str:
    first, last = write.statement.lineno, write.statement.end_lineno or write.statement.lineno
    return "\n".join(context.file.lines[first - 1 : last])


def _is_blend(node: ast.expr, home: tuple[Scope, str], write: Write, context: Context) -> bool:
    """Returns whether a value is `a * old + b * new`."""
    node, frame = context.uses.expanded(node, Frame.of(write.use.scope), write.item)
    if not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.Add):
        return False
    products = [
        side for side in (node.left, node.right) if isinstance(side, ast.BinOp) and isinstance(side.op, ast.Mult)
    ]
    return len(products) == 2 and any(
        context.uses.is_old(factor, frame, home) for product in products for factor in (product.left, product.right)
    )


def _depends(write: Write, home: tuple[Scope, str]) -> bool:
    value = write.value
    return (
        isinstance(value, ast.Call)
        and any(
            isinstance(n, ast.Attribute) and n.attr == home[1] and isinstance(n.value, ast.Name)
            for a in value.args
            for n in ast.walk(a)
        )
        and bool(write.item)
    )


def _is_initialising(write: Write) -> bool:
    branch = write.use.scope.file.enclosing(write.statement, ast.If)
    return isinstance(branch, ast.If) and "init" in ast.dump(branch.test).lower()


def read(given: ast.expr | None, name: str, cls: Scope, context: Context) -> str:
    """Returns the evidence in the class's own reads of a parameter with an initial value."""
    reads = [use for use in context.uses.reads(cls, name) if use.method.name.rpartition(".")[2] not in MAKING]
    if not reads or any(
        _is_elsewhere(c, name, context)
        for c in context.file.classes
        if c is not cls and cls in context.values.lineage(c)
    ):
        return ""
    if all(_is_stopped(use.node, use.scope, context) for use in reads):
        return "every read stops its gradient"
    if all(_only_updates(use.node, name, use.scope, context) for use in reads):
        return "it is read only to update other state"
    tiny = given is not None and any(
        isinstance(n, ast.Constant) and isinstance(n.value, float) and 0 < n.value <= _TINY for n in ast.walk(given)
    )
    if (tiny or _EPSILON.search(name)) and all(_is_bound(use, bool(_EPSILON.search(name))) for use in reads):
        return "it is read only as a bound or epsilon"
    return ""


def _is_elsewhere(cls: Scope, name: str, context: Context) -> bool:
    return bool(context.uses.of(cls, name))


def _content(node: ast.Attribute, file: File) -> ast.AST:
    """Returns the expression that reads a Variable's value: `self.x[...]`, `self.x.value`, `self.x.get_value()`."""
    above = file.parent_of(node)
    if isinstance(above, ast.Subscript) and above.value is node:
        return above
    if isinstance(above, ast.Attribute) and above.attr in ("value", "get_value"):
        call = file.parent_of(above)
        return call if isinstance(call, ast.Call) and call.func is above else above
    return node


def _is_stopped(node: ast.Attribute, scope: Scope, context: Context) -> bool:
    above = scope.file.parent_of(_content(node, scope.file))
    if not isinstance(above, ast.Call) or not isinstance(above.func, (ast.Attribute, ast.Name)):
        return False
    callee = context.values.of(above.func, scope)
    return isinstance(callee, Name) and callee.name in ("jax.lax.stop_gradient", "lax.stop_gradient")


def _only_updates(node: ast.Attribute, name: str, scope: Scope, context: Context) -> bool:
    """Returns whether a read is part of what is written into another, untrained Variable."""
    statement = scope.file.statement_of(node)
    if not isinstance(statement, (ast.Assign, ast.AugAssign)):
        return False
    for target in statement.targets if isinstance(statement, ast.Assign) else [statement.target]:
        if not isinstance(target, (ast.Subscript, ast.Attribute)):
            return False
        held = context.values.of(target.value, scope)
        if not isinstance(held, Variable) or derives(held.type, "nnx.Param") or (held.home and held.home[1] == name):
            return False
    return True


def _is_bound(use: Use, added: bool) -> bool:
    """Returns whether a read is a bound, `jnp.maximum(x, self.cutoff[...])`, or is added as an epsilon is."""
    place = _content(use.node, use.scope.file)
    above = use.scope.file.parent_of(place)
    if (
        isinstance(above, ast.Call)
        and isinstance(above.func, ast.Attribute)
        and above.func.attr in ("maximum", "minimum", "clip")
    ):
        return place in above.args[1:] or any(word.value is place for word in above.keywords)
    return added and isinstance(above, ast.BinOp) and isinstance(above.op, ast.Add)
