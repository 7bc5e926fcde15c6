# SPDX-License-Identifier: Apache-2.0
"""Stacks of items, as `nnx.vmap` makes one for `nnx.scan` over layers: read, printed, drawn, logged and kept."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import tallax
from tallax.checkpoints import shown
from tallax.statistics import Histogram, LogHistogram, Moments

LAYERS = 3
X = np.random.default_rng(0).normal(size=(LAYERS, 40)).astype(np.float32)
X[1, :3] = np.nan, 0.0, 9.0


def stack_of(make):
    """Returns a stack of three items."""
    return nnx.vmap(lambda _: make(), in_axes=0, out_axes=0)(jnp.arange(LAYERS))


def fed(make):
    """Returns a stack of statistics, fed a row of X each, beside the single ones that are fed the same."""
    stack, singles = stack_of(make), [make() for _ in range(LAYERS)]
    nnx.vmap(lambda statistic, x: statistic.update(x), in_axes=(0, 0), out_axes=None)(stack, X)
    for single, x in zip(singles, X, strict=True):
        single.update(x)
    return stack, singles


def same(left, right):
    """Whether two records hold the same values."""
    return all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (left, right)), strict=True))


@pytest.mark.parametrize("make", [lambda: Histogram(-1.0, 1.0, bins=4), lambda: LogHistogram(0.2)])
def test_a_histogram_of_each_layer(make):
    """Each layer has the result that a histogram of its own has, by type too; together they are their sum."""
    stack, singles = fed(make)
    result, counts = stack.compute(), "counts" if isinstance(stack, Histogram) else "buckets"
    assert all(same(result[k], singles[k].compute()) for k in range(LAYERS))
    assert type(result[1].nan) is int
    assert result[1].nan == 1
    total = make()
    for single in singles:
        total.merge(single)
    assert same(result.together(), total.compute())
    assert total.compute().together().nan == 1
    traced = nnx.jit(lambda stack: stack.compute())(stack)
    assert getattr(traced, counts).tolist() == getattr(result, counts).tolist()
    assert same(tallax.collect(nnx.Dict(s=stack)).result()["s"], result)
    assert "3 together: " in repr(stack)
    assert "\n" not in repr(stack)
    assert "together" not in repr(singles[0])
    with pytest.raises(tallax.InvalidValueError, match="only the result of a stack"):
        singles[0].compute()[0]
    stack.reset()
    assert getattr(stack.compute(), counts).sum() == 0


def test_the_counts_of_a_stack_saturate_together():
    """Beyond 2**64 - 1 a sum of layers stays there, and never wraps."""
    stack = stack_of(lambda: Histogram(0.0, 1.0, bins=1))
    nnx.vmap(lambda h, n: h.counts.increment(n), in_axes=(0, None), out_axes=None)(stack, 2**63)
    assert stack.compute().together().counts.tolist() == [2**64 - 1]
    assert stack.compute().together().nan == 2**64 - 1
    log = stack_of(LogHistogram)
    log.counts.increment(2**60)
    assert log.compute().count.tolist() == [2**64 - 1] * LAYERS


def test_quantiles_of_each_layer():
    """A stack gives those of each layer, along its leading axis, outside of a trace and inside one."""
    stack, singles = fed(lambda: LogHistogram(0.2))
    expected = [single.compute().quantile([0.1, 0.9]) for single in singles]
    assert np.array_equal(stack.compute().quantile([0.1, 0.9]), expected)
    assert stack.compute().quantile(0.5).shape == (LAYERS,)
    inside = nnx.jit(lambda stack: stack.compute().quantile(jnp.array([0.1, 0.9])))(stack)
    assert np.allclose(inside, expected)
    assert stack.compute().count.tolist() == [40, 39, 40]


def test_moments_of_each_layer():
    """Scalar moments have one entry for each layer."""
    stack, singles = fed(Moments)
    result = stack.compute()
    assert result.count.tolist() == [40, 39, 40]
    assert result.mean.tolist() == [single.compute().mean for single in singles]
    assert result.nonfinite.tolist() == [0, 1, 0]


def test_a_scheduled_value_of_each_layer():
    """It is called within the scan or outside, and read, pinned and released for all layers at once."""
    temperature = stack_of(lambda: tallax.ScheduledValue(optax.linear_schedule(5.0, 1.0, 4)))
    assert temperature.value.tolist() == [5.0] * LAYERS
    values = nnx.vmap(lambda t, step: t(step), in_axes=(0, 0), out_axes=0)(temperature, jnp.arange(LAYERS))
    assert values.tolist() == [5.0, 4.0, 3.0]
    assert repr(temperature) == "ScheduledValue(polynomial_schedule): [5., 4., 3.]"
    assert temperature(4).tolist() == [1.0] * LAYERS
    assert tallax.collect(nnx.Dict(t=temperature)).result()["t"].tolist() == [1.0] * LAYERS
    temperature.pin(2.0)
    assert repr(temperature) == "ScheduledValue(polynomial_schedule): [2., 2., 2.], pinned"
    assert temperature(3).tolist() == [2.0] * LAYERS
    temperature.release()
    assert temperature(3).tolist() == [2.0] * LAYERS


def test_a_logger_writes_each_layer(tmp_path):
    """Each layer has a histogram under its number; many layers are summed into one."""
    model = nnx.Dict(
        acts=fed(lambda: Histogram(-1.0, 1.0, bins=4))[0],
        size=fed(lambda: LogHistogram(0.2))[0],
        mean=fed(Moments)[0],
        t=stack_of(lambda: tallax.ScheduledValue(optax.constant_schedule(2.0))),
        many=nnx.vmap(lambda _: Histogram(-1.0, 1.0, bins=2), axis_size=40)(jnp.arange(40)),
    )
    model.many.counts += 3
    with tallax.Logger(tmp_path, every=1) as log:
        log(model, step=1)
    run = tallax.Run(tmp_path)
    assert run.scalars["acts/1/nan"].values == [1]
    assert run.histograms["acts/2"].values[0].counts.tolist() == model.acts.compute()[2].counts.tolist()
    assert run.scalars["size/1/count"].values == [39]
    assert {"size/0", "size/1", "size/2"} <= run.histograms.keys()
    assert run.scalars["mean/count/1"].values == [39]
    assert run.scalars["t/2"].values == [2.0]
    assert run.histograms["many"].values[0].counts.tolist() == [120, 120]


def test_a_stack_is_drawn_together():
    """A plot and a notebook card show the sum over all layers."""
    pyplot = pytest.importorskip("matplotlib.pyplot")
    for make in (lambda: Histogram(-1.0, 1.0, bins=4), lambda: LogHistogram(0.2)):
        stack, _ = fed(make)
        axes = stack.plot()
        assert "1 nan" in axes.get_title().lower()
        pyplot.close(axes.figure)
        assert "█" in stack._repr_mimebundle_()["text/html"]


def test_a_checkpoint_of_a_stack_is_read(tmp_path):
    """`tallax show` has the statistics of each layer, and not the words that they are made of."""
    model = nnx.Dict(acts=fed(lambda: Histogram(-1.0, 1.0, bins=4))[0], mean=fed(Moments)[0])
    model.t = stack_of(lambda: tallax.ScheduledValue(optax.constant_schedule(2.0)))
    model.t(0)
    tallax.save(tmp_path / "saved", model)
    told = shown(tmp_path / "saved")
    assert told.histograms["model/acts/1"].counts.tolist() == model.acts.compute()[1].counts.tolist()
    assert told.scalars["model/acts/1/nan"] == 1
    assert told.scalars["model/mean/count/1"] == 39
    assert told.scalars["model/t/2"] == 2.0
