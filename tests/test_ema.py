# SPDX-License-Identifier: Apache-2.0
"""Ema: the formula in float64, optax's, masks, what is not finite, and pooling."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import tallax
from tallax.statistics import Ema
from tests.cases import assert_same_state, leaves

DECAYS = [0.0, 0.5, 0.9, 0.999]
NEAR = st.floats(-100, 100, width=32, allow_subnormal=False)
ARRAYS = hnp.arrays(np.float32, (5, 4), elements=st.one_of(NEAR, NEAR, st.sampled_from([np.nan, np.inf, -np.inf])))
MASKS = hnp.arrays(np.bool_, (5, 4))
X = np.random.default_rng(0).normal(3.0, size=(64, 2)).astype(np.float32)
X[5, 0], X[7, 1], X[9, 0] = np.nan, np.inf, -np.inf


def fed(decay, *parts, **how):
    ema = Ema(decay, **how)
    for part in parts:
        ema.update(part)
    return ema


def reference(decay, means):
    """Returns the weighted sum of the means, and their weight, in float64."""
    powers = decay ** np.arange(len(means) - 1, -1, -1, dtype=np.float64)  # 0.0 ** 0 is 1
    return (1 - decay) * np.sum(powers * np.asarray(means, np.float64)), 1 - decay ** len(means)


def close(result, expected, scale=100.0):
    np.testing.assert_allclose(result, expected, rtol=2e-6, atol=2e-6 * scale)


# --- the formula ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", DECAYS)
@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 12), st.just(3)), elements=NEAR))
def test_the_formula_in_float64(decay, updates):
    """Value and weight are those of the formula, with and without correction of the bias."""
    total, weight = reference(decay, updates.astype(np.float64).mean(1))
    corrected, plain = fed(decay, *updates), fed(decay, *updates, debias=False)
    np.testing.assert_allclose(corrected.compute().weight, weight, rtol=1e-5)
    close(corrected.compute().value, total / weight)
    close(plain.compute().value, total)
    assert_same_state(corrected, plain)


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("debias", [True, False])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_it_is_that_of_optax(decay, debias, dtype):
    """The value is that of `optax.ema` in float32, in shapes, for bfloat16 input too."""
    x = jnp.asarray(np.random.default_rng(1).normal(2.0, size=(20, 6, 3)), dtype)
    transform = optax.ema(decay, debias)
    ema, state = Ema(decay, debias=debias, shape=3), transform.init(jnp.zeros(3))
    for update in x:
        ema.update(update)
        with jax.numpy_dtype_promotion("standard"):
            expected, state = transform.update(update.astype(jnp.float32).mean(0), state)
        np.testing.assert_allclose(ema.compute().value, expected, rtol=2e-5)
    assert ema.compute().value.dtype == np.float32
    assert leaves(ema)[0].dtype == np.float32


@pytest.mark.parametrize("decay", DECAYS)
@given(NEAR)
def test_after_one_update_it_is_the_first_mean(decay, mean):
    """With the bias corrected, one update gives its mean; constant updates leave it there."""
    ema = fed(decay, jnp.float32(mean))
    np.testing.assert_allclose(ema.compute().value, mean, rtol=2e-7)
    for _ in range(30):
        ema.update(jnp.float32(mean))
    np.testing.assert_allclose(ema.compute().value, mean, rtol=2e-5)


@pytest.mark.parametrize("decay", [0.9, 0.99])
def test_it_rests_at_a_constant(decay):
    """Fed with one number for long, the plain average becomes that number, and the weight 1."""
    ema = Ema(decay, debias=False)
    step = nnx.jit(lambda e: nnx.fori_loop(0, 3000, lambda i, e: (e.update(jnp.float32(0.3)), e)[1], e))
    step(ema)
    result = ema.compute()
    np.testing.assert_allclose([result.value, result.weight], [0.3, 1.0], rtol=1e-5)


def test_decay_zero_is_the_last_mean():
    """With decay 0 the value is the last update's mean, exactly."""
    ema = fed(0, np.array([9.0, 11.0]), np.array([1.0, 2.0, 6.0]))
    assert (ema.compute().value, ema.compute().weight) == (3.0, 1.0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "uint8"])
def test_long_narrow_sums_do_not_saturate(dtype):
    """The sum of many narrow entries is taken in float32."""
    assert fed(0.0, jnp.full(70_000, 3, dtype)).compute().value == 3.0


