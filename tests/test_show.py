# SPDX-License-Identifier: Apache-2.0
"""`tallax show`, and what the package that reads runs says where it can't."""

from __future__ import annotations

import builtins
import importlib
import inspect
import io
import json
import math
import re
import subprocess
import sys

import pytest
from rich.console import Console

import tallax.runs
from tallax.runs import Record, Run
from tallax.runs._contents import as_json
from tallax.runs._jsonl_format import FIRST_LINE
from tallax.runs._plot import plot
from tallax.runs._show import read, rendered
from tests.runs import ITEMS, odd_records, record, watched, write

COMMAND = [sys.executable, "-W", "error", "-c", "import tallax.cli; tallax.cli.main()", "show"]


def shown(folder, width=120, patterns=()):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(rendered(read(folder).only(patterns), width))
    return console.file.getvalue().splitlines()


def test_all_state_is_listed_exactly(tmp_path):
    """Each variable has a row: path, kind, full value, shape, bytes, persistence; then the other scalars."""
    lines = shown(write(tmp_path, [record(1), record(2, accuracy=0.5), record(3)]))
    rows = {line.split()[0]: line.split() for line in lines if line.strip()}
    assert rows["seen"][1:] == ["Counter", "9,007,199,254,742,913", "uint32[]", "8", "B", "yes"]
    assert rows["gate/fired"][1:5] == ["Rate", "fired=9", "total=30", "rate=0.3"]
    assert " ".join(rows["gate/load"][2:10]) == "0 ▂▄▆█ 3 30 [3, 6, 9, 12]"
    assert rows["scratch"][-1] == "no"
    assert rows["loss"][1] == "0.25"
    assert rows["accuracy"][1:] == ["0.5", "at", "step", "20"]
    assert lines[-1] == "5 names, 560 B; 160 B of it in checkpoints"


@pytest.mark.parametrize("width", [60, 70, 100, 160])
def test_it_fits(tmp_path, width):
    """A narrow terminal has fewer columns; no value is cut."""
    lines = shown(write(tmp_path, [record(3)]), width)
    assert max(map(len, lines)) <= width
    text = "".join(lines)
    assert "9,007,199,254,742,913" in text
    assert "not kept" in text or width >= 100
    lines = shown(write(tmp_path / "watched", [watched(1)]), width)
    assert max(map(len, lines)) <= width
    assert {"layers/0:output", "1", "2"} <= set(next(line for line in lines if line.startswith("layers/0:")).split())


def test_items_are_chosen_by_name(tmp_path):
    """A pattern selects the names that it matches and the names below."""
    lines = shown(write(tmp_path, [record(1)]), patterns=["gate", "lo*"])
    assert [line.split()[0] for line in lines if line.startswith(("gate/", "loss", "seen"))] == [
        "gate/fired",
        "gate/load",
        "gate/logits",
        "loss",
    ]


def test_sites_have_a_table_of_their_own(tmp_path):
    """A watched site has a row with its numbers instead of a row of the state; the notebook's tables have it, too."""
    folder = write(tmp_path, [watched(1), watched(2)])
    lines = shown(folder)
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.strip()}
    assert rows["layers/2:output"] == ["3", "0.5", "4", "2", "0", "0"]
    assert rows["stack/up[1]:output"] == ["7", "0.5", "8", "2", "0", "0"]
    assert rows["layers/4:attention"] == ["entropy", "1", "to", "3"]
    assert "1 site saw nothing so far" in lines
    assert lines[-1] == "15 names, 960 B; 960 B of it in checkpoints"
    page = Run(folder)._repr_html_()
    assert ">layers/2:output<" in page
    assert ">entropy 1 to 3<" in page


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("layers/1:output", ["layers/1:output"]),
        ("*:update_ratio", ["head/kernel:update_ratio"]),
        ("layers/1:*/*", [f"layers/1:output/{name}" for name in ("mean", "rms", "largest", "zeros", "nonfinite")]),
        ("layers/1:output/updates", ["layers/1:output/updates"]),
    ],
)
def test_sites_are_chosen_by_name(tmp_path, pattern, names):
    """A pattern of sites shows their rows, one of numbers shows these; a wildcard leaves bookkeeping out."""
    lines = shown(write(tmp_path, [watched(1)]), patterns=[pattern])[2:]
    found = [
        line.split()[0] for line in lines if line.startswith(("layers", "head", "stack")) and "entropy" not in line
    ]
    assert found == names


def test_json_for_machines(tmp_path):
    """Integers are exact and nothing is omitted; NaN and infinities are strings."""
    done = subprocess.run(
        [*COMMAND, write(tmp_path, [record(2, bad=math.nan)]), "--json"], capture_output=True, check=True
    )
    said = json.loads(done.stdout)
    assert said["step"] == 20
    assert set(said["state"]) == set(ITEMS)
    assert said["state"]["seen"] == {
        "kind": "Counter",
        "shape": [],
        "dtype": "uint32",
        "nbytes": 8,
        "persistent": True,
        "value": 2**53 + 1 + 1280,
    }
    assert said["state"]["gate/load"]["fields"] == {"0": 2, "1": 4, "2": 6, "3": 8}
    assert said["state"]["gate/logits"]["histograms"][""]["counts"] == [0, 2, 4, 10, 18, 8, 4, 2]
    assert said["scalars"] == {"loss": 1 / 3, "bad": "NaN"}


