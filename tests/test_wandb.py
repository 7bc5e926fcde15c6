# SPDX-License-Identifier: Apache-2.0
"""Runs of Weights & Biases: offline, with the real package, read back from the file that `wandb sync` sends."""

import glob
import json
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

import tallax
from tallax.sinks import Bins, Record, as_sink

wandb = pytest.importorskip("wandb")

pytestmark = pytest.mark.slow

EXACT = 2**53 - 1


def entries(path):
    """Yields what a run's file holds: a LevelDB log of W&B's own records."""
    from wandb.proto import wandb_internal_pb2

    with open(path, "rb") as file:
        data = file.read()
    assert data[:4] == b":W&B"
    at, whole = 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:  # blocks end in zeros that no header fits into
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # the whole of an entry, or its end
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""


def rows(folder):
    """Returns the rows of the only run in a folder: values by name, those of a histogram by its name and theirs."""
    (path,) = glob.glob(f"{folder}/wandb/offline-run-*/*.wandb")
    for _ in range(100):
        found = list(entries(path))
        if found and found[-1].WhichOneof("record_type") == "exit":
            break
        time.sleep(0.1)  # W&B's process may still be writing when finish() has returned
    found = [entry.history for entry in found if entry.WhichOneof("record_type") == "history"]
    return [{"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in row.item} for row in found]


@pytest.fixture(scope="module")
def quiet(tmp_path_factory):
    """Settings that keep everything within a temporary folder, and say nothing."""
    folder = str(tmp_path_factory.mktemp("home"))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CACHE", "CONFIG", "DATA"):
            patch.setenv(f"WANDB_{name}_DIR", folder)
        patch.setenv("WANDB_ERROR_REPORTING", "false")
        patch.setenv("WANDB_SILENT", "true")
        yield {"mode": "offline", "project": "p", "settings": wandb.Settings(silent=True, console="off")}


@pytest.fixture(scope="module")
def written(quiet, tmp_path_factory):
    """The rows of one run, and its sink: what most tests look at, since each run takes a second."""
    folder = tmp_path_factory.mktemp("run")
    wide = Bins(np.linspace(0, 1, 1001), np.arange(1000, dtype=np.uint64))
    sink = tallax.sinks.WandB(dir=str(folder), id="one", resume="allow", **quiet)
    few = Bins(np.array([0.0, 0.5, 2.0]), np.array([3, EXACT], np.uint64))
    sink.write(Record(10, 1.7e9, 0, {"a/loss": 0.1, "count": EXACT, "large": 2**62 + 1}, {"few": few, "wide": wide}))
    sink.write(Record(20, 1.7e9, 0, {"a/loss": 0.3}))
    sink.write(Record(20, 1.7e9, 0, {"also": 2}))
    with pytest.raises(tallax.InvalidValueError) as caught:
        sink.write(Record(15, 1.7e9, 0, {"a/loss": 0.2}))
    sink.close()
    sink.close()
    return rows(folder), str(caught.value)


def test_numbers_are_read_back(written):
    """Floats, and integers below 2**63, are in the file as they were, each at its step."""
    first, second = written[0]
    assert (first["_step"], first["a/loss"], first["count"], first["large"]) == (10, 0.1, EXACT, 2**62 + 1)
    assert (second["_step"], second["a/loss"]) == (20, 0.3)


def test_two_records_of_a_step_are_one_row(written):
    """Values that are logged later for the same step are added to it."""
    assert written[0][1]["also"] == 2


def test_histograms_have_our_bins(written):
    """Edges and counts are those that were counted; beyond 512 bins neighbours are put together."""
    first = written[0][0]
    assert (first["few/_type"], first["few/bins"], first["few/values"]) == ("histogram", [0, 0.5, 2], [3, EXACT])
    assert len(first["wide/values"]) == 500
    assert first["wide/values"][:2] == [1, 5]
    assert sum(first["wide/values"]) == sum(range(1000))


def test_a_step_that_would_be_left_out(written):
    """W&B passes over a step that is below the last; this is an error."""
    assert written[1] == (
        "WandB(run='one'): W&B accepts the steps of a run in order, and would leave this one out.\n"
        "  got:  a record of step 15, after step 20 was started\n"
        "  fix:  run.log(..., step=step) with the same steps; or one run for each: WandB(project=...)"
    )


def test_a_run_that_was_handed_in(quiet, tmp_path):
    """A run of the program gets the records in between its own values, and is not finished."""
    run = wandb.init(dir=str(tmp_path), **quiet)
    with tallax.Logger(tallax.sinks.WandB(run=run), every=1) as log:
        log(step=5, loss=0.5)
    run.log({"after": 1}, step=6)
    run.finish()
    assert [(row["_step"], row.get("loss"), row.get("after")) for row in rows(tmp_path)] == [
        (5, 0.5, None),
        (6, None, 1),
    ]


def test_the_backend_of_metrax(quiet, tmp_path, monkeypatch):
    """metrax's own backend is a sink as it is."""
    backends = pytest.importorskip("metrax.logging")
    real = wandb.init
    # It asks for what this wandb no longer takes.
    monkeypatch.setattr(wandb, "init", lambda anonymous, **init: real(**init))
    backend = backends.WandbBackend(dir=str(tmp_path), **quiet)
    sink = as_sink(backend)
    sink.write(Record(5, 1.7e9, 0, {"x": 1, "y": EXACT}))
    sink.close()
    (row,) = rows(tmp_path)
    assert (row["_step"], row["x"], row["y"]) == (5, 1, EXACT)


class Resumed:
    """A stand-in for a run of wandb.init online with steps up to 20, which needs W&B's servers."""

    def __init__(self):
        self.id, self.resumed, self.starting_step, self.step = "one", True, 21, 21
        self.logged, self.summary = [], {}

    def log(self, values, *, step):
        self.logged.append((step, values))
        self.step = max(step, self.step)

    def finish(self):
        self.logged.append("finished")


def test_resuming_keeps_the_run_and_reports_it(monkeypatch):
    """Records of steps that W&B has are omitted; the summary and the terminal report it; later steps continue."""
    run, said = Resumed(), []
    monkeypatch.setattr(wandb, "init", lambda **init: run)
    monkeypatch.setattr(wandb, "termwarn", said.append)
    sink = tallax.sinks.WandB(id="one", resume="allow")
    for step in (15, 20, 25):
        sink.write(Record(step, 1.7e9, 0, {"x": step}))
    sink.close()
    assert run.logged == [(25, {"x": 25}), "finished"]
    assert run.summary == {"logger/steps_kept_from_before": 20}
    assert said == ["tallax: run one keeps the steps up to 20 that it has from before."]


def test_further_processes_have_runs_and_names_of_their_own(monkeypatch):
    """No two processes write to one run."""
    begun = []
    fake = Resumed()
    fake.resumed = False
    fake.step = 0
    monkeypatch.setattr(wandb, "init", lambda **init: begun.append(init) or fake)
    tallax.sinks.WandB(id="one", project="p").write(Record(1, 1.7e9, 3, {"x": 1}))
    assert begun == [{"id": "one-process-3", "project": "p"}]
    assert fake.logged == [(1, {"process-3/x": 1})]


def test_a_run_that_is_refused(monkeypatch):
    """The error of wandb.init reaches the caller, and the next record tries again."""
    tries = iter(
        [wandb.errors.CommError("refused"), SimpleNamespace(id="x", resumed=False, step=0, log=lambda *a, **k: 0)]
    )

    def init(**_):
        answer = next(tries)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(wandb, "init", init)
    sink = tallax.sinks.WandB(project="p")
    with pytest.raises(wandb.Error, match="refused"):
        sink.write(Record(1, 1.7e9))
    sink.write(Record(2, 1.7e9))


def test_a_run_or_its_arguments():
    """Both at once leave open which is meant."""
    with pytest.raises(tallax.InvalidTypeError) as caught:
        tallax.sinks.WandB(run=SimpleNamespace(id="x"), project="p", id="y")
    assert str(caught.value) == (
        "sinks.WandB: accepts a run or the arguments of wandb.init, not both.\n"
        "  got:  run= and project=, id=\n"
        "  fix:  WandB(run=run); or WandB(project=...)"
    )


def test_a_missing_wandb_names_the_install_line(monkeypatch):
    """The extra is named where its package is missing."""
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.delitem(sys.modules, "tallax.sinks._wandb", raising=False)
    monkeypatch.delitem(vars(tallax.sinks), "WandB", raising=False)
    with pytest.raises(tallax.MissingExtraError, match=r"pip install 'tallax\[wandb\]'"):
        tallax.sinks.WandB
