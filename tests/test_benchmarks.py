# SPDX-License-Identifier: Apache-2.0
"""The benchmark harness, under a clock that only the cases move: nothing here depends on how fast the machine is."""

import gc
import importlib
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

import benchmarks
from benchmarks import __main__ as command
from benchmarks import _report, first_step, statecheck, transformer
from benchmarks._timing import Case, Group, measure
from tests.quick import cell

TINY = transformer.Size(layers=1, width=8, heads=2, vocabulary=8, sequences=2, tokens=4)
SMALL = {  # what to call `group` with, so that a case compiles in a second or two
    "async-checkpoints": (2, 3),
    "checkpoints": (TINY, 3),
    "compile-step": (2, 3),
    "compile-time": (3,),
    "learn": (1,),
    "lint": (300,),
    "logging": (3, TINY),
    "loops": (2, 3, TINY),
    "mixed-state": (2, 3),
    "positions": (TINY, 3),
    "readings": (3,),
    "reads": (1, 2),
    "real-loops": (1, (1, 1), (1, 2)),
    "step-time": ((0, 2),),
    "transformer": (TINY, (3,)),
    "watch": (1,),
}
QUICK = ("lint",)  # the others compile many programs, and run in `make nightly`
ROOT = pathlib.Path(__file__).parents[1]
TICK = 2.0**-20  # a power of two, so that sums and quotients of times are exact


