# SPDX-License-Identifier: Apache-2.0
"""Other libraries' writers as sinks: metrax's logging backends, clu's metric writers, and those written by hand."""

import importlib
import logging
import sys
from unittest import mock

import numpy as np
import pytest

import tallax
from tallax.sinks import Bins, Record, as_sink
from tallax.sinks._adapters import summary

EXACT = 2**53 - 1
BINS = Bins(np.array([0.0, 1.0, 2.0, 4.0]), np.array([60, 0, 40], np.uint64))


class ByHand:
    """A backend as metrax's protocol asks for it."""

    def __init__(self):
        self.seen, self.closed = [], False

    def log_scalar(self, event, value, **kwargs):
        self.seen.append((kwargs["step"], event, value))

    def close(self):
        self.closed = True


def test_a_backend_is_a_sink():
    """A Logger takes a backend as it is, hands it each number exactly, and closes it."""
    backend = ByHand()
    with tallax.Logger(backend, every=2) as log:
        for step in (1, 2, 3):
            log(step=step, loss=0.5, seen=EXACT)
    assert backend.seen == [(1, "loss", 0.5), (1, "seen", EXACT), (2, "loss", 0.5), (2, "seen", EXACT)]
    assert backend.closed


def test_a_backend_gets_the_bins_of_a_histogram():
    """Its exact total, and mean and quantiles of the bins; a number of that name in the record goes before it."""
    backend = ByHand()
    sink = as_sink(backend)
    sink.write(Record(3, 0.0, 1, {"gate/median": 0.25}, {"gate": BINS}))
    seen = {name: value for _, name, value in backend.seen}
    assert seen.pop("process-1/gate/median") == 0.25
    assert seen.pop("process-1/gate/count") == 100
    assert seen == pytest.approx({"process-1/gate/mean": 1.5, "process-1/gate/p01": 1 / 60, "process-1/gate/p99": 3.95})


def test_numbers_of_bins():
    """Quantiles lie where as much is below them, evenly within a bin; of nothing there is but its count."""
    values = np.random.default_rng(0).normal(size=20_000)
    counts, edges = np.histogram(values, bins=200)
    found = summary(Bins(edges, counts.astype(np.uint64)))
    p01, median, p99 = np.quantile(values, [0.01, 0.5, 0.99])
    width = edges[1] - edges[0]
    assert found.pop("count") == 20_000
    assert found == pytest.approx({"mean": values.mean(), "p01": p01, "median": median, "p99": p99}, abs=width)
    assert summary(Bins(edges, np.zeros(200, np.uint64))) == {"count": 0}
    huge = Bins(np.array([0.0, 1.0, 2.0]), np.array([2**63, 2**63 + 1], np.uint64))
    assert summary(huge)["count"] == 2**64 + 1


def test_a_backend_that_can_be_flushed_is():
    """If a backend has flush(), a record is flushed before write returns."""
    backend = ByHand()
    backend.flush = mock.Mock()
    as_sink(backend).write(Record(1, 0.0, scalars={"x": 1.0}))
    backend.flush.assert_called_once_with()


def test_other_objects_are_not_backends():
    """A class, or an object without close(), is not accepted as a sink."""
    for thing in (ByHand, mock.Mock(spec=["log_scalar"])):
        with pytest.raises(tallax.InvalidTypeError, match="a sink must have"):
            as_sink(thing)


@pytest.mark.slow
def test_the_tensorboard_backend_of_metrax(tmp_path):
    """metrax's own backend writes the curves; its counts are single precision."""
    backends = pytest.importorskip("metrax.logging")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with tallax.Logger(backends.TensorboardBackend(str(tmp_path)), every=1) as log:
        for step in (1, 2):
            log(step=step, **{"train/loss": 1 / step, "seen": 2**24 + step})
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 1.0), (2, 0.5)]
    assert [event.value for event in events.Scalars("seen")] == [2**24, 2**24 + 2]


@pytest.fixture
def writers(monkeypatch):
    """clu's writers, whose package imports TensorFlow for another one of them."""
    pytest.importorskip("clu")
    for name in ("tensorflow", "tensorboard.plugins.hparams", "tensorboard.plugins.hparams.api"):
        if name not in sys.modules:
            monkeypatch.setitem(sys.modules, name, mock.MagicMock())
    before = set(sys.modules)
    yield importlib.import_module("clu.metric_writers")
    for name in set(sys.modules) - before:
        if name.startswith("clu"):
            del sys.modules[name]


def test_writers_of_clu(writers, caplog):
    """Values logged through clu's AsyncWriter are written before write returns: all digits, and bins by shape."""
    caplog.set_level(logging.INFO, logger="absl")
    logging.getLogger("absl").propagate = True
    from absl import logging as absl

    before = absl.get_verbosity()
    absl.set_verbosity(absl.INFO)
    try:
        sink = tallax.sinks.Clu(writers.AsyncWriter(writers.LoggingWriter()))
        sink.write(Record(7, 0.0, scalars={"seen": EXACT}, histograms={"gate": BINS}))
        said = [entry.getMessage() for entry in caplog.records]
        sink.close()
    finally:
        absl.set_verbosity(before)
    numbers = "gate/count=100, gate/mean=1.5, gate/median=0.833333, gate/p01=0.0166667, gate/p99=3.95"
    assert said[0] == f"[7] {numbers}, seen={EXACT}"
    assert said[1] == "[7] Got raw tensors: {'gate': (3, 3)}."


def test_histograms_for_clu_are_what_tensorboard_reads(writers):
    """The table and its description are those of TensorBoard's own histograms, with our bins and exact counts."""
    metadata = pytest.importorskip("tensorboard.plugins.histogram.metadata")
    got = mock.Mock()

    class Writer(writers.LoggingWriter):
        def write_summaries(self, step, values, metadata=None):
            got(step, values, metadata)

    counts = np.array([EXACT, 0, 1], np.uint64)
    sink = tallax.sinks.Clu(writers.MultiWriter([Writer()]))
    sink.write(Record(7, 0.0, 1, histograms={"gate": Bins(BINS.edges, counts)}))
    step, values, described = got.call_args.args
    assert (step, set(values)) == (7, {"process-1/gate"})
    table = values["process-1/gate"]
    assert table.dtype == np.float64
    assert table.tolist() == [[0.0, 1.0, EXACT], [1.0, 2.0, 0.0], [2.0, 4.0, 1.0]]
    expected = metadata.create_summary_metadata(None, None)
    assert type(expected).FromString(described["process-1/gate"]) == expected
    assert repr(sink) == "Clu(MultiWriter)"
