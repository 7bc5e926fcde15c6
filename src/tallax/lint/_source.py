# SPDX-License-Identifier: Apache-2.0
"""Source files and notebooks: text and syntax tree.

Reading a file only decodes it, so that files without relevance for the rules cost little. `Source.parse` is called only
for relevant files. A file that cannot be read or parsed becomes a `Problem` for the user, and never an exception.
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

# The line ends of the parser. `str.splitlines` also splits at form feeds, which are white space in Python.
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")


class Problem(NamedTuple):
    """The reason why a file, or a part of it, was not checked.

    Attributes:
        path: The path of the file, as it was named or found.
        message: The reason, in one line.
        line: The line, counted as in a `Finding`; None for the whole file.
        cell: The cell of a notebook in which `line` is counted.
        status: The minimum exit status: 2 if the run could not do its task.
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
        path: The path, as it was named or found, with `/` between folders.
        text: Its code, without a byte order mark, with unchanged line ends. For a notebook, the concatenated code of
            all cells, with blanks instead of anything but Python. `parse` blanks the cells that do not parse.
        encoding: The encoding of the file.
        notebook: The notebook of `text`; None for a Python file.
        problems: The reasons why `parse` returned None, or omitted cells.
    """

    path: str
    text: str
    encoding: str = "utf-8"
    notebook: Notebook | None = None
    problems: list[Problem] = dataclasses.field(default_factory=list)

    def parse(self) -> ast.Module | None:
        """Returns the syntax tree, with columns in UTF-8 bytes, or None with an entry in `problems`."""
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
        """Returns the place of a line of `text`: the notebook's cell, or None for a Python file, and the line in it."""
        return (None, line) if self.notebook is None else self.notebook.place(line)

    def lines(self) -> list[str]:
        """Returns the lines of `text` with their ends, split as by the parser."""
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
    """The reason why text does not parse."""

    message: str
    line: int | None = None


_PYTHON = f"Python {sys.version_info.major}.{sys.version_info.minor}"


def _tree_of_newer(text: str, error: SyntaxError) -> ast.Module | Fault:
    """Returns the tree of text in the syntax of a newer Python, or the reason why it does not parse."""
    from tallax.lint._newer_syntax import in_older_syntax, python_needed

    older = in_older_syntax(text)
    if older != text:
        try:
            return ast.parse(older)
        except SyntaxError as other:
            if other.lineno != error.lineno:  # the first error was in syntax that is known, and this one is not
                error = other
        except (RecursionError, MemoryError, ValueError):
            pass
    message = f"does not parse on {_PYTHON}: {error.msg}"
    needed = python_needed(error.text or "", error.msg)
    if needed and tuple(map(int, needed.split("."))) > sys.version_info[:2]:
        message += f"; if the line is in the syntax of Python {needed}, run the linter with Python {needed} or newer"
    return Fault(message, error.lineno)


def lines_of(text: str) -> list[str]:
    """Returns the lines with their ends, split as by the parser."""
    return _LINE.findall(text)


def tree_of(text: str) -> ast.Module | Fault:
    """Returns the syntax tree of some text, without the parser's warnings, or the reason why it does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(text)
    except SyntaxError as error:
        return _tree_of_newer(text, error)
    except (RecursionError, MemoryError):
        return Fault("nested too deeply for Python's parser")
    except ValueError as error:  # null bytes, surrogates, and integers of thousands of digits
        return Fault(f"does not parse: {error}")
