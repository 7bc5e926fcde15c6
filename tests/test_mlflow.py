# SPDX-License-Identifier: Apache-2.0
"""Runs of MLflow, in the real package's SQLite and file stores."""

import json
import sys
from importlib.util import find_spec

import numpy as np
import pytest

import tallax
from tallax.sinks import Bins, Record

pytestmark = [  # not importorskip, since each process that collects tests would take a second to import it
    pytest.mark.skipif(find_spec("mlflow") is None, reason="needs mlflow"),
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),  # mlflow, sqlalchemy 2.1
    pytest.mark.filterwarnings("ignore::FutureWarning:mlflow"),  # the file store is to go
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # mlflow keeps its databases open
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

EXACT = 2**53 - 1


def record(step, process=0, **scalars):
    bins = Bins(np.array([0.0, 0.5, 2.0]), np.array([step, 2**63 + 1], np.uint64))
    return Record(step, 1.7e9 + step, process, {"train/loss": 1 / (step + 1), **scalars}, {"gate/logits": bins})


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """A SQLite store, which takes seconds to make."""
    folder = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder}/runs.db"
    client = __import__("mlflow").MlflowClient(tracking_uri=uri)
    client.create_experiment("exp", artifact_location=(folder / "artifacts").as_uri())
    return uri


@pytest.fixture(params=["sqlite", "file"])
def store(request, tmp_path, monkeypatch):
    """Returns where the runs go, and a client of it."""
    monkeypatch.chdir(tmp_path)
    if request.param == "sqlite":
        uri = request.getfixturevalue("database")
    else:
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        uri = (tmp_path / "mlruns").as_uri()
    return uri, __import__("mlflow").MlflowClient(tracking_uri=uri)


def runs(client, name):
    experiment = client.get_experiment_by_name("exp").experiment_id
    return client.search_runs([experiment], f"attributes.run_name = '{name}'", order_by=["attributes.start_time ASC"])


def history(client, run, name):
    found = client.get_metric_history(run.info.run_id, name)
    return sorted((metric.step, metric.value) for metric in found)


def drawn(client, run, step, tmp_path):
    path = client.download_artifacts(run.info.run_id, f"histograms/{step}.json", str(tmp_path))
    with open(path) as file:
        return json.load(file)


def test_a_run(store, tmp_path):
    """Values, counts below 2**53 and histograms are read back exactly; the run is RUNNING, then FINISHED."""
    uri, client = store
    sink = tallax.sinks.MLflow(experiment="exp", run_name="a run", tracking_uri=uri)
    sink.write(record(1, count=EXACT, nan=float("nan"), **{"load/0,1": 3}))
    sink.write(record(2, count=2**63 + 1))
    (run,) = runs(client, "a run")
    assert run.info.status == "RUNNING"
    sink.close()
    (run,) = runs(client, "a run")
    assert run.info.status == "FINISHED"
    assert history(client, run, "count") == [(1, EXACT), (2, 2.0**63)]
    assert history(client, run, "train/loss") == [(1, 1 / 2), (2, 1 / 3)]
    assert history(client, run, "load/0.1") == [(1, 3)]
    assert np.isnan(history(client, run, "nan")[0][1])
    assert drawn(client, run, 2, tmp_path) == {"gate/logits": {"edges": [0.0, 0.5, 2.0], "counts": [2, 2**63 + 1]}}


@pytest.mark.parametrize("by", ["run_name", "run_id"])
def test_resuming(store, tmp_path, by):
    """Each step is logged once, and earlier steps are unchanged; a tag records it, and new names continue."""
    uri, client = store
    name = f"resumed by {by}"
    first = tallax.sinks.MLflow(experiment="exp", run_name=name, tracking_uri=uri)
    for step in (1, 2, 3, 4):
        first.write(record(step, x=step))
    (run,) = runs(client, name)  # which was killed: never closed
    chosen = {"run_name": name} if by == "run_name" else {"run_id": run.info.run_id}
    again = tallax.sinks.MLflow(experiment="exp", tracking_uri=uri, **chosen)
    for step in (3, 4, 5):
        again.write(record(step, x=step + 0.5, new=step))
    assert runs(client, name)[0].info.status == "RUNNING"
    again.close()
    (run,) = runs(client, name)
    assert history(client, run, "x") == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5.5)]
    assert history(client, run, "new") == [(3, 3), (4, 4), (5, 5)]
    assert run.data.tags["tallax.resumed"] == "at step 3; values of steps up to 4 are from before"
    assert drawn(client, run, 5, tmp_path)["gate/logits"]["counts"][0] == 5


