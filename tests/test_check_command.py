# SPDX-License-Identifier: Apache-2.0
"""`tallax check`: files that nobody here wrote, in a process of their own; and the exercise."""

import json
import signal
import subprocess
import sys
import textwrap
import time
from importlib import resources

import jax.numpy as jnp
import numpy as np
import pytest

import tallax
from tallax.checking import Report
from tallax.checking._command import check
from tallax.checking._command_inputs import found, input_of, loaded, modules_in
from tallax.checking._exercise import graded, write_starter
from tallax.checking._file_check import check_file
from tests.quick import cell

pytestmark = pytest.mark.usefixtures("standard_promotion")

FILE = """
import os
import sys
import time

import jax.numpy as jnp
from flax import nnx

print("a line of the user's")


class Right(nnx.Module):
    def __init__(self, rngs):
        self.layer = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.layer(x)


class Wrong(nnx.Module):
    def __init__(self):
        self.step = nnx.Param(jnp.zeros(()))

    def __call__(self, x):
        self.step[...] += 1.0
        return x


class Hangs(nnx.Module):
    def __call__(self, x):
        while True:
            time.sleep(0.01)


class Exits(nnx.Module):
    def __call__(self, x):
        sys.exit(0)


class Dies(nnx.Module):
    def __call__(self, x):
        os.abort()


class Raises(nnx.Module):
    def __call__(self, x):
        raise RuntimeError("not today")


class RaisesWhenMade(nnx.Module):
    def __init__(self):
        raise RuntimeError("not made today")


class Later(nnx.Module):
    calls = 0  # it ends in a later check than the first

    def __init__(self):
        self.step = nnx.Variable(jnp.zeros((), jnp.uint32))

    def __call__(self, x):
        Later.calls += 1
        if Later.calls > 20:
            self.end()
        self.step[...] += 1
        return x


class HangsLater(Later):
    def end(self):
        if "MARK" in os.environ:
            open(os.environ["MARK"], "w").close()
        while True:
            time.sleep(0.01)


class DiesLater(Later):
    def end(self):
        os.abort()


class WrongThenHangs(HangsLater):
    def __init__(self):
        self.step = nnx.Param(jnp.zeros(()))


class Inner:
    Right = Right


def twice(model, x):
    model(x)
    return model(x)
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("check") / "models.py"
    path.write_text(FILE)
    return path


# --- exit codes -------------------------------------------------------------------------------------------------------


def checked(target, *inputs, limit=300.0, as_json=False, call=None):
    return check(str(target), list(inputs), call, 2, limit, as_json=as_json, start=False)


@pytest.mark.slow
def test_zero_without_failures(file, capfd):
    """A right module gives 0 and the table on stdout; what the file prints is kept off it."""
    assert checked(f"{file}:Inner.Right", "float32[3,4]", call="twice") == 0
    out, err = capfd.readouterr()
    assert "passed" in out
    assert "jit, donated" in out
    assert "a line of the user's" not in out
    assert "a line of the user's" in err


@pytest.mark.slow
def test_one_with_failures(file, capfd):
    """A wrong module gives 1; as JSON, the whole report is on stdout."""
    assert checked(f"{file}:Wrong", "float32[3]", as_json=True) == 1
    report = Report.from_dict(json.loads(capfd.readouterr().out))
    assert {finding.rule for finding in report.failures} == {"param-state", "narrow-counter"}
    assert "models.py:25: self.step[...] += 1.0" not in report.failures[0].fix
    assert report.name == "Wrong"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "says"),
    [
        (":Dies", "signal SIGABRT, at: plain calls"),
        (":Raises", "got:  RuntimeError: not today"),
        (":RaisesWhenMade", "got:  RuntimeError: not made today, at: plain calls"),
        cell(":Exits", "exit code 0, at: plain calls", quick=False),
        cell(":Nobody", "modules: Right, Wrong, Hangs, Exits, Dies", quick=False),
        cell("", "name the module to check", quick=False),
    ],
)
def test_two_if_it_could_not_run(file, capfd, name, says):
    """Whatever the file does to its process, the checker says so and ends."""
    assert checked(f"{file}{name}", "float32[3]") == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert says in err
    assert "fix:" in err


@pytest.mark.thorough
def test_a_check_that_hangs_is_ended(file, capfd):
    """A module that never returns is given up after the limit."""
    assert checked(f"{file}:Hangs", "float32[3]", limit=10.0) == 2
    err = capfd.readouterr().err
    assert "did not end within 10 seconds" in err
    assert "still at: plain calls" in err


# --- ended early ------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        ("HangsLater", 2, "incomplete, did not end within 15 seconds (still at: "),
        ("DiesLater", 2, "incomplete, ended before the check did (signal SIGABRT, at: "),
        ("WrongThenHangs", 1, "incomplete, did not end within 15 seconds (still at: "),
    ],
)
def test_checks_that_ran_before_a_hang_are_reported(file, capfd, name, code, says):
    """A check that ends early reports the checks that ran and the reason, and never exits with 0."""
    assert checked(f"{file}:{name}", "float32[3]", limit=15.0) == code
    out = " ".join(capfd.readouterr().out.split())
    assert says in out
    assert "reproducible" in out
    assert ("param-state" in out) == (code == 1)


@pytest.mark.slow
def test_an_interrupt_gives_the_partial_report(file):
    """On Ctrl-C the report has the checks that had run, and is no pass; before the first check it is an error."""

    def stop_at(name):
        def notify(check):
            if check.startswith(name):
                raise KeyboardInterrupt

        return notify

    report = check_file(f"{file}", "Inner.Right", ["float32[3,4]"], on_progress=stop_at("scan"))
    assert report.incomplete == "was interrupted (at: scan graph)"
    assert (report.failures, report.passed) == ((), False)
    assert {"reproducible", "jit"} <= {cell.check for cell in report.cells}
    assert report.incomplete in str(report)
    assert Report.from_dict(json.loads(json.dumps(report.to_dict()))) == report
    with pytest.raises(tallax.StatecheckError, match=r"was interrupted(.|\n)*at: plain calls(.|\n)*fix:"):
        check_file(f"{file}", "Inner.Right", ["float32[3,4]"], on_progress=stop_at("plain calls"))


@pytest.mark.thorough
def test_ctrl_c_prints_the_partial_report(file, tmp_path, monkeypatch):
    """The signal that a terminal sends ends the command with 2, with the report of the checks until then."""
    monkeypatch.setenv("MARK", str(tmp_path / "hangs"))
    command = [sys.executable, "-c", "from tallax.cli import main; main()", "check", f"{file}:HangsLater"]
    process = subprocess.Popen(
        [*command, "--inputs", "float32[3]"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 90
        while not (tmp_path / "hangs").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 2, err
    assert "incomplete, was interrupted" in out
    assert "reproducible" in out
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        cell("def f(:\n", "SyntaxError", quick=False),
        ("import no_such_package\n", "ModuleNotFoundError"),
    ],
)
@pytest.mark.slow
def test_a_file_that_cannot_be_imported(tmp_path, text, says):
    """It is an error with the reason."""
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(tallax.StatecheckError, match=says):
        check_file(str(path), "Model")


def test_a_missing_file():
    """It is an error that shows how a target is written."""
    with pytest.raises(tallax.StatecheckError, match=r"fix: +tallax check path/to/file.py:Name"):
        check_file("nowhere.py", "Model")


# --- targets and inputs -----------------------------------------------------------------------------------------------


def test_names_in_a_file(file):
    """Dotted names are found, and a file's own modules listed."""
    module = loaded(file)
    assert found(module, "Inner.Right") is module.Right
    assert modules_in(module)[:6] == ["Right", "Wrong", "Hangs", "Exits", "Dies", "Raises"]


