# SPDX-License-Identifier: Apache-2.0
"""`tallax learn` in its own processes: solutions that hang, exit, crash, print, tamper and forge, and the command."""

import contextlib
import json
import os
import select
import subprocess
import sys
import time

import pytest

from tallax.learning._exercises import exercises
from tallax.learning._graders import Grader, Interrupted
from tests.quick import cell

FIRST = exercises()[0]

SOLUTIONS = {
    "exits": "import os\nos._exit(0)\n",
    "exits politely": "raise SystemExit(0)\n",
    "exits, and leaves a process": "import os, time\nif not os.fork():\n    time.sleep(300)\nos._exit(0)\n",
    "crashes": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n",
    "tampers": FIRST.start + "\n\nfrom flax import nnx as _nnx\n_nnx.Optimizer.update = lambda *args: None\n",
    "tampers with the grader": FIRST.start
    + "\n\nfrom tallax.learning import _claims\n_claims.require_untrained = lambda *args: None\n",
    "forges": FIRST.start
    + """
import json, os
for fd in range(3, 64):
    try:
        os.write(fd, json.dumps({"passed": True}).encode() + b"\\n")
    except OSError:
        pass
""",
    "reads": FIRST.start + "\n\ninput()\n",
    "prints": FIRST.start + "\n\nprint('x' * 200_000)\nprint('the last line')\n",
}
EXPECTED = {
    "exits": "exits",
    "exits politely": "exits",
    "exits, and leaves a process": "exits",
    "crashes": "dies",
    "tampers": "tampers",
    "tampers with the grader": "tampers",
    "forges": "param",
    "reads": "import",
    "prints": "param",
}


@pytest.fixture(scope="module")
def grader():
    with Grader() as made:
        yield made


QUICK = ("exits", "crashes", "tampers with the grader", "forges")


@pytest.mark.slow
@pytest.mark.parametrize("kind", [cell(kind, quick=kind in QUICK) for kind in SOLUTIONS])
def test_no_file_grades_itself(tmp_path, grader, kind):
    """A file that ends the process, writes to every descriptor or replaces functions fails, with its own sentence."""
    path = tmp_path / "solution.py"
    path.write_text(SOLUTIONS[kind])
    grade = grader.grade(FIRST, path)
    assert grade.failure is not None
    assert grade.failure.mistake == EXPECTED[kind]
    assert grade.failure.sentence
    if kind == "prints":
        assert grade.printed.endswith("the last line")
        assert len(grade.printed) <= 4000
    if kind == "tampers":
        assert "Optimizer.update is another object" in grade.failure.got


@pytest.mark.slow
def test_a_file_that_hangs_is_ended(tmp_path):
    """At the time limit the process is killed, and the grade names the claim that was being tested."""
    path = tmp_path / "solution.py"
    path.write_text("while True:\n    pass\n")
    with Grader(limit_seconds=1.0) as grader:
        began = time.monotonic()
        grade = grader.grade(FIRST, path)
    assert time.monotonic() - began < 10
    assert grade.failure.mistake == "hangs"
    assert grade.failure.claim == "the file runs"
    assert grade.failure.got == "still running after 1 seconds"


@pytest.mark.slow
def test_an_outdated_grade_is_given_up(tmp_path):
    """If the file is saved again, the old grade ends at once."""
    path = tmp_path / "solution.py"
    path.write_text("while True:\n    pass\n")
    with Grader() as grader, pytest.raises(Interrupted):
        grader.grade(FIRST, path, is_unneeded=lambda: True)


def learn(*arguments):
    """Runs `tallax learn`."""
    command = [sys.executable, "-W", "ignore", "-m", "tallax", "learn", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


@pytest.mark.slow
def test_without_a_terminal(tmp_path):
    """The files are written and listed; --check exits with 0, 1 or 2, and keeps the progress."""
    folder = tmp_path / "course"
    ended = learn(folder)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "12 exercises were written" in ended.stdout
    ended = learn(folder, "--check", 2)
    assert ended.returncode == 1
    assert "✗ an optimizer does not change mean and scale" in ended.stdout
    assert "a mean of 10 is 3.7 after 100 steps" in " ".join(ended.stdout.split())
    (folder / "02_untrained_buffer.py").write_text(exercises()[1].solution)
    ended = learn(folder, "--check", 2, "--json")
    assert ended.returncode == 0
    grade = json.loads(ended.stdout)["2"]
    assert grade["passed"]
    assert grade["held"][-1] == "a checkpoint contains mean and scale"
    assert "✓   2" in learn(folder).stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--check", "13"],
            "--check: this exercise does not exist.\n  got:  13\n  fix:  --check N with N from 1 to 12\n",
        ),
        (["--check", "3"], "03_one_counter.py: this file does not exist.\n  fix:  tallax learn"),
    ],
)
def test_files_that_cannot_be_graded(tmp_path, arguments, message):
    """A number or a file that does not exist exits with 2, and a message that names the fix."""
    ended = learn(tmp_path, *arguments)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert message in ended.stderr


def test_a_folder_that_cannot_be_written(tmp_path):
    """It exits with 2, and names the folder."""
    (tmp_path / "file").write_text("")
    ended = learn(tmp_path / "file")
    assert ended.returncode == 2
    assert "cannot hold the exercises." in ended.stderr


@pytest.mark.thorough
def test_on_a_terminal(tmp_path):
    """From the first start to the second exercise, over a pseudoterminal, as a user types."""
    pty = pytest.importorskip("pty")
    screen = b""
    fd, terminal = pty.openpty()  # not `pty.fork`, which is unsafe in a process with threads, as pytest with JAX is
    command = [sys.executable, "-W", "ignore", "-m", "tallax", "learn", str(tmp_path / "course")]
    process = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True)
    os.close(terminal)

    def wait_for(text, seconds=90):
        nonlocal screen
        deadline = time.monotonic() + seconds
        while text.encode() not in screen:
            readable, _, _ = select.select([fd], [], [], max(0, deadline - time.monotonic()))
            assert readable, f"no {text!r} in {screen[-3000:].decode(errors='replace')}"
            screen += os.read(fd, 65536)
        screen = screen.split(text.encode(), 1)[1]

    try:
        wait_for("each save is graded")
        (tmp_path / "course" / "01_step_counter.py").write_text(FIRST.start + "\n")
        wait_for("an optimizer does not change the count")
        wait_for("save the file to grade it again")
        os.write(fd, b"h")
        wait_for("Hint 1:")
        (tmp_path / "course" / "01_step_counter.py").write_text(FIRST.solution)
        wait_for("A buffer that must not train")
        wait_for("A step counter passed")
        os.write(fd, b"q")
        wait_for("1 of 12 passed")
        with contextlib.suppress(OSError):  # Linux's way to report that the other end is closed
            while os.read(fd, 65536):
                pass
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        os.close(fd)
