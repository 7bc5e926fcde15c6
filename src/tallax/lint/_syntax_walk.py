# SPDX-License-Identifier: Apache-2.0
"""Fills the index of a file in one walk over its syntax tree.

The walk binds names, opens scopes, sorts the nodes that rules use by scope and kind, and records the parent of each. It
is not recursive, because source may be nested deeper than Python's stack.
"""

from __future__ import annotations

import ast
import bisect
from typing import Any

from tallax.lint._index import Binding, Lines, Scope, targets

_binding: Any = tuple.__new__  # makes a `Binding` without a call of Python code

# The kinds of nodes that rules and `_values` search for within a scope.
_SORTED = {
    ast.Call,
    ast.Attribute,
    ast.Subscript,
    ast.Assign,
    ast.AnnAssign,
    ast.AugAssign,
    ast.Return,
    ast.If,
    ast.For,
    ast.While,
    ast.IfExp,
    ast.Assert,
}
# Fields with names and flags instead of nodes.
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
    "str",
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
# The fields with nodes of each kind of node, last first, because the walk uses a stack.
_FIELDS: dict[type, tuple[str, ...]] = {
    kind: () if kind in _LEAVES else tuple(field for field in reversed(kind._fields) if field not in _WORDS)
    for kind in vars(ast).values()
    if isinstance(kind, type) and issubclass(kind, ast.AST)
}
_FIELDS[ast.keyword] = ("value",)
# Annotations are not walked; they are read when they are needed.
for _kind in (ast.AnnAssign, ast.FunctionDef, ast.AsyncFunctionDef):
    _FIELDS[_kind] = tuple(field for field in _FIELDS[_kind] if field not in ("annotation", "returns"))
# These bind no names, and no rule uses them or their parents, so they are not walked. None stands for a missing
# optional field, or for the key of `{**other}`.
_SILENT = {ast.Constant, ast.Name, ast.Pass, type(None)}
_BRANCHING = {"body", "orelse", "handlers", "finalbody"}


def walk(scope: Scope, tree: ast.Module) -> None:
    """Adds statements of a syntax tree, all or some of a file or a class, to its scope and the scopes within."""
    parents, silent, plans = scope.file.parents, _SILENT, _PLANS
    # Nodes that wait, the next one last. A tuple means that the nodes before it have another scope and other branches.
    stack: list[Any] = [tree, (scope, ())]
    take, put = stack.pop, stack.append
    attribute, call, assign, name, function = ast.Attribute, ast.Call, ast.Assign, ast.Name, ast.FunctionDef
    subscript, condition, expression, returned, operation = ast.Subscript, ast.If, ast.Expr, ast.Return, ast.BinOp
    nodes, bindings = scope.nodes, scope.bindings
    branches: tuple[Lines, ...] = ()
    while stack:
        node = take()
        if node.__class__ is tuple:
            scope, branches = node
            nodes, bindings = scope.nodes, scope.bindings
            continue
        while True:
            kind = node.__class__
            # Two thirds of the time would go into the general code for these nine kinds, which are most of all nodes.
            if kind is attribute:
                nodes[kind].append(node)
                child = node.value
            elif kind is call:
                nodes[kind].append(node)
                if node.keywords:
                    for word in reversed(node.keywords):
                        value = word.value
                        if value.__class__ not in silent:
                            parents[word] = node
                            parents[value] = word
                            put(value)
                if node.args:
                    for value in reversed(node.args):
                        if value.__class__ not in silent:
                            parents[value] = node
                            put(value)
                child = node.func
            elif kind is assign and len(node.targets) == 1:
                target, child = node.targets[0], node.value
                if target.__class__ is name:
                    binding = _binding(Binding, ("value", child, (), target.lineno, branches))
                    if target.id in bindings:
                        bind_name(scope, target.id, binding)
                    else:
                        bindings[target.id] = [binding]
                else:
                    nodes[kind].append(node)
                    if target.__class__ is not attribute:
                        _bind_targets(target, "value", child, scope, branches)
                    if child.__class__ not in silent:
                        parents[child] = node
                        put(child)
                    child = target
            elif kind is expression:
                child = node.value
            elif kind is returned:
                nodes[kind].append(node)
                child = node.value
            elif kind is subscript or kind is operation:
                if kind is subscript:
                    nodes[kind].append(node)
                    child, other = node.value, node.slice
                else:
                    child, other = node.left, node.right
                if other.__class__ not in silent:
                    parents[other] = node
                    put(other)
            elif kind is condition:
                nodes[kind].append(node)
                if node.orelse:
                    _put_block(node, node.orelse, scope, branches, stack, parents)
                _put_block(node, node.body, scope, branches, stack, parents)
                child = node.test
            elif kind is function:
                _put_function(node, scope, branches, stack, parents)
                break
            else:
                is_sorted, bind, fields, has_blocks = plans[kind]
                if is_sorted:
                    nodes[kind].append(node)
                if bind is not None:
                    bind(node, scope, branches)
                if has_blocks:
                    _put_blocks(node, scope, branches, stack, parents)
                    break
                last = len(stack)
                for field in fields:
                    value = getattr(node, field)
                    if value.__class__ is list:
                        for child in reversed(value):
                            if child.__class__ not in silent:
                                parents[child] = node
                                put(child)
                    elif value.__class__ not in silent:
                        parents[value] = node
                        put(value)
                if len(stack) == last:
                    break
                node = take()
                continue
            if child.__class__ in silent:
                break
            parents[child] = node
            node = child