def test_inputs_by_dtype_and_shape(tmp_path):
    """Arrays are spelled by dtype and shape, and are the same each time; files and literals are read."""
    x = input_of("float32[8,4]")
    assert (x.dtype, x.shape) == (jnp.float32, (8, 4))
    assert (x > 0).any()
    assert (x < 0).any()
    assert jnp.array_equal(x, input_of("float32[8, 4]"))
    tokens = input_of("int32[100]<7")
    assert set(np.asarray(tokens).tolist()) == set(range(7))
    assert input_of("bfloat16[2]").dtype == jnp.bfloat16
    assert input_of("bool[9]").dtype == jnp.bool_
    assert input_of("uint8[]").shape == ()
    np.save(tmp_path / "x.npy", np.arange(3))
    assert input_of(str(tmp_path / "x.npy")).tolist() == [0, 1, 2]
    assert input_of("True") is True
    assert input_of("{'a': 1.5}") == {"a": 1.5}


@pytest.mark.parametrize("text", ["float32", "floaty[3]", "float32[3", "missing.npy", "__import__('os')"])
def test_inputs_that_are_none(text):
    """A misspelled input is an error that shows a valid one."""
    with pytest.raises(tallax.StatecheckError, match=r"fix: +--inputs 'float32\[8,4\]'"):
        input_of(text)


