# SPDX-License-Identifier: Apache-2.0
"""Rate and Histogram: exact against NumPy, mergeable, in any dtype, under any mask."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import tallax
from tallax.statistics import Histogram, LogHistogram, Rate
from tests.cases import assert_same_state

FLOATS = st.floats(width=32, allow_subnormal=False)
NEAR = st.floats(-3, 3, width=32, allow_subnormal=False)
ARRAYS = hnp.arrays(
    np.float32, 64, elements=st.one_of(NEAR, NEAR, FLOATS, st.sampled_from([-2.0, -1.5, 0.0, 0.5, 2.0]))
)
MASKS = hnp.arrays(np.bool_, 64)

KINDS = {"rate": Rate, "histogram": lambda: Histogram(-2.0, 2.0, bins=8), "log-histogram": lambda: LogHistogram(0.1)}
every_kind = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


def total_of(result) -> int:
    """Returns how many entries a result accounts for."""
    if hasattr(result, "total"):
        return int(np.sum(result.total))
    if hasattr(result, "buckets"):
        return result.count + result.nan
    outside = (result.underflow, result.overflow, result.nan, result.posinf, result.neginf)
    return int(result.counts.sum()) + sum(outside)


# --- laws -------------------------------------------------------------------------------------------------------------


@every_kind
@given(ARRAYS, MASKS)
def test_counts_add_up_to_the_input(make, x, mask):
    """Every unmasked entry is counted exactly once."""
    statistic = make()
    statistic.update(x, where=mask)
    assert total_of(statistic.compute()) == mask.sum()
    statistic.update(x)
    assert total_of(statistic.compute()) == mask.sum() + x.size


@pytest.mark.thorough
@every_kind
@given(ARRAYS, st.integers(0, 64), st.integers(0, 64))
def test_a_split_stream_equals_the_whole(make, x, first, second):
    """Feeding parts, in one statistic or in three that are merged in any order, gives the whole, to the bit."""
    first, second = sorted((first, second))
    parts = [x[:first], x[first:second], x[second:]]
    whole, fed = make(), make()
    whole.update(x)
    pieces = []
    for part in parts:
        fed.update(part)
        piece = make()
        piece.update(part)
        pieces.append(piece)
    assert_same_state(fed, whole)
    a, b, c = pieces
    left, right = nnx.clone(a), nnx.clone(b)
    left.merge(b)
    left.merge(c)
    right.merge(c)
    right.merge(a)
    assert_same_state(left, whole)
    assert_same_state(right, whole)


# --- against NumPy ----------------------------------------------------------------------------------------------------


@given(ARRAYS)
def test_histogram_equals_numpy(x):
    """The bins are NumPy's, edges and last closed bin included; the rest is counted by kind."""
    histogram = Histogram(-2.0, 2.0, bins=8)
    histogram.update(x)
    result = histogram.compute()
    finite = x[np.isfinite(x)]
    assert result.counts.tolist() == np.histogram(finite, bins=result.edges)[0].tolist()
    assert np.array_equal(result.edges, np.histogram_bin_edges(finite, bins=8, range=(-2, 2)).astype(np.float32))
    assert (result.underflow, result.overflow) == ((finite < -2).sum(), (finite > 2).sum())
    assert (result.nan, result.posinf, result.neginf) == (
        np.isnan(x).sum(),
        (x == np.inf).sum(),
        (x == -np.inf).sum(),
    )


@pytest.mark.parametrize(
    ("low", "high", "bins"), [(0, 1, 10), (-0.3, 0.7, 7), (0, 490, 10), (1e-3, 1e3, 333), (-5, -1, 64), (0, 1, 4096)]
)
def test_values_on_and_beside_every_edge(low, high, bins):
    """Each edge, the float32 just below it and the one just above fall where NumPy puts them."""
    histogram = Histogram(low, high, bins)
    edges = histogram.edges
    x = np.concatenate([edges, np.nextafter(edges, -np.inf), np.nextafter(edges, np.inf)]).astype(np.float32)
    x = x[(x == 0) | (abs(x) >= np.finfo(np.float32).tiny)]
    histogram.update(x)
    assert histogram.compute().counts.tolist() == np.histogram(x, bins=edges)[0].tolist()


def test_subnormal_numbers_count_as_zeros():
    """XLA flushes subnormals, so they fall where zero does."""
    histogram = Histogram(-1, 1, bins=2)
    histogram.update(np.array([-1e-45, 0.0, 1e-45], np.float32))
    assert histogram.compute().counts.tolist() == [0, 3]


def test_rates_per_head():
    """With a shape there is one rate for each entry of the last axes; masks broadcast."""
    rate = Rate(shape=(2,))
    x = np.array([[[1.0, 0.0], [2.0, 3.0]], [[0.0, 0.0], [-1.0, 0.0]]])
    rate.update(x, where=np.array([[[True], [True]], [[False], [True]]]))
    result = rate.compute()
    assert (result.fired.tolist(), result.total.tolist()) == ([3, 1], [3, 3])
    assert result.rate.tolist() == [1.0, 1 / 3]
    assert (result.fired.dtype, result.rate.dtype) == (np.uint64, np.float64)


@every_kind
@pytest.mark.parametrize("shape", [(0,), (), (3, 0), (2, 2, 2)])
def test_empty_and_scalar_input(make, shape):
    """Nothing counts as nothing, a scalar as one."""
    statistic = make()
    statistic.update(jnp.zeros(shape))
    assert total_of(statistic.compute()) == int(np.prod(shape))


def test_counts_are_exact_beyond_32_bits():
    """Counts pass 2**32; inside a trace the same record saturates, and the ratio does not."""
    rate = Rate()
    rate.counts.set(np.array([2**33, 2**34], np.uint64))
    nnx.jit(lambda r: r.update(jnp.array([True, False])))(rate)
    result = rate.compute()
    assert (result.fired, result.total) == (2**33 + 1, 2**34 + 2)
    assert isinstance(result.fired, int)
    traced = nnx.jit(lambda r: r.compute())(rate)
    assert (int(traced.fired), float(traced.rate)) == (2**31 - 1, 0.5)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [(1, 0, 4), (0, 0, 4), (0, 1, 0), (0, 1, -1), (0, float("nan"), 4), (-float("inf"), 1, 4), (1, 1 + 1e-7, 64)],
)
def test_impossible_histograms_raise(arguments):
    """Edges must increase, and be different in float32."""
    with pytest.raises(tallax.InvalidValueError, match="Histogram: the edges must increase"):
        Histogram(*arguments)
