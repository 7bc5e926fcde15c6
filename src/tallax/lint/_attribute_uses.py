# SPDX-License-Identifier: Apache-2.0
"""The reads and writes of an attribute with a Variable by its class."""

from __future__ import annotations

import ast
import dataclasses
from typing import NamedTuple

from tallax.lint._bindings import reaching
from tallax.lint._index import Scope, targets
from tallax.lint._kinds import Array, Callee, Frame, Number
from tallax.lint._settings import MAKING, is_seen
from tallax.lint._values import Values

Home = tuple[Scope, str]


class Use(NamedTuple):
    """An expression `self.name`, with the function and method around it."""

    node: ast.Attribute
    scope: Scope
    method: Scope


@dataclasses.dataclass(frozen=True)
class Write:
    """A write of an attribute by its class.

    Attributes:
        use: The use of `self.name`.
        statement: The whole statement.
        value: The assigned value, or the value added by `+=`; None if the statement does not show it.
        item: The position of the value in a tuple.
        operator: The operator of an augmented assignment such as `+=`.
        replaces: Whether the attribute itself is assigned, and not the value of the Variable.
    """

    use: Use
    statement: ast.stmt
    value: ast.expr | None
    item: tuple[int, ...]
    operator: ast.operator | None
    replaces: bool


class Uses:
    """The uses of a class's attributes in its own methods."""

    def __init__(self, values: Values):
        self.values = values
        # Making a `Use` takes longer than finding it, and few are asked for.
        self._all: dict[Scope, dict[str, list[tuple[ast.Attribute, Scope, Scope]]]] = {}

    def of(self, cls: Scope, name: str) -> list[Use]:
        """Returns all uses of an attribute of `self` in the methods of the class."""
        return [Use(*each) for each in self._in(cls).get(name, ())]

    def _in(self, cls: Scope) -> dict[str, list[tuple[ast.Attribute, Scope, Scope]]]:
        if cls not in self._all:
            found: dict[str, list[tuple[ast.Attribute, Scope, Scope]]] = {}
            for method in cls.methods:
                if method.self_name is None:
                    continue
                own = method.self_name
                for scope in method.inside():
                    for node in scope.of(ast.Attribute) if is_seen(method, scope) else ():
                        base = node.value
                        if base.__class__ is ast.Name and base.id == own:
                            found.setdefault(node.attr, []).append((node, scope, method))
            self._all[cls] = found
        return self._all[cls]

    def written(self, cls: Scope) -> set[str]:
        """Returns the names of the attributes that the class's methods write, or whose Variables they write, once they
        are made.
        """
        parents = cls.file.parents
        return {
            name
            for name, uses in self._in(cls).items()
            if any(_may_be_write(each[0], parents[each[0]]) and _is_written_later(Use(*each)) for each in uses)
        }

    def writes(self, cls: Scope, name: str) -> list[Write]:
        """Returns the writes of an attribute, or of its Variable's value, in the methods of the class."""
        return [write for use in self.of(cls, name) if (write := write_at(use)) is not None]

    def reads(self, cls: Scope, name: str) -> list[Use]:
        """Returns the reads of an attribute, or of its Variable's value, in the methods of the class."""
        return [use for use in self.of(cls, name) if write_at(use) is None]

    def increments(self, write: Write, home: Home) -> list[tuple[ast.expr, Frame]] | None:
        """Returns the value that a write adds to the old value, or None for other writes."""
        frame = Frame.of(write.use.scope)
        if write.value is None:
            return None
        if write.operator is not None:
            return [(write.value, frame)] if isinstance(write.operator, ast.Add) else None
        return self._added(write.value, frame, write.item, home, 8)

    def _added(
        self, node: ast.expr, frame: Frame, item: tuple[int, ...], home: Home, depth: int
    ) -> list[tuple[ast.expr, Frame]] | None:
        node, frame = self.expanded(node, frame, item)
        if not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.Add) or not depth:
            return None
        for old, new in ((node.left, node.right), (node.right, node.left)):
            if self.is_old(old, frame, home):
                return [(new, frame)]
            inner = self._added(old, frame, (), home, depth - 1)
            if inner is not None:
                return [*inner, (new, frame)]
        return None

    def is_old(self, node: ast.expr, frame: Frame, home: Home) -> bool:
        """Returns whether an expression is just the value that the Variable of an attribute holds."""
        value = self.values.content_of(self.values.of(node, frame))
        return isinstance(value, (Array, Number)) and value.state == home

    def expanded(self, node: ast.expr, frame: Frame, item: tuple[int, ...] = ()) -> tuple[ast.expr, Frame]:
        """Returns the expression behind a local name or a call of one of the project's functions."""
        for _ in range(12):
            if isinstance(node, (ast.Tuple, ast.List)) and item:
                if item[0] >= len(node.elts):
                    break
                node, item = node.elts[item[0]], item[1:]
            elif isinstance(node, ast.Name) and node.id in frame.scope.bindings and node.id not in frame.arguments:
                found = [b for b in reaching(frame.scope.bindings[node.id], node.lineno) if b.how == "value"]
                if len(found) != 1:
                    break
                node, item = found[0].what, (*found[0].item, *item)
            elif isinstance(node, ast.Call):
                inner = self._called(node, frame)
                if inner is None:
                    break
                node, frame = inner
            else:
                break
        return node, frame

    def _called(self, node: ast.Call, frame: Frame) -> tuple[ast.expr, Frame] | None:
        callee = self.values.of(node.func, frame)
        if not isinstance(callee, Callee) or isinstance(callee.scope.node, ast.Lambda):
            return None
        results = [r.value for r in callee.scope.of(ast.Return) if r.value is not None]
        if len(results) != 1:
            return None
        return results[0], self.values.frame_of(callee, node, frame)


def _is_written_later(use: Use) -> bool:
    write = write_at(use)
    making = use.method.name.rpartition(".")[2] in MAKING
    return write is not None and not (making and write.replaces and write.operator is None)


def _may_be_write(node: ast.Attribute, above: ast.AST) -> bool:
    """Returns whether a use may be a write, by its form and the node above. Most may not."""
    kind = above.__class__
    return node.ctx.__class__ is not ast.Load or kind is ast.Subscript or kind is ast.Attribute


def write_at(use: Use) -> Write | None:
    """Returns the write of a use, or None if it is a read."""
    place: ast.AST = use.node
    file = use.scope.file
    above = file.parents[place]
    if not _may_be_write(use.node, above):
        return None
    replaces = True
    if (isinstance(above, ast.Subscript) and above.value is place) or (
        isinstance(above, ast.Attribute) and above.attr in ("value", "raw_value")
    ):
        place, replaces = above, False
    elif isinstance(above, ast.Attribute) and above.attr in ("set_value", "set_raw_value"):
        call = file.parent_of(above)
        if isinstance(call, ast.Call) and call.func is above:
            given = call.args[0] if call.args else None
            return Write(use, file.statement_of(call), given, (), None, False)
        return None
    if not isinstance(getattr(place, "ctx", None), ast.Store):
        return None
    statement = file.statement_of(place)
    if isinstance(statement, ast.AugAssign):
        return Write(use, statement, statement.value, (), statement.op, replaces)
    if isinstance(statement, (ast.Assign, ast.AnnAssign)):
        for whole in statement.targets if isinstance(statement, ast.Assign) else [statement.target]:
            for single, item in targets(whole):
                if single is place:
                    return Write(
                        use, statement, statement.value if item is not None else None, item or (), None, replaces
                    )
    return Write(use, statement, None, (), None, replaces)