# --- the exercise -----------------------------------------------------------------------------------------------------

SOLUTION = resources.files("tallax.learning.exercises.step_counter").joinpath("solution.py").read_text()
HEAD = """
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


class StepCounter(nnx.Module):
    def __init__(self, rngs):
"""
CLASS = (
    HEAD
    + """
        rngs.params()
        self.step = nnx.Variable(jnp.zeros((), jnp.int32))

    def __call__(self):
        self.step[...] += 1
        return self.step[...]
"""
)
FUNCTION_NAME = "counter_after_n_calls"
FUNCTION = """
def counter_after_n_calls(seed, n_calls):
    counter = StepCounter(nnx.Rngs(int(seed)))
    for _ in range(int(n_calls)):
        counter()
    return jnp.array([counter.step[...], int(n_calls)])
"""


def class_with(init="rngs.params()\n        self.step = nnx.Variable(jnp.zeros((), jnp.int32))", body=""):
    body = textwrap.indent(body, " " * 8)
    return f"{HEAD}        {init}\n\n    def __call__(self):\n{body}\n"


def grade(tmp_path, text):
    path = tmp_path / f"solution_{abs(hash(text))}.py"
    path.write_text(text)
    try:
        return graded(loaded(path))
    finally:
        sys.modules.pop(path.stem)


def pitfalls(report):
    return {(finding.rule, finding.path) for finding in report.failures}


FLOAT = "rngs.params()\n        self.step = nnx.Variable(jnp.zeros(()))"
ADDS = "self.step[...] += 1\nreturn self.step[...]"
SPLIT = """
def counter_after_n_calls(seed, n_calls):
    graphdef, state = nnx.split(StepCounter(nnx.Rngs(int(seed))))

    @jax.jit
    def step(_, state):
        counter = nnx.merge(graphdef, state)
        counter()
        return nnx.state(counter)

    state = jax.lax.fori_loop(0, int(n_calls), step, state)
    return jnp.stack([nnx.merge(graphdef, state).step[...], jnp.asarray(int(n_calls), state["step"][...].dtype)])
"""
JITTED = """
@nnx.jit
def call(counter):
    return counter()


def counter_after_n_calls(seed, n_calls):
    counter, count = StepCounter(nnx.Rngs(int(seed))), 0
    while count < n_calls:
        call(counter)
        count += 1
    return jnp.array([counter.step[...], n_calls], jnp.float32)
"""
SEED_FUNCTION = """
def counter_after_n_calls(seed, n_calls):
    counter = StepCounter(nnx.Rngs(int(seed)))
    for _ in range(int(n_calls)):
        counter()
    return jnp.array([float(counter.step.value), float(int(n_calls))])
"""
UNCOUNTED = """
def counter_after_n_calls(seed, n_calls):
    counter = StepCounter(nnx.Rngs(int(seed)))
    return jnp.array([int(n_calls), int(n_calls)])
"""
WRITTEN = """
def counter_after_n_calls(seed, n_calls):
    counter = StepCounter(nnx.Rngs(int(seed)))
    counter.step[...] = int(n_calls)
    return jnp.array([counter.step[...], int(n_calls)])
"""
SEED = class_with(
    "rngs.params()\n        self.step = nnx.Variable(jnp.array(0.0))",
    "self.step.value = self.step.value + 1.0\nreturn self.step.value",
)
SUBCLASS = CLASS.replace("class StepCounter", "class Count(nnx.Variable):\n    pass\n\n\nclass StepCounter").replace(
    "nnx.Variable(jnp", "Count(jnp"
)
COUNTER = class_with(
    "rngs.params()\n        self.step = tallax.Counter()", "self.step += 1\nreturn self.step.value"
).replace("import jax\n", "import jax\nimport tallax\n", 1)