# --- masks, and what is not finite ------------------------------------------------------------------------------------


@given(st.lists(st.tuples(ARRAYS, MASKS), min_size=1, max_size=4))
def test_masked_means_per_element(updates):
    """Each element takes the mean of its finite entries under the mask, and skips updates where it has none."""
    ema = Ema(0.75, shape=4)
    means, nonfinite = [[] for _ in range(4)], np.zeros(4, int)
    for x, mask in updates:
        ema.update(x, where=mask)
        nonfinite += (mask & ~np.isfinite(x)).sum(0)
        for k in range(4):
            kept = x[mask[:, k] & np.isfinite(x[:, k]), k]
            means[k] += [kept.astype(np.float64).mean()] if kept.size else []
    result = ema.compute()
    assert result.nonfinite.tolist() == nonfinite.tolist()
    for k in range(4):
        total, weight = reference(0.75, means[k])
        close(result.value[k], total / weight if means[k] else 0.0)
        close(result.weight[k], weight, 1.0)


@pytest.mark.parametrize("x", [np.zeros(0), np.zeros((3, 0)), np.array([np.nan, np.inf])])
def test_an_update_without_finite_entries_leaves_it(x):
    """Nothing, and nothing but NaN and infinities, leave value and weight to the bit."""
    ema, before = fed(0.9, np.ones(3)), fed(0.9, np.ones(3))
    ema.update(x)
    ema.update(np.full(4, 50.0), where=np.zeros(4, bool))
    assert ema.compute().nonfinite == x.size
    assert leaves(ema)[0][:2].tobytes() == leaves(before)[0][:2].tobytes()


def test_sums_beyond_float32_are_left_out_and_counted():
    """An update whose sum overflows does not stay in the average as an infinity; its entries count as nonfinite."""
    ema = fed(0.5, np.ones(3), np.full(5, 3e38), np.array([-3e38, -3e38, np.nan]))
    result = ema.compute()
    assert (result.value, result.weight, result.nonfinite) == (1.0, 0.5, 8)


@pytest.mark.parametrize("debias", [True, False])
def test_traced_and_host_reads_agree_to_the_bit(debias):
    """`compute` inside a trace gives the floats that it gives outside."""
    ema = fed(0.9, *X[10:20], shape=2, debias=debias)
    host, traced = ema.compute(), nnx.jit(lambda e: e.compute())(ema)
    assert host.value.tobytes() == np.asarray(traced.value).tobytes()
    assert host.weight.tobytes() == np.asarray(traced.weight).tobytes()
    assert isinstance(fed(0.9, 1.0).compute().value, float)


# --- merging ----------------------------------------------------------------------------------------------------------


@given(hnp.arrays(np.float32, (3, 4), elements=NEAR), st.integers(1, 4), st.booleans())
def test_merge_pools(x, n, debias):
    """The pooled value is the mean of the values by weight, in any order; further updates go on from there."""
    a, b, c = (fed(0.5, *row[: n + k - 1], np.nan, debias=debias) for k, row in enumerate(x))
    parts = [reference(0.5, row[: n + k - 1]) for k, row in enumerate(x)]
    total, weight = sum(part[0] for part in parts), sum(part[1] for part in parts)
    left, right = nnx.clone(a), nnx.clone(c)
    left.merge(b)
    left.merge(c)
    right.merge(b)
    right.merge(a)
    for merged in (left, right):
        result = merged.compute()
        close(result.value, total / (max(weight, 1.0) if not debias else weight or 1.0))
        close(result.weight, weight, 1.0)
        assert result.nonfinite == 3
    ab, ba = nnx.clone(a), nnx.clone(b)
    ab.merge(b)
    ba.merge(a)
    assert_same_state(ab, ba)
    left.update(1.0)
    close(left.compute().weight, (weight + 1) / 2, 1.0)


# --- modes, replicas --------------------------------------------------------------------------------------------------


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [1.0, 1, -0.1, float("nan"), float("inf"), 2, "0.5", None, True, 1 - 1e-17])
def test_impossible_decays_raise(decay):
    """A decay is a number in [0, 1)."""
    with pytest.raises(tallax.InvalidValueError, match="Ema: decay must be in"):
        Ema(decay)
