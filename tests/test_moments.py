# SPDX-License-Identifier: Apache-2.0
"""Moments: right against float64 NumPy where float32 sums and 32-bit counts fail, split or merged, on any mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import tallax
from tallax.statistics import Moments, _moments, _two_floats
from tests.cases import MODES, assert_same_state
from tests.meshes import AXES, P, mesh_of

# Entries around a mean that may be far off, some of them far out, some of them not numbers.
ENTRIES = st.one_of(
    st.floats(-3, 3, width=32, allow_subnormal=False),
    st.floats(1e3, 1.001e3, width=32),
    st.sampled_from([0.0, 1.0, 1e6, -1e6, np.nan, np.inf, -np.inf]),
)
ARRAYS = hnp.arrays(np.float32, 64, elements=ENTRIES)
MASKS = hnp.arrays(np.bool_, 64)


def normal(mean, deviation, size, seed=0):
    return np.random.default_rng(seed).normal(mean, deviation, size).astype(np.float32)


def check(result, x, tolerance=1e-5):
    """Asserts that a result agrees with NumPy in float64 on the same data: errors in units of the deviation."""
    x = np.asarray(x).astype(np.float64).ravel()
    finite = x[np.isfinite(x)]
    assert (result.count, result.nonfinite) == (finite.size, x.size - finite.size)
    if not finite.size or (finite == finite[0]).all():
        assert result.mean == (finite[0] if finite.size else 0.0)
        assert (result.variance, result.skewness, result.kurtosis) == (0.0, 0.0, 0.0)
        return
    d = finite - finite.mean()
    variance = (d * d).mean()
    deviation, kurtosis = variance**0.5, (d**4).mean() / variance**2
    assert result.mean == pytest.approx(finite.mean(), abs=1e-6 * deviation + 1e-9 * abs(finite).max())
    assert result.variance == pytest.approx(variance, rel=tolerance)
    assert result.skewness == pytest.approx((d**3).mean() / deviation**3, abs=tolerance * kurtosis)
    assert result.kurtosis == pytest.approx(kurtosis - 3, abs=tolerance * kurtosis)


# --- laws -------------------------------------------------------------------------------------------------------------


@given(ARRAYS, MASKS)
def test_equals_numpy(x, mask):
    """Moments are NumPy's in float64; entries that are not finite are counted apart; masked ones not at all."""
    moments = Moments()
    moments.update(x)
    check(moments.compute(), x)
    moments.update(x, where=mask)
    check(moments.compute(), np.concatenate([x, x[mask]]))


@given(ARRAYS, hnp.arrays(np.int8, 64, elements=st.integers(0, 2)))
def test_any_split_of_a_stream_equals_the_whole(x, part):
    """Fed in three parts, or to three that are merged in any order and grouping, it is the whole."""
    fed, pieces = Moments(), [Moments() for _ in range(3)]
    for k, piece in enumerate(pieces):
        fed.update(x, where=part == k)
        piece.update(x, where=part == k)
    check(fed.compute(), x)
    a, b, c = pieces
    left, inner, right = nnx.clone(a), nnx.clone(b), nnx.clone(c)
    for into, other in ((left, b), (left, c), (right, b), (right, a), (inner, c), (a, inner)):
        into.merge(other)
    for merged in (left, right, a):
        check(merged.compute(), x)


def test_updates_of_one_head_leave_the_others():
    """A head whose entries are all masked keeps its moments to the bit while another finds a new pivot and unit."""
    moments = Moments(shape=2)
    moments.update(normal(1e-6, 1e-7, (64, 2)))
    before = np.asarray(moments.moments[...])
    moments.update(normal(1e9, 1.0, (64, 2)), where=np.array([[False, True]]))
    after = np.asarray(moments.moments[...])
    assert after[0].tobytes() == before[0].tobytes()
    assert after[1].tobytes() != before[1].tobytes()


# --- accuracy ---------------------------------------------------------------------------------------------------------

