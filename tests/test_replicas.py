# SPDX-License-Identifier: Apache-2.0
"""Sharded and mapped programs: the count of the whole, or an error that says what it needs."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tallax
from tallax.statistics import Histogram, LogHistogram, Rate
from tests.cases import MODES
from tests.meshes import AXES, KINDS, STATISTICS, P, assert_counted_alike, collectives, feed, mesh_of, placed
from tests.quick import cell

X = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
MASK = X[:, :1] > -0.5
EVERY = {"counter": KINDS["counter"], **STATISTICS}
ENTRIES = X.copy()
ENTRIES[5, 0], ENTRIES[7, 1], ENTRIES[9, 0] = np.nan, np.inf, -np.inf


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


@pytest.mark.parametrize("kind", AXES)
def test_counts_are_global_under_jit(kind):
    """With a batch split over devices, a compiled step counts the whole batch."""
    items = Items()
    x = jax.device_put(X, jax.NamedSharding(mesh_of(kind, (8,), ("data",)), P("data")))
    step = nnx.jit(lambda items, x: items.feed(x))
    for _ in range(2):
        step(items, x)
        jax.block_until_ready(items.seen.get_raw_value())
    check(items, 2)


@pytest.mark.parametrize("kind", AXES)
@pytest.mark.parametrize("context", [False, True])
def test_masks_and_two_split_axes_under_jit(kind, context):
    """A histogram takes a mask, and values split over several axes of a mesh, with and without a mesh in context."""
    mesh = mesh_of(kind)
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


def test_without_replication_checks_axis_name_is_needed():
    """Under check_vma=False nothing can be seen: it raises, or takes axis_name=."""
    mesh = mesh_of("auto", (8,), ("data",))
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


def test_a_constant_increment_in_shard_map_raises():
    """`+= 1` inside shard_map may mean one or one each: it raises. axis_name=() and StepCounter count once."""
    mesh = mesh_of("auto", (8,), ("data",))
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
    mesh = mesh_of("auto", (8,), ("data",))
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


@pytest.mark.parametrize("name", EVERY)
def test_state_broadcast_over_vmap_counts_every_lane_once_or_raises(name):
    """On a module that vmap broadcasts, axis_name= takes in every lane once; without it, the write raises."""
    lanes = jnp.asarray(X).reshape(8, 8, 2)
    whole, item, refused = EVERY[name](), EVERY[name](axis_name="lanes"), EVERY[name]()
    feed(whole, X)

    def feed_lanes(item, axis_name):
        model = nnx.Dict(item=item)
        mapped = nnx.vmap(
            lambda model, x: feed(model.item, x, axis_name=axis_name),
            in_axes=(None, 0),
            out_axes=None,
            axis_name="lanes",
        )
        mapped(model, lanes)

    feed_lanes(item, "lanes")
    assert_counted_alike(item, whole)
    with pytest.raises(ValueError, match=r"None|batched"):
        feed_lanes(refused, None)
    assert_counted_alike(refused, EVERY[name]())


# --- every type, every mesh, every mode -------------------------------------------------------------------------------

# The mesh of one axis, and the batch that is split over one of two, are special cases of the others.
SPECIAL = [cell(name, quick=False) for name in ("1d", "2d-data")]
LAYOUTS = {  # the shape and names of a mesh, and how the batch lies on it
    "1d": ((8,), ("data",), P("data")),
    "2d-data": ((4, 2), ("data", "model"), P("data")),
    "2d-both": ((4, 2), ("data", "model"), P(("data", "model"))),
    "2d-features": ((4, 2), ("data", "model"), P("data", "model")),
}


def laid_out(names, kind, layout):
    """Returns state on every device of a mesh, a batch and a mask that are split over it, the mesh, and their spec."""
    shape, axes, spec = LAYOUTS[layout]
    mesh = mesh_of(kind, shape, axes)
    model = nnx.Dict({name: EVERY[name]() for name in names})
    nnx.update(model, placed(nnx.state(model), mesh))
    return model, placed(ENTRIES, mesh, *spec), placed(np.broadcast_to(MASK, X.shape), mesh, *spec), mesh, spec


def feed_twice(model, x, where):
    for item in model.values():
        feed(item, x)
        feed(item, x, where)
    return x


@functools.cache
def fed_twice():
    """Returns state that one device has fed."""
    model = nnx.Dict({name: make() for name, make in EVERY.items()})
    feed_twice(model, ENTRIES, MASK)
    return model


def check_fed_twice(model):
    for name, whole in fed_twice().items():
        assert_counted_alike(model[name], whole, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["2d-both", "2d-features", *SPECIAL])
@pytest.mark.parametrize("kind", AXES)
def test_all_state_is_global_under_jit(kind, layout):
    """A compiled step counts a whole batch, for every split over every mesh."""
    model, x, mask, *_ = laid_out(EVERY, kind, layout)
    jax.block_until_ready(nnx.jit(feed_twice)(model, x, mask))
    check_fed_twice(model)


@pytest.mark.thorough
@pytest.mark.parametrize("context", [False, True])
@pytest.mark.parametrize("layout", ["2d-both", "2d-features"])
@pytest.mark.parametrize("kind", AXES)
def test_eager_updates_of_a_split_batch_count_it_whole(kind, layout, context):
    """Outside a compiled step, a batch that is split over a mesh is counted whole, with the mesh in context or not."""
    model, x, mask, mesh, _ = laid_out(EVERY, kind, layout)
    with jax.set_mesh(mesh) if context else contextlib.nullcontext():
        feed_twice(model, x, mask)
        jax.block_until_ready(nnx.state(model))
        check_fed_twice(model)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["2d-both", *SPECIAL])
@pytest.mark.parametrize("kind", AXES)
def test_all_state_is_global_in_shard_map(kind, layout):
    """Inside shard_map it is summed over the axes that split the batch, and not over those where it is replicated."""
    model, x, mask, mesh, spec = laid_out(EVERY, kind, layout)
    graphdef, state = nnx.split(model)

    def body(state, x, mask):
        model = nnx.merge(graphdef, state)
        feed_twice(model, x, mask)
        return nnx.state(model)

    step = jax.jit(jax.shard_map(body, mesh=mesh, in_specs=(P(), spec, spec), out_specs=P()))
    nnx.update(model, jax.block_until_ready(step(state, x, mask)))
    check_fed_twice(model)


@pytest.mark.thorough
@pytest.mark.parametrize("how", ["jit", "shard_map"])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_counts_alike_on_a_mesh(mode, how):
    """Under jit and under Flax's shard_map: graph mode, without updates, as a tree, and split."""
    model, x, mask, mesh, spec = laid_out(EVERY, "explicit", "2d-data")
    if how == "jit":
        step = MODES[mode](feed_twice)
    else:
        modes = {"graph": {}, "graph-no-updates": {"graph": True, "graph_updates": False}, "tree": {"graph": False}}
        flags = modes.get(mode, {})
        mapped = nnx.shard_map(feed_twice, mesh=mesh, in_specs=(P(), spec, spec), out_specs=spec, **flags)
        step = MODES[mode](mapped)
    jax.block_until_ready(step(model, x, mask))
    check_fed_twice(model)


