# SPDX-License-Identifier: Apache-2.0
"""The index of a file: scopes, the names bound in them, classes, and the nodes by scope.

`_syntax_walk` fills it. The values of names are inferred by `_values`, which needs few of them.
"""

from __future__ import annotations

import ast
import collections
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

Lines = tuple[int, int]


class Binding(NamedTuple):
    """One binding of a name.

    Attributes:
        how: `value`, `element` (of a loop's iterable), `import`, `def`, `parameter`, `changed` (by `+=`) or `unknown`.
        what: The expression, dotted name, scope or parameter.
        item: The position of the value in a tuple: `a, (b, c) = what` binds `c` at (1, 1).
        line: The line.
        branches: The lines of the bodies of `if`, `for`, `try` around it, which may not have run.
    """

    how: str
    what: Any
    item: tuple[int, ...]
    line: int
    branches: tuple[Lines, ...]


class Scope:
    """A file, class or function.

    Attributes:
        node: Its syntax tree.
        name: Its dotted name within the file, such as `Model.__call__`.
        parent: The outer scope; None for a file.
        kind: `file`, `class` or `function`.
        bindings: The bindings by name.
        nodes: The nodes directly in it, not in inner scopes, by kind.
        children: The inner scopes.
        memory: The facts that were inferred about it, and the values of its expressions.
        frame: Its frame without arguments, which `_kinds.Frame.of` makes.
    """

    __slots__ = (
        "_self_name",
        "bindings",
        "children",
        "file",
        "frame",
        "kind",
        "memory",
        "name",
        "node",
        "nodes",
        "parent",
    )

    def __init__(self, node: ast.AST, name: str, kind: str, parent: Scope | None, file: File):
        self.node, self.name, self.kind, self.parent, self.file = node, name, kind, parent, file
        self.bindings: dict[str, list[Binding]] = {}
        self.nodes: dict[type, list[Any]] = collections.defaultdict(list)
        self.children: list[Scope] = []
        self.memory: dict[Any, Any] = {}
        self.frame: Any = None
        self._self_name: str | None = ""
        if parent is not None:
            parent.children.append(self)

    def of(self, *kinds: type) -> Iterator[Any]:
        """Yields the nodes of some kinds in the scope."""
        for kind in kinds:
            yield from self.nodes.get(kind, ())

    def inside(self) -> Iterator[Scope]:
        """Yields the scope and all inner scopes, in the order of the source."""
        if not self.children:
            yield self  # so it is with most functions
            return
        waiting: list[Scope] = [self]
        while waiting:
            scope = waiting.pop()
            yield scope
            waiting.extend(reversed(scope.children))

    @property
    def method_of(self) -> Scope | None:
        """The class of a method, or None for other functions."""
        parent = self.parent
        return parent if self.kind == "function" and parent is not None and parent.kind == "class" else None

    @property
    def parameters(self) -> list[ast.arg]:
        """The parameters that can be passed by position."""
        arguments = self.node.args  # type: ignore[attr-defined]
        return [*arguments.posonlyargs, *arguments.args]

    @property
    def parameter_names(self) -> set[str]:
        """The names of all parameters, also of those that are given by keyword only."""
        arguments = self.node.args  # type: ignore[attr-defined]
        every = (*self.parameters, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg)
        return {argument.arg for argument in every if argument is not None}

    @property
    def decorators(self) -> list[ast.expr]:
        """The function's or class's decorators, outermost first."""
        return getattr(self.node, "decorator_list", [])

    @property
    def self_name(self) -> str | None:
        """The name of the instance in a method, usually `self`; None for other functions."""
        known = self._self_name
        if known == "":  # not found out yet
            known = self._self_name = self._find_self()
        return known

    def _find_self(self) -> str | None:
        if self.method_of is None or isinstance(self.node, ast.Lambda):
            return None
        arguments = self.node.args  # type: ignore[attr-defined]
        positional = arguments.posonlyargs or arguments.args
        return None if not positional or self._is_decorated("staticmethod", "classmethod") else positional[0].arg

    @property
    def cls_name(self) -> str | None:
        """The name of the class in a class method, usually `cls`; None for other functions."""
        if not self._is_decorated("classmethod") or self.method_of is None or not self.parameters:
            return None
        return self.parameters[0].arg

    def _is_decorated(self, *names: str) -> bool:
        decorators = self.decorators
        return bool(decorators) and any(isinstance(d, ast.Name) and d.id in names for d in decorators)

    def method(self, name: str) -> Scope | None:
        """Returns the class's own method with a name; the last one if there are several."""
        found = [b.what for b in self.bindings.get(name, ()) if b.how == "def"]
        return found[-1] if found and found[-1].kind == "function" else None

    @property
    def methods(self) -> list[Scope]:
        """The class's own methods."""
        return [child for child in self.children if child.kind == "function" and not isinstance(child.node, ast.Lambda)]


