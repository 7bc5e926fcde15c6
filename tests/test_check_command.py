# SPDX-License-Identifier: Apache-2.0
"""`tallax check`: files that nobody here wrote, in a process of their own; and the exercise."""

import json
import subprocess
import sys
import textwrap
from importlib import resources

import jax.numpy as jnp
import numpy as np
import pytest

import tallax
from tallax.checking import Report
from tallax.checking._command import check
from tallax.checking._exercise import graded, write_starter
from tallax.checking._process import check_file
from tallax.checking._targets import found, input_of, loaded, modules_in

pytestmark = pytest.mark.usefixtures("as_users_run_it")

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
        (":Exits", "exited with code 0, at: plain calls"),
        (":Dies", "died of signal 6, at: plain calls"),
        (":Raises", "RuntimeError: not today"),
        (":Nobody", "modules: Right, Wrong, Hangs, Exits, Dies, Raises"),
        ("", "name what to check in it"),
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
def test_what_hangs_is_ended(file, capfd):
    """A module that never returns is given up after the limit."""
    assert checked(f"{file}:Hangs", "float32[3]", limit=15.0) == 2
    err = capfd.readouterr().err
    assert "did not end within 15 seconds" in err
    assert "still at: plain calls" in err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def f(:\n", "SyntaxError"),
        ("import no_such_package\n", "ModuleNotFoundError"),
    ],
)
@pytest.mark.slow
def test_a_file_that_cannot_be_imported(tmp_path, text, says):
    """It is an error with the reason."""
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(tallax.CannotCheckError, match=says):
        check_file(str(path), "Model")


def test_a_missing_file():
    """It is an error that shows how a target is written."""
    with pytest.raises(tallax.CannotCheckError, match=r"fix: +tallax check path/to/file.py:Name"):
        check_file("nowhere.py", "Model")


# --- targets and inputs -----------------------------------------------------------------------------------------------


def test_names_in_a_file(file):
    """Dotted names are found, and a file's own modules listed."""
    module = loaded(file)
    assert found(module, "Inner.Right") is module.Right
    assert modules_in(module) == ["Right", "Wrong", "Hangs", "Exits", "Dies", "Raises"]


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
    """What spells no input is an error that shows what does."""
    with pytest.raises(tallax.CannotCheckError, match=r"fix: +--inputs 'float32\[8,4\]'"):
        input_of(text)


# --- the exercise -----------------------------------------------------------------------------------------------------

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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("init", ["nnx.Variable(jnp.array(0))", "nnx.BatchStat(jnp.zeros((), jnp.uint32))"])
def test_right_solutions_pass(tmp_path, init):
    """Plain NNX passes, as `[...]` and as `.value`; that int32 ends at 2**31 is only told."""
    text = class_with(f"rngs.params()\n        self.step = {init}", "self.step.value += 1\nreturn self.step.value")
    report = grade(tmp_path, text + FUNCTION)
    assert report.passed, str(report)
    assert "narrow-counter" in {finding.rule for finding in report.warnings}


@pytest.mark.slow
def test_the_worked_solution_and_tallax_pass(tmp_path):
    """The solution that the package ships passes, and so does tallax itself."""
    solution = resources.files("tallax.checking.exercise").joinpath("solution.py").read_text()
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
    ],
    ids=["param", "rebound", "iadd", "python-int", "host-read"],
)
def test_pitfalls_of_the_class_are_named(tmp_path, text, pitfall):
    """Each pitfall of the class is a finding by its name."""
    assert pitfall in pitfalls(grade(tmp_path, text + FUNCTION))


