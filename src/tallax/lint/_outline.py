# SPDX-License-Identifier: Apache-2.0
"""Files that are looked into but not judged: a function or class of theirs is parsed when its name is asked for.

Of the hundreds of functions in a module that a judged file imports from, few say anything about state. The rest need
not be parsed, which takes most of the time; what a file imports and assigns is taken in at once.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import NamedTuple

from tallax.lint._index import Binding, File
from tallax.lint._source import Source, tree_of
from tallax.lint._syntax_walk import walk

# What begins at the left margin: a decorator, a function or class by its name, or any other statement.
_STATEMENT = re.compile(r"^(?:(@)|(?:(?:async[ \t]+)?def|class)[ \t]+(\w+)|[^\s#)\]}])", re.MULTILINE)


class _Piece(NamedTuple):
    """A function or class with its decorators: its text, and how many lines stand above it."""

    text: str
    above: int


class Outline(File):
    """A file whose functions and classes are parsed one by one.

    The text is cut by its left margin, which a string over several lines may touch. Where what is left does not parse
    then, `outlined` takes the file as a whole; where a piece does not, its name is unknown, and rules are silent on it.
    """

    __slots__ = ("_pieces",)

    def __init__(self, tree: ast.Module, source: Source, pieces: dict[str, list[_Piece]], module: str, package: str):
        super().__init__(tree, source.path, source.text, module, package)
        walk(self, tree)
        self._pieces = pieces
        self.bindings = _Bindings(self)

    def take_in(self, name: str) -> None:
        """Parses the functions and classes of a name, unless that is done."""
        for piece in self._pieces.pop(name, ()):
            tree = tree_of("\n" * piece.above + piece.text)
            if isinstance(tree, ast.Module):
                walk(self, tree)

    def complete(self, whole: ast.Module) -> None:
        """Takes in the rest of a file that is to be judged after all, but nothing that only stands in its strings."""
        named = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        for name in {node.name for node in whole.body if isinstance(node, named)}:
            self.take_in(name)


class _Bindings(dict[str, list[Binding]]):
    """The names of an outline. `setdefault` and `items`, with which they are filled, ask for nothing."""

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
    """Returns the outline of a source, the whole file where it can't be cut, None if it does not parse."""
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
    """Returns a file's text with its functions and classes blanked, and those by name."""
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
    """Yields the functions and classes at the left margin: name, where the first decorator starts, and the end."""
    name, start = "", -1  # of the one that is open; behind a decorator, it has a start and no name yet
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
