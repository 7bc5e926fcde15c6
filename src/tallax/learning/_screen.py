# SPDX-License-Identifier: Apache-2.0
"""The text that a learner sees: the exercise, its claims, the first that fails, and the keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

try:
    from rich.console import Console, Group, RenderableType
    from rich.markdown import Markdown
    from rich.padding import Padding
    from rich.segment import SegmentLines
    from rich.syntax import Syntax
    from rich.table import Table
    from rich.text import Text
except ModuleNotFoundError:
    from tallax.runs._errors import MissingExtraError

    raise MissingExtraError.of("tallax learn", "cli", "rich") from None

from tallax.learning._exercises import Exercise, exercises
from tallax.learning._graders import Failure, Grade
from tallax.learning._saved_progress import SavedProgress

KEYS = (
    ("h", "hint"),
    ("l", "list"),
    ("n", "next"),
    ("p", "previous"),
    ("s", "solution"),
    ("r", "reset"),
    ("q", "quit"),
)


@dataclass
class View:
    """The contents of the screen.

    Attributes:
        grade: The last grade of the current exercise; None while it is graded for the first time.
        held: The claims that hold so far, while a grade is under way.
        at: The claim that is being tested; empty if none is.
        note: One line about the last key or the last grade.
        extra: The list, or the pages of a solution, which replace the exercise; each key goes on to the next page.
    """

    grade: Grade | None = None
    held: list[str] = field(default_factory=list)
    at: str = ""
    note: RenderableType | None = None
    extra: list[RenderableType] = field(default_factory=list)


def screen(progress: SavedProgress, folder: Path, view: View, console: Console) -> RenderableType:
    """Returns the whole screen. If it is too tall, parts are left out: first the output, then the problem if graded."""
    if view.extra:
        last = "any key: back to the exercise" if len(view.extra) == 1 else "any key: more    q quit"
        return Group(view.extra[0], Text(), Text(last, "dim"))
    sizes = ("whole", "no output", "folded") if view.at or view.grade is not None else ("whole", "no output")
    screens = [_screen(progress, folder, view, size) for size in sizes]
    if not console.is_terminal:
        return screens[0]
    return next((each for each in screens if len(console.render_lines(each)) < console.height), screens[-1])


def _screen(progress: SavedProgress, folder: Path, view: View, size: str) -> RenderableType:
    exercise = progress.current
    claims = _claims(view, are_folded=size == "folded")
    parts: list[RenderableType] = [heading(exercise, folder, size), Text(), *claims]
    shown = progress.hints.get(exercise.name, 0)
    parts.append(Text() if shown else Group())
    parts += [_hint(number, text) for number, text in enumerate(exercise.hints[:shown], 1)]
    # Notes and progress are at the end, which a small terminal shows.
    if view.note is not None:
        parts += [Text(), view.note]
    parts += [Text(), _bar(progress), _keys(exercise, shown, exercise.name in progress.passed)]
    return Group(*parts)


def in_pages(console: Console, *texts: RenderableType) -> list[RenderableType]:
    """Returns the parts of texts that fit on the terminal, each with room for the last two lines of `screen`."""
    rows = max(1, console.height - 3) if console.is_terminal else 1000
    pages: list[RenderableType] = []
    for text in texts:
        lines = console.render_lines(text, pad=False)
        while lines and not "".join(segment.text for segment in lines[-1]).strip():
            lines.pop()
        pages += [SegmentLines(lines[k : k + rows], new_lines=True) for k in range(0, len(lines), rows)]
    return pages


def _bar(progress: SavedProgress) -> Text:
    text = Text("tallax learn  ", "bold")
    for exercise in exercises():
        style = "green" if exercise.name in progress.passed else "dim"
        is_current = exercise is progress.current
        text.append("●" if exercise.name in progress.passed else "○", f"{style} bold" if is_current else style)
    return text.append(f"  {len(progress.passed)} of {len(exercises())} passed", "dim")


def heading(exercise: Exercise, folder: Path, size: str = "whole") -> RenderableType:
    """Returns the title, the problem, the output and the file of an exercise, or only some of them."""
    title = Text(f"{exercise.number}  {exercise.title}", "bold")
    output = Text.assemble("It prints  ", (exercise.output.replace("\n", "\n           "), "cyan"))
    if size == "folded":
        path = str(folder / exercise.file_name)
        return Group(title, Text.assemble("Edit       ", (path, "bold"), ("    t shows the problem", "dim")))
    return Group(
        title,
        Text(),
        Markdown(exercise.problem),
        Text(),
        output if size == "whole" else Group(),
        Text.assemble("Edit       ", (str(folder / exercise.file_name), "bold")),
    )


def _claims(view: View, *, are_folded: bool = False) -> list[RenderableType]:
    """Returns a line for each claim that was tested, and the first failure at length."""
    held: Sequence[str] = view.held if view.at or view.grade is None else view.grade.held
    if are_folded and len(held) > 1:
        held = [f"{len(held)} claims hold"]
    lines: list[RenderableType] = [Text.assemble(("  ✓ ", "green"), claim) for claim in held]
    if view.at:
        lines.append(Text(f"  … {view.at}", "dim"))
    elif view.grade is not None:
        if view.grade.failure is not None:
            lines.append(explained(view.grade.failure))
        if view.grade.printed and not view.grade.passed:
            lines.append(Text("    Your program printed:", "dim"))
            lines += [Text(f"      {line}", "dim") for line in view.grade.printed.splitlines()[-4:]]
        lines.append(Text(f"    {view.grade.seconds:.1f} s; save the file to grade it again", "dim"))
    else:
        lines.append(Text("  Edit the file and save it: each save is graded.", "dim"))
    return lines


def explained(failure: Failure) -> RenderableType:
    """Returns a failure: the claim, the fault and its consequence, and both numbers."""
    table = Table.grid(padding=(0, 1))
    for label, text in (("got", failure.got), ("expected", failure.expected), ("line", failure.source)):
        if text:
            table.add_row(Text(f"{label}:", "dim"), Text(text))
    return Group(
        Text.assemble(("  ✗ ", "red"), (failure.claim, "bold")),
        Padding(Markdown(failure.sentence), (1, 0, 0, 4)),
        Padding(table, (1, 0, 1, 4)),
    )


def _hint(number: int, text: str) -> RenderableType:
    table = Table.grid(padding=(0, 1))
    table.add_row(Text(f"  Hint {number}:", "yellow"), Markdown(text))
    return table


def _keys(exercise: Exercise, shown: int, passed: bool) -> Text:
    text = Text()
    for key, name in KEYS:
        label = f"hint ({shown} of {len(exercise.hints)})" if name == "hint" else name
        style = "dim" if name == "solution" and not passed else ""
        text.append(key, f"bold {style}").append(f" {label}   ", style or "dim")
    return text


def listed(progress: SavedProgress) -> RenderableType:
    """Returns the list of exercises, with those that have passed."""
    table = Table.grid(padding=(0, 2))
    for exercise in exercises():
        is_passed = exercise.name in progress.passed
        table.add_row(
            Text("→" if exercise is progress.current else ""),
            Text("✓", "green") if is_passed else Text("·", "dim"),
            Text(str(exercise.number), justify="right"),
            Text(exercise.title),
            Text(exercise.file_name, "dim"),
        )
    return table


def solved(exercise: Exercise) -> tuple[RenderableType, ...]:
    """Returns the solution of an exercise, and the same with tallax."""
    titles = [f"{exercise.number}  {exercise.title}: {kind}" for kind in ("in plain Flax NNX", "with tallax")]
    codes = (exercise.solution, exercise.with_tallax)
    return tuple(Group(Text(title, "bold"), _code(code)) for title, code in zip(titles, codes, strict=True))


def _code(code: str) -> RenderableType:
    without_main = code.partition("\n\nif __name__")[0].partition('"""\n\n')[2]  # and without the first line
    return Syntax(without_main, "python", background_color="default", word_wrap=True)


def passed_note(exercise: Exercise, grade: Grade) -> Text:
    """Returns the line about an exercise that has just passed."""
    return Text.assemble(
        ("✓ ", "green bold"),
        (f"{exercise.number}  {exercise.title} passed", "green bold"),
        (f" in {grade.seconds:.1f} s; s shows a solution", "dim"),
    )


def print_grade(console: Console, exercise: Exercise, grade: Grade) -> None:
    """Prints a grade for `--check`, without colors if stdout is not a terminal."""
    console.print(Text(f"{exercise.number}  {exercise.title}", "bold"))
    for line in _claims(View(grade=grade))[:-1]:  # the last one is about the next save
        console.print(line)
    if grade.passed:
        console.print(Text("  passed", "green"))