@pytest.mark.parametrize(
    ("text", "pitfall"),
    [
        (CLASS + FUNCTION.replace("        counter()", "        last = int(counter())"), ("host-sync", "step")),
        (CLASS + FUNCTION.replace("return jnp.array(", "return list("), ("exercise", FUNCTION_NAME)),
        (CLASS + FUNCTION.replace("int(n_calls)])", "1.0 * n_calls])"), ("exercise", FUNCTION_NAME)),
        (CLASS + FUNCTION.replace("int(n_calls)])", "int(n_calls)])[None]"), ("exercise", FUNCTION_NAME)),
        (CLASS + FUNCTION.replace("range(int(n_calls))", "range(1, int(n_calls))"), ("exercise", FUNCTION_NAME)),
        (CLASS + FUNCTION.replace("range(int(n_calls))", "range(n_calls)"), ("exercise", FUNCTION_NAME)),
        (CLASS, ("exercise", FUNCTION_NAME)),
        (FUNCTION, ("exercise", "StepCounter")),
        (CLASS.replace("rngs.params()", "pass") + FUNCTION, ("exercise", "rngs")),
        (CLASS.replace("rngs.params()", "rngs.params(), rngs.params()") + FUNCTION, ("exercise", "rngs")),
        (CLASS.replace("+= 1", "+= 2") + FUNCTION, ("exercise", "step")),
        (CLASS.replace("return self.step[...]", "return self.step[...] * 1.0") + FUNCTION, ("exercise", "output")),
        (CLASS.replace("return self.step[...]", "pass") + FUNCTION, ("exercise", "output")),
        (CLASS.replace("rngs.params()", "rngs.params.no_such()") + FUNCTION, ("exercise", "")),
    ],
    ids=[
        "read-in-loop", "list", "float", "shape", "off-by-one", "floats", "no-function", "no-class", "no-key",
        "two-keys", "by-two", "float-output", "no-output", "raises",
    ],
)  # fmt: skip
def test_pitfalls_of_the_problem_are_named(tmp_path, text, pitfall, monkeypatch):
    """What is wrong with keys, values, shapes, dtypes and reads is a finding."""
    passed = Report("", (), (), 0.0, "")  # what statecheck says of the class is another test's matter
    monkeypatch.setattr("tallax.checking._exercise.statecheck", lambda *args, **kwargs: passed)
    assert pitfall in pitfalls(grade(tmp_path, text))


def test_only_what_is_unwritten_is_to_be_filled_in(tmp_path):
    """An error of the solution's own is to be mended; the comments to fill in are the starter's alone."""
    starter = resources.files("tallax.checking.exercise").joinpath("starter.py").read_text()
    assert {finding.fix for finding in grade(tmp_path, starter).failures} == {"fill in what the comments say"}
    no_such = CLASS.replace("rngs.params()", "rngs.params.no_such()")
    for text in (class_with(body="self.step += 1\nreturn self.step"), no_such):
        failures = grade(tmp_path, text + FUNCTION).failures
        assert len(failures) == 2
        assert not [finding for finding in failures if "fill in" in finding.fix]


def test_start_writes_python_only(tmp_path):
    """What is no name of such a file is refused, and nothing is written: FILE:NAME was to be checked, it seems."""
    with pytest.raises(tallax.CannotCheckError, match=r"--start solution\.py"):
        write_starter(tmp_path / "gate.py:Gate")
    assert not list(tmp_path.iterdir())


@pytest.mark.thorough
def test_from_start_to_grade(tmp_path):
    """`--start` writes a file, which `tallax check` then grades with 1; it never writes over one."""
    path = tmp_path / "solution.py"

    def tallax_check(*args):
        command = [sys.executable, "-c", "from tallax_cli import main; main()", "check", *args]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)

    started = tallax_check("--start", str(path))
    assert (started.returncode, path.is_file()) == (0, True)
    graded_at_first = tallax_check(str(path))
    assert graded_at_first.returncode == 1
    assert "fill in what the comments say" in graded_at_first.stdout
    path.write_text(resources.files("tallax.checking.exercise").joinpath("solution.py").read_text())
    assert tallax_check("--start", str(path)).returncode == 2
    assert "worked" in path.read_text()
    assert tallax_check(str(path)).returncode == 0
