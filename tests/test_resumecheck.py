# SPDX-License-Identifier: Apache-2.0
"""`resumecheck`: names the faults of public threads by path, and blames no job that resumes exactly."""

import functools
import json
import os
import pathlib
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest

import tallax
from tallax.checking import RESUME_RULES, Report
from tallax.checking._command import check_resume_of
from tallax.checking._job_state import roots_of, values_of
from tallax.checking._job_values import Value, differences, records_in, tails
from tallax.checking._resume_causes import Evidence, cause_at_end, cause_at_restore, remedy
from tests import resume_jobs

JOBS = pathlib.Path(resume_jobs.__file__)


# --- the evidence, without processes ----------------------------------------------------------------------------------


def value_of(value, kind="array"):
    return None if value is None else Value(value if isinstance(value, np.ndarray | str) else np.asarray(value), kind)


def evidence(initial, saved, restored, expected=None, got=None, kind="array", known=True):
    return Evidence("x", *(value_of(value, kind) for value in (initial, saved, restored, expected, got)), known)


def floats(*values):
    return np.array(values, np.float32)


@pytest.mark.parametrize(
    ("case", "rule", "words"),
    [
        (evidence(0, 5, 0), "reset", "initial value"),
        (evidence(None, floats(1, 2), floats(0, 0)), "reset", "is zero"),
        (evidence(floats(1, 1, 1), floats(2, 3, 4), floats(1, 3, 4)), "reset", "in 1 of 3 entries"),
        (evidence(b"a", b"b", b"c", kind="random"), "reset", "seeded anew"),
        (evidence(0, 5, None), "left-out", "not there"),
        (evidence(0, 5, 10), "doubled", "restored twice"),
        (evidence(3, 8, 13), "doubled", "restored twice"),
        (evidence(0, 5, 6), "doubled", "ahead by 1"),
        (evidence(0, 5, 6, 10, 11, kind="position"), "skipped", "never seen"),
        (evidence(0, 5, 4, 10, 9, kind="position"), "doubled", "seen twice"),
        (evidence(0, 5, 4), "skipped", "behind by 1"),
        (evidence(floats(1), floats(0.3, 0.7), floats(2.4, 5.6)), "doubled", "8 times"),
        (evidence(np.array([0, 0]), np.array([5, 7]), np.array([40, 56])), "doubled", "8 times"),
        (evidence(floats(0), floats(0.3, 0.7), floats(0.3, 0.7).astype(np.float16)), "cast", "float16"),
        (evidence(floats(0), floats(1 / 3), floats(1 / 3).astype(jnp.bfloat16).astype(np.float32)), "cast", "bfloat16"),
        (evidence(0, 2**24 + 1, 2**24), "cast", "float32"),
        (evidence(0, np.int32(300), np.int32(44)), "cast", "int8"),
        (evidence(floats(0), floats(1.5, 2.5, 3.5), floats(3.5, 1.5, 2.5)), "misplaced", "another order"),
        (evidence(floats(0, 0), floats(1.5, 2.5), floats(7.5, 8.5)), "misplaced", "value of other"),
        (evidence(floats(0), floats(0.25), floats(0.7)), "differs", "neither"),
        (evidence(floats(1), floats(1), floats(1.3)), "differs", "did not change in training"),
        (evidence(0, np.zeros(8), np.zeros(4)), "differs", "shape"),
    ],
)
def test_a_restored_value_shows_its_fault(case, rule, words):
    """Each rule has its evidence in numbers; a value that equals the saved one has no fault."""
    found = cause_at_restore(case, {"other": value_of(floats(7.5, 8.5)), "x": case.saved})
    assert found is not None
    assert found.rule == rule
    assert rule in RESUME_RULES
    assert words in found.message
    assert cause_at_restore(Evidence("x", case.initial, case.saved, case.saved, None, None, True), {}) is None
    assert remedy(rule, "x", case.saved)