def starting(value):
    return CLASS.replace("jnp.zeros((), jnp.int32)", value)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("text", "told"),
    [
        (SEED + SEED_FUNCTION, {"narrow-counter", "deprecated-value"}),
        (starting("jnp.zeros((), jnp.uint32)") + SPLIT, {"narrow-counter"}),
        (starting("jnp.zeros(())").replace("nnx.Variable", "nnx.BatchStat") + JITTED, {"narrow-counter", "eval-mode"}),
        (SUBCLASS + FUNCTION, {"narrow-counter"}),
        (COUNTER + FUNCTION, set()),
    ],
    ids=["of-the-page", "split-and-fori-loop", "batch-stat-and-jit", "subclass", "tallax-counter"],
)
def test_right_solutions_pass(tmp_path, text, told):
    """Every way to count passes, in integers and in floats; the edge of a dtype and `.value` are only told."""
    report = grade(tmp_path, text)
    assert report.passed, str(report)
    assert {finding.rule for finding in report.warnings} - {"lost-update"} == told
    assert "2**24" in str(report) or "float" not in text


@pytest.mark.thorough
def test_the_solution_of_the_page_exits_with_0(tmp_path, capfd):
    """`tallax check` passes it, and warns of 2**24 and of `.value`, with the line."""
    path = tmp_path / "seed_solution.py"
    path.write_text(SEED + SEED_FUNCTION)
    assert checked(path) == 0
    out = " ".join(capfd.readouterr().out.split())
    assert "which is exact up to 2**24 only. [narrow-counter]" in out
    assert "[deprecated-value]" in out
    assert "self.step.value = self.step.value + 1.0" in out
    assert "9 of 9 cases" in out


@pytest.fixture
def of_the_problem(monkeypatch):
    """Leaves statecheck out: what it says of the class is another test's matter."""
    monkeypatch.setattr("tallax.checking._exercise.check_into", lambda *args, **kwargs: "")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "text",
    [
        CLASS + FUNCTION.replace("int(n_calls)])", "1.0 * n_calls])"),
        CLASS.replace("return self.step[...]", "return self.step[...] * 1.0") + FUNCTION,
        CLASS.replace("return self.step[...]", "return np.float32(self.step.get_value())") + FUNCTION,
        starting("np.zeros((), np.float32)") + FUNCTION,
        starting("jnp.zeros((), jnp.int16)") + FUNCTION,
        CLASS + FUNCTION.replace("jnp.array([", "jnp.stack([").replace("int(n_calls)])", "jnp.asarray(n_calls, int)])"),
        COUNTER + FUNCTION.replace("counter.step[...]", "counter.step.value"),
        COUNTER + FUNCTION.replace("counter.step[...]", "int(counter.step)"),
        "from tallax import StepCounter, counter_after_n_calls\n",
        SOLUTION,
    ],
)  # fmt: skip
def test_right_answers_are_of_any_number_type(tmp_path, text, of_the_problem):
    """Integers and floats of any width are an answer, by whatever function of JAX the array is made."""
    report = grade(tmp_path, text)
    assert report.passed, str(report)


