# SPDX-License-Identifier: Apache-2.0
"""`tallax show` of a checkpoint: every item as a run shows it, without the model that it is of."""

import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import tallax
from tallax.checkpoints import shown
from tallax.runs._show import read
from tallax.statistics import Activity, Ema, Extrema, Histogram, LogHistogram, Moments, Rate


class Kept:
    """A sink that keeps the records."""

    def __init__(self):
        self.records = []

    def write(self, record):
        self.records.append(record)

    def close(self):
        pass


@pytest.fixture(scope="module")
def model():
    """A model with every item, fed."""
    model = nnx.Dict(
        step=tallax.Counter(2**40),
        load=tallax.Counter(shape=3),
        many=tallax.Counter(shape=100),
        bias=tallax.Buffer(jnp.arange(3.0)),
        temperature=tallax.ScheduledValue(optax.constant_schedule(2.0)),
        layer=nnx.Linear(2, 3, rngs=nnx.Rngs(0)),
        scratch=tallax.Counter(5, persistent=False),
        rate=Rate(shape=2),
        acts=Histogram(-1.0, 1.0, bins=8),
        sizes=LogHistogram(0.05),
        moments=Moments(),
        extrema=Extrema(),
        ema=Ema(0.9),
        units=Activity(4),
    )
    x = jnp.array([[0.5, -2.0], [jnp.nan, 1.0]])
    for name in ("rate", "acts", "sizes", "moments", "extrema", "ema"):
        model[name].update(x)
    model.units.update(jnp.array([True, False, True, True]))
    model.load.set(np.array([7, 0, 2**35]))
    model.temperature(0)
    return model


def test_all_state_is_as_in_a_run(model, tmp_path):
    """Numbers, bins, kinds, shapes and bytes are those that a Logger writes of the same model, to the last digit."""
    sink = Kept()
    with tallax.Logger(sink) as log:
        log(model)
    (record,) = sink.records
    tallax.save(tmp_path / "saved", model)
    found = shown(tmp_path / "saved")
    scalars = {name.removeprefix("model/"): value for name, value in found.scalars.items()}
    histograms = {name.removeprefix("model/"): bins for name, bins in found.histograms.items()}
    assert scalars.pop("scratch", None) is None  # not kept
    expected = {name: value for name, value in record.scalars.items() if name != "scratch"}
    assert scalars == expected
    assert histograms == record.histograms
    items = {name.removeprefix("model/"): item for name, item in found.state.items()}
    assert {name: item.kind for name, item in items.items() if item.kind != "Param"} == {
        name: item.kind for name, item in record.state.items()
    }
    assert not items["scratch"].persistent
    for name, item in record.state.items():
        assert (items[name].shape, items[name].nbytes) == (item.shape, item.nbytes)
    assert items["layer/kernel"].shape == (2, 3)


def test_the_latest_of_a_series(model, tmp_path):
    """A series shows its latest checkpoint; one of its folders shows that checkpoint."""
    with tallax.Checkpoints(tmp_path, every=1) as checkpoints:
        checkpoints.save(5, model)
        checkpoints.save(70, model, extra={"epoch": 3})
    assert shown(tmp_path).facts == {"step": 70, "extra": {"epoch": 3}}
    assert shown(tmp_path / "5").facts == {"step": 5}


def test_a_checkpoint_of_orbax_alone(tmp_path):
    """A checkpoint without tallax is listed by name, dtype and shape, with the values of small arrays."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "other", {"step": np.int32(7), "w": np.zeros((64, 64), np.float32)})
    found = shown(tmp_path / "other")
    assert found.scalars == {"step": 7}
    assert {name: (item.kind, item.dtype, item.shape) for name, item in found.state.items()} == {
        "step": ("array", "int32", ()),
        "w": ("array", "float32", (64, 64)),
    }


def test_a_kind_that_is_not_known_here_is_a_plain_array(model, tmp_path, monkeypatch):
    """A statistic of the user's own, whose class `show` does not import, has its words."""
    monkeypatch.delitem(tallax.checkpoints._inspect._READABLE, "Rate")
    tallax.save(tmp_path / "saved", model)
    found = shown(tmp_path / "saved")
    assert found.state["model/rate"].kind == "Rate"
    assert "model/rate/fired/0" not in found.scalars
    assert found.scalars["model/rate/0,0"] == 2  # 0.5 and NaN


@pytest.mark.slow
def test_the_command(model, tmp_path):
    """`tallax show` prints it, also as JSON, and exits with an error if there is no checkpoint."""
    tallax.save(tmp_path / "saved", model)
    command = [sys.executable, "-c", "from tallax.cli import main; main()", "show"]

    def run(*arguments):
        return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=120, check=False)

    result = run(str(tmp_path / "saved"), "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["state"]["model/step"]["value"] == 2**40
    (tmp_path / "empty").mkdir()
    result = run(str(tmp_path / "empty"))
    assert (result.returncode, result.stdout) == (2, "")
    assert "is neither a run nor a checkpoint." in result.stderr


def test_sites_are_as_in_a_run(tmp_path):
    """The statistics of a watched model have the names and the numbers that a Logger writes; presets, too."""
    model = nnx.Sequential(nnx.Linear(4, 8, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(8, 3, rngs=nnx.Rngs(1)))
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
    presets = [
        tallax.watching.dead_units("layers/0"),
        tallax.watching.expert_load("layers/2"),
        tallax.watching.massive_activations("layers/2"),
        tallax.watching.update_ratio("layers/0"),
    ]
    tallax.watch(model, optimizer, updates=True, histograms=True, presets=presets)
    _, gradients = tallax.value_and_grad(lambda model, x: (model(x) ** 2).mean())(model, jnp.ones((2, 4)))
    optimizer.update(model, gradients)
    with tallax.Logger(tallax.sinks.Jsonl(tmp_path / "run")) as log:
        log(model, step=1)
    tallax.save(tmp_path / "checkpoint", model=model)
    of_run = read(tmp_path / "run").sites
    of_checkpoint = shown(tmp_path / "checkpoint").only(["model*:*"]).sites
    named = [(row.name.removeprefix("model").removeprefix("/"), row.text) for row in of_checkpoint.others]
    assert named == [(row.name, row.text) for row in of_run.others]
    assert len(named) == 5 + 3 + 4  # presets; histograms of outputs, and of updates
    assert [row.cells[1:] for row in of_checkpoint.summaries] == [row.cells[1:] for row in of_run.summaries]
    assert len(of_run.summaries) == 3 + 4
