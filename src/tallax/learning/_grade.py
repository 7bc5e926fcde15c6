# SPDX-License-Identifier: Apache-2.0
"""`Grade`: the claims that hold, and the first one that fails. Imports no JAX."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

# Mistakes that are possible in every exercise. The text of an exercise has the sentences for its own mistakes.
MISTAKES = {
    "syntax": "Python cannot read the file.",
    "import": "The file raises an error when it is run.",
    "missing": "The file no longer defines a name that the exercise needs.",
    "raises": "Your code raises an error, where the exercise needs a result.",
    "unfinished": "A function still raises NotImplementedError.",
    "hangs": "Grading did not end within the time limit. A loop in your code may not end, or it runs Python code in "
    "each of very many steps.",
    "exits": "The process ended before it was graded. Remove calls of `exit`, `quit` or `os._exit` from your file.",
    "dies": "The process was killed by a signal before it was graded, for example because memory ran out.",
    "tampers": "The file replaces a function or class of a library that your program and its grading both use. A grade "
    "would no longer mean anything. Define a function or class of your own instead.",
}


@dataclass(frozen=True)
class Failure:
    """A claim that does not hold.

    Attributes:
        claim: the sentence that is not true of the program.
        mistake: the name of the mistake.
        sentence: the fault, and why it matters in training.
        got: the result of the program.
        expected: the right result.
        source: the line of the learner's file, if one can be named.
    """

    claim: str
    mistake: str
    sentence: str
    got: str = ""
    expected: str = ""
    source: str = ""


@dataclass(frozen=True)
class Grade:
    """The result of grading a file.

    Attributes:
        held: the claims that hold, in their order.
        failure: the first claim that does not hold; None if the program is right.
        printed: the last lines that the program printed.
        seconds: the time from the request to the grade.
    """

    held: tuple[str, ...]
    failure: Failure | None
    printed: str = ""
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether every claim holds."""
        return self.failure is None

    def to_dict(self) -> dict[str, Any]:
        """Returns the grade in dicts, lists, strings and numbers, for JSON."""
        return {"passed": self.passed, **asdict(self), "held": list(self.held)}