class File(Scope):
    """A parsed file.

    Attributes:
        path: The path, as it was named or found.
        module: Its dotted name, such as `package.models.gate`.
        package: The package that relative imports start from.
        classes: All its classes, also in functions.
        settled: The values of names that are bound once in it, by an import, a function or a class.
        parents: The parents of its nodes. They are stored outside the tree, which would otherwise contain cycles.
    """

    __slots__ = ("_lines", "classes", "module", "package", "parents", "path", "settled", "text")

    def __init__(self, tree: ast.Module, path: str, text: str, module: str, package: str):
        super().__init__(tree, "", "file", None, self)
        self.path, self.text, self.module, self.package = path, text, module, package
        self._lines: list[str] | None = None
        self.classes: list[Scope] = []
        self.settled: dict[str, Any] = {}
        self.parents: dict[ast.AST, ast.AST] = {}

    @property
    def lines(self) -> list[str]:
        """The lines of the file, split as by the parser."""
        if self._lines is None:
            self._lines = self.text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        return self._lines

    def parent_of(self, node: ast.AST) -> ast.AST | None:
        """Returns the parent of a node; None for the whole file. Names and constants have no entry."""
        return self.parents.get(node)

    def statement_of(self, node: ast.AST) -> ast.stmt:
        """Returns the statement that contains a node."""
        while not isinstance(node, ast.stmt):
            node = self.parents[node]
        return node

    def enclosing(self, node: ast.AST, *kinds: type) -> ast.AST | None:
        """Returns the innermost node of some kinds around a node."""
        current = self.parent_of(node)
        while current is not None and not isinstance(current, kinds):
            current = self.parent_of(current)
        return current

    def release(self) -> None:
        """Undoes the circles of scopes: the file is freed as soon as nobody has it, without a search for garbage among
        its nodes, which takes longer than the rules.
        """
        for scope in list(self.inside()):
            scope.node = scope.parent = scope.file = scope.frame = None  # type: ignore[assignment]
            scope.children = scope.bindings = scope.nodes = scope.memory = None  # type: ignore[assignment]
        self.parents = self.classes = self.settled = None  # type: ignore[assignment]


def last_name(node: ast.expr) -> str:
    """Returns the last name of an expression such as `nnx.Param`; empty for other expressions."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def targets(target: ast.expr, item: tuple[int, ...] = ()) -> Sequence[tuple[ast.expr, tuple[int, ...] | None]]:
    """Returns the single targets of an assignment and their positions in the value's tuples, None after a star."""
    if not isinstance(target, (ast.Tuple, ast.List)):
        return ((target, item),)
    found: list[tuple[ast.expr, tuple[int, ...] | None]] = []
    starred = False
    for k, element in enumerate(target.elts):
        starred = starred or isinstance(element, ast.Starred)
        inner = element.value if isinstance(element, ast.Starred) else element
        found += [(single, None if starred else place) for single, place in targets(inner, (*item, k))]
    return found
