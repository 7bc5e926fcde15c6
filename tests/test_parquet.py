# SPDX-License-Identifier: Apache-2.0
"""The table of a run, as a folder of Parquet files."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

import tallax
from tallax.sinks import Bins, Record

pq = pytest.importorskip("pyarrow.parquet")

LARGEST = 2**64 - 1


def record(step, process=0, **scalars):
    bins = Bins(np.array([0.0, 0.5, 2.0]), np.array([step, 2**63 + 1], np.uint64))
    return Record(step, 1.7e9 + step, process, {"loss": 1 / (step + 1), "step": step, **scalars}, {"gate": bins})


def rows(folder, name):
    """Returns the rows of a name in the order of the table."""
    return [row for row in pq.read_table(folder).to_pylist() if row["name"] == name]


def steps(folder, name="loss"):
    return [row["step"] for row in rows(folder, name)]


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of three records."""
    monkeypatch.setattr("tallax.sinks._parquet._RECORDS", 3)


def test_numbers_come_back_exactly(tmp_path):
    """Counts are exact to 2**64 - 1, floats to the bit, histograms with all bins; integers below zero are values."""
    sink = tallax.sinks.Parquet(tmp_path)
    exact = {"a": 2**53 - 1, "b": 2**53 + 1, "c": 2**63 + 1, "d": LARGEST}
    sink.write(record(7, **exact, negative=-3, nan=float("nan"), inf=float("inf"), beyond=2**64))
    table = {row["name"]: row for row in pq.read_table(tmp_path / "records.parquet").to_pylist()}
    assert {name: table[name]["count"] for name in exact} == exact
    assert table["a"]["value"] == 2**53 - 1
    assert (table["loss"]["value"], table["loss"]["count"]) == (1 / 8, None)
    assert (table["negative"]["value"], table["negative"]["count"]) == (-3, None)
    assert (table["beyond"]["value"], table["beyond"]["count"]) == (2.0**64, None)
    assert np.isnan(table["nan"]["value"])
    assert table["inf"]["value"] == float("inf")
    gate = table["gate"]
    assert (gate["edges"], gate["counts"], gate["count"]) == ([0.0, 0.5, 2.0], [7, 2**63 + 1], 2**63 + 8)
    assert gate["value"] is None
    assert (gate["step"], gate["process"], gate["time"].timestamp()) == (7, 0, 1.7e9 + 7)
    sink.close()


@pytest.mark.usefixtures("small_parts")
def test_every_write_is_there_at_once(tmp_path):
    """After each write the folder reads as all records so far, in parts of which none is written again once full."""
    sink = tallax.sinks.Parquet(tmp_path / "run.parquet")
    times = []
    for step in range(8):
        sink.write(record(step, **({"rare": step} if step > 5 else {})))
        assert steps(tmp_path / "run.parquet") == list(range(step + 1))
        times.append(os.stat(tmp_path / "run.parquet" / "part-000000.parquet").st_mtime_ns)
    sink.close()
    assert len(set(times)) == 3
    assert steps(tmp_path / "run.parquet", "rare") == [6, 7]
    seen = sorted(file.name for file in (tmp_path / "run.parquet").iterdir() if not file.name.startswith("."))
    assert seen == [f"part-00000{n}.parquet" for n in range(3)]


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("start", [0, 2, 3, 4, 7, 20])
def test_resuming_replaces_later_rows(tmp_path, start):
    """Rows from the first record's step on move to the `.dropped` folder, and the run continues."""
    before, after = tallax.sinks.Parquet(tmp_path), tallax.sinks.Parquet(tmp_path)
    for step in range(8):
        before.write(record(step))
    before.close()
    for step in range(start, start + 2):
        after.write(record(step, again=1))
    after.close()
    table = tmp_path / "records.parquet"
    assert steps(table) == [*range(min(start, 8)), start, start + 1]
    assert steps(table, "again") == [start, start + 1]
    if start < 8:
        assert sorted(steps(tmp_path / "records.parquet.dropped")) == list(range(start, 8))
    else:
        assert not (tmp_path / "records.parquet.dropped").exists()


def test_processes_share_a_table(tmp_path):
    """Each process writes and resumes its own rows."""
    sinks = [tallax.sinks.Parquet(tmp_path) for _ in range(2)]
    for step in range(3):
        for process, sink in enumerate(sinks):
            sink.write(record(step, process))
    for sink in sinks:
        sink.close()
    again = tallax.sinks.Parquet(tmp_path)
    again.write(record(1, 1))
    again.close()
    found = [(row["process"], row["step"]) for row in rows(tmp_path / "records.parquet", "loss")]
    assert sorted(found) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]


