# SPDX-License-Identifier: Apache-2.0
"""What a file declares: scopes, the names bound in them, classes, and the attributes that their methods set.

One walk over the syntax tree, which also sorts the nodes that rules ask for by scope and kind, and notes what each of
them stands in. What the names mean is left to `_values`, which asks for few of them.
"""

from __future__ import annotations

import ast
import bisect
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

Lines = tuple[int, int]
_Waiting = tuple[ast.AST, "Scope", tuple[Lines, ...]]  # a node, and the scope and branches that it stands in

# What rules and `_values` look for within a scope.
_SORTED = {
    ast.Call,
    ast.Attribute,
    ast.Subscript,
    ast.Assign,
    ast.AnnAssign,
    ast.AugAssign,
    ast.Return,
    ast.If,
    ast.While,
    ast.IfExp,
    ast.Assert,
}
# Fields that hold names and flags rather than nodes.
_WORDS = {
    "ctx",
    "op",
    "ops",
    "id",
    "attr",
    "type_comment",
    "kind",
    "type_params",
    "type_ignores",
    "name",
    "module",
    "level",
    "arg",
    "asname",
    "kwd_attrs",
    "rest",
    "simple",
    "is_async",
    "conversion",
    "tag",
    "func_type",
}
_LEAVES = {
    ast.Constant,
    ast.Name,
    ast.Pass,
    ast.Break,
    ast.Continue,
    ast.Global,
    ast.Nonlocal,
    ast.Import,
    ast.ImportFrom,
    ast.MatchStar,
    ast.MatchSingleton,
}
# The fields of each kind of node that hold nodes, last first: what is put on a stack last is taken first.
_FIELDS: dict[type, tuple[str, ...]] = {
    kind: () if kind in _LEAVES else tuple(field for field in reversed(kind._fields) if field not in _WORDS)
    for kind in vars(ast).values()
    if isinstance(kind, type) and issubclass(kind, ast.AST)
}
_FIELDS[ast.keyword] = ("value",)
# Nothing happens in annotations: what they say is read where somebody asks for it.
_FIELDS[ast.arguments] = ("kw_defaults", "defaults")
for _kind in (ast.AnnAssign, ast.FunctionDef, ast.AsyncFunctionDef):
    _FIELDS[_kind] = tuple(field for field in _FIELDS[_kind] if field not in ("annotation", "returns"))
# Nothing is bound by these, and no rule asks for them or for what they stand in: they are not walked. None stands for
# an optional field that is missing, or the key of `{**other}`.
_SILENT = {ast.Constant, ast.Name, ast.Pass, type(None)}
_BRANCHING = {"body", "orelse", "handlers", "finalbody"}


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
    """

    __slots__ = ("_lines", "_parents", "classes", "module", "package", "path", "text")

    def __init__(self, tree: ast.Module, path: str, text: str, module: str, package: str):
        super().__init__(tree, "", "file", None, self)
        self.path, self.text, self.module, self.package = path, text, module, package
        self._lines: list[str] | None = None
        self.classes: list[Scope] = []
        # Beside the tree rather than in it, which would be a circle then.
        self._parents: dict[ast.AST, ast.AST] = {}
        self.collect(tree)

    @property
    def lines(self) -> list[str]:
        """The file's lines as the parser counts them."""
        if self._lines is None:
            self._lines = self.text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        return self._lines

    def collect(self, tree: ast.Module) -> None:
        """Takes in the statements of a syntax tree: those of the file, or some of them."""
        _collect(self, tree, self._parents)

    def parent_of(self, node: ast.AST) -> ast.AST | None:
        """Returns what a node of the file stands in, None of the whole; names and constants are not asked."""
        return self._parents.get(node)

    def statement_of(self, node: ast.AST) -> ast.stmt:
        """Returns the statement that a node of the file is part of."""
        while not isinstance(node, ast.stmt):
            node = self._parents[node]
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
        self._parents, self.classes = {}, []


