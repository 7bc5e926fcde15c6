# SPDX-License-Identifier: Apache-2.0
"""Ema: the formula in float64, optax's, masks, what is not finite, and pooling."""

import contextlib

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
from tests.cases import MODES, assert_same_state, leaves
from tests.meshes import AXES, feed_in_shard_map, mesh_of, placed

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


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int8", "int32", "uint32", "float16", "bfloat16", "float32"])
def test_every_dtype_is_taken(dtype):
    """Booleans, integers and narrow floats are averaged in float32, also if the dtype cannot represent the mean."""
    assert fed(0.5, jnp.array([1, 0, 1, 1], dtype)).compute().value == 0.75


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


def test_empty_statistics_report_that_they_are_empty():
    """Before any update the value is 0.0, not NaN, and the weight is 0; the same in a trace."""
    for ema in (Ema(0.9), Ema(0.9, debias=False)):
        traced = nnx.jit(lambda e: e.compute())(ema)
        for result in (ema.compute(), traced):
            assert (float(result.value), float(result.weight), int(result.nonfinite)) == (0.0, 0.0, 0)
    assert Ema(0.9, shape=2).compute().value.tolist() == [0, 0]


@pytest.mark.parametrize("start", [2**16 - 1, 2**32 - 1, 2**48 - 1, 2**64 - 2])
def test_the_count_of_nonfinite_is_exact(start):
    """The count carries through its words to 2**64 - 1 and stays there; inside a trace it saturates."""
    ema = Ema(0.9)
    ema.nonfinite.set(start)
    assert ema.compute().nonfinite == start
    nnx.jit(lambda e: e.update(jnp.array([jnp.nan, 1.0, jnp.inf])))(ema)
    assert ema.compute().nonfinite == min(start + 2, 2**64 - 1)
    assert isinstance(ema.compute().nonfinite, int)
    assert nnx.jit(lambda e: e.compute())(ema).nonfinite == min(start + 2, 2**31 - 1)


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


def test_reset_is_the_identity_of_merge():
    """Merging with an Ema that was reset changes nothing, on either side, to the bit."""
    ema, other = fed(0.9, *X[:20], shape=2), fed(0.9, *X[20:], shape=2)
    before = nnx.clone(ema)
    other.reset()
    ema.merge(other)
    assert_same_state(ema, before)
    other.merge(ema)
    assert_same_state(other, before)
    assert before.compute().nonfinite.tolist() == [2, 1]


# --- modes, replicas --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compiled", MODES.values(), ids=MODES)
def test_eval_mode_and_one_trace(compiled):
    """Many calls trace once; in eval mode nothing is taken in."""
    model, traces = nnx.Dict(e=Ema(0.5)), []

    def step(model, x):
        traces.append(1)
        model.e.update(x)

    step = compiled(step)
    for k in range(3):
        step(model, jnp.array([k, k + 2.0]))
    assert len(traces) == 1
    model.eval()
    step(model, jnp.array([50.0, 50.0]))
    model.e.update(jnp.array([50.0, 50.0]))
    np.testing.assert_allclose(model.e.compute().value, (1 / 8 + 2 / 4 + 3 / 2) / (7 / 8), rtol=1e-6)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", AXES)
@pytest.mark.parametrize("context", [False, True])
@pytest.mark.parametrize("spec", [("data",), ("data", "model"), (None, "model")])
@pytest.mark.parametrize("shape", [(), 2])
def test_sharded_batches_under_jit(kind, context, spec, shape):
    """With a batch and a mask split over a mesh, compiled and eager updates take the mean of the whole batch."""
    mesh = mesh_of(kind)
    ema, expected = Ema(0.75, shape=shape), Ema(0.75, shape=shape)
    mask = ~(X[:, :1] < 3)  # NaN stays
    x, where = placed(X, mesh, *spec), placed(mask, mesh, spec[0])
    with jax.set_mesh(mesh) if context else contextlib.nullcontext():
        step = nnx.jit(lambda e, x, where: e.update(x, where=where))
        for _ in range(2):
            step(ema, x, where)
            ema.update(x)
            jax.block_until_ready(ema.average.get_raw_value())
    for _ in range(2):
        expected.update(X, where=mask)
        expected.update(X)
    np.testing.assert_allclose(ema.compute().value, expected.compute().value, rtol=1e-6)
    assert leaves(ema)[0][..., 1:].tolist() == leaves(expected)[0][..., 1:].tolist()
    masked = (~np.isfinite(X) & mask).sum()
    assert np.sum(ema.compute().nonfinite) == 2 * (masked + 3) > 6


