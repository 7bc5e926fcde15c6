# SPDX-License-Identifier: Apache-2.0
"""`tallax learn`: the exercises and their grades, in this process; `test_learn_solutions.py` has the other process."""

import contextlib
import importlib.util
import inspect
import io
import pathlib
import re
import types

import jax
import pytest
from rich.console import Console

import tallax.learning._course as course
from tallax.checking import _exercise
from tallax.learning import _claims, _grading_process
from tallax.learning._exercises import ORDER, exercises
from tallax.learning._graders import MISTAKES, Failure, Grade, Interrupted, failure_of
from tallax.learning._saved_progress import SavedProgress
from tallax.learning._screen import View, screen
from tests.quick import cell

ROOT = pathlib.Path(__file__).parents[1]
ANSWERS = pathlib.Path(__file__).parent / "exercises"
FOLDERS = ROOT / "src/tallax/learning/exercises"
COURSE = {exercise.name: exercise for exercise in exercises()}
WRONG = sorted(path for path in ANSWERS.glob("*/*.py") if path.parent.name != "right")
RIGHT = sorted((ANSWERS / "right").glob("*.py"))
# These are graded in a fraction of a second each; the others run with the thorough tests.
QUICK = {"step_counter", "evaluation", "untrained_buffer"}

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of older styles, which are right answers too
    pytest.mark.usefixtures("drops_programs"),
]


@pytest.fixture(scope="module", autouse=True)
def as_learners_run_it():
    """JAX's own promotion of dtypes and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def graded(name, path):
    """Returns the claims that hold, and the last message of the process that grades."""
    held, messages = [], []

    def report(**message):
        if "held" in message:
            held.append(message["held"])
        elif "at" not in message:
            messages.append(message)

    _grading_process.grade_file(name, path, report)
    (verdict,) = messages
    return held, verdict


def printed(path):
    """Returns the text that a program prints."""
    out = io.StringIO()
    code = compile(path.read_text(), str(path), "exec")
    with contextlib.redirect_stdout(out):
        exec(code, {"__name__": "__main__"})
    return out.getvalue().strip()


def mistake_of(path):
    """Returns the mistake that a wrong answer is named after: `lost` for `lost.py` and `lost__by_a_copy.py`."""
    return path.stem.split("__")[0]


def cases(paths):
    """Returns the paths as parameters, all but the quick ones marked as thorough."""
    return [
        cell(
            path,
            id=f"{path.parent.name}-{path.stem}",
            quick=path.parent.name in QUICK or path.stem.split("__")[0] in QUICK,
        )
        for path in paths
    ]


# --- the exercises ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [cell(name, quick=name in QUICK) for name in ORDER])
def test_a_start_file_passes_a_test_of_its_output_and_fails_here(name):
    """It prints the right number, and its grade names a mistake of the exercise."""
    start = FOLDERS / name / "start.py"
    assert printed(start) == COURSE[name].output
    held, verdict = graded(name, start)
    assert held
    assert verdict["wrong"] in COURSE[name].mistakes
    assert verdict["got"]
    assert verdict["expected"]


@pytest.mark.parametrize("which", ["solution", "with_tallax"])
@pytest.mark.parametrize("name", ORDER)
def test_a_solution_passes(name, which):
    """The solution and the version with tallax print the same number, and every claim holds."""
    path = FOLDERS / name / f"{which}.py"
    held, verdict = graded(name, path)
    assert verdict == {"passed": True}
    assert len(held) > 3
    assert printed(path) == COURSE[name].output


@pytest.mark.parametrize("path", cases(WRONG))
def test_a_wrong_answer_gets_its_sentence(path):
    """The grade of each wrong answer is the mistake that its file is named after."""
    _, verdict = graded(path.parent.name, path)
    assert verdict.get("wrong") == mistake_of(path), verdict


@pytest.mark.parametrize("path", cases(RIGHT))
def test_a_right_answer_in_another_style_passes(path):
    """Float counters, `.value`, nnx.BatchStat, split and merge, pickle, optax: a grade is about behavior."""
    assert graded(path.stem.split("__")[0], path)[1] == {"passed": True}


def test_every_mistake_has_a_wrong_answer_and_a_sentence_of_its_own():
    """No sentence is without a file that gets it, and no two mistakes of an exercise share one."""
    assert len(WRONG) >= 40
    assert len(RIGHT) >= 10
    files = {name: {mistake_of(path) for path in WRONG if path.parent.name == name} for name in ORDER}
    for exercise in exercises():
        assert set(exercise.mistakes) == files[exercise.name], exercise.name
        assert len(exercise.mistakes) >= 4
        assert len({*exercise.mistakes.values(), *MISTAKES.values()}) == len(exercise.mistakes) + len(MISTAKES)
        assert not set(exercise.mistakes) & set(MISTAKES)
        claims = (FOLDERS / exercise.name / "__init__.py").read_text()
        if "_exercise." in claims:  # measured with `tallax check`
            claims += inspect.getsource(_exercise)
        for mistake in exercise.mistakes:
            stem = mistake.removesuffix("_forgotten")
            assert re.search(rf"\b{re.escape(stem)}\b", claims), mistake


def test_every_exercise_is_in_the_course():
    """Each folder is listed once, and has a title, hints and claims."""
    folders = {path.parent.name for path in FOLDERS.glob("*/text.md")}
    assert folders == set(ORDER)
    assert len(ORDER) == len(folders) == 12
    for exercise in exercises():
        module = importlib.import_module(f"tallax.learning.exercises.{exercise.name}")
        assert len({sentence for sentence, _ in module.CLAIMS}) == len(module.CLAIMS)
        assert 3 <= len(exercise.hints) <= 5
        assert exercise.title
        assert exercise.why
        for needed in module.NAMES:
            assert re.search(rf"`{needed}\b", exercise.problem), needed
        for code in (exercise.start, exercise.solution, exercise.with_tallax):
            assert max(map(len, code.splitlines())) <= 100
        assert "tallax" not in exercise.solution
        assert "import tallax" in exercise.with_tallax


def test_the_course_has_the_step_counter_that_tallax_check_grades():
    """`tallax check` finds nothing wrong in the solution, apart from the transformations, which take longer."""
    module = types.ModuleType("solution")
    exec(COURSE["step_counter"].solution, module.__dict__)
    assert _exercise.of_class(module.StepCounter) == []
    for case in _exercise.CASES:
        assert _exercise.of_function(module.counter_after_n_calls, *case) == []


def of_docs(name):
    """Returns a module of the folder docs."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"docs/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_are_the_exercises():
    """`make pages` has nothing to write, and the site lists every page."""
    pages = of_docs("_exercise_pages").pages()
    assert {path.name for path in (ROOT / "docs/learn").iterdir()} == {*pages, "session.md"}
    nav = (ROOT / "mkdocs.yml").read_text()
    for name, text in pages.items():
        assert (ROOT / "docs/learn" / name).read_text() == text
        assert f"learn/{name}\n" in nav


