# SPDX-License-Identifier: Apache-2.0
"""Extrema: the smallest and the largest of any stream, and when each came."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tallax.statistics import Extrema
from tests.cases import assert_same_state

ELEMENTS = st.one_of(
    st.floats(width=32, allow_subnormal=False), st.sampled_from([-2.0, -0.0, 0.0, 2.0, np.inf, -np.inf, np.nan])
)
ARRAYS = hnp.arrays(np.float32, 24, elements=ELEMENTS)
MASKS = hnp.arrays(np.bool_, 24)
CUTS = st.sampled_from([0, 1, 12, 24])  # few lengths of parts, each of which is a program
X = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
X[5, 0], X[7, 1], X[9, 0] = np.nan, np.inf, -7.0


def fed(*parts, **how):
    extrema = Extrema(**how)
    for part in parts:
        extrema.update(part)
    return extrema


def values_of(result):
    return tuple(np.asarray(part).tolist() for part in dataclasses.astuple(result))


def reference(parts):
    """Returns what a stream of parts has, by NumPy in float64 and Python's integers."""
    low, high, low_at, high_at, count, nan = np.inf, -np.inf, 0, 0, 0, 0
    for part in parts:
        kept = part[~np.isnan(part)].astype(np.float64)
        first, count, nan = count == 0, count + kept.size, nan + part.size - kept.size
        if kept.size and (first or kept.min() < low):
            low, low_at = kept.min(), count
        if kept.size and (first or kept.max() > high):
            high, high_at = kept.max(), count
    return low, high, low_at, high_at, count, nan


# --- laws -------------------------------------------------------------------------------------------------------------


@given(ARRAYS, CUTS, CUTS)
def test_a_stream_has_the_extremes_that_numpy_finds(x, first, second):
    """Every update is exact, with the count at which an extreme came; all counts add up to the number of entries."""
    first, second = sorted((first, second))
    parts = [x[:first], x[first:second], x[second:]]
    result = fed(*parts).compute()
    assert values_of(result) == reference(parts)
    assert result.count + result.nan == x.size


@given(ARRAYS, MASKS)
def test_a_mask_leaves_out(x, mask):
    """Under a mask the result is bit-equal to that of the kept entries."""
    masked = Extrema()
    masked.update(x, where=mask)
    assert_same_state(masked, fed(x[mask]))


@given(ARRAYS, CUTS, CUTS)
def test_merge_is_associative_and_commutative_to_the_bit(x, first, second):
    """Parts merged in any order agree to the bit, and have the extremes and counts of the whole."""
    first, second = sorted((first, second))
    a, b, c = (fed(part) for part in (x[:first], x[first:second], x[second:]))
    left, right = nnx.clone(a), nnx.clone(c)
    left.merge(b)
    left.merge(c)
    right.merge(b)
    right.merge(a)
    assert_same_state(left, right)
    whole, pooled = fed(x).compute(), left.compute()
    assert (pooled.min, pooled.max, pooled.count, pooled.nan) == (whole.min, whole.max, whole.count, whole.nan)


def test_a_tie_goes_to_the_earlier():
    """An extreme that comes again keeps the count at which it came first; of merged ones the smaller stays."""
    early, late = fed(np.array([3.0, 4.0])), fed(np.zeros(3), np.array([3.0]), np.array([-1.0]))
    early.update(np.array([3.0, 4.0]))
    assert (early.compute().min_at, early.compute().max_at) == (2, 2)
    assert (late.compute().min_at, late.compute().max_at) == (5, 4)
    late.update(np.array([4.0]))
    late.merge(early)
    assert (late.compute().max, late.compute().max_at) == (4.0, 2)
    assert (late.compute().min, late.compute().min_at) == (-1.0, 5)


# --- values and counts ------------------------------------------------------------------------------------------------


def test_integers_beyond_float32_are_rounded():
    """Integers are compared in float32, as documented."""
    assert fed(np.array([2**24 + 1, -5], np.int32)).compute().max == 2.0**24


@pytest.mark.parametrize("shape", [(0,), (), (3, 0), (2, 2, 2)])
def test_empty_and_scalar_input(shape):
    """Nothing leaves the state as it was, to the bit; a scalar counts as one."""
    extrema = fed(jnp.zeros(shape))
    size = int(np.prod(shape))
    assert extrema.compute().count == size
    if size == 0:
        assert_same_state(extrema, Extrema())


def test_zeros_are_one_value():
    """-0.0 and subnormal numbers are stored as 0.0, and do not count as new extremes."""
    extrema = fed(np.array([-0.0]), np.array([0.0]), np.array([-1e-45, 1e-45], np.float32))
    result = extrema.compute()
    assert (np.signbit(result.min), np.signbit(result.max)) == (False, False)
    assert values_of(result) == (0.0, 0.0, 1, 1, 4, 0)


def test_extremes_per_head():
    """With a shape there is one pair for each entry of the last axes; masks broadcast; a leading axis is optional."""
    extrema = Extrema(shape=(2,))
    x = np.array([[[1.0, 9.0], [2.0, 8.0]], [[0.0, 7.0], [-1.0, np.nan]]])
    extrema.update(x, where=np.array([[[True, False]]]))
    extrema.update(np.array([-5.0, 3.0]))
    assert values_of(extrema.compute()) == ([-5, 3], [2, 3], [5, 1], [4, 1], [5, 1], [0, 0])
    assert extrema.compute().min.dtype == np.float32
    assert extrema.compute().count.dtype == np.uint64


def test_counts_are_exact_beyond_32_bits():
    """Counts, and the counts at which an extreme came, pass 2**32; inside a trace the record saturates."""
    extrema = fed(np.array([1.0, np.nan]))
    extrema.counts.set(2**32 - 1)
    nnx.jit(lambda e: e.update(jnp.array([5.0, 1.0, jnp.nan])))(extrema)
    assert values_of(extrema.compute()) == (1.0, 5.0, 1, 2**32 + 1, 2**32 + 1, 2**32)
    traced = nnx.jit(lambda e: e.compute())(extrema)
    assert values_of(traced) == (1.0, 5.0, 1, 2**31 - 1, 2**31 - 1, 2**31 - 1)
    assert traced.count.dtype == jnp.int32
    assert isinstance(extrema.compute().max_at, int)
    assert isinstance(extrema.compute().max, float)


def test_ats_compare_by_both_words():
    """For equal extremes beyond 2**32, both words decide which `at` is smaller."""
    for small, large in [((5, 1), (6, 1)), ((7, 1), (2, 2)), ((9, 0), (1, 1))]:
        left, right = fed(np.array([1.0])), fed(np.array([1.0]))
        left.extremes[0], right.extremes[0] = np.array(small, np.uint32), np.array(large, np.uint32)
        for a, b in ((left, right), (right, left)):
            merged = nnx.clone(a)
            merged.merge(b)
            assert merged.compute().min_at == small[0] + small[1] * 2**32


# --- modes, replicas --------------------------------------------------------------------------------------------------


# --- refusals ---------------------------------------------------------------------------------------------------------
