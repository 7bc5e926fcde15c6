# SPDX-License-Identifier: Apache-2.0
"""Records a session of `tallax learn` in tmux as docs/learn/session.md, from the first start to the end of exercise 3.

`python docs/_learn_session.py docs/learn/session.md` records it. It needs tmux, and takes a minute.
tests/test_learn.py replays the steps without tmux and compares the screens, so the page cannot become out of date.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tallax.learning._exercises import exercises

COLUMNS, ROWS = 80, 24
_FIRST, _SECOND, _THIRD = exercises()[:3]
_REPLACES = _FIRST.start.replace("nnx.Param(", "nnx.Variable(").replace(
    "self.step[...] += 1", "self.step = self.step + 1"
)


class Step(NamedTuple):
    """One thing that the learner does, and a text that the screen has afterwards.

    Attributes:
        caption: the sentence above the screen; if it is empty, the screen is left out of the page.
        until: the text that shows that the screen is complete.
        keys: the keys that are pressed.
        saved: the name of the file that is saved, and its new contents.
    """

    caption: str
    until: str
    keys: str = ""
    saved: tuple[str, str] | None = None


STEPS = (
    Step("You start `tallax learn`. It writes the files and shows the first exercise.", "Edit the file and save it"),
    Step(
        "You save the file as it is, to see its fault.",
        "save the file to grade it again",
        saved=(_FIRST.file_name, _FIRST.start + "\n"),
    ),
    Step("You press `h`.", "Hint 1:", keys="h"),
    Step(
        "You use an `nnx.Variable`, but assign to the attribute, and save.",
        "find state by its type",
        saved=(_FIRST.file_name, _REPLACES),
    ),
    Step(
        "You write into the Variable, and save. The exercise passes, and the next one begins.",
        "1 of 12 passed",
        saved=(_FIRST.file_name, _FIRST.solution),
    ),
    Step("You press `s`.", "any key: more", keys="s"),
    Step("", "Edit the file and save it", keys="    "),
    Step(
        "You save the second file as it is.",
        "save the file to grade it again",
        saved=(_SECOND.file_name, _SECOND.start + "\n"),
    ),
    Step(
        "You correct it, and save.",
        "2 of 12 passed",
        saved=(_SECOND.file_name, _SECOND.solution),
    ),
    Step(
        "You save the third file in the middle of an edit.",
        "save the file to grade it again",
        saved=(_THIRD.file_name, _THIRD.start + "\ndef (\n"),
    ),
    Step("You press `l`.", "any key: back to the exercise", keys="l"),
    Step("", "Edit  ", keys=" "),
    Step(
        "You correct the third file, and save.",
        "3 of 12 passed",
        saved=(_THIRD.file_name, _THIRD.solution),
    ),
)

HEADER = "<!-- Written by docs/_learn_session.py, which records it in tmux. -->\n"
PAGE = """
# A session

This is what you see on a terminal of {columns} columns and {rows} rows, from the first start of `tallax learn` to the
end of the third exercise. The seconds are those of a machine with two busy cores.

{screens}
If you press `q` or Ctrl-C, you get `3 of 12 passed`, and `tallax learn` continues there the next time.
"""


def page(screens: list[str]) -> str:
    """Returns the page of the screens after each step."""
    shown = [
        f"{step.caption}\n\n```text\n{screen}\n```\n"
        for step, screen in zip(STEPS, screens, strict=True)
        if step.caption
    ]
    return HEADER + PAGE.format(columns=COLUMNS, rows=ROWS, screens="\n".join(shown))


def cleaned(screen: str) -> str:
    """Returns a screen without blanks at the ends of lines, and without empty lines around it."""
    return "\n".join(line.rstrip() for line in screen.splitlines()).strip("\n")


def recorded() -> list[str]:
    """Returns the screen after each step, as tmux shows it."""

    def tmux(*arguments: str) -> str:
        return subprocess.run(["tmux", *arguments], capture_output=True, text=True, check=True).stdout

    name, screens = "tallax-learn-session", []
    with tempfile.TemporaryDirectory() as folder:
        command = f"cd {folder} && {sys.executable} -W ignore -m tallax learn"
        tmux("new-session", "-d", "-s", name, "-x", str(COLUMNS), "-y", str(ROWS), command)
        try:
            for step in STEPS:
                for key in step.keys:
                    tmux("send-keys", "-t", name, "-l", key)
                    time.sleep(0.5)
                if step.saved is not None:
                    (Path(folder) / "tallax-exercises" / step.saved[0]).write_text(step.saved[1])
                screens.append(_awaited(lambda: tmux("capture-pane", "-p", "-t", name), step.until))
        finally:
            tmux("kill-session", "-t", name)
    return screens


def _awaited(capture, until: str, seconds: float = 120) -> str:
    deadline = time.monotonic() + seconds
    while until not in (screen := capture()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{until} is not on the screen:\n{screen}")
        time.sleep(0.3)
    time.sleep(0.5)  # the lines below it
    return cleaned(capture())


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(recorded()))
