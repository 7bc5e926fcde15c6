# SPDX-License-Identifier: Apache-2.0
"""`tallax learn`: the course on a terminal, or `--check N` anywhere."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console  # after _screen, which names the extra that is missing

from tallax.learning._course import take_course, write_files
from tallax.learning._exercises import exercises
from tallax.learning._graders import Grader
from tallax.learning._saved_progress import SavedProgress
from tallax.learning._screen import listed, print_grade
from tallax.runs._errors import TallaxError


def learn(folder: Path, checks: Sequence[int], limit_seconds: float, *, as_json: bool) -> int:
    """Starts or continues the course in a folder, or grades some of its exercises.

    Args:
        folder: The folder of the learner's files.
        checks: The numbers of exercises to grade. If empty, the course begins, if stdin and stdout are a terminal;
            otherwise the files are written and listed.
        limit_seconds: The time after which grading a file is ended.
        as_json: Whether to print the grades as JSON.

    Returns:
        The exit code: 0 if all graded exercises pass, or none was to be graded; 1 if one fails; 2 if one cannot be
        graded, because there is no such exercise or file.
    """
    console = Console(highlight=False)
    try:
        if checks:
            return _check(folder, checks, limit_seconds, console, as_json=as_json)
        is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
        with Grader(limit_seconds) if is_terminal else contextlib.nullcontext() as grader:
            try:
                written = write_files(folder)
            except OSError as error:
                got, fix = f"{type(error).__name__}: {error}", "name a new folder: tallax learn FOLDER"
                raise TallaxError(str(folder), "cannot hold the exercises.", got=got, fix=fix) from None
            if grader is not None:
                take_course(folder, console, grader)
                return 0
    except TallaxError as error:
        print(error, file=sys.stderr)
        return 2
    console.print(f"{len(written)} exercises were written to {folder}" if written else f"The exercises are in {folder}")
    console.print(listed(SavedProgress(folder)))
    console.print(f"After an edit: tallax learn {folder} --check 1")
    return 0


def _check(folder: Path, checks: Sequence[int], limit_seconds: float, console: Console, *, as_json: bool) -> int:
    numbered = {exercise.number: exercise for exercise in exercises()}
    for number in checks:
        if number not in numbered:
            fix = f"--check N with N from 1 to {len(numbered)}"
            raise TallaxError("--check", "this exercise does not exist.", got=str(number), fix=fix)
        path = folder / numbered[number].file_name
        if not path.is_file():
            fix = f"tallax learn {folder}, which writes the files that are missing"
            raise TallaxError(str(path), "this file does not exist.", fix=fix)
    progress, grades = SavedProgress(folder), {}
    with Grader(limit_seconds) as grader:
        for number in checks:
            exercise = numbered[number]
            grade = grades[number] = grader.grade(exercise, (folder / exercise.file_name).resolve())
            if grade.passed:
                with contextlib.suppress(OSError):  # a folder that is read-only is graded all the same
                    progress.note_passed(exercise)
            if not as_json:
                print_grade(console, exercise, grade)
    if as_json:
        json.dump({number: grade.to_dict() for number, grade in grades.items()}, sys.stdout, indent=2)
        print()
    return 0 if all(grade.passed for grade in grades.values()) else 1
