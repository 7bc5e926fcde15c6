# SPDX-License-Identifier: Apache-2.0
"""Writes docs/learn, a page for each exercise of `tallax learn`, from the folders of the exercises.

`make pages` runs it, and tests/test_learn.py compares the pages with the exercises.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tallax.learning._exercises import Exercise, exercises

HEADER = "<!-- Written by docs/_exercise_pages.py from src/tallax/learning/exercises: edit the text there. -->\n"

INDEX = """
# Exercises

Each exercise is a short program in Flax NNX that prints the right number, and that would still ruin a training run: an
optimizer trains its counter, a checkpoint forgets it, `jit` drops it, or a second device counts it again. You correct
the program, and `tallax learn` finds out whether it is right.

```text
pip install 'tallax[cli]'
tallax learn                          writes the exercises into tallax-exercises, and starts
```

Open the file that it names in your editor. When you save it, you get a grade within seconds: the first claim about your
program that does not hold, and why it matters in training. If an exercise passes, the course goes on to the next one.
The keys are `h` for a hint, `l` for the list, `n` and `p` for the next and the previous exercise, `s` for a solution
once you have passed, `t` for the text of the exercise, `r` to start an exercise again, and `q` to quit. If you quit,
your progress is kept. [A session](session.md) shows the screens of the first three exercises.

| | exercise | the fault |
|---|---|---|
{rows}

Plain Flax NNX is all that you need. Each page also shows the same program with tallax. Any right program passes, in
whatever style: with float counters, `.value`, `nnx.BatchStat`, `nnx.split` and `nnx.merge`, or tallax.

## Without a terminal

If you teach a course, or want CI to grade, use `--check`. It exits with 0 if the exercises pass, 1 if one fails, and 2
if one cannot be graded.

```bash
tallax learn solutions                # writes the files that are missing, and lists them
tallax learn solutions --check 1 --check 2
tallax learn solutions --check 5 --limit 30 --json
```

A file is graded in a process of its own, with a time limit. If it hangs, exits, crashes or replaces functions of JAX,
Flax or tallax, it fails with a sentence that names the reason. This protects a grade from accidents and from simple
tricks. It is not a sandbox: if you grade files of people whom you do not trust, run it in a container.
"""

PAGE = """
# {number}. {title}

{problem}

```python
{start}```

If you run it, you get

```text
{output}
```

## Why it matters

{why}

## Hints

If you are stuck, open a hint. Each one gives you more than the one before.

{hints}

## Solution

Your program may look different. If its claims hold, it passes.

{solutions}

## Mistakes

If your program makes one of these mistakes, you get its sentence, because each of them has a test.

{mistakes}

---

{links}
"""


def page_name(exercise: Exercise) -> str:
    """Returns the file name of an exercise's page."""
    return f"{exercise.number:02}-{exercise.name.replace('_', '-')}.md"


def folded(title: str, body: str) -> str:
    """Returns a part of a page that is hidden until the reader opens it."""
    return f'<details markdown="1">\n<summary>{title}</summary>\n\n{body}\n\n</details>'


def page(exercise: Exercise) -> str:
    """Returns the page of an exercise."""
    course = exercises()
    hints = [folded(f"Hint {number}", hint) for number, hint in enumerate(exercise.hints, 1)]
    solutions = [
        folded("Solution in plain Flax NNX", f"```python\n{exercise.solution}```"),
        folded("The same with tallax", f"```python\n{exercise.with_tallax}```"),
    ]
    links = ["[All exercises](index.md)"]
    if exercise.number < len(course):
        following = course[exercise.number]
        links.append(f"Next: [{following.title}]({page_name(following)})")
    text = PAGE.format(
        number=exercise.number,
        title=exercise.title,
        problem=exercise.problem,
        start=exercise.start,
        output=exercise.output,
        why=exercise.why,
        hints="\n\n".join(hints),
        solutions="\n\n".join(solutions),
        mistakes=folded("All mistakes", "\n".join(f"- {sentence}" for sentence in exercise.mistakes.values())),
        links=" · ".join(links),
    )
    return HEADER + text


def pages() -> dict[str, str]:
    """Returns the text of every page by its file name."""
    rows = [
        f"| {exercise.number} | [{exercise.title}]({page_name(exercise)}) | {next(iter(exercise.mistakes.values()))} |"
        for exercise in exercises()
    ]
    index = HEADER + INDEX.format(rows="\n".join(rows))
    return {"index.md": index} | {page_name(exercise): page(exercise) for exercise in exercises()}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text)