def last_name(node: ast.expr) -> str:
    """Returns the last name of an expression such as `nnx.Param`, empty if it is none."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _collect(file: File, tree: ast.Module, parents: dict[ast.AST, ast.AST]) -> None:
    """Fills a file's scopes in one walk, without recursion: source may be nested deeper than Python's stack."""
    stack: list[_Waiting] = [(tree, file, ())]
    take, put = stack.pop, stack.append
    plans, silent = _PLANS, _SILENT
    while stack:
        here, scope, branches = take()
        while here is not None:
            node, here = here, None
            kind = node.__class__
            is_sorted, bind, fields, has_blocks = plans[kind]
            if is_sorted:
                nodes = scope.nodes
                if kind in nodes:
                    nodes[kind].append(node)
                else:
                    nodes[kind] = [node]
            if bind is not None:
                bind(node, scope, branches)
            if has_blocks:
                stack += _within_blocks(node, scope, branches, parents)
                break
            for field in fields:
                value: Any = getattr(node, field, None)
                # Of the children, the first is walked next, and the others wait.
                for child in reversed(value) if value.__class__ is list else (value,):
                    if child.__class__ not in silent:
                        parents[child] = node
                        if here is not None:
                            put((here, scope, branches))
                        here = child


def _within_blocks(
    node: ast.AST, scope: Scope, branches: tuple[Lines, ...], parents: dict[ast.AST, ast.AST]
) -> list[_Waiting]:
    """Returns what stands in a statement with a body, last first, each with its scope and the branches around it."""
    found: list[_Waiting] = []
    kind = node.__class__
    inner = _open(node, scope, branches) if kind in _SCOPES else scope
    for field in _FIELDS[kind]:
        value: Any = getattr(node, field, None)
        where, within = scope, branches
        if field in _BRANCHING and value:
            # A lambda's body is its own, as a function's is; defaults and annotations are worked out outside.
            if inner is not scope:
                where, within = inner, branches if kind is ast.Lambda else ()
            elif kind in _BRANCHES:
                last = value[-1]
                within = (*branches, (value[0].lineno, last.end_lineno or last.lineno))
        for child in reversed(value) if value.__class__ is list else (value,):
            if child.__class__ not in _SILENT:
                parents[child] = node
                found.append((child, where, within))
    return found


_SCOPES = {ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef}
_BRANCHES = {ast.If, ast.For, ast.AsyncFor, ast.While, ast.Try, ast.ExceptHandler, ast.match_case}
if hasattr(ast, "TryStar"):
    _BRANCHES.add(ast.TryStar)


def _open(node: Any, scope: Scope, branches: tuple[Lines, ...]) -> Scope:
    """Makes the scope of a function or class, and binds its parameters."""
    own = getattr(node, "name", "<lambda>")
    name = f"{scope.name}.{own}" if scope.name else own
    if isinstance(node, ast.ClassDef):
        inner = Scope(node, name, "class", scope, scope.file)
        scope.file.classes.append(inner)
    else:
        inner = Scope(node, name, "function", scope, scope.file)
        arguments = node.args
        for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
            inner.bindings[argument.arg] = [Binding("parameter", argument, (), node.lineno, ())]
        for argument in (arguments.vararg, arguments.kwarg):
            if argument is not None:
                inner.bindings[argument.arg] = [Binding("unknown", argument, (), node.lineno, ())]
    if own != "<lambda>":
        _bind(scope, own, Binding("def", inner, (), node.lineno, branches))
    return inner


def _bind(scope: Scope, name: str, binding: Binding) -> None:
    """Notes a binding in the order of lines, in which `reaching` looks; the walk all but keeps it."""
    known = scope.bindings.setdefault(name, [])
    if known and known[-1].line > binding.line:
        bisect.insort(known, binding, key=lambda other: other.line)
    else:
        known.append(binding)


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


def _bind_targets(target: ast.expr, how: str, what: Any, scope: Scope, branches: tuple[Lines, ...]) -> None:
    for single, item in targets(target):
        if isinstance(single, ast.Name):
            kind = how if item is not None else "unknown"
            _bind(scope, single.id, Binding(kind, what, item or (), single.lineno, branches))


def _assign(node: ast.Assign, scope: Scope, branches: tuple[Lines, ...]) -> None:
    for target in node.targets:
        if isinstance(target, ast.Name):
            _bind(scope, target.id, Binding("value", node.value, (), target.lineno, branches))
        elif not isinstance(target, ast.Attribute):
            _bind_targets(target, "value", node.value, scope, branches)


def _annotated(node: ast.AnnAssign, scope: Scope, branches: tuple[Lines, ...]) -> None:
    if isinstance(node.target, ast.Name):
        how = ("value", node.value) if node.value is not None else ("annotation", node.annotation)
        _bind(scope, node.target.id, Binding(*how, (), node.lineno, branches))


def _augmented(node: ast.AugAssign, scope: Scope, branches: tuple[Lines, ...]) -> None:
    if isinstance(node.target, ast.Name):
        _bind(scope, node.target.id, Binding("changed", node, (), node.lineno, branches))


def _walrus(node: ast.NamedExpr, scope: Scope, branches: tuple[Lines, ...]) -> None:
    _bind_targets(node.target, "value", node.value, scope, branches)


def _loop(node: Any, scope: Scope, branches: tuple[Lines, ...]) -> None:
    _bind_targets(node.target, "element", node.iter, scope, branches)


def _with(node: ast.withitem, scope: Scope, branches: tuple[Lines, ...]) -> None:
    if node.optional_vars is not None:
        _bind_targets(node.optional_vars, "unknown", node.context_expr, scope, branches)


def _caught(node: ast.ExceptHandler, scope: Scope, branches: tuple[Lines, ...]) -> None:
    if node.name:
        _bind(scope, node.name, Binding("unknown", node, (), node.lineno, branches))


def _import(node: ast.Import, scope: Scope, branches: tuple[Lines, ...]) -> None:
    for alias in node.names:
        name = alias.asname or alias.name.partition(".")[0]
        dotted = alias.name if alias.asname else name
        _bind(scope, name, Binding("import", dotted, (), node.lineno, branches))


def _import_from(node: ast.ImportFrom, scope: Scope, branches: tuple[Lines, ...]) -> None:
    module = node.module or ""
    if node.level:
        parts = scope.file.package.split(".") if scope.file.package else []
        parts = parts[: len(parts) - (node.level - 1)]
        module = ".".join([*parts, *([module] if module else [])])
    for alias in node.names:
        if alias.name == "*":
            _bind(scope, "*", Binding("import", module, (), node.lineno, branches))
        else:
            dotted = f"{module}.{alias.name}" if module else alias.name
            _bind(scope, alias.asname or alias.name, Binding("import", dotted, (), node.lineno, branches))


_BINDERS: dict[type, Any] = {
    ast.Assign: _assign,
    ast.AnnAssign: _annotated,
    ast.AugAssign: _augmented,
    ast.NamedExpr: _walrus,
    ast.For: _loop,
    ast.AsyncFor: _loop,
    ast.comprehension: _loop,
    ast.withitem: _with,
    ast.ExceptHandler: _caught,
    ast.Import: _import,
    ast.ImportFrom: _import_from,
}

# Of each kind of node: whether it is sorted, what it binds, which fields hold others, and whether one is a body.
_PLANS: dict[type, tuple[bool, Any, tuple[str, ...], bool]] = {
    kind: (kind in _SORTED, _BINDERS.get(kind), fields, not _BRANCHING.isdisjoint(fields) and kind is not ast.IfExp)
    for kind, fields in _FIELDS.items()
}
