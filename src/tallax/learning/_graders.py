# SPDX-License-Identifier: Apache-2.0
"""Grades, and the processes that grade, of which the next one is always warm. Imports no JAX."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tallax._child_process import Child
from tallax._quick_compiles import quick_xla_flags
from tallax.learning._exercises import Exercise

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
        claim: The sentence that is not true of the program.
        mistake: The name of the mistake.
        sentence: The fault, and why it matters in training.
        got: The result of the program.
        expected: The right result.
        source: The line of the learner's file, if one can be named.
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
        held: The claims that hold, in their order.
        failure: The first claim that does not hold; None if the program is right.
        printed: The last lines that the program printed.
        seconds: The time from the request to the grade.
    """

    held: tuple[str, ...]
    failure: Failure | None
    printed: str = ""
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """True if every claim holds."""
        return self.failure is None

    def to_dict(self) -> dict[str, Any]:
        """Returns the grade in dicts, lists, strings and numbers, for JSON."""
        return {"passed": self.passed, **asdict(self), "held": list(self.held)}


class Interrupted(Exception):  # noqa: N818 - nothing is wrong
    """The grade is no longer needed, for example because the file was saved again."""


class Grader:
    """Grades files, each in a new process.

    Importing JAX and compiling a first program take about two seconds. So the process for the next grade is started
    when this one begins, and is ready when the file is saved again. A process is never used twice: a solution would
    find the state that the one before it left behind.
    """

    def __init__(self, limit_seconds: float = 60.0):
        self._limit_seconds = limit_seconds
        self._next: Child | None = None

    def __enter__(self) -> Grader:
        self._next = _new_child()
        return self

    def __exit__(self, *error: object) -> None:
        if self._next is not None:
            self._next.end()
            self._next = None

    def wait_until_warm(self, seconds: float = 60.0) -> None:
        """Waits until the process for the next grade has imported JAX."""
        self._next = self._next or _new_child()
        self._next.wait_for_message(seconds)

    def grade(
        self,
        exercise: Exercise,
        file: Path,
        on_claim: Callable[[str, bool], None] = lambda claim, held: None,
        is_unneeded: Callable[[], bool] = lambda: False,
    ) -> Grade:
        """Grades a file.

        Args:
            exercise: The exercise.
            file: The learner's file.
            on_claim: A function that is called with each claim, with False when its test begins and True when it holds.
            is_unneeded: A function that is called several times each second. If it returns True, grading ends.

        Raises:
            Interrupted: `is_unneeded` returned True.
        """
        child, self._next = self._next or _new_child(), None
        began, token, held, at = time.monotonic(), secrets.token_hex(16), [], "the file runs"
        try:
            child.ask(exercise=exercise.name, file=str(file), token=token)
            for message in child.messages(began + self._limit_seconds):
                if is_unneeded():
                    raise Interrupted
                if message.get("token") != token:  # forged, or the note that the process is ready
                    continue
                if "at" in message:
                    at = message["at"]
                    on_claim(at, False)
                elif "held" in message:
                    held.append(message["held"])
                    on_claim(message["held"], True)
                else:
                    failure = failure_of(exercise, message)
                    break
            else:
                mistake, got = child.ending(self._limit_seconds)
                failure = Failure(at, mistake, MISTAKES[mistake], got)
            return Grade(tuple(held), failure, child.output, time.monotonic() - began)
        finally:
            child.end()
            self._next = self._next or _new_child()


def failure_of(exercise: Exercise, message: dict[str, Any]) -> Failure | None:
    """Returns the failure that the last message of the process reports; None if the file has passed."""
    if "wrong" not in message:
        return None
    mistake = message["wrong"]
    sentence = exercise.mistakes.get(mistake) or MISTAKES[mistake]
    return Failure(
        message["claim"], mistake, sentence, *(message.get(name, "") for name in ("got", "expected", "source"))
    )


def _new_child() -> Child:
    flags = quick_xla_flags(os.environ.get("XLA_FLAGS", ""))
    # An exercise needs two devices. Of several equal flags, XLA uses the last one.
    flags = f"{flags} --xla_force_host_platform_device_count=2".strip()
    return Child(
        "tallax.learning._grading_process",
        {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        # -P keeps the learner's folder, with files such as `random.py`, out of the import path.
        options=("-P", "-W", "ignore"),
        keeps_output=True,
    )