class FakeClock:
    """Stands still but for the work that is charged to it."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def work(self, ticks):
        def operation(*_):
            self.now += ticks * TICK

        return operation


def group_on(clock):
    """One case of one tick and what is compared with it."""
    cases = [
        Case(name="one", make=lambda: clock.work(1)),
        Case(name="two", make=lambda: clock.work(2), limit=2.0),
        Case(name="three", make=lambda: clock.work(3), limit=2.9, versus={"two": None}),
        Case(name="six", make=lambda: clock.work(6), reference="three"),
        Case(name="prepared", make=lambda: clock.work(1), fresh=clock.work(50)),
        Case(name="slow and awaited", make=lambda: clock.work(2**18), wait=clock.work(2**18)),
        Case(name="absent", make=lambda: pytest.fail("made without its module"), needs="no_such_module", limit=1.0),
    ]
    return Group("fake", "cases that move a clock", "one", cases)


def measured(rounds=7):
    clock = FakeClock()
    group = group_on(clock)
    return group, measure(group, rounds=rounds, round_seconds=200 * TICK, clock=clock)


def test_one_call_a_round():
    """A group may ask for single calls, so that none overlaps with the next."""
    clock = FakeClock()
    group = Group("fake", "", "one", [Case(name="one", make=lambda: clock.work(1))], one_call=True)
    (result,) = measure(group, rounds=5, clock=clock)
    assert (result.calls, result.rounds) == (1, 5)


def test_fewer_rounds_without_a_first_one():
    """A group of slow cases may have a share of the rounds, but one at least, and see to what is warm itself."""
    clock = FakeClock()
    ran = []
    case = Case(name="one", make=lambda: lambda: ran.append(clock.work(1)()))
    group = Group("fake", "", "one", [case], one_call=True, warm_up=False, rounds_in_one=50)
    for rounds, expected in ((150, 3), (15, 1)):
        ran.clear()
        (result,) = measure(group, rounds=rounds, clock=clock)
        assert (result.rounds, len(ran)) == (expected, expected)


def test_ratios_and_limits_follow_the_work():
    """A case that does twice the work has ratio 2; preparing is not timed, waiting is; a limit includes its bound."""
    _, results = measured()
    by_name = {result.case.name: result for result in results}
    assert [by_name[name].ratio.median for name in ("one", "two", "three", "six", "prepared")] == [1, 2, 3, 2, 1]
    assert by_name["three"].ratios["two"].median == 1.5
    assert by_name["slow and awaited"].ratio.median == 2**19
    assert [result.met for result in results] == [None, True, False, None, None, None, None]
    assert by_name["one"].seconds.median == by_name["one"].seconds.upper == TICK


def test_a_time_may_be_promised_too():
    """The median of a call is held to it, as a ratio is to a limit of its own."""
    clock = FakeClock()
    cases = [
        Case(name="kept", make=lambda: clock.work(1), limit_seconds=TICK),
        Case(name="missed", make=lambda: clock.work(2), limit=2.0, limit_seconds=1.5 * TICK),
        Case(name="absent", make=int, needs="no_such_module", limit_seconds=1.0),
    ]
    group = Group("fake", "", "kept", cases)
    results = measure(group, rounds=3, clock=clock)
    assert [result.met for result in results] == [True, False, None]
    assert sum("<= 954 ns" in cell for cell in _report.table(group, results).columns[-1]._cells) == 1


def test_a_case_runs_as_often_as_its_round_has_room_for():
    """The inner loop is calibrated to the length of a round, and a case longer than that runs once."""
    _, results = measured(rounds=3)
    assert [result.calls for result in results] == [200, 100, 67, 33, 200, 1, 0]
    assert [result.rounds for result in results] == [3, 3, 3, 3, 3, 3, 0]


def test_the_garbage_collector_is_off_while_timing_and_on_again_afterwards():
    """Also where a case raises."""
    clock = FakeClock()
    seen = []

    def operation():
        seen.append(gc.isenabled())
        clock.now += 1.0
        if len(seen) > 5:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        measure(Group("fake", "", "it", [Case(name="it", make=lambda: operation)]), rounds=9, clock=clock)
    assert seen == [False] * 6
    assert gc.isenabled()


def test_a_ratio_to_a_case_that_is_not_there_is_refused():
    """A renamed case must not take a limit with it unseen."""
    with pytest.raises(ValueError, match="ratios need"):
        Group("fake", "", "one", [Case(name="one", make=int, versus={"gone": None})])


def test_the_file_has_the_measurements_and_versions(tmp_path):
    """The JSON holds versions, machine, date and every case, and says what was left out."""
    group, results = measured()
    record = json.loads(_report.write(tmp_path / "new", group, results, quick=True).read_text())
    assert set(record) == {
        *("group", "title", "date", "quick", "versions", "machine", "cases", "load_average", "load_average_before")
    }
    assert {"python", "jax", "flax", "optax", "numpy"} <= set(record["versions"])
    assert set(record["machine"]) == {"platform", "processor", "cores", "backend", "device"}
    cases = {case["name"]: case for case in record["cases"]}
    assert cases["three"] == {
        "name": "three",
        "seconds": {"median": 3 * TICK, "lower": 3 * TICK, "upper": 3 * TICK},
        "rounds": 7,
        "calls_per_round": 67,
        "reference": "one",
        "ratio": 3.0,
        "ratios": {name: {"median": x, "lower": x, "upper": x} for name, x in (("one", 3.0), ("two", 1.5))},
        "limits": {"one": 2.9},
        "met": False,
        "left_out": None,
    }
    assert cases["absent"]["left_out"] == "no_such_module is not installed"
    assert (cases["absent"]["seconds"], cases["absent"]["ratio"], cases["absent"]["met"]) == (None, None, None)


@pytest.mark.parametrize(("limit", "options", "status"), [(0.0, ["--check"], 1), (0.0, [], 0), (1e9, ["--check"], 0)])
def test_only_check_turns_a_missed_limit_into_a_failure(tmp_path, monkeypatch, capsys, limit, options, status):
    """Machines are noisy, so a missed limit is told, and fails only the run that asks for it."""
    fake = type("Module", (), {})()
    fake.group = lambda: Group("fake", "", "a", [Case(name="a", make=lambda: int, limit=limit)])
    monkeypatch.setattr(benchmarks, "GROUPS", {"fake": "fake"})
    monkeypatch.setattr(importlib, "import_module", lambda name: fake)
    assert command.main(["fake", "--quick", "--output", str(tmp_path), *options]) == status
    assert (tmp_path / "fake.json").exists()
    assert ("Limits missed: fake: a" in capsys.readouterr().out) == (limit == 0.0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # one case is the deprecated spelling
@pytest.mark.parametrize("name", [cell(name, quick=name in QUICK) for name in benchmarks.GROUPS])
def test_every_case_of_every_group_runs(name, tmp_path):
    """Once each, so that `make bench` does not rot; groups that name a missing reference raise when they are made."""
    group = importlib.import_module(benchmarks.GROUPS[name]).group(*SMALL.get(name, ()))
    clock = iter(float(second) for second in range(10**6))
    results = measure(group, rounds=1, clock=lambda: next(clock))
    assert all(result.seconds is not None or result.case.needs for result in results)
    if group.draw is not None:
        assert _report.write_plot(tmp_path, group, results).read_text().count("<svg") == 1


def copied_tree(folder):
    """Returns a plain copy of the sources and benchmarks, as one would take it to another machine."""
    for name in ("src", "benchmarks"):
        shutil.copytree(
            ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "results")
        )
    return folder


def accelerator(folder, *options):
    """Runs the command for accelerators in a copy of the tree, with nothing else on the path."""
    environment = {**os.environ, "XLA_FLAGS": ""}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-m", "benchmarks.accelerator", *options]
    return subprocess.run(
        command, cwd=copied_tree(folder), env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.thorough
@pytest.mark.parametrize("group", ["reads", "counters", "watching", "loops"])
def test_the_command_for_accelerators_runs_in_a_plain_copy(tmp_path, group):
    """It measures without an installation of tallax, writes its JSON, and names the device that it ran on."""
    done = accelerator(tmp_path, group, "--small", "--seconds", "0")
    assert done.returncode == 0, done.stderr
    assert "Measured on 1 x cpu (cpu)" in done.stdout
    assert "This is not an accelerator" in done.stdout
    record = json.loads((tmp_path / "benchmarks/results/accelerator.json").read_text())
    assert list(record["groups"]) == [group]
    assert record["skipped"] == {}
    assert all(row["rounds"] >= 5 for row in record["groups"][group].values())


@pytest.mark.slow
def test_the_command_for_accelerators_refuses_unknown_groups(tmp_path):
    """An error names the groups."""
    done = accelerator(tmp_path, "reads", "writes")
    assert done.returncode == 2
    assert "unknown groups: writes; there are reads, counters, watching, loops" in done.stderr


@pytest.mark.parametrize(
    ("intervals", "expected"),
    [([], 0.0), ([(1.0, 2.0)], 1.0), ([(1.0, 2.0), (0.0, 3.0)], 3.0), ([(0.0, 2.0), (1.0, 3.0), (5.0, 6.0)], 4.0)],
)
def test_nested_intervals_count_once(intervals, expected):
    """The trace of a nested function is a part of that of the outer one."""
    assert first_step.length(intervals) == expected


@pytest.mark.slow
def test_the_parts_of_a_first_call_are_its_whole():
    """Trace, lowering, compilation and the rest are at most the total, and none is zero."""
    row, other = first_step.measure(1, {"MLP": first_step.STEPS["MLP"]})
    assert (row["way"], other["way"]) == ("nnx.jit", "compile_step")
    for each in (row, other):
        seconds = {part: figures["median"] for part, figures in each["seconds"].items()}
        total = seconds.pop("total")
        assert set(seconds) == {"trace", "lower", "compile", "the rest"}
        assert all(value > 0 for value in seconds.values())
        assert sum(seconds.values()) == pytest.approx(total, rel=0.2)


@pytest.mark.parametrize(
    ("seconds", "count", "met"),
    [((1, 2, 11.9), 3, True), ((1, 4, 5), 3, False), ((1, 2, 12), 3, False), ((1, 2, 3), 4, False)],
    ids=["within", "median", "longest", "not measured"],
)
def test_statecheck_is_held_to_its_median_and_its_longest_time(seconds, count, met):
    """Both are limits, and a module whose time is not known meets neither."""
    rows = [{"name": str(each), "seconds": each} for each in seconds]
    found = statecheck.figures(rows, count)
    assert (found["met"], found["left_out"]) == (met, count - 3)
    assert [row["seconds"] for row in found["modules"]] == sorted(seconds, reverse=True)


@pytest.mark.thorough
def test_statecheck_is_measured_in_a_process_of_its_own():
    """A module is checked, and one for which no time is left is not."""
    (row,) = statecheck.measured(["flax-linear"], 120)
    assert row["name"] == "flax-linear"
    assert row["seconds"] > 0 < row["compiled"]
    assert list(statecheck.measured(["flax-linear"], 0)) == []
