# SPDX-License-Identifier: Apache-2.0
"""Type checkers read what users write: right uses pass strictly, wrong ones are reported."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tallax

ROOT = Path(__file__).parent.parent
TYPING = ROOT / "tests" / "typing"
EXPECTED = {
    (number, rule)
    for number, line in enumerate((TYPING / "wrong.py").read_text().splitlines(), start=1)
    for rule in re.findall(r"\breport\w+", line.partition("  # ")[2])
}


@pytest.mark.slow
def test_type_checkers_report_every_mistake():
    """Nothing of right uses, in the strict mode; of wrong ones, each by its rule."""
    pytest.importorskip("basedpyright")
    files = {"api.py": set(), "wrong.py": EXPECTED}
    command = [sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable, "--outputjson"]
    command += [str(TYPING / name) for name in files]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    found = json.loads(ended.stdout)
    assert found["summary"]["filesAnalyzed"] == len(files)
    reported = {name: set() for name in files}
    for at in found["generalDiagnostics"]:
        reported[Path(at["file"]).name].add((at["range"]["start"]["line"] + 1, at["rule"]))
    assert reported == files


@pytest.mark.slow
def test_every_type_is_declared():
    """Nothing public, or that it leads to, is left to inference, in which type checkers differ; but for an answer
    to the exercise, which is written as its reader would write it."""
    pytest.importorskip("basedpyright")
    command = [sys.executable, "-m", "basedpyright", "--verifytypes", "tallax", "--ignoreexternal", "--outputjson"]
    found_first = {**os.environ, "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=found_first)
    symbols = json.loads(ended.stdout)["typeCompleteness"]["symbols"]
    assert {"tallax.counters.StepCounter.step", "tallax.Counter"} <= {symbol["name"] for symbol in symbols}
    unknown = {symbol["name"] for symbol in symbols if not symbol["isTypeKnown"] or symbol["isTypeAmbiguous"]}
    # Users name nothing of the linter's insides, nor the stand-ins for a value that a step owns or traces.
    ours = (
        "tallax.learning.exercises.",
        "tallax.lint.",
        "tallax.variables.Placeholder",
        "tallax.variables._placeholder.",
    )
    assert {name for name in unknown if not name.startswith(ours)} == set()


def test_every_public_name_is_used():
    """The file of right uses has every name, of the statistics too."""
    text = (TYPING / "api.py").read_text()
    statistics = {name for name in vars(tallax.statistics) if name[0].isupper()}
    for name in {*tallax.__all__, *statistics}:
        assert re.search(rf"\b{name}\b", text), name


def test_the_package_is_marked_as_typed():
    """Without the marker type checkers take nothing from it."""
    assert Path(tallax.__file__).with_name("py.typed").exists()
