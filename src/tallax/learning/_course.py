# SPDX-License-Identifier: Apache-2.0
"""The course on a terminal: it grades the current exercise when its file is saved, and reads keys."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.text import Text

from tallax.learning._exercises import Exercise, exercises
from tallax.learning._graders import Grader, Interrupted
from tallax.learning._keyboard import keyboard
from tallax.learning._saved_progress import SavedProgress
from tallax.learning._screen import View, heading, in_pages, listed, passed_note, screen, solved

_POLL_SECONDS = 0.2


def write_files(folder: Path) -> list[Path]:
    """Writes the start file of each exercise that has no file yet; returns the new files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for exercise in exercises():
        path = folder / exercise.file_name
        # "x" never replaces a file, so that the learner's work is safe whatever happened to the progress.
        with contextlib.suppress(FileExistsError), path.open("x", encoding="utf-8") as file:
            file.write(exercise.start)
            written.append(path)
    return written


def take_course(folder: Path, console: Console, grader: Grader) -> None:
    """Shows the current exercise, and grades it after each save, until `q` or Ctrl-C."""
    with keyboard() as pressed:
        course = _Course(folder, console, grader, pressed)
        with contextlib.suppress(KeyboardInterrupt):
            course.run()
        course.say_goodbye()


class _Course:
    """One session: what is on the screen, and the last graded contents of the current file."""

    def __init__(self, folder: Path, console: Console, grader: Grader, pressed: Callable[[float], str]):
        self._folder = folder
        self._console = console
        self._grader = grader
        self._pressed = pressed
        self._progress = SavedProgress(folder)
        self._view = View()
        self._graded: bytes | None = None
        self._keys = ""  # pressed while an exercise was being graded
        self._last_passed: Exercise | None = None
        self._reset_asked = False
        self._is_over = False
        self._size = console.size
        following = self._progress.next_open
        if self._progress.current.name in self._progress.passed and following is not None:
            self._progress.current = following  # `--check` has passed it
        start = self._progress.current.start.encode()
        self._graded = start if self._contents() == start else None  # read first: its grade would hide the problem

    @property
    def _path(self) -> Path:
        return self._folder / self._progress.current.file_name

    def _contents(self) -> bytes | None:
        """Returns the current file; None while an editor replaces it."""
        with contextlib.suppress(OSError):
            return self._path.read_bytes()
        return None

    def run(self) -> None:
        self._show()
        while not self._is_over:
            contents = self._contents()
            if contents is not None and contents != self._graded and not self._keys:
                self._grade(contents)
            keys = self._keys or self._pressed(_POLL_SECONDS)
            if self._console.size != self._size:  # a terminal that is resized breaks the lines of the old screen
                self._show()
            self._keys = ""
            for key in keys:
                self._press(key.lower())

    def _show(self) -> None:
        console = self._console
        self._size = console.size
        if console.is_terminal and not console.is_dumb_terminal:
            console.clear()
        console.print(screen(self._progress, self._folder, self._view, console))

    def _show_progress(self) -> None:
        if not self._console.is_dumb_terminal:  # there, each screen would be printed below the one before
            self._show()

    # --- grading ------------------------------------------------------------------------------------------------------

    def _grade(self, contents: bytes) -> None:
        exercise, view = self._progress.current, self._view
        view.held, view.at, view.extra = [], "the grader starts", []
        self._graded = contents
        self._show_progress()

        def on_claim(claim: str, held: bool) -> None:
            view.at = "" if held else claim
            if held:
                view.held.append(claim)
            else:
                self._show_progress()

        try:
            grade = self._grader.grade(exercise, self._path, on_claim, self._is_unneeded)
        except Interrupted:
            view.at, self._graded = "", None
            return
        view.at, view.grade = "", grade
        if grade.passed:
            self._pass(exercise)
        else:
            view.note = None
        self._show()

    def _is_unneeded(self) -> bool:
        """Whether the file was saved again, or a key was pressed that leaves it, while it is graded."""
        self._keys += self._pressed(0)
        contents = self._contents()
        # The other keys wait: a grade that is given up costs the imports of the next one.
        return bool(set(self._keys.lower()) & set("npqr")) or (contents is not None and contents != self._graded)

    def _pass(self, exercise: Exercise) -> None:
        view, progress = self._view, self._progress
        assert view.grade is not None
        is_new = exercise.name not in progress.passed
        progress.note_passed(exercise)
        self._last_passed = exercise
        view.note = passed_note(exercise, view.grade)
        if not is_new:
            return
        following = progress.next_open
        if following is None:
            view.note = Text("✓ All exercises passed. s shows the solution of each, and the same with tallax.", "green")
            return
        progress.current = following
        progress.save()
        view.grade, self._graded = None, self._contents()  # a new exercise is graded when it is saved
        view.held = []

    def say_goodbye(self) -> None:
        """Prints the progress, and how to go on."""
        done = len(self._progress.passed)
        self._console.print(Text(f"{done} of {len(exercises())} passed; `tallax learn {self._folder}` continues."))

    # --- keys ---------------------------------------------------------------------------------------------------------

    def _press(self, key: str) -> None:
        view, progress = self._view, self._progress
        if view.extra:
            view.extra = view.extra[1:]
            if key != "q":
                self._show()
                return
        asked, self._reset_asked = self._reset_asked, False
        if key == "q":
            self._is_over = True
            return
        if asked:
            self._answer_reset(key)
        elif key == "h":
            view.note = None
            progress.show_hint()
        elif key == "l":
            view.extra = in_pages(self._console, listed(progress))
        elif key == "t":
            view.extra = in_pages(self._console, heading(progress.current, self._folder))
        elif key in ("n", "p"):
            self._move(1 if key == "n" else -1)
        elif key == "s":
            self._show_solution()
        elif key == "r":
            self._reset_asked = True
            view.note = Text(
                f"Replace {self._path.name} by its start file? y replaces it, any other key keeps it", "yellow"
            )
        else:
            return
        self._show()

    def _move(self, by: int) -> None:
        before = self._progress.current
        self._progress.move(by)
        if self._progress.current is before:
            self._view.note = Text("There is no other exercise in this direction.", "dim")
            return
        self._view = View()
        self._graded = None

    def _show_solution(self) -> None:
        view, progress = self._view, self._progress
        if progress.current.name in progress.passed:
            view.extra = in_pages(self._console, *solved(progress.current))
        elif self._last_passed is not None:
            view.extra = in_pages(self._console, *solved(self._last_passed))
        else:
            view.note = Text("The solution is shown once the exercise has passed. h shows a hint.", "yellow")

    def _answer_reset(self, key: str) -> None:
        if key != "y":
            self._view.note = Text(f"{self._path.name} was kept.", "dim")
            return
        self._path.write_text(self._progress.current.start, encoding="utf-8")
        self._view.note = Text(f"{self._path.name} is its start file again.", "dim")
        self._graded = None
