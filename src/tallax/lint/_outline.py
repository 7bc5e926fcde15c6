# SPDX-License-Identifier: Apache-2.0
"""Files that are read but not checked: a function or class is parsed when its name is looked up.

Of the hundreds of functions in an imported module, few matter for state. The others are not parsed, because parsing
takes most of the time. The imports and assignments of a file are read immediately.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import NamedTuple

from tallax.lint._index import Binding, File
from tallax.lint._source import Source, tree_of
from tallax.lint._syntax_walk import walk

# A line that starts at the left margin: a decorator, a function or class with its name, or any other statement.
_STATEMENT = re.compile(r"^(?:(@)|(?:(?:async[ \t]+)?def|class)[ \t]+(\w+)|[^\s#)\]}])", re.MULTILINE)


class _Piece(NamedTuple):
    """A function or class with its decorators: its text, and the number of lines above it."""

    text: str
    above: int


class Outline(File):
    """A file whose functions and classes are parsed one by one.

    The text is split at lines that start at the left margin, which may be inside a string of several lines. If the rest
    then does not parse, `outlined` parses the file as a whole. If a piece does not parse, its name is unknown, and
    rules ignore it.
    """

    __slots__ = ("_pieces",)

    def __init__(self, tree: ast.Module, source: Source, pieces: dict[str, list[_Piece]], module: str, package: str):
        super().__init__(tree, source.path, source.text, module, package)
        walk(self, tree)
        self._pieces = pieces
        self.bindings = _Bindings(self)

    def take_in(self, name: str) -> None:
        """Parses the functions and classes of a name, unless they are already parsed."""
        for piece in self._pieces.pop(name, ()):
            tree = tree_of("\n" * piece.above + piece.text)
            if isinstance(tree, ast.Module):
                walk(self, tree)

    def complete(self, whole: ast.Module) -> None:
        """Parses the rest of a file that has to be checked after all, except for code inside its strings."""
        named = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        for name in {node.name for node in whole.body if isinstance(node, named)}:
            self.take_in(name)


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
