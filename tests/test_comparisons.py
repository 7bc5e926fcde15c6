# SPDX-License-Identifier: Apache-2.0
"""Beside what each statistic replaces: the same numbers, and the ones where the other goes wrong.

PyTorch and torchmetrics are large, so `make test` does without them; `make compare`, which CI runs, installs them.
"""

import boost_histogram
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tallax
from tallax.statistics import Histogram, LogHistogram, Rate


@pytest.fixture(autouse=True)
def standard_promotion():
    """Flax's metrics mix dtypes."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def test_histogram_and_boost_histogram():
    """Bins and outer bins are boost-histogram's, but for the closed last bin, and NaN, which it calls an overflow."""
    x = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    x[:4] = np.nan, np.inf, -np.inf, 2.0
    ours, theirs = Histogram(-2.0, 2.0, bins=32), boost_histogram.Histogram(boost_histogram.axis.Regular(32, -2, 2))
    ours.update(x)
    theirs.fill(x)
    result, counts = ours.compute(), theirs.values(flow=True)
    assert result.counts[:-1].tolist() == counts[1:-2].tolist()
    assert result.counts[-1] == counts[-2] + 1
    assert result.underflow + result.neginf == counts[0]
    assert result.overflow + result.posinf + result.nan + 1 == counts[-1]


def test_histogram_and_numpy_over_a_range():
    """With evenly spaced edges, `numpy.histogram` over the same range gives the same bins."""
    x = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    ours = Histogram(-4.0, 4.0, bins=64)
    ours.update(x)
    counts, edges = np.histogram(x, bins=64, range=(-4, 4))
    assert ours.compute().counts.tolist() == counts.tolist()
    assert np.array_equal(ours.compute().edges, edges)


def test_quantiles_and_numpy():
    """The estimate lies within the promised error of the value that NumPy's method "lower" picks."""
    x = np.random.default_rng(0).lognormal(0, 4, 10_001).astype(np.float32)
    ours = LogHistogram(0.01)
    ours.update(x)
    q = np.linspace(0, 1, 101)
    np.testing.assert_allclose(ours.compute().quantile(q), np.quantile(x, q, method="lower"), rtol=0.01)


def test_rate_and_the_average_of_flax():
    """`nnx.metrics.Average` has the same mean for few entries, and loses count where Rate does not."""
    hits = np.random.default_rng(0).random(1000) < 0.3
    average, rate = nnx.metrics.Average("hits"), Rate()
    average.update(hits=jnp.asarray(hits, jnp.float32))
    rate.update(hits)
    assert float(average.compute()) == pytest.approx(rate.compute().rate)
    # A total of 2**24 in float32 no longer takes in a single hit.
    average.total[...] = jnp.float32(2**24)
    average.update(hits=jnp.float32(1.0))
    assert float(average.total[...]) == 2**24
    # A count of 2**31 - 1 in int32 becomes negative.
    average.count[...] = jnp.int32(2**31 - 1)
    average.update(hits=jnp.float32(1.0))
    assert float(average.compute()) < 0
    rate.counts.set(np.array([2**24, 2**31 - 1], np.uint64))
    rate.update(True)
    assert (rate.compute().fired, rate.compute().total) == (2**24 + 1, 2**31)


class Norm(tallax.Module):
    """The same as `torch.nn.BatchNorm1d` does with its counter."""

    def __init__(self):
        self.num_batches_tracked = tallax.Counter()
        self.deterministic = False

    def __call__(self):
        if not self.deterministic:
            self.num_batches_tracked += 1


def test_counters_and_the_batches_that_pytorch_tracks():
    """In training, in evaluation, saved, restored and reset, the counter is where `num_batches_tracked` is."""
    torch = pytest.importorskip("torch")
    theirs, ours = torch.nn.BatchNorm1d(3), Norm()

    def both(times):
        for _ in range(times):
            theirs(torch.ones(4, 3))
            ours()
        assert int(ours.num_batches_tracked) == int(theirs.num_batches_tracked)

    both(3)
    theirs.eval(), ours.eval()
    both(2)
    theirs.train(), ours.train()
    both(1)
    fresh_theirs, fresh_ours = torch.nn.BatchNorm1d(3), Norm()
    fresh_theirs.load_state_dict(theirs.state_dict())
    nnx.update(fresh_ours, nnx.state(ours))
    assert int(fresh_ours.num_batches_tracked) == int(fresh_theirs.num_batches_tracked) == 4
    theirs.reset_running_stats(), ours.num_batches_tracked.reset()
    both(0)


def test_statistics_and_the_aggregation_of_torchmetrics():
    """Means and sums agree with torchmetrics' aggregators, and so do reset and the merging of states."""
    aggregation = pytest.importorskip("torchmetrics.aggregation")
    torch = pytest.importorskip("torch")
    parts = np.random.default_rng(0).random((3, 100)) < 0.4
    mean, total, rate = aggregation.MeanMetric(), aggregation.SumMetric(), Rate()
    for part in parts:
        mean.update(torch.tensor(part, dtype=torch.float32))
        total.update(torch.tensor(part, dtype=torch.float32))
        rate.update(part)
    assert rate.compute().rate == pytest.approx(float(mean.compute()))
    assert rate.compute().fired == float(total.compute())
    other_mean, other = aggregation.MeanMetric(), Rate()
    other_mean.update(torch.ones(50))
    other.update(np.ones(50, bool))
    merged = aggregation.MeanMetric()  # not `mean`, which would go on giving the mean that it has computed already
    merged.update(torch.tensor(parts, dtype=torch.float32))
    merged.merge_state(other_mean)
    rate.merge(other)
    assert rate.compute().rate == pytest.approx(float(merged.compute()))
    mean.reset(), rate.reset()
    assert rate.compute().total == 0
    # Where they differ: theirs drops NaN with a warning, or counts it; ours counts every entry.
    rate.update(np.array([np.nan, 0.0]))
    assert (rate.compute().fired, rate.compute().total) == (1, 2)