@pytest.mark.parametrize("how", ["auto", "explicit", "axis_name", "vmap"])
def test_replicas_take_the_mean_of_all_entries(how):
    """Replicas with different numbers of entries take the mean of them all, not the mean of their means."""
    axis_name = {"axis_name": "data", "vmap": "lanes"}.get(how)
    ema, expected = Ema(0.75, shape=2, axis_name=axis_name), Ema(0.75, shape=2)
    mask = np.arange(128).reshape(64, 2) < 90
    for _ in range(2):
        expected.update(X, where=mask)
        if how == "vmap":
            update = nnx.vmap(
                lambda e, x, m: e.update(x, where=m), in_axes=(None, 0, 0), out_axes=None, axis_name="lanes"
            )
            update(ema, X.reshape(8, 8, 2), mask.reshape(8, 8, 2))
        else:
            mesh = mesh_of("explicit" if how == "explicit" else "auto")
            feed_in_shard_map(ema, mesh, X, mask, check_vma=axis_name is None)
    np.testing.assert_allclose(ema.compute().value, expected.compute().value, rtol=1e-6)
    np.testing.assert_allclose(ema.compute().weight, expected.compute().weight, rtol=1e-6)
    assert ema.compute().nonfinite.tolist() == expected.compute().nonfinite.tolist() == [4, 2]


def test_replicas_that_cannot_be_seen_raise():
    """Under check_vma=False an update without axis_name= raises."""
    with pytest.raises(tallax.ReplicasError, match="axis_name="):
        feed_in_shard_map(Ema(0.9), mesh_of("auto"), X, check_vma=False)


@pytest.mark.parametrize("compiled", MODES.values(), ids=MODES)
def test_no_gradient_flows_in_or_out(compiled):
    """Neither inputs nor results have a gradient."""
    model = nnx.Dict(w=nnx.Param(jnp.float32(2.0)), e=fed(0.0, 5.0))

    def grads(model):
        graphdef, params, rest = nnx.split(model, nnx.Param, ...)

        def loss(params, rest):
            model = nnx.merge(graphdef, params, rest)
            first = model.e.compute().value
            model.e.update(model.w * jnp.ones(3))
            return first + model.w[...] ** 2 + model.e.compute().value * model.w[...] + model.e.compute().weight

        by_params, by_rest = jax.grad(loss, argnums=(0, 1), allow_int=True)(params, rest)
        return by_params, by_rest["e"]["average"]

    by_params, by_average = compiled(grads)(model)
    assert float(jax.tree.leaves(by_params)[0]) == 4.0 + 2.0
    assert not np.asarray(jax.tree.leaves(by_average)[0]).any()


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [1.0, 1, -0.1, float("nan"), float("inf"), 2, "0.5", None, True, 1 - 1e-17])
def test_impossible_decays_raise(decay):
    """A decay is a number in [0, 1)."""
    with pytest.raises(tallax.InvalidValueError, match="Ema: decay must be in"):
        Ema(decay)


def test_input_that_does_not_fit_changes_nothing():
    """Another shape, kind or decay raises; the state stays."""
    ema = fed(0.9, np.ones(2), shape=2)
    with pytest.raises(tallax.InvalidValueError, match=r"declare Ema\(shape=...\)"):
        ema.update(np.ones(3))
    with pytest.raises(tallax.InvalidTypeError, match="ema: a statistic requires a real array"):
        ema.update(np.ones(2, complex))
    for other in (Ema(0.9), Ema(0.99, shape=2)):
        with pytest.raises(tallax.InvalidValueError, match="same type and configuration"):
            ema.merge(other)
    assert_same_state(ema, fed(0.9, np.ones(2), shape=2))
