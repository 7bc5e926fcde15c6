# SPDX-License-Identifier: Apache-2.0
"""The script that runs Flax's own tests with tallax's Variables: on a checkout made here, of one small test file."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.quick import cell

SCRIPT = pathlib.Path(__file__).parent / "peers" / "flax_nnx.py"
SPEC = importlib.util.spec_from_file_location("flax_nnx", SCRIPT)
flax_nnx = importlib.util.module_from_spec(SPEC)
sys.modules["flax_nnx"] = flax_nnx  # dataclasses look their module up
SPEC.loader.exec_module(flax_nnx)
Result, Expected = flax_nnx.Result, flax_nnx.Expected

TESTS = """\
import os
import jax, jax.numpy as jnp
from flax import nnx

def test_counts():
    v = nnx.Variable(jnp.array(0))
    v[...] += 1
    assert v[...] == 1 and isinstance(v, nnx.Variable) and not isinstance(v, nnx.BatchStat)

def test_keeps_a_name():
    assert nnx.Variable("name").get_value() == "name"

def test_fails_anyway():
    assert nnx.Variable(jnp.array(0))[...] == 1

def test_goes_below_zero():
    nnx.BatchStat(jnp.array(0)).set_value(jnp.array(-1))

def test_changes_its_shape():
    class Stat(nnx.Variable[jax.Array]): ...
    Stat(jnp.zeros(2)).set_value(jnp.zeros(3))

def test_ends_the_process():
    if hasattr(nnx.Variable(jnp.array(0)), "every"):
        os._exit(3)

def test_differentiates():
    assert jax.grad(lambda p: p.get_value())(nnx.Param(jnp.array(1.0))).get_value() == 1

def test_parameter():
    assert type(nnx.Param(jnp.array(1))).__mro__[1].__name__ in ("Variable", "Buffer")
    assert isinstance(nnx.Linear(2, 2, rngs=nnx.Rngs(0)).kernel, nnx.Param)
"""


def run(*arguments, checkout=None):
    """Returns the exit status of the script and its output."""
    environment = {name: value for name, value in os.environ.items() if name != flax_nnx.VARIABLE}
    environment |= {} if checkout is None else {flax_nnx.VARIABLE: str(checkout)}
    command = [sys.executable, str(SCRIPT), *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300, env=environment)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A folder laid out as Flax's, with one test file."""
    folder = tmp_path_factory.mktemp("flax")
    (folder / "tests" / "nnx").mkdir(parents=True)
    (folder / "tests" / "nnx" / "tiny_test.py").write_text(TESTS)
    return folder


def listed(folder, *entries):
    """Writes a list of expected failures, and returns its path."""
    path = folder / "expected.toml"
    parts = [f"[[expected]]\nlaw = {law!r}\nerror = {error!r}\ntests = {[test]!r}\n" for law, error, test in entries]
    path.write_text("".join(parts) or "expected = []\n")
    return path


def test_without_a_checkout_it_reports_that_it_did_not_run():
    """No test counts as passed that did not run; nothing fails either."""
    status, output = run()
    assert status == 0
    assert output == "Flax's tests did not run: FLAX_CHECKOUT does not name a checkout of Flax.\n"


def test_a_folder_without_tests_is_an_error(tmp_path):
    """A variable that names a wrong folder is not taken for none."""
    status, output = run(checkout=tmp_path)
    assert status == 1
    assert "has no tests" in output


