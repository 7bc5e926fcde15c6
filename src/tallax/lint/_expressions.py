# SPDX-License-Identifier: Apache-2.0
"""Infers the values of literals, operators and subscripts from the values of their parts."""

from __future__ import annotations

import ast

from tallax.lint import _dtypes
from tallax.lint._calls import Calls
from tallax.lint._kinds import (
    NOTHING,
    Array,
    Frame,
    Items,
    Name,
    Number,
    Plain,
    Table,
    Type,
    Value,
    Variable,
    element,
    item,
    joined,
)


class Expressions(Calls):
    """The values of expressions other than names, attributes and calls."""

    def _constant(self, node: ast.Constant, frame: Frame) -> Value | None:
        del frame
        value = node.value
        if isinstance(value, bool):
            return Number("bool", value=float(value))
        if isinstance(value, (int, float)):
            try:
                return Number(type(value).__name__, value=float(value))
            except OverflowError:
                return Number("int")
        return NOTHING if value is None else Plain("text" if isinstance(value, (str, bytes)) else "constant")

    def _subscript(self, node: ast.Subscript, frame: Frame) -> Value | None:
        base = self.of(node.value, frame)
        if isinstance(base, Variable):
            whole = isinstance(node.slice, ast.Constant) and node.slice.value is Ellipsis
            content = self.content(base)
            if whole:
                return content if content is not None else Array(state=base.home or "derived")
            return Array(state="derived") if content is None or isinstance(content, Array) else None
        if isinstance(base, Items):
            if isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, int):
                return item(base, node.slice.value)
            return element(base) if not isinstance(node.slice, ast.Slice) else base
        if isinstance(base, Table):
            key = node.slice.value if isinstance(node.slice, ast.Constant) else None
            return base.under(key) if isinstance(key, str) else base.each
        if isinstance(base, Array):
            return Array(base.weak, base.dtype, "derived" if base.state else None)
        if isinstance(base, (Type, Name)):
            return base  # a generic class with its parameters
        return None

    def _operation(self, node: ast.BinOp, frame: Frame) -> Value | None:
        left = self.content_of(self.of(node.left, frame))
        right = self.content_of(self.of(node.right, frame))
        return _dtypes.combined(left, right, node.op)

    def _unary(self, node: ast.UnaryOp, frame: Frame) -> Value | None:
        value = self.content_of(self.of(node.operand, frame))
        if isinstance(node.op, ast.Not):
            state = value.state if isinstance(value, (Array, Number)) else None
            return Number("bool", state="derived" if state else None)
        if isinstance(value, Number):
            negative = isinstance(node.op, ast.USub) and value.value is not None
            return Number(value.type, value.size, value.state, -value.value if negative else None)  # type: ignore[operator]
        if isinstance(value, Array):
            return Array(value.weak, value.dtype, "derived" if value.state else None, value.scalar)
        return None

    def _compare(self, node: ast.Compare, frame: Frame) -> Value | None:
        if all(isinstance(op, (ast.Is, ast.IsNot, ast.In, ast.NotIn)) for op in node.ops):
            return Number("bool")
        sides = [self.content_of(self.of(side, frame)) for side in (node.left, *node.comparators)]
        state = "derived" if any(isinstance(side, (Array, Number)) and side.state for side in sides) else None
        if any(isinstance(side, Array) for side in sides):
            return Array(False, "bool", state)
        return Number("bool", state=state) if all(isinstance(side, (Number, Plain)) for side in sides) else None

    def _boolean(self, node: ast.BoolOp, frame: Frame) -> Value | None:
        return joined([self.of(value, frame) for value in node.values])

    def _choice(self, node: ast.IfExp, frame: Frame) -> Value | None:
        return joined([self.of(node.body, frame), self.of(node.orelse, frame)])

    def _sequence(self, node: ast.Tuple | ast.List, frame: Frame) -> Value | None:
        if any(isinstance(element, ast.Starred) for element in node.elts):
            return Plain("sequence")
        if len(node.elts) > 64:  # a table of constants
            return Items(each=self.of(node.elts[0], frame))
        return Items(tuple(self.of(element, frame) for element in node.elts))

    def _comprehension(self, node: ast.ListComp, frame: Frame) -> Value | None:
        return Items(each=self.of(node.elt, frame))

    def _plain(self, node: ast.expr, frame: Frame) -> Value | None:
        del frame
        return Plain(type(node).__name__.lower())

    def _dict(self, node: ast.Dict, frame: Frame) -> Value | None:
        if not node.values or None in node.keys or len(node.values) > 64:
            return Plain("dict")
        values = [self.of(value, frame) for value in node.values]
        keys = [
            key.value if isinstance(key, ast.Constant) and isinstance(key.value, str) else None for key in node.keys
        ]
        named = tuple((key, value) for key, value in zip(keys, values, strict=True) if key is not None)
        return Table(joined(values), named if len(named) == len(keys) else ())

    def _dict_comprehension(self, node: ast.DictComp, frame: Frame) -> Value | None:
        return Table(self.of(node.value, frame))

    def _named_expression(self, node: ast.NamedExpr, frame: Frame) -> Value | None:
        return self.of(node.value, frame)


EXPRESSIONS = {
    ast.Constant: Expressions._constant,
    ast.Subscript: Expressions._subscript,
    ast.BinOp: Expressions._operation,
    ast.UnaryOp: Expressions._unary,
    ast.Compare: Expressions._compare,
    ast.BoolOp: Expressions._boolean,
    ast.IfExp: Expressions._choice,
    ast.Tuple: Expressions._sequence,
    ast.List: Expressions._sequence,
    ast.ListComp: Expressions._comprehension,
    ast.GeneratorExp: Expressions._comprehension,
    ast.Dict: Expressions._dict,
    ast.DictComp: Expressions._dict_comprehension,
    ast.Set: Expressions._plain,
    ast.NamedExpr: Expressions._named_expression,
}
