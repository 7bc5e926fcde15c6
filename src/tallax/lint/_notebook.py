# SPDX-License-Identifier: Apache-2.0
"""Notebooks: joins the code of the cells to one text, and writes edited cells back."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from tallax.lint._source import Problem, Source

# Cell magics that run the cell as Python. Other magics pass it to another program, or write it to a file.
_OF_PYTHON = frozenset({"capture", "debug", "ipytest", "prun", "time", "timeit"})
_CELL_MAGIC = re.compile(r"\s*%%(\w+)")
# `%magic`, `!shell`, `?help`, `help?`, and `name = %magic` or `name = !shell`, at the start of a statement.
_MAGIC = re.compile(r"[%!?]|[\w.\[\]*]+\?\??[ \t]*$|[\w., \t\[\]*]+=[ \t]*[%!]")
_TOKEN = re.compile(r"""#.*|\"""|'''|'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[()\[\]{}]|\\$""")
_CLOSING = {quote: re.compile(rf"(?:[^\\]|\\.)*?{quote}") for quote in ('"""', "'''")}
_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\r\n]*")


@dataclasses.dataclass
class Cell:
    """A cell of code.

    Attributes:
        number: The number of the cell, counted from 1 over all cells, also cells of text.
        original: The content of the cell.
        code: The content, line by line, with blanks instead of anything but Python.
        start: The line of the notebook's text at which the cell starts, counted from 1.
    """

    number: int
    original: str
    code: str
    start: int

    def blank(self) -> None:
        """Removes the code, but keeps the lines."""
        self.code = "\n" * self.code.count("\n")

    @property
    def end(self) -> int:
        """The line after the last line. A cell has at least one line."""
        return self.start + self.code.count("\n") + 1


class Notebook:
    """The cells of code, and the JSON around them.

    Attributes:
        json: The whole file.
        cells: Its cells of code.
    """

    def __init__(self, text: str, cells: list[Cell]):
        self.json = text
        self.cells = cells

    def code(self) -> str:
        """Returns the code of all cells, concatenated."""
        return "\n".join(cell.code for cell in self.cells)

    def place(self, line: int) -> tuple[int | None, int]:
        """Returns the number of the cell with a line, and the line within the cell."""
        for cell in reversed(self.cells):
            if cell.start <= line:
                return cell.number, line - cell.start + 1
        return None, line

    def holds(self, first: int, last: int) -> bool:
        """Returns whether some lines lie in one cell and are as they stand there, without magics and blanked code."""
        for cell in self.cells:
            if cell.start <= first <= last < cell.end:
                these = slice(first - cell.start, last - cell.start + 1)
                return _lines(cell.original)[these] == _lines(cell.code)[these]
        return False

    def replaced(self, originals: Mapping[int, str]) -> str:
        """Returns the JSON with new code in some cells, given by number, and everything else unchanged.

        Raises:
            ValueError: The layout of the JSON does not allow this.
        """
        text, wanted = self.json, json.loads(self.json)
        for number, (start, end) in reversed(list(enumerate(_sources(text), 1))):
            if number in originals:
                text = text[:start] + _written(text[start:end], originals[number], text.isascii()) + text[end:]
                old = wanted["cells"][number - 1]["source"]
                new = originals[number]
                wanted["cells"][number - 1]["source"] = new if isinstance(old, str) else new.splitlines(keepends=True)
        if json.loads(text) != wanted:
            raise ValueError("its JSON can't be changed in place")
        return text


def source(path: str, data: bytes) -> Source | Problem:
    """Returns the notebook with some bytes as content, or the reason why it cannot be read."""
    encoding = "utf-8-sig" if data.startswith(b"\xef\xbb\xbf") else "utf-8"
    try:
        text = data.decode(encoding)
        whole = json.loads(text)
        cells = list(_code_cells(whole))
        language = _language(whole)
    except (ValueError, RecursionError) as error:
        return Problem(path, f"skipped: not a notebook in JSON: {error}")
    except (TypeError, KeyError, AttributeError):
        return Problem(path, "skipped: not a notebook of format 4")
    if language != "python":
        return Problem(path, f"skipped: a notebook in {language}", status=0)
    notebook = Notebook(text, cells)
    return Source(path, notebook.code(), encoding=encoding, notebook=notebook)