# --- files that are no solution ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "mistake", "got"),
    [
        ("def broken(:\n", "syntax", "invalid syntax"),
        ("1 / 0\n", "import", "ZeroDivisionError: division by zero"),
        ("import random_module_that_is_missing\n", "import", "ModuleNotFoundError"),
        ("StepCounter = 3\n", "missing", ""),
        ("class StepCounter:\n    pass\n", "missing", ""),
    ],
)
def test_a_file_that_is_not_a_solution_is_explained(tmp_path, code, mistake, got):
    """Syntax errors, errors at import and missing names have sentences that hold for every exercise."""
    path = tmp_path / "solution.py"
    path.write_text(code)
    _, verdict = graded("step_counter", path)
    assert verdict["wrong"] == mistake
    assert got in verdict.get("got", "")


def test_errors_name_their_line(tmp_path):
    """An error within a claim is reported with the learner's line; a body that is not written, by itself."""
    path = tmp_path / "solution.py"
    solution = COURSE["step_counter"].solution
    path.write_text(solution.replace("self.step[...] += 1", "self.step[...] += self.amount"))
    _, verdict = graded("step_counter", path)
    assert (verdict["wrong"], "self.amount" in verdict["source"]) == ("raises", True)
    path.write_text(solution.replace("self.step[...] += 1", "raise NotImplementedError"))
    assert graded("step_counter", path)[1]["wrong"] == "unfinished"


def test_results_are_worded():
    """Numbers and small arrays are shown by their values, anything else by its type."""
    assert _claims.shown(3) == "3"
    assert _claims.shown(jax.numpy.arange(3)) == "[0, 1, 2]"
    assert _claims.shown(jax.numpy.zeros(100)) == "float32[100]"
    with pytest.raises(TypeError, match="expected an array or a number, got str"):
        _claims.number("3")
    with pytest.raises(_claims.Wrong):
        _claims.expect("3", 3, "output")


# --- progress ---------------------------------------------------------------------------------------------------------


def test_progress_survives_a_restart(tmp_path):
    """The passed exercises, the current one and the hints are what they were."""
    progress = SavedProgress(tmp_path)
    assert (progress.current, progress.passed, progress.hints) == (exercises()[0], [], {})
    progress.note_passed(exercises()[0])
    progress.note_passed(exercises()[0])
    progress.move(1)
    for _ in range(9):
        progress.show_hint()
    again = SavedProgress(tmp_path)
    assert again.passed == ["step_counter"]
    assert again.current is exercises()[1]
    assert again.hints == {"untrained_buffer": len(exercises()[1].hints)}
    assert again.next_open is exercises()[2]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no JSON",
        "[]",
        '{"passed": 3, "hints": []}',
        '{"passed": ["gone"], "current": "gone", "hints": {"gone": 1}}',
    ],
)
def test_damaged_progress_is_no_progress(tmp_path, text):
    """A file that cannot be read starts the course again, and raises nothing."""
    (tmp_path / ".tallax-learn.json").write_text(text)
    progress = SavedProgress(tmp_path)
    assert (progress.current, progress.passed, progress.hints) == (exercises()[0], [], {})