def test_a_run_without_state(tmp_path):
    """Scalars and histograms alone are listed, too."""
    folder = write(tmp_path, odd_records())
    assert any("18,446,744,073,709,551,604" in line for line in shown(folder))
    json.dumps(as_json(read(folder)), allow_nan=False)


def test_the_command_exits_with_2_where_there_is_nothing(tmp_path):
    """A path that is neither a run nor a checkpoint is an error that explains both."""
    done = subprocess.run([*COMMAND, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        f"{tmp_path}: is neither a run nor a checkpoint.\n"
        "  expected:  a folder with a file records.jsonl, as tallax.sinks.Jsonl writes it, or "
        "one that tallax.save wrote\n"
        "  fix:       name the folder of one run, or of one checkpoint\n"
    )


# --- errors -----------------------------------------------------------------------------------------------------------


def of_later(folder):
    folder.mkdir()
    (folder / "records.jsonl").write_bytes(FIRST_LINE.replace(b"1", b"2"))
    Run(folder)


def damaged(folder):
    write(folder, [record(1)])
    with (folder / "records.jsonl").open("ab") as file:
        file.write(b'{"step": 1}\n')
    Run(folder)


def empty(folder):
    folder.mkdir()
    Run(folder)


ONE = (Record(1, 0.0, 0, {"loss": 1.0}),)


def drawn(output="p.png", patterns=(), records=ONE):
    def act(folder):
        list(plot([str(write(folder, records))], output, patterns))

    return act


CASES = {
    "later": (
        of_later,
        """\
RUN/records.jsonl: was written by a later tallax.
  got:       version 2 of the format
  expected:  at most 1
  fix:       pip install --upgrade tallax""",
    ),
    "damaged": (
        damaged,
        """\
RUN/records.jsonl: line 3 is not a record of a run.
  got:  b'{"step": 1}\\n'
  fix:  restore a complete copy; or cut the file before this line, to keep the records before it""",
    ),
    "no-run": (
        empty,
        """\
RUN: is not a run: it contains no records.
  expected:  a folder with a file records.jsonl, as tallax.sinks.Jsonl(folder) writes it
  fix:       log with tallax.Logger(tallax.sinks.Jsonl(folder)), and name that folder""",
    ),
    "not-there": (
        read,
        """\
RUN: does not exist.
  expected:  a folder with a file records.jsonl, as tallax.sinks.Jsonl writes it, or one that tallax.save wrote
  fix:       name the folder of one run, or of one checkpoint""",
    ),
    "neither": (
        lambda folder: (folder.mkdir(), read(folder)),
        """\
RUN: is neither a run nor a checkpoint.
  expected:  a folder with a file records.jsonl, as tallax.sinks.Jsonl writes it, or one that tallax.save wrote
  fix:       name the folder of one run, or of one checkpoint""",
    ),
    "suffix": (
        drawn("p.gif"),
        """\
-o: the suffix of the file must be that of an image format.
  got:       'p.gif'
  expected:  .png, .svg, .pdf
  fix:       -o p.png""",
    ),
    "nothing-matches": (
        drawn(patterns=["nope", "no*"]),
        """\
RUN: has nothing to draw.
  got:  no name that matches nope no*
  fix:  '*' for all names; `tallax show RUN` lists them""",
    ),
    "nothing-yet": (
        drawn(records=()),
        """\
RUN: has nothing to draw.
  got:  no records
  fix:  wait for the first record""",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_text(name, tmp_path, monkeypatch):
    """Each error of the package reads, word for word, as written here."""
    act, text = CASES[name]
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    with pytest.raises(tallax.runs.RunError) as caught:
        act(folder)
    assert str(caught.value).replace(str(folder), "RUN") == text


def test_every_error_is_covered():
    """Each place in the package that words an error is worded in a case above."""
    rules = set()
    for name, module in list(sys.modules.items()):
        # That a package is missing is worded in the test below.
        if name.startswith("tallax.runs.") and name != "tallax.runs._errors":
            source = inspect.getsource(module)
            rules |= set(re.findall(r'RunError\(\s*[^,]+,\s*f?"([^"{]{12,})', source))
    assert len(rules) >= 5
    covered = "\n".join(text for _, text in CASES.values())
    assert not {rule for rule in rules if rule not in covered}


@pytest.mark.parametrize(
    ("module", "missing", "line"),
    [
        (
            "_tail",
            "rich",
            "tallax tail: needs the package rich, which is not installed.\n  fix:  pip install 'tallax[cli]'",
        ),
        (
            "_show",
            "rich",
            "tallax show: needs the package rich, which is not installed.\n  fix:  pip install 'tallax[cli]'",
        ),
        (
            "_plot",
            "matplotlib",
            "tallax plot: needs the package matplotlib, which is not installed.\n  fix:  pip install 'tallax[plot]'",
        ),
    ],
)
def test_a_missing_extra_names_the_install_line(monkeypatch, module, missing, line):
    """If the package of a command is missing, the error has the install command."""
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name.partition(".")[0] == missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *arguments, **options)

    monkeypatch.delitem(sys.modules, f"tallax.runs.{module}", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(tallax.runs.MissingExtraError) as caught:
        importlib.import_module(f"tallax.runs.{module}")
    assert str(caught.value) == line