@pytest.mark.slow
def test_the_worked_solution_and_tallax_pass(tmp_path):
    """The solution that the package ships passes, and so does tallax itself."""
    solution = SOLUTION
    assert grade(tmp_path, solution).passed
    report = grade(tmp_path, "from tallax import StepCounter, counter_after_n_calls\n")
    assert report.passed, str(report)
    assert not [finding for finding in report.warnings if finding.rule == "narrow-counter"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("text", "pitfall"),
    [
        (
            class_with(
                "rngs.params()\n        self.step = nnx.Param(jnp.array(0.0))",
                "self.step.value += 1\nreturn self.step.value",
            ),
            ("param-state", "step"),
        ),
        (class_with(body="self.step = self.step + 1\nreturn self.step"), ("replaced-variable", "step")),
        (class_with(body="self.step += 1\nreturn self.step"), ("replaced-variable", "step")),
        (
            class_with("rngs.params()\n        self.step = 0", "self.step += 1\nreturn jnp.array(self.step)"),
            ("python-counter", "step"),
        ),
        (class_with(body="self.step[...] = int(self.step[...]) + 1\nreturn self.step[...]"), ("host-sync", "step")),
        (class_with(FLOAT, "self.step = self.step + 1.0\nreturn self.step"), ("replaced-variable", "step")),
        (class_with(FLOAT, "self.step += 1.0\nreturn self.step"), ("replaced-variable", "step")),
        (
            class_with("rngs.params()\n        self.step = 0.0", "self.step += 1.0\nreturn jnp.array(self.step)"),
            ("python-counter", "step"),
        ),
        (class_with(FLOAT, "self.step[...] = float(self.step[...]) + 1\nreturn self.step[...]"), ("host-sync", "step")),
        (
            class_with(
                "rngs.params()\n        self.step = jnp.zeros(())", "self.step = self.step + 1.0\nreturn self.step"
            ),
            ("lost-update", "step"),
        ),
        (class_with(FLOAT.replace("zeros(())", "zeros((), jnp.float16)"), ADDS), ("narrow-counter", "step")),
        (class_with(FLOAT.replace("zeros(())", "zeros((), jnp.bfloat16)"), ADDS), ("narrow-counter", "step")),
    ],
    ids=[
        "param", "rebound", "iadd", "python-int", "host-read", "rebound-float", "iadd-float", "python-float",
        "host-read-float", "plain-array", "float16", "bfloat16",
    ],
)  # fmt: skip
def test_pitfalls_of_the_class_are_named(tmp_path, text, pitfall):
    """Each pitfall of the class is a finding by its name."""
    assert pitfall in pitfalls(grade(tmp_path, text + FUNCTION))


