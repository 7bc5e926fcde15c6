# SPDX-License-Identifier: Apache-2.0
"""Extrema: the smallest and the largest of any stream, and when each came."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import tallax
from tallax.statistics import Extrema
from tests.cases import MODES, assert_same_state
from tests.meshes import AXES, feed_in_shard_map, mesh_of, placed

ELEMENTS = st.one_of(
    st.floats(width=32, allow_subnormal=False), st.sampled_from([-2.0, -0.0, 0.0, 2.0, np.inf, -np.inf, np.nan])
)
ARRAYS = hnp.arrays(np.float32, 24, elements=ELEMENTS)
MASKS = hnp.arrays(np.bool_, 24)
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


@given(ARRAYS, st.integers(0, 24), st.integers(0, 24))
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


@given(ARRAYS, st.integers(0, 24), st.integers(0, 24))
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


@pytest.mark.parametrize("x", [[1.0, -3.0, np.nan], [np.inf], [-np.inf], [np.nan], []])
def test_reset_is_the_identity_of_merge(x):
    """Merging with an Extrema that was reset changes nothing, on either side."""
    extrema, other = fed(np.array(x)), fed(np.array([5.0, -9.0]))
    before = nnx.clone(extrema)
    other.reset()
    extrema.merge(other)
    assert_same_state(extrema, before)
    other.merge(extrema)
    assert_same_state(other, before)


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


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int8", "int32", "uint32", "float16", "bfloat16", "float32"])
def test_every_dtype_is_taken(dtype):
    """Booleans, integers and narrow floats are compared as the numbers that they are."""
    assert values_of(fed(jnp.array([1, 0, 1, 1], dtype)).compute()) == (0, 1, 4, 4, 4, 0)


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


def test_empty_statistics_report_that_they_are_empty():
    """Before any value the extremes are infinite, the counts 0; the same in a trace, and where all was NaN."""
    nothing = (np.inf, -np.inf, 0, 0, 0, 0)
    assert values_of(Extrema().compute()) == nothing
    assert values_of(nnx.jit(lambda e: e.compute())(Extrema())) == nothing
    assert values_of(fed(np.array([np.nan])).compute()) == (*nothing[:5], 1)
    assert values_of(Extrema(shape=2).compute()) == tuple([part, part] for part in nothing)


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


@pytest.mark.parametrize("compiled", MODES.values(), ids=MODES)
def test_eval_mode_and_one_trace(compiled):
    """Many calls trace once; in eval mode nothing is taken in."""
    model, traces = nnx.Dict(e=Extrema()), []

    def step(model, x):
        traces.append(1)
        model.e.update(x)

    step = compiled(step)
    for k in range(3):
        step(model, jnp.array([k + 1.0, -1.0]))
    assert len(traces) == 1
    model.eval()
    step(model, jnp.array([50.0, -50.0]))
    model.e.update(jnp.array([50.0, -50.0]))
    assert values_of(model.e.compute()) == (-1.0, 3.0, 2, 6, 6, 0)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", AXES)
@pytest.mark.parametrize("context", [False, True])
@pytest.mark.parametrize("spec", [("data",), ("data", "model"), (None, "model")])
@pytest.mark.parametrize("shape", [(), 2])
def test_sharded_batches_under_jit(kind, context, spec, shape):
    """With a batch and a mask split over a mesh, compiled and eager updates search the whole batch."""
    mesh = mesh_of(kind)
    extrema, expected = Extrema(shape), Extrema(shape)
    mask = X[:, :1] > -1
    x, where = placed(X, mesh, *spec), placed(mask, mesh, spec[0])
    with jax.set_mesh(mesh) if context else contextlib.nullcontext():
        step = nnx.jit(lambda e, x, where: e.update(x, where=where))
        for _ in range(2):
            step(extrema, x, where)
            extrema.update(x)
            jax.block_until_ready(extrema.extremes.get_raw_value())
    for _ in range(2):
        expected.update(X, where=mask)
        expected.update(X)
    assert_same_state(extrema, expected)


@pytest.mark.parametrize("kind", AXES)
@pytest.mark.parametrize("shape", [(), 2])
def test_shard_map_searches_every_replica(kind, shape):
    """Replicas that are fed parts of a batch all have the extremes and counts of the whole."""
    extrema, expected = Extrema(shape), Extrema(shape)
    mask = np.isnan(X) | (X > -5)
    for _ in range(2):
        feed_in_shard_map(extrema, mesh_of(kind), X, mask)
        expected.update(X, where=mask)
    assert_same_state(extrema, expected)
    feed_in_shard_map(extrema, mesh_of(kind), X)
    expected.update(X)
    assert_same_state(extrema, expected)
    assert np.min(expected.compute().min) == -7
    assert np.sum(expected.compute().nan) == 3


def test_axis_name_names_axes_that_cannot_be_inferred():
    """Under check_vma=False it raises, or takes axis_name=; under vmap it takes axis_name=."""
    with pytest.raises(tallax.ReplicasError, match="axis_name="):
        feed_in_shard_map(Extrema(), mesh_of("auto"), X, check_vma=False)
    mapped, lanes = Extrema(axis_name="data"), Extrema(axis_name="lanes")
    feed_in_shard_map(mapped, mesh_of("auto"), X, check_vma=False)
    assert_same_state(mapped, fed(X))
    update = nnx.vmap(lambda e, x: e.update(x), in_axes=(None, 0), out_axes=None, axis_name="lanes")
    update(lanes, jnp.asarray(X).reshape(8, 8, 2))
    assert_same_state(lanes, fed(X))


def test_stacked_extrema_are_read_and_reset_together():
    """Extrema stacked by vmap give an entry for each lane, and are reset together."""
    stacked = nnx.vmap(lambda key: Extrema(), in_axes=0, out_axes=0)(jnp.arange(2))
    nnx.vmap(lambda e, x: e.update(x), in_axes=(0, 0), out_axes=0)(stacked, jnp.arange(6.0).reshape(2, 3))
    assert values_of(stacked.compute()) == ([0, 3], [2, 5], [3, 3], [3, 3], [3, 3], [0, 0])
    stacked.reset()
    assert stacked.compute().max.tolist() == [-np.inf, -np.inf]


def test_no_gradient_flows_in():
    """Feeding it adds nothing to a gradient."""
    model = nnx.Dict(w=nnx.Param(jnp.float32(2.0)), e=Extrema())

    def loss(model):
        model.e.update(model.w * jnp.ones(3))
        return model.w[...] ** 2

    assert float(nnx.jit(nnx.grad(loss))(model)["w"][...]) == 4.0
    assert model.e.compute().max == 2.0


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.ones(2, complex), "abc", None])
def test_bad_updates_change_nothing(bad):
    """Values that cannot be compared raise, and the state does not change."""
    extrema = fed(np.ones(2))
    with pytest.raises(tallax.InvalidTypeError, match="extrema: a statistic requires a real array"):
        extrema.update(bad)
    with pytest.raises(tallax.InvalidValueError, match="must broadcast"):
        extrema.update(np.ones(2), where=np.ones(3, bool))
    assert_same_state(extrema, fed(np.ones(2)))


def test_shapes_must_fit():
    """The last axes must have the declared shape, and merged statistics must have equal shapes."""
    extrema = Extrema(shape=2)
    with pytest.raises(tallax.InvalidValueError, match=r"declare Extrema\(shape=...\)"):
        extrema.update(np.ones(3))
    with pytest.raises(tallax.InvalidValueError, match="same type and configuration"):
        extrema.merge(Extrema())
