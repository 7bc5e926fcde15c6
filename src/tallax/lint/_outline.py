# SPDX-License-Identifier: Apache-2.0
"""Files that are read but not checked: a function or class is parsed when its name is looked up.

Of the hundreds of functions in an imported module, few matter for state. The others are not parsed, because parsing
takes most of the time. The imports and assignments of a file are read immediately. Of a class, often only the bases are
asked for, so its body is parsed when something in it is looked up.
"""

from __future__ import annotations

import ast
import collections
import re
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

from tallax.lint._index import Binding, File, Scope
from tallax.lint._source import Fault, Source, tree_of
from tallax.lint._syntax_walk import bind_name, walk

# A line that starts at the left margin: a decorator, a function or class with its name, or any other statement.
_STATEMENT = re.compile(r"^(?:(@)|(?:(?:async[ \t]+)?def|class)[ \t]+(\w+)|[^\s#)\]}])", re.MULTILINE)
# The head of a class, whose bases are names and subscripts only.
_HEAD = re.compile(r"^class[ \t]+(\w+)[ \t]*(?:\([^()#'\"]*\))?[ \t]*:", re.MULTILINE)


class _Piece(NamedTuple):
    """A function or class with its decorators: its text, and the number of lines above it."""

    text: str
    above: int

    def parse(self) -> ast.Module | Fault:
        """Returns its syntax tree, with the lines of the file."""
        return tree_of("\n" * self.above + self.text)


class Outline(File):
    """A file whose functions and classes are parsed one by one.

    The text is split at lines that start at the left margin, which may be inside a string of several lines. If the rest
    then does not parse, `outlined` parses the file as a whole. If a piece does not parse, its name is unknown, and
    rules ignore it.
    """

    __slots__ = ("_pieces", "_without_body")

    def __init__(self, tree: ast.Module, source: Source, pieces: dict[str, list[_Piece]], module: str, package: str):
        super().__init__(tree, source.path, source.text, module, package)
        walk(self, tree)
        self._pieces = pieces
        self._without_body: list[_Class] = []
        self.bindings = _Bindings(self)

    def take_in(self, name: str) -> None:
        """Parses the functions and classes of a name, unless they are already parsed."""
        for piece in self._pieces.pop(name, ()):
            cls = _class(piece, name, self)
            if cls is not None:
                self._without_body.append(cls)
                self.classes.append(cls)
                bind_name(self, name, Binding("def", cls, (), cls.node.lineno, ()))  # type: ignore[attr-defined]
            elif isinstance(tree := piece.parse(), ast.Module):
                walk(self, tree)

    def complete(self, whole: ast.Module) -> None:
        """Parses the rest of a file that has to be checked after all, except for code inside its strings."""
        named = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        for name in {node.name for node in whole.body if isinstance(node, named)}:
            self.take_in(name)

    def release(self) -> None:
        """Like that of a file, without parsing the bodies that nobody asked for."""
        for cls in self._without_body:
            cls.give_up()
        super().release()


class _Class(Scope):
    """A class whose body is parsed when its names, nodes or methods are looked up. Only its head is known until then.

    The slots of these three are empty at first, and Python calls `__getattr__` only for an empty slot. So a lookup in
    any other scope costs nothing more.
    """

    __slots__ = ("_piece",)
    _OF_BODY = ("bindings", "children", "nodes")

    def __init__(self, node: ast.ClassDef, file: Outline, piece: _Piece):
        super().__init__(node, node.name, "class", file, file)
        self._piece = piece
        for name in self._OF_BODY:
            delattr(self, name)

    def __getattr__(self, name: str) -> Any:
        if name not in self._OF_BODY:
            raise AttributeError(name)
        self.give_up()
        tree = self._piece.parse()
        if isinstance(tree, ast.Module):
            whole, node = cast("ast.ClassDef", tree.body[0]), cast("ast.ClassDef", self.node)
            node.body, node.end_lineno = whole.body, whole.end_lineno
            walk(self, ast.Module(node.body, []))
            self.file.parents.update(dict.fromkeys(node.body, node))
        return getattr(self, name)

    def give_up(self) -> None:
        """Makes the body empty, if it has not been parsed."""
        for name, empty in zip(self._OF_BODY, ({}, [], collections.defaultdict(list)), strict=True):
            try:
                object.__getattribute__(self, name)
            except AttributeError:
                setattr(self, name, empty)


def _class(piece: _Piece, name: str, file: Outline) -> _Class | None:
    """Returns a class by its head, or None for a function, or for a class whose head is not easily cut off."""
    head = _HEAD.search(piece.text)
    if head is None or head[1] != name:
        return None
    tree = _Piece(piece.text[: head.end()] + " pass", piece.above).parse()
    if not isinstance(tree, ast.Module) or len(tree.body) != 1 or not isinstance(tree.body[0], ast.ClassDef):
        return None
    return _Class(tree.body[0], file, piece)


class _Bindings(dict[str, list[Binding]]):
    """The names of an outline. `setdefault` and `items`, which fill it, do not trigger parsing."""

    def __init__(self, file: Outline):
        super().__init__(file.bindings)
        self._take_in = file.take_in

    def __contains__(self, name: object) -> bool:
        self._take_in(name)  # type: ignore[arg-type]
        return super().__contains__(name)

    def __getitem__(self, name: str) -> list[Binding]:
        self._take_in(name)
        return super().__getitem__(name)


def outlined(source: Source, module: str, package: str) -> File | None:
    """Returns the outline of a source. If it cannot be split, returns the whole file; if it does not parse, None."""
    text, pieces = _cut(source.text)
    tree = tree_of(text)
    if isinstance(tree, ast.Module):
        return Outline(tree, source, pieces, module, package)
    whole = source.parse()
    if whole is None:
        return None
    file = File(whole, source.path, source.text, module, package)
    walk(file, whole)
    return file


def _cut(text: str) -> tuple[str, dict[str, list[_Piece]]]:
    """Returns the text of a file with its functions and classes blanked, and the functions and classes by name."""
    rest: list[str] = []
    pieces: dict[str, list[_Piece]] = {}
    copied = above = 0
    for name, start, end in _spans(text):
        above += text.count("\n", copied, start)
        pieces.setdefault(name, []).append(_Piece(text[start:end], above))
        lines = text.count("\n", start, end)
        rest += text[copied:start], "\n" * lines
        above += lines
        copied = end
    return "".join([*rest, text[copied:]]), pieces


def _spans(text: str) -> Iterator[tuple[str, int, int]]:
    """Yields the functions and classes at the left margin: name, start of the first decorator, and end."""
    name, start = "", -1  # the open function or class; after a decorator, it has a start but no name yet
    for found in _STATEMENT.finditer(text):
        decorator, own = found.groups()
        if start >= 0 and not name and (decorator or own):
            name = own or ""
            continue
        if name:
            yield name, start, found.start()
        name, start = own or "", found.start() if decorator or own else -1
    if name:
        yield name, start, len(text)
