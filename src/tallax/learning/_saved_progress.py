# SPDX-License-Identifier: Apache-2.0
"""`SavedProgress`: the passed exercises, the current one and the hints shown, in a file in the learner's folder."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from tallax.learning._exercises import Exercise, exercises

_FILE = ".tallax-learn.json"


class SavedProgress:
    """The progress of a learner, which survives a restart.

    A file that cannot be read counts as no progress: the exercises can be graded again at any time.

    Attributes:
        passed: The names of the exercises that have passed.
        current: The exercise that the learner works on.
        hints: The number of hints of each exercise that have been shown, by name.
    """

    def __init__(self, folder: Path):
        self._path = folder / _FILE
        saved = {}
        with contextlib.suppress(OSError, ValueError):
            saved = json.loads(self._path.read_text(encoding="utf-8"))
        saved = saved if isinstance(saved, dict) else {}
        by_name = {exercise.name: exercise for exercise in exercises()}
        passed, hints = saved.get("passed"), saved.get("hints")
        self.passed = [name for name in passed if name in by_name] if isinstance(passed, list) else []
        self.hints: dict[str, int] = {}
        if isinstance(hints, dict):
            self.hints = {name: n for name, n in hints.items() if name in by_name and isinstance(n, int)}
        self.current: Exercise = by_name.get(str(saved.get("current")), exercises()[0])

    def save(self) -> None:
        """Writes the file; an interrupted write leaves the one before."""
        saved = {"passed": self.passed, "current": self.current.name, "hints": self.hints}
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps(saved, indent=2) + "\n", encoding="utf-8")
        os.replace(new, self._path)

    def note_passed(self, exercise: Exercise) -> None:
        """Adds an exercise to those that have passed, and saves."""
        if exercise.name not in self.passed:
            self.passed.append(exercise.name)
        self.save()

    def show_hint(self) -> None:
        """Counts one more hint of the current exercise as shown, and saves."""
        self.hints[self.current.name] = min(self.hints.get(self.current.name, 0) + 1, len(self.current.hints))
        self.save()

    def move(self, by: int) -> None:
        """Makes the next or the previous exercise the current one, if there is one, and saves."""
        position = self.current.number - 1 + by
        self.current = exercises()[max(0, min(position, len(exercises()) - 1))]
        self.save()

    @property
    def next_open(self) -> Exercise | None:
        """The first exercise after the current one that has not passed, or else the first of all; None if all have."""
        ahead = [*exercises()[self.current.number :], *exercises()[: self.current.number]]
        return next((exercise for exercise in ahead if exercise.name not in self.passed), None)