def _code_cells(whole: Any) -> Iterator[Cell]:
    start = 1
    for number, cell in enumerate(whole["cells"], 1):
        if cell["cell_type"] == "code":
            original = "".join(cell["source"])  # a text, or a list of its lines
            yield (made := Cell(number, original, _python(original), start))
            start = made.end


def _language(whole: Any) -> str:
    metadata = whole.get("metadata", {})
    for name, key in (("language_info", "name"), ("kernelspec", "language")):
        value = metadata.get(name, {})
        if isinstance(value, dict) and isinstance(value.get(key), str):
            return value[key].lower()
    return "python"


def _python(original: str) -> str:
    """Returns the code of a cell in which magics and shell lines are `pass` or blank. It has as many lines."""
    lines = _lines(original)
    magic = _CELL_MAGIC.match(original)
    if magic is not None and magic[1] not in _OF_PYTHON:
        return "\n" * (len(lines) - 1)
    if magic is not None:  # it may follow blank lines
        lines[next(k for k, line in enumerate(lines) if line.strip())] = ""
    depth, quote, more, within = 0, "", False, False
    for k, line in enumerate(lines):
        if within:
            lines[k], within = "", line.endswith("\\")
        elif not (depth or quote or more) and _MAGIC.match(line.lstrip(" \t")):
            lines[k], within = line[: len(line) - len(line.lstrip())] + "pass", line.endswith("\\")
        else:
            depth, quote, more = _left_open(line, depth, quote)
    return "\n".join(lines)


def _lines(text: str) -> list[str]:
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _left_open(line: str, depth: int, quote: str) -> tuple[int, str, bool]:
    """Returns the number of open brackets after a line, its open triple quote, and whether a backslash ends it."""
    position, more = 0, False
    while True:
        if quote:
            closing = _CLOSING[quote].match(line, position)
            if closing is None:
                return depth, quote, False
            position, quote = closing.end(), ""
        token = _TOKEN.search(line, position)
        if token is None:
            return depth, quote, more
        position, what = token.end(), token[0]
        if what in _CLOSING:
            quote = what
        elif what in "([{":
            depth += 1
        elif what in ")]}":
            depth = max(0, depth - 1)
        more = what == "\\"


def _sources(text: str) -> Iterator[tuple[int, int]]:
    """Yields the range of each cell's `source` in the JSON."""
    cells = next(start for key, start, _ in _members(text, _SPACE.match(text).end()) if key == "cells")  # type: ignore[union-attr]
    for _, cell, _ in _members(text, cells):
        yield next(((start, end) for key, start, end in _members(text, cell) if key == "source"), (cell, cell))


def _members(text: str, position: int) -> Iterator[tuple[str | None, int, int]]:
    """Yields key, start and end of each member of an object, or None, start and end of each element of an array."""

    def skip(position: int) -> int:
        return _SPACE.match(text, position).end()  # type: ignore[union-attr]

    keyed = text[position] == "{"
    position = skip(position + 1)
    while text[position] not in "]}":
        key = None
        if keyed:
            key, position = _DECODER.raw_decode(text, position)
            position = skip(skip(position) + 1)
        _, end = _DECODER.raw_decode(text, position)
        yield key, position, end
        position = skip(end)
        if text[position] == ",":
            position = skip(position + 1)


def _written(old: str, new: str, ascii_only: bool) -> str:
    """Returns the JSON of a cell's new code in the layout of the old code. Unchanged lines keep their bytes."""
    if old.startswith('"'):
        return json.dumps(new, ensure_ascii=ascii_only)
    items = [(start, end) for _, start, end in _members(old, 0)]
    if not items:
        return json.dumps(new.splitlines(keepends=True), ensure_ascii=ascii_only)
    known = {json.loads(old[start:end]): old[start:end] for start, end in items}
    first, last = old[: items[0][0]], old[items[-1][1] :]
    between = old[items[0][1] : items[1][0]] if len(items) > 1 else "," + first[1:]
    lines = new.splitlines(keepends=True)
    return first + between.join(known.get(line) or json.dumps(line, ensure_ascii=ascii_only) for line in lines) + last
