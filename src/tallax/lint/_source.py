# SPDX-License-Identifier: Apache-2.0
"""Files as the rules see them: text and syntax tree, of Python files and of notebooks.

Reading decodes and does no more, so that files which do not concern the rules cost little; `Source.parse` is asked only
for those that do. What can't be read or parsed becomes a `Problem`, a word to the user, and never an exception.
"""

from __future__ import annotations

import ast
import dataclasses
import re
import sys
import warnings
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tallax.lint._notebook import Notebook

# As the parser ends lines. `str.splitlines` would also end them at form feeds, which are white space in Python.
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")


class Problem(NamedTuple):
    """Why a file, or a part of it, was not judged.

    Attributes:
        path: The file, as it was named or found.
        message: What is the matter, in one line.
        line: Where, counted as in a `Finding`; None where it is the whole file.
        cell: Of a notebook, the cell that `line` counts in.
        status: The exit status that it makes at least: 2 where the run could not do what it was asked for.
    """

    path: str
    message: str
    line: int | None = None
    cell: int | None = None
    status: int = 1

    def __str__(self) -> str:
        places = (f"cell {self.cell}" if self.cell else None, str(self.line) if self.line else None)
        return ":".join([self.path, *filter(None, places)]) + f": {self.message}"


@dataclasses.dataclass
class Source:
    """A file that was read.

    Attributes:
        path: As it was named or found, with `/` between folders.
        text: Its code, without a byte order mark, its line ends as they are; of a notebook, the code of all cells, one
            below the other, in which what is not Python is blank. `parse` blanks the cells that do not parse.
        encoding: What the file is encoded in.
        notebook: What `text` was taken from; None for a Python file.
        problems: Why `parse` returned None, or left cells out.
    """

    path: str
    text: str
    encoding: str = "utf-8"
    notebook: Notebook | None = None
    problems: list[Problem] = dataclasses.field(default_factory=list)

    def parse(self) -> ast.Module | None:
        """Returns the syntax tree, whose columns count UTF-8 bytes; None with a word in `problems` if there is none."""
        if self.problems:
            return None
        parsed = tree_of(self.text)
        if isinstance(parsed, Fault) and self.notebook is not None:
            self._leave_out_cells()
            parsed = tree_of(self.text)
        if isinstance(parsed, ast.Module):
            return parsed
        if not self.problems:
            self.problems.append(Problem(self.path, f"skipped: {parsed.message}", parsed.line))
        return None

    def place(self, line: int) -> tuple[int | None, int]:
        """Returns where a line of `text` stands: a notebook's cell, None for a Python file, and the line in it."""
        return (None, line) if self.notebook is None else self.notebook.place(line)

    def lines(self) -> list[str]:
        """Returns the lines of `text` with their ends, as the parser counts them."""
        return lines_of(self.text)

    def _leave_out_cells(self) -> None:
        assert self.notebook is not None
        for cell in self.notebook.cells:
            fault = tree_of(cell.code)
            if isinstance(fault, Fault):
                cell.blank()
                message = f"cell skipped: {fault.message}"
                self.problems.append(Problem(self.path, message, fault.line, cell.number))
        self.text = self.notebook.code()


class Fault(NamedTuple):
    """Why text has no syntax tree."""

    message: str
    line: int | None = None


_PYTHON = f"Python {sys.version_info.major}.{sys.version_info.minor}"


def _tree_of_newer(text: str) -> ast.Module | None:
    """Returns the tree of text in the syntax of a newer Python, None if that cannot be read either."""
    from tallax.lint._newer_syntax import in_older_syntax

    older = in_older_syntax(text)
    if older == text:
        return None
    try:
        return ast.parse(older)
    except (SyntaxError, RecursionError, MemoryError, ValueError):
        return None


def lines_of(text: str) -> list[str]:
    """Returns the lines with their ends, as the parser counts them."""
    return _LINE.findall(text)


def tree_of(text: str) -> ast.Module | Fault:
    """Returns the syntax tree of some text, without the parser's warnings, or why there is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(text)
    except SyntaxError as error:
        return _tree_of_newer(text) or Fault(f"does not parse on {_PYTHON}: {error.msg}", error.lineno)
    except (RecursionError, MemoryError):
        return Fault("nested too deeply for Python's parser")
    except ValueError as error:  # null bytes, surrogates, and integers of thousands of digits
        return Fault(f"does not parse: {error}")
