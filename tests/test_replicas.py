# SPDX-License-Identifier: Apache-2.0
"""Sharded and mapped programs: the count of the whole, or an error that says what it needs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tallax
from tallax.statistics import Activity, Ema, Extrema, Histogram, LogHistogram, Moments, Rate

P = jax.P
AXES = {"auto": jax.sharding.AxisType.Auto, "explicit": jax.sharding.AxisType.Explicit}
X = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)


class Items(nnx.Module):
    def __init__(self, axis_name=None):
        self.seen = tallax.Counter(2**32 - 10)
        self.rate = Rate(axis_name=axis_name)
        self.histogram = Histogram(-2, 2, bins=8, axis_name=axis_name)
        self.log = LogHistogram(0.1, axis_name=axis_name)

    def feed(self, x, **how):
        self.seen.increment(x.shape[0], **how)
        self.rate.update(x > 0)
        self.histogram.update(x)
        self.log.update(x, where=x > 0)


def check(items, rounds):
    assert int(items.seen) == 2**32 - 10 + 64 * rounds
    result = items.rate.compute()
    assert (result.fired, result.total) == ((X > 0).sum() * rounds, X.size * rounds)
    assert items.histogram.compute().counts.tolist() == (np.histogram(X, items.histogram.edges)[0] * rounds).tolist()
    whole = LogHistogram(0.1)
    whole.update(X, where=X > 0)
    assert items.log.compute().buckets.tolist() == (whole.compute().buckets * np.uint64(rounds)).tolist()


def mesh_of(kind, shape=(8,), names=("data",)):
    return jax.make_mesh(shape, names, axis_types=(AXES[kind],) * len(names))


@pytest.mark.parametrize("kind", AXES)
def test_counts_are_global_under_jit(kind):
    """With a batch split over devices, a compiled step counts the whole batch."""
    items = Items()
    x = jax.device_put(X, jax.NamedSharding(mesh_of(kind), P("data")))
    step = nnx.jit(lambda items, x: items.feed(x))
    for _ in range(2):
        step(items, x)
        jax.block_until_ready(items.seen.get_raw_value())
    check(items, 2)


@pytest.mark.parametrize("kind", AXES)
@pytest.mark.parametrize("context", [False, True])
def test_masks_and_two_split_axes_under_jit(kind, context):
    """A histogram takes a mask, and values split over several axes of a mesh, with and without a mesh in context."""
    mesh = mesh_of(kind, (4, 2), ("data", "model"))
    histogram = Histogram(-2, 2, bins=8)
    x = jax.device_put(X, jax.NamedSharding(mesh, P("data", "model")))
    mask = jax.device_put((X[:, :1] > 0), jax.NamedSharding(mesh, P("data")))

    def update():
        nnx.jit(lambda h, x, mask: h.update(x, where=mask))(histogram, x, mask)
        histogram.update(x)

    if context:
        with jax.set_mesh(mesh):
            update()
    else:
        update()
    expected = np.histogram(X[X[:, 0] > 0], histogram.edges)[0] + np.histogram(X, histogram.edges)[0]
    assert histogram.compute().counts.tolist() == expected.tolist()


@pytest.mark.parametrize("kind", AXES)
@pytest.mark.parametrize("names", [("data",), ("data", "model")])
def test_shard_map_sums_increments_over_the_axes_they_vary_on(kind, names):
    """Increments are summed over the batch's axis, and never over one on which they are replicated."""
    mesh = mesh_of(kind, (8,) if len(names) == 1 else (4, 2), names)
    items = Items()
    graphdef, state = nnx.split(items)
    replicate = jax.tree.map(lambda _: P(), state)

    def body(state, x):
        items = nnx.merge(graphdef, state)
        items.feed(x, like=x)
        return nnx.state(items)

    step = jax.jit(jax.shard_map(body, mesh=mesh, in_specs=(replicate, P("data")), out_specs=replicate))
    x = jax.device_put(X, jax.NamedSharding(mesh, P("data")))
    state = jax.device_put(state, jax.NamedSharding(mesh, P()))
    for _ in range(2):
        state = jax.block_until_ready(step(state, x))
    nnx.update(items, state)
    check(items, 2)