@pytest.mark.parametrize(
    ("case", "rule", "words"),
    [
        (evidence(0, 5, 5, 10, 15), "doubled", "2 times"),
        (evidence(0, 5, 5, 10, 9), "skipped", "behind by 1"),
        (evidence(0, 5, 5, 10, 11), "doubled", "ahead by 1"),
        (evidence(0, 5, 5, 10, 5), "skipped", "does not change"),
        (evidence(0, 5, None, 10, 5, known=False), "reset", "first half again"),
        (evidence(0, 5, 5, 10, None), "left-out", "second half"),
        (evidence(None, 5, 5, 10, 11), "doubled", "ahead by 1"),
        (evidence(0, 5, 5, np.int32(10), np.int16(10)), "cast", "int16"),
        (evidence(0, 3, 3, 10, 9), None, ""),  # it depends on the data, so a difference is a consequence
        (evidence(floats(0), floats(1), floats(1), floats(2), floats(3)), None, ""),
        (evidence(0, 5, 5, 10, 10), None, ""),
    ],
)
def test_the_second_half_shows_its_own_faults(case, rule, words):
    """Counts that move alike in both halves are compared by their progress; others may differ as a consequence."""
    found = cause_at_end(case)
    assert (found and found.rule) == rule
    assert found is None or words in found.message


def test_records_are_compared_by_their_steps():
    """Losses of the second half are compared, whether the list starts there, at the first step, or names its steps."""
    straight = {"losses": Value(np.arange(6.0), "record"), "betas": Value(np.array([0.9, 0.99]), "record")}
    second = {"losses": Value(np.array([3.0, 4.0, 7.0]), "record"), "betas": straight["betas"]}
    assert records_in(straight, second) == ["losses"]
    expected, got, step = tails(straight["losses"], second["losses"], 3)
    assert (expected.array.tolist(), got.array.tolist(), step) == ([3, 4, 5], [3, 4, 7], 4)
    by_step = Value(np.arange(6.0), "record", tuple(range(1, 7))), Value(np.array([3.0, 9.0]), "record", (4, 6))
    expected, got, step = tails(*by_step, 3)
    assert (expected.array.tolist(), got.array.tolist(), step) == ([3, 5], [3, 9], 4)


def test_floats_may_be_apart_by_a_tolerance_and_integers_may_not():
    """The tolerance is relative to the largest of an array."""
    a = {"x": Value(floats(1, 1e-6), "array"), "n": Value(np.array([5]), "array")}
    b = {"x": Value(floats(1, 2e-6), "array"), "n": Value(np.array([6]), "array")}
    assert differences(a, b) == ["x", "n"]
    assert differences(a, b, tolerance=1e-5) == ["n"]


def test_a_job_may_return_anything():
    """Tuples, dicts, iterators, generators and objects of the user's are walked; locals give them their names."""
    things = resume_jobs.make()
    next(things.data)
    generator = (n for n in range(9))
    assert next(generator) == 0
    items = iter([1, 2, 3])
    next(items)
    rng = np.random.default_rng(0)
    roots = roots_of((things.model, things.data, [0.5], rng), {id(things.data): "stream"})
    assert list(roots) == ["model", "stream", "losses", "generator"]
    found = values_of({**roots, "loop": things.loop, "gen": generator, "items": items})
    assert found["model/dropout/rngs/count"].kind == "RngCount"
    assert found["stream/at"] == Value(1, "position")
    assert found["stream/rng"].kind == "random"
    assert found["losses"].kind == "record"
    assert found["loop/scale"].value == 1.0
    assert any(path.startswith("items/") and str(value) == "1" for path, value in found.items())
    seen: set[int] = set()
    assert values_of({"model": things.model}, seen=seen)
    assert not values_of({"again": things.model}, seen=seen)