STREAMS = {
    "1e6 +- 1": [normal(1e6, 1, 2**16, k) for k in range(4)],
    "-1e6 +- 0.1": [normal(-1e6, 0.1, 10_007)],
    "zeros, then 1e6": [np.concatenate([np.zeros(1000, np.float32), normal(1e6, 1, 10**5)])],
    "a batch of zeros, then 1e6": [np.zeros(1000, np.float32), normal(1e6, 1, 10**5)],
    "the mean jumps": [normal(mean, 1e-3, 4096, k) for k, mean in enumerate((5.0, -5.0, 1e4, 0.0))],
    "the scale jumps": [normal(0, 10.0**scale, 4096, scale + 6) for scale in (0, 6, -6, 3)],
    "an outlier": [np.append(normal(0, 1, 4095), np.float32(1e10))],
    "near the largest": [normal(0, 1e37, 4096), normal(1e38, 1e36, 4096, 1)],
    "both ends": [np.array([3.4e38, -3.4e38, 1.0, 2.0], np.float32)],
    "small": [normal(1e-24, 1e-26, 4096), normal(0, 1e-30, 4096)],
    "exponential": [np.random.default_rng(0).exponential(1, 2**17).astype(np.float32)],
    "one at a time": list(normal(1e4, 1, (50, 1))),
    "bytes": [np.arange(256, dtype=np.uint8).repeat(100)],
}


@pytest.mark.parametrize("name", STREAMS)
def test_hard_streams(name):
    """A pivot near the mean and a unit of the data's size are found for all streams."""
    moments = Moments()
    for x in STREAMS[name]:
        moments.update(x)
    check(moments.compute(), np.concatenate(STREAMS[name]))


@pytest.mark.parametrize("value", [0.1, 1e6, -3e38, 1e-30, 0.0])
def test_equal_entries_have_no_variance(value):
    """A constant stream has that mean and variance 0, exactly."""
    moments = Moments()
    for size in (1001, 20_000, 1):
        moments.update(np.full(size, value, np.float32))
    check(moments.compute(), np.full(21_002, value, np.float32))


def test_a_hundred_million_entries_around_a_million():
    """Mean 1e6, deviation 1, 1e8 entries, where the usual ways lose the variance: relative error below 1e-6."""
    x = normal(1e6, 1, 10**6)
    exact = x.astype(np.float64)
    moments, state = Moments(), None
    graphdef, state = nnx.split(moments)

    @jax.jit
    def hundred(state, x):
        def body(_, state):
            moments = nnx.merge(graphdef, state)
            moments.update(x)
            return nnx.state(moments)

        return jax.lax.fori_loop(0, 100, body, state)

    nnx.update(moments, hundred(state, x))
    result = moments.compute()
    assert result.count == 10**8
    assert result.mean == pytest.approx(exact.mean(), abs=1e-3)
    assert result.variance == pytest.approx(exact.var(), rel=1e-6)
    squares = float(jnp.mean(jnp.square(x)) - jnp.square(jnp.mean(x)))
    assert abs(squares / exact.var() - 1) > 0.5  # what float32 sums of squares give for one batch


def test_beyond_32_bits_where_others_fail():
    """After 2**33 entries count, mean and variance are right; Welford's and Average's, of nnx.metrics, are not."""
    x = normal(10, 1, 2**13)
    moments = Moments()
    moments.update(x)
    for _ in range(20):
        moments.merge(nnx.clone(moments))
    result = moments.compute()
    assert result.count == 2**33
    assert result.mean == pytest.approx(x.astype(np.float64).mean(), abs=1e-6)
    assert result.variance == pytest.approx(x.astype(np.float64).var(), rel=1e-6)
    traced = nnx.jit(lambda m: m.compute())(moments)
    assert (int(traced.count), float(traced.variance)) == (2**31 - 1, np.float32(result.variance))

    welford, average = nnx.metrics.Welford(), nnx.metrics.Average()
    with jax.numpy_dtype_promotion("standard"):
        for other in (welford, average):
            other.update(values=x)
        mean, variance = float(average.compute()), float(welford.m2[...] / welford.count[...])
        # What they would hold after almost 2**31 such entries; then one batch more.
        average.total[...] = jnp.float32(mean * 2**31)
        welford.m2[...] = jnp.float32(variance * 2**31)
        for other in (welford, average):
            other.count[...] = jnp.asarray(2**31 - 2**12, other.count[...].dtype)
            other.update(values=x)
            assert int(other.count[...]) < 0
        assert mean == pytest.approx(result.mean, rel=1e-6)
        assert float(average.compute()) < 0
        assert not float(welford.compute().standard_deviation) > 0