def test_a_second_writer_is_refused(tmp_path):
    """Two programs don't write to one table; once the first is closed the second may."""
    first, second = tallax.sinks.Parquet(tmp_path), tallax.sinks.Parquet(tmp_path)
    first.write(record(1))
    with pytest.raises(tallax.RunLockedError, match="another Logger, is writing to this run"):
        second.write(record(2))
    first.close()
    second.write(record(2))
    second.close()
    assert steps(tmp_path / "records.parquet") == [1, 2]


def test_a_write_that_fails_leaves_the_table_whole(tmp_path, monkeypatch):
    """A failed write reaches the caller, leaves the table intact, and a later record is written."""
    sink = tallax.sinks.Parquet(tmp_path)
    sink.write(record(1))
    with monkeypatch.context() as patch:

        def full(file):
            raise OSError(28, "No space left on device")

        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            sink.write(record(2))
    assert steps(tmp_path / "records.parquet") == [1]
    assert not list((tmp_path / "records.parquet").glob(".*.draft"))
    sink.write(record(3))
    sink.close()
    assert steps(tmp_path / "records.parquet") == [1, 3]


def test_a_folder_that_can_not_be_made(tmp_path):
    """Opening raises at the first record, and succeeds later if the obstacle is removed."""
    (tmp_path / "run").write_text("a file")
    sink = tallax.sinks.Parquet(tmp_path / "run")
    with pytest.raises(OSError, match="run"):
        sink.write(record(1))
    (tmp_path / "run").unlink()
    sink.write(record(2))
    sink.close()
    assert steps(tmp_path / "run" / "records.parquet") == [2]


@pytest.mark.parametrize("damage", ["torn", "other"])
def test_a_part_of_something_else_is_left_alone(tmp_path, damage):
    """A foreign or damaged part is named and not changed."""
    part = tmp_path / "records.parquet" / "part-000000.parquet"
    part.parent.mkdir()
    if damage == "torn":
        part.write_bytes(b"PAR1 and then nothing")
    else:
        pq.write_table(__import__("pyarrow").table({"x": [1]}), part)
    held = part.read_bytes()
    sink = tallax.sinks.Parquet(tmp_path)
    with pytest.raises(tallax.RunError) as caught:
        sink.write(record(1))
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{part}: is not a part of a run's table, or is damaged."
    assert damage == "torn" or lines[1] == "  got:  columns x"
    assert part.read_bytes() == held


KILLED = """
import os, sys
import numpy as np
from tallax.sinks import Bins, Parquet, Record, _parquet
_parquet._RECORDS = 4
sink = Parquet(sys.argv[1])
bins = Bins(np.linspace(0, 1, 65), np.arange(64, dtype=np.uint64))
for step in range(10**6):
    sink.write(Record(step, 1.7e9, 0, {f"x{n}": step for n in range(50)}, {"h": bins}))
    os.write(1, f"{step}\\n".encode())
"""


@pytest.mark.slow
def test_a_killed_program_loses_nothing_that_was_written(tmp_path):
    """After kill -9 every record whose write returned is read; the run goes on from the step that it resumes at."""
    program = subprocess.Popen([sys.executable, "-c", KILLED, tmp_path], stdout=subprocess.PIPE)
    assert program.stdout is not None
    for _ in range(40):
        assert program.stdout.readline()
    program.send_signal(signal.SIGKILL)
    rest = program.stdout.read().split()
    program.stdout.close()
    assert program.wait() == -signal.SIGKILL
    last = int(rest[-1]) if rest else 39
    folder = tmp_path / "records.parquet"
    found = steps(folder, "x7")
    assert found in (list(range(last + 1)), list(range(last + 2)))  # the latter: written, and killed before it said so
    assert len(steps(folder, "h")) == len(found)
    sink = tallax.sinks.Parquet(tmp_path)
    sink.write(record(30))
    sink.close()
    assert steps(folder, "x7") == list(range(30))
    assert steps(folder) == [30]


def test_a_missing_pyarrow_names_the_install_line(monkeypatch):
    """The extra is named where its package is missing."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "tallax.sinks._parquet", raising=False)
    monkeypatch.delitem(vars(tallax.sinks), "Parquet", raising=False)
    with pytest.raises(tallax.MissingExtraError, match=r"pip install 'tallax\[parquet\]'"):
        tallax.sinks.Parquet
