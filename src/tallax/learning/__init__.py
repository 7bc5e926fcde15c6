# SPDX-License-Identifier: Apache-2.0
"""`tallax learn`: exercises in which a wrong program prints the right number.

Concepts:

- An *exercise* is a folder in `exercises/`: `text.md` (title, problem, why, hints, and a sentence for each mistake),
  `start.py` (a wrong program that prints the right number), `solution.py` (plain Flax NNX), `with_tallax.py`, and
  `__init__.py` with the *claims*. The course, the pages in the docs and the tests read this folder and nothing else.
- A *claim* is a sentence about the learner's program and a function that tests it. The function raises `Wrong` with the
  name of a *mistake*, for which `text.md` has a sentence: the fault, and the number that would have been wrong.
- A *grade* is the claims that hold and the first one that fails.

The path of a save:

1. `_course` sees that the file has changed, and requests a grade.
2. `_graders` passes the file to a process that has imported JAX already and that grades one file only. It enforces the
   time limit and starts the next process, so that no save waits for imports. It also defines `Grade`.
3. `_grading_process` runs the file, then the claims of the exercise by means of `_claims`, and reports each of them. It
   compares the functions that grading relies on with those from before the file ran.
4. `_screen` shows the grade. `_saved_progress` remembers that the exercise has passed.

To add an exercise, add its folder, and its name to `_exercises.ORDER`. To change a sentence, edit `text.md`. To change
the keys, open `_course`. The learner's process never decides alone that a solution passes: without a message that has
the token of its request, a grade is a failure. `tests/test_learn_solutions.py` guards this with solutions that exit,
hang, print and tamper.
"""