# --- the check itself -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_loop_of_numpy_and_the_same_with_a_lost_count():
    """A right job passes with every row; one that loses a local variable fails, and the variable is named."""
    report = tallax.resumecheck(resume_jobs.loop_with_numpy, steps=3)
    assert report.passed, report
    assert {cell.check for cell in report.cells} >= {
        "uninterrupted, 6 steps",
        "second half, 3 steps",
        "values",
        "losses",
    }
    assert Report.from_dict(json.loads(json.dumps(report.to_dict()))) == report
    seen: list[str] = []
    report = tallax.resumecheck(resume_jobs.loop_with_numpy_and_a_lost_step, steps=3, on_progress=seen.append)
    (finding,) = report.failures
    name = "loop_with_numpy_and_a_lost_step/updates"
    assert (finding.rule, finding.path, finding.got, finding.expected) == ("reset", name, "0", "3")
    assert "The job keeps it and does not return it." in finding.message
    assert any("after a restore" in runs for runs in seen)
    with pytest.raises(tallax.CheckFailedError, match="updates: starts again"):
        report.raise_on_failure()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"steps": 0}, r"steps: takes positive numbers(.|\n)*got: +int \(0\)(.|\n)*fix: +steps=5"),
        ({"devices": (8, 0)}, r"devices: takes positive numbers(.|\n)*fix: +devices=8, or devices=\(8, 4\)"),
        ({"devices": (8, 4, 2)}, r"devices: takes positive numbers"),
        ({"limit_seconds": 0}, r"limit_seconds: takes positive numbers"),
    ],
)
def test_invalid_arguments(options, match):
    """Each is an error before any process starts."""
    with pytest.raises(tallax.InvalidValueError, match=match):
        tallax.resumecheck(resume_jobs.loop_with_numpy, **options)


def test_a_job_that_no_process_can_find():
    """A lambda or a nested function cannot be imported, and the error shows what can."""
    with pytest.raises(
        tallax.InvalidTypeError, match=r"resumecheck: runs the job in new processes(.|\n)*fix: +def job"
    ):
        tallax.resumecheck(lambda folder, steps: None)


def test_every_rule_of_a_resume_is_on_the_page():
    """The table of rules is the code's, in its order."""
    page = (pathlib.Path(__file__).parents[1] / "docs" / "resume.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| `")]
    assert {rule.strip("`"): text for rule, text in rows if rule.strip("`") in RESUME_RULES} == RESUME_RULES


@pytest.mark.slow
def test_the_command(capfd):
    """It prints the report, or JSON; its exit code is 1 with a failure and 2 if there is no job to run."""
    code = check_resume_of(f"{JOBS}:saves_nothing", 2, "", 60.0, as_json=True)
    report = Report.from_dict(json.loads(capfd.readouterr().out))
    assert code == 1
    assert [finding.rule for finding in report.failures] == ["nothing-saved"]
    for target, devices, words in (
        (str(JOBS), "", "requires a file and the name of a job in it"),
        ("nowhere.py:job", "", "the file does not exist"),
        (f"{JOBS}:saves_nothing", "8,4,2", "takes one number, or two"),
    ):
        assert check_resume_of(target, 2, devices, 60.0, as_json=False) == 2
        out, err = capfd.readouterr()
        assert out == ""
        assert words in err
        assert "fix:" in err


PLUGIN = """
import os
import numpy as np


def job(folder, steps, is_saved=True):
    path = folder / "count.npy"
    start = int(np.load(path)) if path.exists() else 0
    count = start if is_saved else 0
    for n in range(start, steps):
        count += 1
    np.save(path, steps)
    return {"count": count}


def bad_job(folder, steps):
    return job(folder, steps, is_saved=False)


def test_right(resumecheck):
    assert resumecheck(job, steps=2).passed


def test_wrong(resumecheck):
    resumecheck(bad_job, steps=2)
"""


@pytest.mark.thorough
def test_the_fixture_fails_a_test(tmp_path):
    """The fixture is there without an import, and fails a test with the finding."""
    (tmp_path / "test_it.py").write_text(PLUGIN)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_it.py"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    ended = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert "1 failed, 1 passed" in ended.stdout, ended.stdout + ended.stderr
    assert "count: starts again from its initial value. [reset]" in ended.stdout


# --- every fault and every right job ----------------------------------------------------------------------------------


def pairs(report):
    return {(finding.path, finding.rule) for finding in report.failures}