def _put_block(
    node: Any, block: list[Any], scope: Scope, branches: tuple[Lines, ...], stack: list[Any], parents: dict[Any, Any]
) -> None:
    """Puts the statements of a branch on the stack, last first, above the scope and branches that hold after them."""
    stack.append((scope, branches))
    stack += reversed(block)
    parents.update(dict.fromkeys(block, node))
    last = block[-1]
    stack.append((scope, (*branches, (block[0].lineno, last.end_lineno or last.lineno))))


def _put_function(
    node: Any, scope: Scope, branches: tuple[Lines, ...], stack: list[Any], parents: dict[Any, Any]
) -> None:
    """Puts the children of a function on the stack, last first. Only its body has the function's scope."""
    inner = _open(node, scope, branches)
    for child in reversed(node.decorator_list):
        if child.__class__ not in _SILENT:
            parents[child] = node
            stack.append(child)
    stack.append((scope, branches))
    stack += reversed(node.body)
    stack.append((inner, ()))
    parents.update(dict.fromkeys(node.body, node))
    _put_defaults(node, stack, parents)


def _put_defaults(node: Any, stack: list[Any], parents: dict[Any, Any]) -> None:
    """Puts the defaults of a function's parameters on the stack, last first."""
    arguments = node.args
    if arguments.defaults or arguments.kw_defaults:
        parents[arguments] = node
        for default in (*reversed(arguments.kw_defaults), *reversed(arguments.defaults)):
            if default.__class__ not in _SILENT:
                parents[default] = arguments
                stack.append(default)


def _put_blocks(
    node: Any, scope: Scope, branches: tuple[Lines, ...], stack: list[Any], parents: dict[ast.AST, ast.AST]
) -> None:
    """Puts the children of another statement with a body, or of a lambda, on the stack, last first."""
    kind = node.__class__
    if kind is ast.AsyncFunctionDef:
        _put_function(node, scope, branches, stack, parents)
        return
    inner = _open(node, scope, branches) if kind in _SCOPES else scope
    for field in _FIELDS[kind]:
        value: Any = getattr(node, field)
        if not value:
            continue
        if field in _BRANCHING and kind in _BRANCHES:
            _put_block(node, value, scope, branches, stack, parents)
        elif kind is ast.ClassDef and field == "body":
            stack.append((scope, branches))
            stack += reversed(value)
            stack.append((inner, ()))
            parents.update(dict.fromkeys(value, node))
        elif value.__class__ is ast.arguments:  # of a lambda
            _put_defaults(node, stack, parents)
        elif value.__class__ is list:
            for child in reversed(value):
                if child.__class__ not in _SILENT:
                    parents[child] = node
                    stack.append(child)
        elif value.__class__ not in _SILENT:
            parents[value] = node
            if kind is ast.Lambda:
                stack += (scope, branches), value, (inner, branches)
            else:
                stack.append(value)


_SCOPES = {ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef}
_BRANCHES = {ast.If, ast.For, ast.AsyncFor, ast.While, ast.Try, ast.ExceptHandler, ast.match_case}
if hasattr(ast, "TryStar"):
    _BRANCHES.add(ast.TryStar)


