# SPDX-License-Identifier: Apache-2.0
"""What a file declares: scopes, the names bound in them, classes, and what stands where.

`_walk` fills it. What the names mean is left to `_values`, which asks for few of them.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

Lines = tuple[int, int]


class Binding(NamedTuple):
    """One place where a name gets its value.

    Attributes:
        how: `value`, `element` (of a loop's iterable), `import`, `def`, `parameter`, `changed` (by `+=`) or `unknown`.
        what: The expression, dotted name, scope or parameter.
        item: Where in a tuple the value stands: `a, (b, c) = what` binds `c` at (1, 1).
        line: Where.
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
        name: Its name, dotted from the file's top: `Model.__call__`.
        parent: The scope around it; None for a file.
        kind: `file`, `class` or `function`.
        bindings: By name.
        nodes: What stands in it directly, not in scopes within it, by kind of node.
        children: The scopes within it.
    """

    __slots__ = ("__dict__", "bindings", "children", "file", "kind", "memory", "name", "node", "nodes", "parent")

    def __init__(self, node: ast.AST, name: str, kind: str, parent: Scope | None, file: File):
        self.node, self.name, self.kind, self.parent, self.file = node, name, kind, parent, file
        self.bindings: dict[str, list[Binding]] = {}
        self.nodes: dict[type, list[Any]] = {}
        self.children: list[Scope] = []
        self.memory: dict[Any, Any] = {}
        if parent is not None:
            parent.children.append(self)

    def of(self, *kinds: type) -> Iterator[Any]:
        """Yields the nodes of some kinds that stand in the scope."""
        for kind in kinds:
            yield from self.nodes.get(kind, ())

    def inside(self) -> Iterator[Scope]:
        """Yields the scope and all within it, in the order of the source."""
        waiting: list[Scope] = [self]
        while waiting:
            scope = waiting.pop()
            yield scope
            waiting.extend(reversed(scope.children))

    @property
    def method_of(self) -> Scope | None:
        """The class whose method this function is."""
        parent = self.parent
        return parent if self.kind == "function" and parent is not None and parent.kind == "class" else None

    @property
    def parameters(self) -> list[ast.arg]:
        """The function's parameters that may be given by position."""
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

    @functools.cached_property
    def self_name(self) -> str | None:
        """What a method calls its instance; None for a static or class method, or none at all."""
        if self.method_of is None or isinstance(self.node, ast.Lambda) or not self.parameters:
            return None
        return None if self._is_decorated("staticmethod", "classmethod") else self.parameters[0].arg

    @property
    def cls_name(self) -> str | None:
        """What a class method calls its class; None for any other function."""
        if self.method_of is None or not self.parameters or not self._is_decorated("classmethod"):
            return None
        return self.parameters[0].arg

    def _is_decorated(self, *names: str) -> bool:
        return any(isinstance(d, ast.Name) and d.id in names for d in self.decorators)

    def method(self, name: str) -> Scope | None:
        """Returns the class's own method of a name, the last one if there are more."""
        found = [b.what for b in self.bindings.get(name, ()) if b.how == "def"]
        return found[-1] if found and found[-1].kind == "function" else None

    @property
    def methods(self) -> list[Scope]:
        """The class's own methods."""
        return [child for child in self.children if child.kind == "function" and not isinstance(child.node, ast.Lambda)]


class File(Scope):
    """A parsed file.

    Attributes:
        path: As it was named or found.
        module: Its dotted name, `package.models.gate`.
        package: That of the folder which relative imports start from.
        classes: All its classes, also those within functions.
        parents: What its nodes stand in. Beside the tree rather than in it, which would be a circle then.
    """

    __slots__ = ("_lines", "classes", "module", "package", "parents", "path", "text")

    def __init__(self, tree: ast.Module, path: str, text: str, module: str, package: str):
        super().__init__(tree, "", "file", None, self)
        self.path, self.text, self.module, self.package = path, text, module, package
        self._lines: list[str] | None = None
        self.classes: list[Scope] = []
        self.parents: dict[ast.AST, ast.AST] = {}

    @property
    def lines(self) -> list[str]:
        """The file's lines as the parser counts them."""
        if self._lines is None:
            self._lines = self.text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        return self._lines

    def parent_of(self, node: ast.AST) -> ast.AST | None:
        """Returns what a node of the file stands in, None of the whole; names and constants are not asked."""
        return self.parents.get(node)

    def statement_of(self, node: ast.AST) -> ast.stmt:
        """Returns the statement that a node of the file is part of."""
        while not isinstance(node, ast.stmt):
            node = self.parents[node]
        return node

    def enclosing(self, node: ast.AST, *kinds: type) -> ast.AST | None:
        """Returns the innermost node of some kinds around a node of the file."""
        current = self.parent_of(node)
        while current is not None and not isinstance(current, kinds):
            current = self.parent_of(current)
        return current

    def release(self) -> None:
        """Undoes the circles of scopes: the file is freed as soon as nobody has it, without a search for garbage among
        its nodes, which takes longer than the rules.
        """
        for scope in list(self.inside()):
            scope.node = scope.parent = scope.file = None  # type: ignore[assignment]
            scope.children, scope.bindings, scope.nodes, scope.memory = [], {}, {}, {}
        self.parents, self.classes = {}, []


def last_name(node: ast.expr) -> str:
    """Returns the last name of an expression such as `nnx.Param`, empty if it is none."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def targets(target: ast.expr, item: tuple[int, ...] = ()) -> Sequence[tuple[ast.expr, tuple[int, ...] | None]]:
    """Returns the single targets of an assignment and where in the value's tuples they stand, None behind a star."""
    if not isinstance(target, (ast.Tuple, ast.List)):
        return ((target, item),)
    found: list[tuple[ast.expr, tuple[int, ...] | None]] = []
    starred = False
    for k, element in enumerate(target.elts):
        starred = starred or isinstance(element, ast.Starred)
        inner = element.value if isinstance(element, ast.Starred) else element
        found += [(single, None if starred else place) for single, place in targets(inner, (*item, k))]
    return found
