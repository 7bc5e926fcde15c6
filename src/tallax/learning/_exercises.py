# SPDX-License-Identifier: Apache-2.0
"""`Exercise`: everything about an exercise but its claims, read from its folder. Imports no JAX."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from importlib import resources

ORDER = (
    "step_counter",
    "untrained_buffer",
    "one_counter",
    "masked_rate",
    "compiled_step",
    "scanned_block",
    "evaluation",
    "accumulation",
    "gradients",
    "saved_state",
    "two_devices",
    "exact_resume",
)


@dataclass(frozen=True)
class Exercise:
    """An exercise of the course.

    Attributes:
        number: Its position in the course, from 1.
        name: The name of its folder.
        title: The title, a few words.
        output: The text that the start file and the solution print.
        problem: Markdown; describes the names that the learner's file has to define.
        why: Markdown; the number that would have been wrong in a training run, and when.
        hints: The hints, from a nudge to nearly the solution.
        mistakes: A sentence for each mistake that the claims can name.
        start: The wrong program that the learner corrects.
        solution: A right program in plain Flax NNX.
        with_tallax: A right program with tallax.
    """

    number: int
    name: str
    title: str
    output: str
    problem: str
    why: str
    hints: tuple[str, ...]
    mistakes: dict[str, str]
    start: str
    solution: str
    with_tallax: str

    @property
    def file_name(self) -> str:
        """The name of the learner's file, for example `01_step_counter.py`."""
        return f"{self.number:02}_{self.name}.py"


@functools.cache
def exercises() -> tuple[Exercise, ...]:
    """Returns the exercises in the order of the course."""
    return tuple(_read(number, name) for number, name in enumerate(ORDER, 1))


def _read(number: int, name: str) -> Exercise:
    folder = resources.files("tallax.learning.exercises").joinpath(name)
    text = folder.joinpath("text.md").read_text(encoding="utf-8")
    head, *parts = re.split(r"^## (\w+)\n", text, flags=re.MULTILINE)
    sections = {title: body.strip() for title, body in zip(parts[::2], parts[1::2], strict=True)}
    title = head.partition("\n")[0].removeprefix("# ")
    mistakes = re.findall(r"^- `([\w-]+)`: (.*?)(?=^- `|\Z)", sections["Mistakes"] + "\n", re.MULTILINE | re.DOTALL)
    return Exercise(
        number=number,
        name=name,
        title=title,
        output=re.sub(r"^```.*\n|\n```$", "", sections["Output"]),
        problem=sections["Problem"],
        why=sections["Why"],
        hints=tuple(_one_line(hint) for hint in re.split(r"^\d+\. ", sections["Hints"], flags=re.MULTILINE)[1:]),
        mistakes={key: _one_line(sentence) for key, sentence in mistakes},
        start=folder.joinpath("start.py").read_text(encoding="utf-8"),
        solution=folder.joinpath("solution.py").read_text(encoding="utf-8"),
        with_tallax=folder.joinpath("with_tallax.py").read_text(encoding="utf-8"),
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())