def test_compensation_survives_compilation():
    """XLA leaves the two-sum alone: a small number added a million times to a large one is not lost."""

    @jax.jit
    def total(high, small):
        zero = jnp.zeros_like(high)
        step = lambda _, pair: _two_floats.add_float(pair, small)  # noqa: E731
        return jax.lax.fori_loop(0, 10**6, step, (high, zero)), jax.lax.fori_loop(
            0, 10**6, lambda _, a: a + small, high
        )

    (high, low), naive = total(jnp.float32(2**24), jnp.float32(0.001))
    assert float(high) + float(low) == pytest.approx(2**24 + 1000, rel=1e-9)
    assert float(naive) == 2**24


# --- shapes and dtypes ------------------------------------------------------------------------------------------------


def test_moments_per_head():
    """With a shape there is one set for each entry of the last axes; masks broadcast."""
    x = normal([0, 1e6, 3], [1, 1, 1e-3], (4, 5, 2, 3))
    mask = normal(0, 1, (4, 5, 1, 1), 1) > 0
    moments = Moments(shape=(2, 3))
    moments.update(x)
    moments.update(x, where=mask)
    result = moments.compute()
    assert (result.count.dtype, result.variance.dtype, result.count.shape) == (np.uint64, np.float64, (2, 3))
    for i, j in np.ndindex(2, 3):
        one = _moments.MomentsResult(*(getattr(result, f)[i, j] for f in result.__dataclass_fields__))
        column = x[:, :, i, j]
        check(one, np.concatenate([column.ravel(), column[mask[..., 0, 0]]]))


@pytest.mark.parametrize("shape", [(), (3,)])
@pytest.mark.parametrize("masked", [False, True])
def test_large_batches_are_cut_into_blocks(shape, masked):
    """The blocked reduction, including its remainder, equals NumPy's result."""
    x = normal(3, 2, (149, 331, *shape))
    x[0, :7] = np.nan
    mask = normal(0, 1, (149, 331), 1) > 0
    moments = Moments(shape)
    moments.update(x, where=mask.reshape(149, 331, *(1,) * len(shape)) if masked else None)
    result = moments.compute()
    taken = x[mask] if masked else x.reshape(-1, *shape)
    for k in range(3 if shape else 1):
        fields = (np.asarray(getattr(result, f)).reshape(-1)[k] for f in result.__dataclass_fields__)
        check(_moments.MomentsResult(*fields), taken.reshape(len(taken), -1)[:, k])


def test_results_are_records():
    """A result passes through transformations, and its numbers are Python's own outside them."""
    moments = Moments()
    moments.update(normal(2, 1, 64))
    result = moments.compute()
    assert [type(leaf) for leaf in jax.tree.leaves(result)] == [int, float, float, float, float, int]
    traced = nnx.jit(lambda m: m.compute())(moments)
    assert [leaf.dtype.name for leaf in jax.tree.leaves(traced)] == ["int32", *["float32"] * 4, "int32"]
    assert np.allclose(jax.tree.leaves(traced), jax.tree.leaves(result), rtol=1e-5, atol=1e-5)


# --- modes and meshes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compiled", MODES.values(), ids=MODES)
def test_large_updates_agree_in_every_mode(compiled):
    """Compiled updates and merges with a blocked reduction are bit-equal to eager ones, with one trace."""
    model, eager = nnx.Dict(m=Moments()), nnx.Dict(m=Moments())
    traces = []

    def touch(model, x):
        traces.append(1)
        model.m.update(x)
        model.m.merge(model.m)

    step = compiled(touch)
    for k in range(3):
        step(model, jnp.asarray(normal(5, 1, 2**15, k)))
        touch(eager, jnp.asarray(normal(5, 1, 2**15, k)))
        traces.pop()
    assert len(traces) == 1
    assert_same_state(model, eager)
    check(model.m.compute(), np.concatenate([np.tile(normal(5, 1, 2**15, k), 2 ** (3 - k)) for k in range(3)]))


BATCH = normal(1e5, 3, (64, 512))
BATCH[3, 4] = np.inf