def test_no_file_of_the_learner_is_replaced(tmp_path):
    """A second start writes the files that are missing, and leaves the others alone."""
    assert len(course.write_files(tmp_path / "new")) == 12
    mine = tmp_path / "new" / "01_step_counter.py"
    mine.write_text("mine")
    (tmp_path / "new" / "02_untrained_buffer.py").unlink()
    assert [path.name for path in course.write_files(tmp_path / "new")] == ["02_untrained_buffer.py"]
    assert mine.read_text() == "mine"


# --- the course, with keys and a grader of the test -------------------------------------------------------------------

FAILED = Grade(("the file runs",), Failure("it counts", "param", "It is a parameter.", "4.95", "5.0"), "hello", 1.0)
PASSED = Grade(("the file runs", "it counts"), None, "", 1.0)


class Pretended:
    """Grades a file by a word in it."""

    def __init__(self):
        self.graded = []

    def grade(self, exercise, file, on_claim, is_unneeded):
        self.graded.append(exercise.number)
        on_claim("the file runs", False)
        if is_unneeded():
            raise Interrupted
        on_claim("the file runs", True)
        return PASSED if file.read_text() == "right" else FAILED


def session(folder, *events):
    """Runs a session: each event is a key, or a text for the current file. Returns the screens and the grader."""
    course.write_files(folder)
    out = io.StringIO()
    console = Console(file=out, width=100, highlight=False)
    grader, waiting = Pretended(), list(events)

    def pressed(seconds):
        if not seconds:  # while a file is graded
            return ""
        event = waiting.pop(0) if waiting else "q"
        if len(event) == 1:
            return event
        current = SavedProgress(folder).current
        (folder / current.file_name).write_text(event)
        return ""

    taken = course._Course(folder, console, grader, pressed)
    taken.run()
    taken.say_goodbye()
    return out.getvalue(), grader


def test_a_save_is_graded_and_a_pass_moves_on(tmp_path):
    """The file is graded after each save; the next exercise begins when it passes."""
    text, grader = session(tmp_path, "wrong again", "right", "right")
    assert grader.graded == [1, 1, 2]
    session(tmp_path, "an edit")
    assert session(tmp_path)[1].graded == [3]  # an edited file is graded at the start as well
    assert "✗ it counts" in text
    assert "It is a parameter." in text
    assert "4.95" in text
    assert "hello" in text
    assert "1  A step counter passed" in text
    assert "2  A buffer that must not train passed" in text
    assert text.rstrip().endswith("continues.")
    assert SavedProgress(tmp_path).current.number == 3


class InProcess:
    """Grades a file in this process."""

    def grade(self, exercise, file, on_claim, is_unneeded):
        held, verdict = graded(exercise.name, file)
        on_claim(exercise.title, True)  # the screen while it is graded is not kept
        return Grade(tuple(held), failure_of(exercise, verdict), "", 1.0)


def replayed(steps, folder, console, out):
    """Returns the screen after each step of the recorded session."""
    screens, keys = [], []

    def pressed(seconds):
        if not seconds:
            return ""
        if keys:
            return keys.pop(0)
        screens.append(out.getvalue().split("\x1b[H")[-1])
        if len(screens) == len(steps):
            return "q"
        step = steps[len(screens)]
        keys.extend(step.keys)
        if step.saved:
            (folder / step.saved[0]).write_text(step.saved[1])
        return keys.pop(0) if keys else ""

    course.write_files(folder)
    course._Course(pathlib.Path("tallax-exercises"), console, InProcess(), pressed).run()
    return screens


@pytest.mark.thorough
def test_the_recorded_session_is_what_a_learner_sees(tmp_path, monkeypatch):
    """The screens of docs/learn/session.md, but for the seconds; each fits in 80 columns and 24 rows."""
    module, out = of_docs("_learn_session"), io.StringIO()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TERM", "xterm")
    console = Console(file=out, width=80, height=module.ROWS, force_terminal=True, color_system=None, highlight=False)
    screens = replayed(module.STEPS, pathlib.Path("tallax-exercises"), console, out)
    screens = [module.cleaned(text) for text in screens]
    for step, text in zip(module.STEPS, screens, strict=True):
        assert step.until in text
        assert len(text.splitlines()) < module.ROWS
    page = (ROOT / "docs/learn/session.md").read_text()
    assert re.sub(r"\d+\.\d s\b", "1.0 s", page) == module.page(screens)