def _open(node: Any, scope: Scope, branches: tuple[Lines, ...]) -> Scope:
    """Creates the scope of a function or class, and binds its parameters."""
    own = getattr(node, "name", "<lambda>")
    name = f"{scope.name}.{own}" if scope.name else own
    if isinstance(node, ast.ClassDef):
        inner = Scope(node, name, "class", scope, scope.file)
        scope.file.classes.append(inner)
    else:
        inner = Scope(node, name, "function", scope, scope.file)
        arguments, line = node.args, node.lineno
        for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
            inner.bindings[argument.arg] = [_binding(Binding, ("parameter", argument, (), line, ()))]
        for argument in (arguments.vararg, arguments.kwarg):
            if argument is not None:
                inner.bindings[argument.arg] = [_binding(Binding, ("unknown", argument, (), node.lineno, ()))]
    if own != "<lambda>":
        bind_name(scope, own, _binding(Binding, ("def", inner, (), node.lineno, branches)))
    return inner


def bind_name(scope: Scope, name: str, binding: Binding) -> None:
    """Adds a binding in the order of lines, which `reaching` requires. The walk nearly has this order."""
    known = scope.bindings.get(name)
    if known is None:
        scope.bindings[name] = [binding]
    elif known[-1].line > binding.line:
        bisect.insort(known, binding, key=lambda other: other.line)
    else:
        known.append(binding)


def _bind_targets(target: ast.expr, how: str, what: Any, scope: Scope, branches: tuple[Lines, ...]) -> None:
    for single, item in targets(target):
        if isinstance(single, ast.Name):
            kind = how if item is not None else "unknown"
            bind_name(scope, single.id, _binding(Binding, (kind, what, item or (), single.lineno, branches)))


def _assign(node: ast.Assign, scope: Scope, branches: tuple[Lines, ...]) -> None:
    for target in node.targets:
        if isinstance(target, ast.Name):  # usually true
            bind_name(scope, target.id, _binding(Binding, ("value", node.value, (), target.lineno, branches)))
        elif not isinstance(target, ast.Attribute):
            _bind_targets(target, "value", node.value, scope, branches)


def _annotated(node: ast.AnnAssign, scope: Scope, branches: tuple[Lines, ...]) -> None:
    if isinstance(node.target, ast.Name):
        how = ("value", node.value) if node.value is not None else ("annotation", node.annotation)
        bind_name(scope, node.target.id, _binding(Binding, (*how, (), node.lineno, branches)))


def _augmented(node: ast.AugAssign, scope: Scope, branches: tuple[Lines, ...]) -> None:
    if isinstance(node.target, ast.Name):
        bind_name(scope, node.target.id, _binding(Binding, ("changed", node, (), node.lineno, branches)))


def _walrus(node: ast.NamedExpr, scope: Scope, branches: tuple[Lines, ...]) -> None:
    _bind_targets(node.target, "value", node.value, scope, branches)


def _loop(node: Any, scope: Scope, branches: tuple[Lines, ...]) -> None:
    _bind_targets(node.target, "element", node.iter, scope, branches)


def _with(node: ast.withitem, scope: Scope, branches: tuple[Lines, ...]) -> None:
    if node.optional_vars is not None:
        _bind_targets(node.optional_vars, "unknown", node.context_expr, scope, branches)


def _caught(node: ast.ExceptHandler, scope: Scope, branches: tuple[Lines, ...]) -> None:
    if node.name:
        bind_name(scope, node.name, _binding(Binding, ("unknown", node, (), node.lineno, branches)))


def _import(node: ast.Import, scope: Scope, branches: tuple[Lines, ...]) -> None:
    for alias in node.names:
        name = alias.asname or alias.name.partition(".")[0]
        dotted = alias.name if alias.asname else name
        bind_name(scope, name, _binding(Binding, ("import", dotted, (), node.lineno, branches)))


def _import_from(node: ast.ImportFrom, scope: Scope, branches: tuple[Lines, ...]) -> None:
    module = node.module or ""
    if node.level:
        parts = scope.file.package.split(".") if scope.file.package else []
        parts = parts[: len(parts) - (node.level - 1)]
        module = ".".join([*parts, *([module] if module else [])])
    for alias in node.names:
        if alias.name == "*":
            bind_name(scope, "*", _binding(Binding, ("import", module, (), node.lineno, branches)))
        else:
            dotted = f"{module}.{alias.name}" if module else alias.name
            bind_name(
                scope, alias.asname or alias.name, _binding(Binding, ("import", dotted, (), node.lineno, branches))
            )


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

# For each kind of node: whether it is sorted, its bindings, its fields with nodes, and whether one is a body.
_PLANS: dict[type, tuple[bool, Any, tuple[str, ...], bool]] = {
    kind: (kind in _SORTED, _BINDERS.get(kind), fields, not _BRANCHING.isdisjoint(fields) and kind is not ast.IfExp)
    for kind, fields in _FIELDS.items()
}