@pytest.mark.thorough
@pytest.mark.parametrize("kind", AXES)
@pytest.mark.parametrize(
    ("spec", "shape"), [(P("data"), ()), (P("data", "model"), ()), (P(None, "model"), ()), (P("data"), (512,))]
)
def test_sharded_batches_count_whole(kind, spec, shape):
    """Compiled and eager updates with a batch split over a mesh see all of it, masked or not."""
    sharding = jax.NamedSharding(mesh_of(kind), spec)
    x, mask = jax.device_put(BATCH, sharding), jax.device_put(BATCH > 1e5, sharding)
    moments, alone = Moments(shape), Moments(shape)
    step = nnx.jit(lambda m, x, mask: (m.update(x), m.update(x, where=mask)))
    for _ in range(2):
        step(moments, x, mask)
        jax.block_until_ready(moments.moments.get_raw_value())
        alone.update(BATCH)
        alone.update(BATCH, where=BATCH > 1e5)
    moments.update(x)
    alone.update(BATCH)
    got, expected = moments.compute(), alone.compute()
    for name in got.__dataclass_fields__:
        exact = name in ("count", "nonfinite")
        assert np.allclose(getattr(got, name), getattr(expected, name), *((0, 0) if exact else (1e-5, 1e-5)))


@pytest.mark.parametrize("kind", AXES)
@pytest.mark.parametrize("check_vma", [True, False])
def test_replicas_combine(kind, check_vma):
    """Inside shard_map every replica gets the moments of the whole batch, those of other axes counted once."""
    mesh = mesh_of(kind)
    moments = Moments(axis_name=None if check_vma else "data")
    graphdef, state = nnx.split(moments)

    def body(state, x):
        moments = nnx.merge(graphdef, state)
        moments.update(x)
        moments.update(x, where=x > 1e5)
        return nnx.state(moments), jax.tree.map(lambda a: a[None], nnx.state(moments))

    replicas = P() if check_vma else P(("data", "model"))  # with it, types tell that they agree
    step = jax.jit(
        jax.shard_map(body, mesh=mesh, in_specs=(P(), P("data")), out_specs=(P(), replicas), check_vma=check_vma)
    )
    x = jax.device_put(BATCH, jax.NamedSharding(mesh, P("data")))
    state = jax.device_put(state, jax.NamedSharding(mesh, P()))
    for _ in range(2):
        state, every = jax.block_until_ready(step(state, x))
    nnx.update(moments, state)
    check(moments.compute(), np.concatenate([BATCH.ravel(), BATCH[BATCH > 1e5]] * 2))
    copies = np.asarray(jax.tree.leaves(every)[0])
    assert (copies == copies[0]).all()


def test_constants_in_shard_map_ask():
    """An update that is the same on every device is ambiguous: it raises, and axis_name=() counts it once."""
    mesh = mesh_of("auto")

    def run(axis_name):
        moments = Moments(axis_name=axis_name)
        graphdef, state = nnx.split(nnx.Dict(m=moments))

        def body(state, x):
            model = nnx.merge(graphdef, state)
            model.m.update(jnp.arange(8.0))
            return nnx.state(model)

        mapped = jax.shard_map(body, mesh=mesh, in_specs=(P(), P("data")), out_specs=P())
        nnx.update(nnx.Dict(m=moments), jax.jit(mapped)(state, BATCH))
        return moments.compute()

    with pytest.raises(tallax.ReplicasError, match=r"model\.m\.counts: inside shard_map"):
        run(None)
    assert run(()).count == 8
    assert run("data").count == 32


def test_replicas_may_keep_moments_of_their_own():
    """State that varies over the axis itself takes each replica's part, and merges afterwards into the whole."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AXES["auto"],))
    moments = Moments(shape=8)
    graphdef, state = nnx.split(moments)

    def body(state, x):
        moments = nnx.merge(graphdef, state)
        moments.shape = (1,)
        moments.update(x.reshape(-1, 1))
        return nnx.state(moments)

    step = jax.jit(jax.shard_map(body, mesh=mesh, in_specs=(P("data"), P("data")), out_specs=P("data")))
    nnx.update(moments, jax.block_until_ready(step(state, BATCH)))
    whole = Moments()
    for k in range(8):
        part = Moments()
        part.counts.set(np.asarray(moments.counts)[k])
        part.moments[...] = moments.moments[k]
        whole.merge(part)
    check(whole.compute(), BATCH)
