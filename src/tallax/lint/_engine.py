# SPDX-License-Identifier: Apache-2.0
"""Runs the rules over files: selects the files to parse, and passes their nodes to the rules."""

from __future__ import annotations

import ast
import gc
import re
from collections.abc import Iterator, Sequence

from tallax.lint._check import Context, NodeCheck
from tallax.lint._finding import Finding
from tallax.lint._index import File, Scope
from tallax.lint._project import Tree
from tallax.lint._source import Source
from tallax.lint._values import Values
from tallax.lint.rules import CHECKS

# The name and bases of a class statement. Files that do not mention nnx may derive from classes in files that do. The
# pattern begins with letters, because `re` then searches some fifty times faster.
_CLASS = re.compile(r"class\s+(\w+)\s*\(([^)]*)\)")
_CLASS_NAME = re.compile(r"class\s+(\w+)\s*[:([]")
_AS = re.compile(r" as[ \t]+(\w+)")
_LAST_WORD = re.compile(r"\w+$")
_FEW = 50
_NNX = re.compile(r"nnx(?<!\wnnx)(?!\w)")  # but not onnx
_NAME = re.compile(r"(\w+)\s*(?:\[|,|$)")


def findings_in(sources: Sequence[Source]) -> list[Finding]:
    """Returns the findings of the rules in some files, sorted by place, before `# noqa` is applied."""
    # All of the millions of nodes live until the end, so garbage collection would take longer than the rules.
    collecting = gc.isenabled()
    gc.disable()
    tree = Tree()
    try:
        values = Values(tree)
        found: list[Finding] = []
        for file in _relevant(sources, values):
            found += _findings_of(file, values)
        return sorted(set(found))
    finally:
        tree.release()
        if collecting:
            gc.enable()


def _relevant(sources: Sequence[Source], values: Values) -> Iterator[File]:
    """Yields the files that may have findings: they mention nnx, or derive from classes of files that do.

    Each file is parsed just before it is checked, or looked up, because its nodes are then still in the processor's
    cache.
    """
    mentioning: list[Source] = []
    others: list[tuple[Source, list[tuple[str, set[str]]]]] = []
    for source in sources:
        text = source.text
        if "nnx" in text and _NNX.search(text):
            mentioning.append(source)
            values.tree.expect(source)
        elif "class" in text:
            classes = [(name, set(_NAME.findall(bases))) for name, bases in _CLASS.findall(text) if bases]
            renamed = _renamed(text) if classes else {}
            classes = [(name, bases | {renamed[base] for base in bases & renamed.keys()}) for name, bases in classes]
            if classes:
                others.append((source, classes))
    known = {name for source in mentioning for name in _CLASS_NAME.findall(source.text)} if others else set()
    derived = _derived(others, known, len(sources) <= _FEW, values)
    for source in mentioning:
        file = values.tree.add(source)
        if file is not None:
            yield file
    yield from derived


def _derived(
    others: list[tuple[Source, list[tuple[str, set[str]]]]], known: set[str], few: bool, values: Values
) -> list[File]:
    """Returns the files with classes that derive from known ones, in several steps.

    If there are few files, for example those of a commit, their base classes may be in files that were not passed.
    """
    found: list[File] = []
    grown = True
    while grown:
        grown = False
        for source, classes in list(others):
            if few or any(bases & known for _, bases in classes):
                others.remove((source, classes))
                file = values.tree.add(source)
                if file is not None and any(values.is_node(cls) for cls in file.classes):
                    known |= {name for name, _ in classes}
                    grown = True
                    found.append(file)
    return found


def _renamed(text: str) -> dict[str, str]:
    """Returns the old names by the new names of each ` as `."""
    names: dict[str, str] = {}
    for found in _AS.finditer(text):
        before = _LAST_WORD.search(text, max(0, found.start() - 99), found.start())
        if before is not None:
            names[found[1]] = before[0]
    return names


def _findings_of(file: File, values: Values) -> list[Finding]:
    context = Context(file, values)
    renamed = _old_names(file)
    for scope in file.inside():
        if scope.nodes:
            _check_nodes(scope, context)
            _check_calls(scope, renamed, context)
        if scope.kind == "class":
            for check in CHECKS.classes:
                check(scope, context)
        elif scope.kind == "function" and scope.decorators:
            for check in CHECKS.decorated:
                check(scope, context)
    for check in CHECKS.files:
        check(file, context)
    return context.findings


def _check_nodes(scope: Scope, context: Context) -> None:
    nodes_of, of_attributes = scope.nodes, CHECKS.attributes
    for kind, checks in CHECKS.nodes.items():
        if kind in nodes_of:
            for check in checks:
                for node in nodes_of[kind]:
                    check(node, scope, context)
    for node in nodes_of.get(ast.Attribute, ()):
        if node.attr in of_attributes:
            for check in of_attributes[node.attr]:
                check(node, scope, context)


def _check_calls(scope: Scope, renamed: dict[str, str], context: Context) -> None:
    by_name = _BY_NAME
    for node in scope.nodes.get(ast.Call, ()):
        function = node.func
        # Inlined `last_name`: this loop runs for every call of every file.
        kind = function.__class__
        name = function.attr if kind is ast.Attribute else function.id if kind is ast.Name else ""
        checks, is_type = by_name[renamed.get(name, name)]
        for check in checks:
            check(node, scope, context)
        if is_type and context.values.makes_variable(node, scope):
            for check in CHECKS.variables:
                check(node, scope, context)


class _CallChecks(dict[str, tuple[Sequence[NodeCheck], bool]]):
    """The checks of a call by the last name of its function, and whether that may be a class."""

    def __missing__(self, name: str) -> tuple[Sequence[NodeCheck], bool]:
        is_type = name[:1].isupper() or (name[:1] == "_" and name.lstrip("_")[:1].isupper())
        self[name] = found = (CHECKS.calls.get(name, ()), is_type)
        return found


_BY_NAME = _CallChecks()


def _old_names(file: File) -> dict[str, str]:
    """Returns the original last names of the objects that a file imports under other names, by the new names."""
    names: dict[str, str] = {}
    for name, bindings in file.bindings.items():
        for binding in bindings:
            if binding.how == "import":
                names[name] = binding.what.rpartition(".")[2]
    return {name: old for name, old in names.items() if old != name}