def test_a_small_terminal_shows_the_title_and_the_keys(tmp_path):
    """On 80 columns and 24 rows, a failure with all hints leaves out the problem, which `t` shows."""
    for exercise in exercises()[:3]:
        out = io.StringIO()
        console = Console(file=out, width=80, height=24, force_terminal=True, color_system=None, highlight=False)
        progress = SavedProgress(tmp_path)
        progress.current = exercise
        held = ("the file runs", *(f"claim {k}" for k in range(6)))
        failure = Failure("it counts", "param", next(iter(exercise.mistakes.values())), "4.95", "5.0")
        for view in (View(), View(grade=Grade(held, failure, "", 1.0))):
            lines = console.render_lines(screen(progress, tmp_path, view, console))
            text = ["".join(segment.text for segment in line) for line in lines]
            assert len(lines) < 24
            assert text[0].strip() == f"{exercise.number}  {exercise.title}"
            assert "q quit" in text[-1]
            assert any("t shows the problem" in line for line in text) == (view.grade is not None)


def test_a_resized_terminal_is_drawn_again(tmp_path):
    """After the width has changed, the next poll prints the screen again."""
    course.write_files(tmp_path)
    out = io.StringIO()
    console = Console(file=out, width=100, height=50)
    shown = []

    def pressed(seconds):
        if seconds:
            shown.append(out.getvalue().count("A step counter"))
            console.width = 60
        return "q" if len(shown) > 2 else ""

    course._Course(tmp_path, console, Pretended(), pressed).run()
    assert shown[1] == shown[2] == shown[0] + 1


def test_ctrl_c_says_how_to_continue(tmp_path, monkeypatch):
    """Ctrl-C ends the course as `q` does."""

    def pressed(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(course, "keyboard", lambda: contextlib.nullcontext(pressed))
    course.write_files(tmp_path)
    out = io.StringIO()
    course.take_course(tmp_path, Console(file=out, width=200), Pretended())
    assert out.getvalue().endswith(f"0 of 12 passed; `tallax learn {tmp_path}` continues.\n")


def test_a_start_goes_to_the_next_exercise_that_has_not_passed(tmp_path):
    """If `--check` has passed the current exercise, the course goes on with the next one."""
    SavedProgress(tmp_path).note_passed(exercises()[0])
    text, _ = session(tmp_path)
    assert "2  A buffer that must not train" in text


def test_keys(tmp_path):
    """h, l, n, p, s, r and q do what the screen says."""
    text, _ = session(tmp_path, "h", "h", "l", "x", "s", "n", "p", "p")
    assert "Hint 2:" in text
    assert "Hint 3:" not in text
    assert "12_exact_resume.py" in text  # the list
    assert "The solution is shown once the exercise has passed." in text
    assert "There is no other exercise in this direction." in text
    text, _ = session(tmp_path, "right", "s", " ")
    assert "1  A step counter: in plain Flax NNX" in text
    assert "import tallax" in text


def test_reset_needs_a_confirmation(tmp_path):
    """r replaces the file by its start file if y follows, and keeps it otherwise."""
    path = tmp_path / "01_step_counter.py"
    session(tmp_path, "my work", "r", "n")
    assert path.read_text() == "my work"
    assert SavedProgress(tmp_path).current.number == 1
    text, _ = session(tmp_path, "r", "y")
    assert path.read_text() == exercises()[0].start
    assert "y replaces it" in text


def test_the_end_of_the_course(tmp_path):
    """After the last exercise nothing moves on; going back to one that has passed grades it and stays."""
    text, grader = session(tmp_path, *["right"] * 12)
    assert grader.graded == [*range(1, 13)]
    assert "All exercises passed" in text
    assert "12 of 12 passed" in text
    text, _ = session(tmp_path, "p")
    assert SavedProgress(tmp_path).current.number == 11


def test_a_key_or_a_save_ends_a_grade(tmp_path):
    """A grade that is no longer needed is given up, and the key is not lost."""
    course.write_files(tmp_path)
    (tmp_path / exercises()[0].file_name).write_text("an edit")
    keys = iter(["", "", "q"])

    class Slow(Pretended):
        def grade(self, exercise, file, on_claim, is_unneeded):
            assert not is_unneeded()
            self.graded.append(file.read_text())
            if len(self.graded) > 1:
                return FAILED
            file.write_text("saved again")
            assert is_unneeded()
            raise Interrupted

    grader = Slow()
    console = Console(file=io.StringIO(), width=100)
    session_ = course._Course(tmp_path, console, grader, lambda seconds: next(keys, "q") if seconds else "")
    session_.run()
    assert grader.graded == ["an edit", "saved again"]