@pytest.mark.thorough
@pytest.mark.parametrize("name", resume_jobs.FAULTS)
def test_names_the_faults_of_public_threads(name):
    """The fault is named by its path and rule, with a remedy; where it is the one cause, nothing else is blamed."""
    began = time.monotonic()
    report = tallax.resumecheck(functools.partial(resume_jobs.train, fault=name), steps=5, limit_seconds=200)
    assert resume_jobs.FAULTS[name].expected in pairs(report), report
    root = resume_jobs.FAULTS[name].expected[0].split("/")[0]
    assert {finding.path.split("/")[0] for finding in report.failures} == {root}, report  # so there is a failure
    assert all(finding.fix for finding in report.failures)
    assert time.monotonic() - began < 240


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("job", "path", "rule"),
    [
        ("starts_from_scratch", "second half, 3 steps", "not-resumed"),
        ("uses_the_global_generator", "numpy.random", "reset"),
        ("raises_when_it_resumes", "second half, 3 steps", "raises"),
        ("exits", "uninterrupted, 6 steps", "exits"),
        ("dies", "uninterrupted, 6 steps", "dies"),
        ("is_seeded_by_the_clock", "weight", "not-reproducible"),
    ],
)
def test_names_other_faults(job, path, rule):
    """A job that starts again, raises, exits, dies or is not reproducible is a finding, and no error of the checker."""
    report = tallax.resumecheck(getattr(resume_jobs, job), steps=3, limit_seconds=200)
    assert (path, rule) in pairs(report), report
    assert len(report.failures) == 1, report


@pytest.mark.thorough
def test_a_job_that_hangs_is_ended_with_all_that_it_started():
    """The run is reported after its limit, and no process of it is left."""
    before = set(processes_with())
    report = tallax.resumecheck(resume_jobs.hangs_when_it_resumes, steps=3, limit_seconds=20)
    (finding,) = report.failures
    assert (finding.path, finding.rule) == ("second half, 3 steps", "hangs")
    assert finding.got == "still running after 20 seconds"
    assert not set(processes_with()) - before


@pytest.mark.thorough
def test_no_run_outlives_a_killed_checker(tmp_path):
    """If the checker itself is killed, its runs end within a moment."""
    code = "import tallax; from tests import resume_jobs; tallax.resumecheck(resume_jobs.sleeps, steps=1)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(JOBS.parents[1]), *filter(None, sys.path)])}
    environment["TMPDIR"] = str(tmp_path)
    checker = subprocess.Popen([sys.executable, "-c", code], env=environment)
    deadline = time.monotonic() + 120
    while not list(tmp_path.rglob("sleeping")) and time.monotonic() < deadline:
        time.sleep(0.1)
    mark = f"TMPDIR={tmp_path}".encode()
    workers = [pid for pid in processes_with(mark, "environ") if pid != checker.pid]
    checker.kill()
    checker.wait()
    assert workers
    while list(processes_with(mark, "environ")) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not list(processes_with(mark, "environ"))


def processes_with(words=b"time.sleep(600)", file="cmdline"):
    """Yields the processes whose command has some words; by default those that `hangs_when_it_resumes` starts."""
    for path in pathlib.Path("/proc").glob(f"[0-9]*/{file}"):
        try:
            if words in path.read_bytes():
                yield int(path.parent.name)
        except OSError:
            continue


@pytest.mark.thorough
@pytest.mark.parametrize("name", resume_jobs.RIGHT)
def test_blames_no_right_job(name, monkeypatch):
    """Jobs of every kind that resume exactly pass, without a failure or a warning."""
    if name == "grain":
        pytest.importorskip("grain")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(JOBS.parents[1]), os.environ.get("PYTHONPATH", "")]))
    report = tallax.resumecheck(resume_jobs.RIGHT[name], steps=5, limit_seconds=200)
    assert report.passed, report
    assert not report.findings, report


@pytest.mark.thorough
def test_another_number_of_devices():
    """Counts are equal to the unit after 8 devices became 4; floats to the tolerance, which the report states."""
    report = tallax.resumecheck(resume_jobs.on_all_devices, steps=3, devices=(8, 4), limit_seconds=200)
    assert report.passed, report
    (cell,) = (cell for cell in report.cells if cell.check == "values")
    assert "floats to 1e-05 of the largest" in cell.note


@pytest.mark.thorough
def test_the_demo_resumes_exactly():
    """The mixture of experts on digits: parameters, counts, histograms, schedules and the order of the data."""
    report = tallax.resumecheck(resume_jobs.demo, steps=2, limit_seconds=280)
    assert report.passed, report
    (cell,) = (cell for cell in report.cells if cell.check == "values")
    assert int(cell.note.split()[0]) > 50
