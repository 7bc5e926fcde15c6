# SPDX-License-Identifier: Apache-2.0
"""Group `learn`: the time from saving a right answer to its grade, with a warm process, for every exercise."""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks._timing import Case, Group
from tallax.learning._exercises import Exercise, exercises
from tallax.learning._graders import Grader


def group(count: int = 12) -> Group:
    """Returns the cases: the first `count` exercises. A right answer is the slowest: every claim is tested."""
    # One process at a time, as in the course.
    course, grader, folder = exercises()[:count], Grader(), tempfile.TemporaryDirectory()
    return Group(
        "learn",
        "the grade of the solution of an exercise, by a process that was started before",
        course[0].name,
        [_case(exercise, grader, folder) for exercise in course],
        one_call=True,
        warm_up=False,
        rounds_in_one=50,
    )


def _case(exercise: Exercise, grader: Grader, folder: tempfile.TemporaryDirectory[str]) -> Case:
    file = Path(folder.name) / exercise.file_name

    def saved() -> Path:
        grader.wait_until_warm()
        file.write_text(exercise.solution)
        return file

    def done() -> None:
        grader.__exit__()
        folder.cleanup()

    return Case(
        name=exercise.name,
        make=lambda: lambda file: _grade(grader, exercise, file),
        fresh=saved,
        limit_seconds=5.0 if exercise.number <= 5 else 15.0,
        done=done,
    )


def _grade(grader: Grader, exercise: Exercise, file: Path) -> None:
    grade = grader.grade(exercise, file)
    assert grade.failure is None, grade.failure