@pytest.mark.parametrize(
    ("text", "pitfall"),
    [
        (CLASS + FUNCTION.replace("        counter()", "        last = int(counter())"), ("host-sync", "step")),
        (CLASS + FUNCTION.replace("return jnp.array(", "return list("), ("exercise", FUNCTION_NAME)),
        (CLASS + FUNCTION.replace("int(n_calls)])", "int(n_calls)]) > 0"), ("exercise", FUNCTION_NAME)),
        (CLASS + FUNCTION.replace("int(n_calls)])", "1j * n_calls])"), ("exercise", FUNCTION_NAME)),
        (CLASS + FUNCTION.replace("int(n_calls)])", "int(n_calls)])[None]"), ("exercise", FUNCTION_NAME)),
        (CLASS + FUNCTION.replace("range(int(n_calls))", "range(1, int(n_calls))"), ("exercise", FUNCTION_NAME)),
        (CLASS + FUNCTION.replace("range(int(n_calls))", "range(n_calls)"), ("exercise", FUNCTION_NAME)),
        (CLASS, ("exercise", FUNCTION_NAME)),
        (FUNCTION, ("exercise", "StepCounter")),
        (CLASS.replace("rngs.params()", "pass") + FUNCTION, ("exercise", "rngs")),
        (CLASS.replace("rngs.params()", "rngs.params(), rngs.params()") + FUNCTION, ("exercise", "rngs")),
        (CLASS.replace("+= 1", "+= 2") + FUNCTION, ("exercise", "step")),
        (CLASS.replace("return self.step[...]", "return self.step[...] > 0") + FUNCTION, ("exercise", "output")),
        (CLASS.replace("return self.step[...]", "return self.step[...][None]") + FUNCTION, ("exercise", "output")),
        (CLASS + UNCOUNTED, ("exercise", FUNCTION_NAME)),
        (CLASS + UNCOUNTED.replace("int(n_calls), int", "float(n_calls), float"), ("exercise", FUNCTION_NAME)),
        (CLASS + FUNCTION.replace("        counter()", "        counter(), counter()"), ("exercise", FUNCTION_NAME)),
        (CLASS + SEED_FUNCTION.replace("    counter()", "    counter(), counter()"), ("exercise", FUNCTION_NAME)),
        (CLASS + SEED_FUNCTION.replace("range(int", "range(1, int"), ("exercise", FUNCTION_NAME)),
        (CLASS + SEED_FUNCTION.replace("return jnp.array(", "return ("), ("exercise", FUNCTION_NAME)),
        (CLASS + SEED_FUNCTION.replace("        counter()", "        float(counter())"), ("host-sync", "step")),
        (CLASS.replace("+= 1", "+= 0.5").replace("jnp.int32", "jnp.float32") + FUNCTION, ("exercise", "step")),
        (CLASS.replace("jnp.zeros((), jnp.int32)", "jnp.ones(())") + FUNCTION, ("exercise", "step")),
        (CLASS + WRITTEN, ("exercise", FUNCTION_NAME)),
        (CLASS.replace("return self.step[...]", "pass") + FUNCTION, ("exercise", "output")),
        (CLASS.replace("rngs.params()", "rngs.params.no_such()") + FUNCTION, ("exercise", "")),
    ],
    ids=[
        "read-in-loop", "list", "bool", "complex", "shape", "off-by-one", "floats", "no-function", "no-class", "no-key",
        "two-keys", "by-two", "bool-output", "vector-output", "uncounted", "uncounted-float", "twice", "twice-float",
        "off-by-one-float", "list-of-floats", "read-in-loop-float", "by-a-half", "from-one", "written-not-counted",
        "no-output", "raises",
    ],
)  # fmt: skip
def test_pitfalls_of_the_problem_are_named(tmp_path, text, pitfall, of_the_problem):
    """A mistake in keys, values, shapes, dtypes, reads, and counts that nobody counted is a finding."""
    assert pitfall in pitfalls(grade(tmp_path, text))


def test_only_missing_parts_are_to_be_filled_in(tmp_path):
    """An error of the solution's own is to be mended; the comments to fill in are the starter's alone."""
    starter = resources.files("tallax.checking.exercise").joinpath("starter.py").read_text()
    assert {finding.fix for finding in grade(tmp_path, starter).failures} == {"fill in what the comments say"}
    no_such = CLASS.replace("rngs.params()", "rngs.params.no_such()")
    for text in (class_with(body="self.step += 1\nreturn self.step"), no_such):
        failures = grade(tmp_path, text + FUNCTION).failures
        assert len(failures) == 2
        assert not [finding for finding in failures if "fill in" in finding.fix]


def test_start_writes_python_only(tmp_path):
    """A name that is not in such a file is refused, and nothing is written: FILE:NAME was to be checked, it seems."""
    with pytest.raises(tallax.StatecheckError, match=r"--start solution\.py"):
        write_starter(tmp_path / "gate.py:Gate")
    assert not list(tmp_path.iterdir())


@pytest.mark.thorough
def test_from_start_to_grade(tmp_path):
    """`--start` writes a file, which `tallax check` then grades with 1; it never writes over one."""
    path = tmp_path / "solution.py"

    def tallax_check(*args):
        command = [sys.executable, "-c", "from tallax.cli import main; main()", "check", *args]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)

    started = tallax_check("--start", str(path))
    assert (started.returncode, path.is_file()) == (0, True)
    graded_at_first = tallax_check(str(path))
    assert graded_at_first.returncode == 1
    assert "fill in what the comments say" in graded_at_first.stdout
    path.write_text(SOLUTION)
    assert tallax_check("--start", str(path)).returncode == 2
    assert "solved" in path.read_text()
    assert tallax_check(str(path)).returncode == 0