def test_a_run_that_starts_anew_is_another(store):
    """A new run is not confused with the last run of the same name."""
    uri, client = store
    for value in (1.0, 2.0):
        sink = tallax.sinks.MLflow(experiment="exp", run_name="it's new", tracking_uri=uri)
        sink.write(Record(1, 1.7e9, scalars={"x": value}))
        sink.write(Record(2, 1.7e9, scalars={"x": value}))
        sink.close()
    experiment = client.get_experiment_by_name("exp").experiment_id
    found = client.search_runs([experiment], 'attributes.run_name = "it\'s new"')
    assert sorted(history(client, run, "x") for run in found) == [[(1, 1.0), (2, 1.0)], [(1, 2.0), (2, 2.0)]]


def test_more_than_one_request_takes(database, tmp_path, monkeypatch):
    """A record of 2500 numbers arrives whole; two of one step add up, their histograms in one file."""
    monkeypatch.chdir(tmp_path)
    client = __import__("mlflow").MlflowClient(tracking_uri=database)
    sink = tallax.sinks.MLflow(experiment="exp", run_name="large", tracking_uri=database)
    sink.write(record(1, **{f"n{k}": k for k in range(2500)}))
    sink.write(Record(1, 1.7e9, histograms={"other": Bins(np.array([0.0, 1.0]), np.array([4], np.uint64))}))
    sink.close()
    (run,) = runs(client, "large")
    assert {run.data.metrics[f"n{k}"] == k for k in range(2500)} == {True}
    assert set(drawn(client, run, 1, tmp_path)) == {"gate/logits", "other"}


def test_processes(database, tmp_path, monkeypatch):
    """A further process has a run of its own, or names of its own in the run that it was given."""
    monkeypatch.chdir(tmp_path)
    client = __import__("mlflow").MlflowClient(tracking_uri=database)
    sink = tallax.sinks.MLflow(experiment="exp", run_name="many", tracking_uri=database)
    sink.write(Record(1, 1.7e9, 2, {"x": 1.0}))
    sink.close()
    (run,) = runs(client, "many-process-2")
    shared = tallax.sinks.MLflow(run_id=run.info.run_id, tracking_uri=database)
    shared.write(Record(2, 1.7e9, 1, {"x": 2.0}))
    shared.close()
    (run,) = runs(client, "many-process-2")
    assert run.data.metrics == {"x": 1.0, "process-1/x": 2.0}


def test_values_that_mlflow_does_not_take(database, tmp_path, monkeypatch):
    """If two names are equal for MLflow, the second is omitted, as are rejected names and numbers."""
    monkeypatch.chdir(tmp_path)
    client = __import__("mlflow").MlflowClient(tracking_uri=database)
    sink = tallax.sinks.MLflow(experiment="exp", run_name="odd", tracking_uri=database)
    odd = {"a,b": 1.0, "a.b": 2.0, "x" * 2000: 3.0, "": 5.0, "huge": 10**400, "nan": float("nan"), "low": -(2**70)}
    for step in (1, 2):
        errors = sink.write(record(step, **odd, **{f"n{k}": k for k in range(20)}))
        assert set(errors) == {"a.b", "x" * 2000, "", "huge"}
        assert str(errors["a.b"]) == (
            "sinks.MLflow: two names become equal, because MLflow keeps only letters, digits and _-. / in names.\n"
            "  got:  'a,b' and 'a.b', both 'a.b'\n"
            "  fix:  another name for one of the two"
        )
    with pytest.raises(OverflowError):
        sink.write(Record(3, 1.7e9, scalars={"huge": 10**400}))
    sink.close()
    (run,) = runs(client, "odd")
    assert {run.data.metrics[f"n{k}"] == k for k in range(20)} == {True}
    assert history(client, run, "a.b") == [(1, 1.0), (2, 1.0)]
    assert history(client, run, "low") == [(1, -(2.0**70)), (2, -(2.0**70))]


def test_a_store_that_can_not_be_opened(database, tmp_path, monkeypatch):
    """MLflow's error reaches the caller, also for a missing run."""
    monkeypatch.chdir(tmp_path)
    error = __import__("mlflow").exceptions.MlflowException
    with pytest.raises(error, match="0" * 32):
        tallax.sinks.MLflow(run_id="0" * 32, tracking_uri=database).write(record(1))
    sink = tallax.sinks.MLflow(tracking_uri="nothing://like-it")
    with pytest.raises(error):
        sink.write(record(1))
    sink.close()


def test_a_missing_mlflow_names_the_install_line(monkeypatch):
    """The extra is named where its package is missing."""
    monkeypatch.setitem(sys.modules, "mlflow.entities", None)
    monkeypatch.delitem(sys.modules, "tallax.sinks._mlflow", raising=False)
    monkeypatch.delitem(vars(tallax.sinks), "MLflow", raising=False)
    with pytest.raises(tallax.MissingExtraError, match=r"pip install 'tallax\[mlflow\]'"):
        tallax.sinks.MLflow