@pytest.mark.thorough  # it starts pytest, with JAX, four times
def test_each_failure_is_expected_or_a_fault(checkout, tmp_path):
    """Of a checkout's tests it reports each kind of end once, and exits 1 for a fault and a stale entry."""
    expected = listed(
        tmp_path,
        ("counts are not negative", "InvalidValueError.*at: nnx.BatchStat", "tiny_test.py::test_goes*"),
        ("nothing", "InvalidValueError", "tiny_test.py::test_counts"),
    )
    saved = tmp_path / "results.json"
    status, output = run("--expected", str(expected), "--save", str(saved), checkout=checkout)
    assert status == 1
    runs = json.loads(saved.read_text())
    ends = {
        replace: {test.removeprefix("tiny_test.py::test_"): result["outcome"] for test, result in results.items()}
        for replace, results in runs.items()
    }
    everything = {
        "counts": "passed",
        "keeps_a_name": "passed",
        "fails_anyway": "failed",
        "goes_below_zero": "passed",
        "changes_its_shape": "passed",
        "ends_the_process": "passed",
        "differentiates": "passed",
        "parameter": "passed",
    }
    assert ends[""] == everything
    assert ends["buffer"] == everything | {"changes_its_shape": "failed"}
    assert ends["counter"] == everything | {
        "goes_below_zero": "failed",
        "changes_its_shape": "failed",
        "ends_the_process": "crashed",
    }
    made = {test.partition("::")[2]: result for test, result in runs["counter"].items()}
    assert (made["test_counts"]["counters"], made["test_counts"]["buffers"]) == (1, 0)
    assert (made["test_keeps_a_name"]["counters"], made["test_keeps_a_name"]["buffers"]) == (0, 0)
    assert (made["test_parameter"]["counters"], made["test_parameter"]["buffers"]) == (0, 3)
    assert (made["test_differentiates"]["counters"], made["test_differentiates"]["buffers"]) == (0, 0)
    assert "       1 counts are not negative" in output
    assert "faults of tallax: 2" in output  # counter: the shape, and the process
    assert "faults of tallax: 1" in output  # buffer: the shape
    assert "no longer fails: tiny_test.py::test_counts: nothing" in output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "limit"),
    [
        cell("import no_such_module\n", 100, quick=False),
        ("import time\ndef test_waits():\n    time.sleep(100)\n", 2),
    ],
    ids=["no-import", "no-end"],
)
def test_a_file_that_does_not_end_is_reported(text, limit, tmp_path, capsys):
    """Neither a run that is out of time nor one that cannot start is a pass."""
    (tmp_path / "broken_test.py").write_text(text)
    results = flax_nnx.run_file(tmp_path, "broken_test.py", "", limit)
    # If the run is out of time after it has begun the test, the test is named as well.
    assert {"broken_test.py::(the rest)"} <= {*results} <= {"broken_test.py::(the rest)", "broken_test.py::test_waits"}
    assert {result.outcome for result in results.values()} == {"crashed"}
    touched = {"t": Result("passed", counters=1)}  # so that nothing else is wrong
    assert not flax_nnx.report({"": results, "counter": touched, "buffer": touched}, [])
    assert "\nbroken_test.py did not finish" in capsys.readouterr().out
    assert flax_nnx.report({"": touched, "counter": touched, "buffer": touched}, [])


def test_all_listed_is_a_pass(capsys):
    """Without a fault, a stale entry and an unfinished file, the report is good."""
    runs = {
        "": {"a": Result("passed"), "b": Result("failed", "E: unchanged")},
        "counter": {"a": Result("failed", "E: as listed", counters=1), "b": Result("failed", "E: unchanged")},
        "buffer": {"a": Result("passed", buffers=1), "b": Result("passed")},
    }
    assert flax_nnx.report(runs, [Expected("a law", "as listed", ("a",))])
    assert "faults of tallax: 0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("unchanged", "with_tallax", "where"),
    [
        (Result("passed"), Result("passed"), "passed"),
        (Result("skipped"), Result("skipped"), "skipped"),
        (Result("failed"), Result("passed"), "not_ours"),
        (Result("failed"), Result("failed", "E: listed"), "not_ours"),
        (Result("crashed"), Result("crashed"), "not_ours"),
        (None, Result("failed", "E: another"), "faults"),
        (Result("passed"), Result("failed", "E: listed"), "expected"),
        (Result("passed"), Result("failed", "E: another"), "faults"),
        (Result("passed"), Result("crashed", "the process ended in this test"), "faults"),
        (Result("skipped"), Result("failed", "E: another"), "faults"),
    ],
)
def test_the_classifier(unchanged, with_tallax, where):
    """A failure is tallax's fault unless the test fails anyway, or its error is listed for this test."""
    verdict = flax_nnx.classify(
        {} if unchanged is None else {"t": unchanged}, {"t": with_tallax}, [Expected("a law", "listed", ("t*",))]
    )
    lists = ("passed", "skipped", "not_ours", "expected", "faults")
    assert [name for name in lists if "t" in getattr(verdict, name)] == [where]


def test_an_entry_is_stale_only_if_its_test_runs():
    """An entry for a test that this release of Flax does not have, or that fails unchanged, may stay."""
    entries = [Expected("law", "error", ("a", "b", "c"))]
    unchanged = {"a": Result("passed"), "b": Result("failed")}
    verdict = flax_nnx.classify(unchanged, {"a": Result("passed"), "b": Result("failed")}, entries)
    assert flax_nnx.stale(entries, unchanged, [verdict]) == ["a: law"]


def test_every_listed_failure_names_a_law_once():
    """The list that ships is well-formed: no empty entry, no pattern twice."""
    entries = flax_nnx.read_expected(SCRIPT.with_name("flax_nnx_expected.toml"))
    patterns = [pattern for entry in entries for pattern in entry.tests]
    assert entries
    assert len(patterns) == len(set(patterns))
    assert all(entry.law and entry.error and entry.tests for entry in entries)
