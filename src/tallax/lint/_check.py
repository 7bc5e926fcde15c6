# SPDX-License-Identifier: Apache-2.0
"""The context that a rule gets, and the registration of rules for nodes."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from tallax.lint._attribute_uses import Uses
from tallax.lint._finding import Edit, Finding
from tallax.lint._index import File, Scope, last_name
from tallax.lint._kinds import Type
from tallax.lint._rule import Rule
from tallax.lint._values import Values

_VERSION_QUESTIONS = {"hasattr", "signature", "version", "__version__", "Version", "FLAX_VERSION"}
_WITH_BODY = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.If, ast.While, ast.For)
NodeCheck = Callable[[Any, Scope, "Context"], None]
_Key = TypeVar("_Key")
ScopeCheck = Callable[[Any, "Context"], None]


class Context:
    """The file that is checked, and the knowledge about all files."""

    def __init__(self, file: File, values: Values):
        self.file = file
        self.values = values
        self.uses = Uses(values)
        self.findings: list[Finding] = []
        self._at_hand: list[Scope] | None = None
        self._scopes: dict[int, Scope] | None = None

    def classes_at_hand(self) -> list[Scope]:
        """Returns the classes of the file and those that it imports by name."""
        if self._at_hand is None:
            found = list(self.file.classes)
            for name, bindings in self.file.bindings.items():
                for binding in bindings:
                    if binding.how == "import" and name.strip("_")[:1].isupper():
                        value = self.values.dotted(binding.what, self.file)
                        if isinstance(value, Type) and not isinstance(value.cls, str) and value.cls not in found:
                            found.append(value.cls)
            self._at_hand = found
        return self._at_hand

    def scope_of(self, node: ast.AST) -> Scope:
        """Returns the scope of a node."""
        if self._scopes is None:
            self._scopes = {id(scope.node): scope for scope in self.file.inside()}
        current = self.file.parent_of(node)
        while current is not None and id(current) not in self._scopes:
            current = self.file.parent_of(current)
        return self._scopes[id(current)] if current is not None else self.file

    def is_version_guarded(self, node: ast.AST) -> bool:
        """Returns whether a condition around a node depends on the version of a library, or on its names."""
        inner, outer = node, self.file.parent_of(node)
        while outer is not None:
            if isinstance(outer, (ast.If, ast.IfExp)) and inner is not outer.test:
                if any(last_name(n) in _VERSION_QUESTIONS for n in ast.walk(outer.test) if isinstance(n, ast.expr)):
                    return True
            if isinstance(outer, ast.ExceptHandler) or (isinstance(outer, ast.Try) and inner in outer.body):
                handlers = outer.handlers if isinstance(outer, ast.Try) else [outer]
                caught = [last_name(n) for h in handlers if h.type for n in ast.walk(h.type) if isinstance(n, ast.expr)]
                if {"TypeError", "AttributeError"} & {*caught}:
                    return True
            inner, outer = outer, self.file.parent_of(outer)
        return False

    def report(self, rule: Rule, node: ast.AST, message: str, edits: tuple[Edit, ...] = ()) -> None:
        """Adds a finding at a node."""
        line: int = node.lineno  # type: ignore[attr-defined]
        column: int = node.col_offset + 1  # type: ignore[attr-defined]
        end_line, end_column = end_of(node)  # type: ignore[arg-type]
        if isinstance(node, _WITH_BODY):  # a function is reported at its head, and an editor marks no more than that
            end_line, end_column = line, len(self.file.lines[line - 1].encode())
        place = (self.file.path, line, column, rule.code, rule.slug, message, edits)
        self.findings.append(Finding(*place, end_line, end_column + 1))

    def source_of(self, node: ast.expr, longest: int = 40) -> str:
        """Returns the source of an expression for a message."""
        try:
            text = ast.unparse(node)
        except (RecursionError, ValueError):
            return "..."
        return text if len(text) <= longest else text[: longest - 3] + "..."

    def comments_at(self, line: int) -> str:
        """Returns the comment that ends a line, with the block of comments above it."""
        lines = self.file.lines
        found: list[str] = []
        if 0 < line <= len(lines):
            _, sign, behind = lines[line - 1].partition("#")
            found = [behind] if sign else []
        above = line - 2
        while above >= 0 and lines[above].lstrip().startswith("#"):
            found.insert(0, lines[above].strip(" \t#"))
            above -= 1
        return " ".join(found)


@dataclasses.dataclass
class Checks:
    """The checks for each kind of node, attribute, call, class, decorated function and file."""

    nodes: dict[type, list[NodeCheck]] = dataclasses.field(default_factory=dict)
    attributes: dict[str, list[NodeCheck]] = dataclasses.field(default_factory=dict)
    calls: dict[str, list[NodeCheck]] = dataclasses.field(default_factory=dict)
    variables: list[NodeCheck] = dataclasses.field(default_factory=list)
    classes: list[ScopeCheck] = dataclasses.field(default_factory=list)
    decorated: list[ScopeCheck] = dataclasses.field(default_factory=list)
    files: list[ScopeCheck] = dataclasses.field(default_factory=list)

    def node(self, *kinds: type) -> Callable[[NodeCheck], NodeCheck]:
        """Registers a check for each node of some kinds."""
        return _adder(self.nodes, kinds)

    def attribute(self, *names: str) -> Callable[[NodeCheck], NodeCheck]:
        """Registers a check for each attribute with one of these names."""
        return _adder(self.attributes, names)

    def call(self, *names: str) -> Callable[[NodeCheck], NodeCheck]:
        """Registers a check for each call by these last names."""
        return _adder(self.calls, names)

    def each_variable(self, check: NodeCheck) -> NodeCheck:
        """Registers a check for each call of a Variable type."""
        self.variables.append(check)
        return check

    def each_class(self, check: ScopeCheck) -> ScopeCheck:
        """Registers a check for each class."""
        self.classes.append(check)
        return check

    def each_decorated(self, check: ScopeCheck) -> ScopeCheck:
        """Registers a check for each function and method with a decorator."""
        self.decorated.append(check)
        return check

    def each_file(self, check: ScopeCheck) -> ScopeCheck:
        """Registers a check for each file."""
        self.files.append(check)
        return check


def _adder(table: dict[_Key, list[NodeCheck]], keys: Sequence[_Key]) -> Callable[[NodeCheck], NodeCheck]:
    """Returns the decorator that registers a check under some keys."""

    def add(check: NodeCheck) -> NodeCheck:
        for key in keys:
            table.setdefault(key, []).append(check)
        return check

    return add


CHECKS = Checks()


def insertion(node: ast.expr, text: str) -> Edit:
    """Returns the edit that inserts text after an expression."""
    line, column = node.end_lineno or node.lineno, node.end_col_offset or 0
    return Edit(line, column, line, column, text)


def replacement(start: tuple[int, int], end: tuple[int, int], text: str) -> Edit:
    """Returns the edit that replaces a range by text."""
    return Edit(*start, *end, text)


def end_of(node: ast.expr) -> tuple[int, int]:
    """Returns the end of an expression."""
    return node.end_lineno or node.lineno, node.end_col_offset or 0