# --- what is sent -----------------------------------------------------------------------------------------------------

# Over one axis. Counts take one; where floats or extremes are combined too, the documentation says how many.
SENT = {"extrema": 2, "ema": 2}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", AXES)
@pytest.mark.parametrize("name", sorted(KINDS.keys() - {"moments"}))
def test_an_update_is_one_all_reduce(name, kind, masked):
    """A count is combined in one all-reduce an update, and nothing else is sent: under jit and inside shard_map."""
    for layout in ("1d", "2d-data"):
        model, x, mask, mesh, spec = laid_out([name], kind, layout)
        graphdef, state = nnx.split(model)

        def body(state, x, mask, graphdef=graphdef):
            model = nnx.merge(graphdef, state)
            feed(model[name], x, mask if masked else None)
            return nnx.state(model)

        mapped = jax.shard_map(body, mesh=mesh, in_specs=(P(), spec, spec), out_specs=P())
        for step in (body, mapped):
            assert collectives(jax.jit(step), state, x, mask) == {"all-reduce": SENT.get(name, 1)}


@pytest.mark.parametrize("kind", AXES)
def test_moments_send_two_sums_or_three(kind):
    """With the pivot near the mean, moments take two all-reduces, three with a mask; a branch has the others."""
    model, x, mask, mesh, spec = laid_out(["moments"], kind, "1d")
    graphdef, state = nnx.split(model)

    def body(state, x, *mask):
        model = nnx.merge(graphdef, state)
        feed(model.moments, x, *mask)
        return nnx.state(model)

    for args, always in (((x,), 2), ((x, mask), 3)):
        mapped = jax.shard_map(body, mesh=mesh, in_specs=(P(), *(spec for _ in args)), out_specs=P())
        assert collectives(jax.jit(mapped), state, *args, branches=False) == {"all-reduce": always}
        assert collectives(jax.jit(mapped), state, *args) == {"all-reduce": always + 4}


# --- exactness --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [2**32 - 3, 2**40 - 3, 2**64 - 3])
@pytest.mark.parametrize("by", [2**32 - 1, 2**16, 1])
def test_an_all_reduce_carries(start, by):
    """Eight increments, one of each replica, cross 2**32 and 2**40 exactly, and stop at 2**64 - 1."""
    mesh = mesh_of("auto", (8,), ("data",))
    model = nnx.Dict(c=tallax.Counter(start), wide=tallax.Counter(start))
    graphdef, state = nnx.split(model)
    each = np.array([by - k for k in range(8)], np.int64).clip(0).astype(np.uint32)

    def body(state, by):
        model = nnx.merge(graphdef, state)
        model.c.increment(by[0])
        shares = tallax.Counter(2**39)
        shares.increment(by[0], axis_name=())
        model.wide.increment(shares, like=by)
        return nnx.state(model)

    step = jax.jit(jax.shard_map(body, mesh=mesh, in_specs=(P(), P("data")), out_specs=P()))
    nnx.update(model, jax.block_until_ready(step(state, each)))
    total = int(each.sum(dtype=np.uint64))
    assert int(model.c) == min(start + total, 2**64 - 1)
    assert int(model.wide) == min(start + total + 8 * 2**39, 2**64 - 1)


@pytest.mark.parametrize("name", EVERY)
def test_all_state_without_replication_checks(name):
    """Under check_vma=False each type raises and names itself, or gets axis_name= and counts the whole."""
    mesh = mesh_of("auto")
    for axis_name in (None, "data"):
        model = nnx.Dict(item=EVERY[name](axis_name=axis_name))
        graphdef, state = nnx.split(model)

        def body(state, x, graphdef=graphdef, axis_name=axis_name):
            model = nnx.merge(graphdef, state)
            feed(model.item, x, axis_name=axis_name)
            return nnx.state(model)

        mapped = jax.jit(jax.shard_map(body, mesh=mesh, in_specs=(P(), P("data")), out_specs=P(), check_vma=False))
        if axis_name is None:
            with pytest.raises(tallax.ReplicasError, match=r"model\.item\S*: inside shard_map(.|\n)*axis_name="):
                mapped(state, X)
        else:
            nnx.update(model, jax.block_until_ready(mapped(state, X)))
            whole = EVERY[name]()
            feed(whole, X)
            assert_counted_alike(model.item, whole, rtol=1e-5)