def test_without_replication_checks_axis_name_says_it():
    """Under check_vma=False nothing can be seen: it raises, or takes axis_name=."""
    mesh = mesh_of("auto")
    for axis_name in (None, "data"):
        items = Items(axis_name=axis_name)
        graphdef, state = nnx.split(items)

        def body(state, x, graphdef=graphdef, axis_name=axis_name):
            items = nnx.merge(graphdef, state)
            items.feed(x, axis_name=axis_name)
            return nnx.state(items)

        mapped = jax.jit(jax.shard_map(body, mesh=mesh, in_specs=(P(), P("data")), out_specs=P(), check_vma=False))
        if axis_name is None:
            with pytest.raises(tallax.ReplicasError, match=r"items\.seen: inside shard_map(.|\n)*axis_name="):
                mapped(state, X)
        else:
            nnx.update(items, jax.block_until_ready(mapped(state, X)))
            check(items, 1)


def test_a_constant_increment_in_shard_map_asks():
    """`+= 1` inside shard_map may mean one or one each: it raises. axis_name=() and StepCounter count once."""
    mesh = mesh_of("auto")
    model = nnx.Dict(c=tallax.Counter(), step=tallax.StepCounter(nnx.Rngs(0)))
    graphdef, state = nnx.split(model)

    def mapped(act):
        def body(state, x):
            model = nnx.merge(graphdef, state)
            act(model)
            return nnx.state(model)

        return jax.jit(jax.shard_map(body, mesh=mesh, in_specs=(P(), P("data")), out_specs=P()))

    with pytest.raises(tallax.ReplicasError, match=r"model\.c: (.|\n)*axis_name=\(\)"):
        mapped(lambda model: model.c.increment())(state, X)
    once = mapped(lambda model: (model.c.increment(axis_name=()), model.step()))(state, X)
    nnx.update(model, jax.block_until_ready(once))
    assert (int(model.c), int(model.step.step)) == (1, 1)
    each = mapped(lambda model: model.c.increment(axis_name="data"))(state, X)
    nnx.update(model, jax.block_until_ready(each))
    assert int(model.c) == 1 + 8


def test_replicas_may_keep_counts_of_their_own():
    """State that varies over the axis itself is counted per replica, without a collective, and sums at the end."""
    mesh = mesh_of("auto")
    counter = tallax.Counter(shape=8)
    graphdef, state = nnx.split(nnx.Dict(c=counter))

    def body(state, x):
        model = nnx.merge(graphdef, state)
        model.c.count(jnp.ones(x.shape[0], bool)[:, None])
        model.c.increment(jnp.where(x[:1, 0] > 0, 1, 0))
        return nnx.state(model)

    step = jax.jit(jax.shard_map(body, mesh=mesh, in_specs=(P("data"), P("data")), out_specs=P("data")))
    assert "all-reduce" not in step.lower(state, X).compile().as_text()
    nnx.update(nnx.Dict(c=counter), jax.block_until_ready(step(state, X)))
    assert np.asarray(counter).tolist() == (8 + (X[::8, 0] > 0)).tolist()


def test_vmapped_replicas_take_axis_name():
    """Under vmap a broadcast module takes the sum over lanes by axis_name=."""
    items = Items(axis_name="lanes")

    def feed(items, x):
        items.feed(x, axis_name="lanes")

    nnx.vmap(feed, in_axes=(None, 0), out_axes=None, axis_name="lanes")(items, jnp.asarray(X).reshape(8, 8, 2))
    check(items, 1)


KINDS = {
    "rate": Rate,
    "histogram": lambda **how: Histogram(-2, 2, bins=8, **how),
    "log-histogram": lambda **how: LogHistogram(0.1, **how),
    "moments": Moments,
    "extrema": Extrema,
    "ema": lambda **how: Ema(0.9, **how),
    "activity": lambda **how: Activity(2, **how),
}


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_a_statistic_broadcast_over_vmap_counts_every_lane_once_or_raises(make):
    """On a module that vmap broadcasts, axis_name= takes in every lane once; without it, the write raises."""
    lanes = jnp.asarray(X).reshape(8, 8, 2)
    feed = nnx.vmap(lambda s, x: s.update(x), in_axes=(None, 0), out_axes=None, axis_name="lanes")
    whole, statistic, refused = make(), make(axis_name="lanes"), make()
    whole.update(X)
    feed(statistic, lanes)
    for a, b in zip(jax.tree.leaves(statistic.compute()), jax.tree.leaves(whole.compute()), strict=True):
        np.testing.assert_allclose(np.asarray(a, float), np.asarray(b, float), rtol=1e-6, atol=1e-7)
    before = jax.tree.leaves(refused.compute())
    with pytest.raises(ValueError, match=r"None|batched"):
        feed(refused, lanes)
    for a, b in zip(jax.tree.leaves(refused.compute()), before, strict=True):
        assert np.array_equal(a, b)
