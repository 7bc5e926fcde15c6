# SPDX-License-Identifier: Apache-2.0
"""A share for each replica: no collective in the step, and the whole when it is read."""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tallax
from tests.cases import assert_same_state, leaves
from tests.meshes import AXES, KINDS, P, assert_counted_alike, collectives, feed, mesh_of, placed
from tests.quick import by_turns

X = np.random.default_rng(0).normal(size=(3, 64, 2)).astype(np.float32)
MASK = np.tile(np.arange(64)[:, None] % 4 > 0, (3, 1, 1))  # as many entries for each replica, which Ema asks for
SPLIT = P("data")


class Model(nnx.Module):
    """Every item, of which some count alike on all replicas."""

    def __init__(self):
        self.items = nnx.Dict({name: make() for name, make in KINDS.items()})
        self.layer = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        self.step = tallax.StepCounter(nnx.Rngs(0))
        self.temperature = tallax.ScheduledValue(lambda count: 5.0 - 0.5 * jnp.asarray(count, jnp.float32))
        self.examples = tallax.Counter(2**40)
        self.steps_once = tallax.Counter(7)
        self.total = tallax.Buffer(np.full(3, 4, np.int32), reduce="sum")
        self.low = tallax.Buffer(np.float32(0.5), reduce="min")
        self.high = tallax.Buffer(np.zeros(2, np.float32), reduce="max")

    def feed(self, x, mask):
        for item in self.items.values():
            feed(item, x, mask)
        self.temperature(self.step())
        self.examples.increment(x.shape[0], like=x)
        self.steps_once.increment(axis_name=())
        return self.layer(x)

    def feed_buffers(self, x):
        """A plain buffer keeps this per replica only, because it has no collective."""
        self.total += (x > 0).sum(dtype=jnp.int32)
        self.low[...] = jnp.minimum(self.low[...], x.min())
        self.high[...] = jnp.maximum(self.high[...], x.max(0))


def expected(steps=3):
    model = Model()
    for x, mask in zip(X[:steps], MASK, strict=False):
        model.feed(x, mask)
        model.feed_buffers(jnp.asarray(x))
    return model


def body(model, x, mask):
    model.feed(x, mask)
    model.feed_buffers(x)


def steps_of(mode, model, mesh, batch=SPLIT, check_vma=True):
    """Returns a compiled step that maps `body` over shards, for each way of writing one."""
    if mode in ("graph", "tree"):
        graph = mode == "graph"
        specs = tallax.replica_specs(model, graph=graph)
        mapped = nnx.shard_map(
            body, mesh=mesh, in_specs=(specs, batch, batch), out_specs=None, graph=graph, check_vma=check_vma
        )
        return nnx.jit(mapped, graph=graph)
    graphdef, state = nnx.split(model)
    specs = tallax.replica_specs(state)

    def pure(state, x, mask):
        model = nnx.merge(graphdef, state)
        body(model, x, mask)
        return nnx.state(model)

    mapped = jax.shard_map(pure, mesh=mesh, in_specs=(specs, batch, batch), out_specs=specs, check_vma=check_vma)
    if mode == "split-merge":
        compiled = jax.jit(mapped)
        return lambda model, x, mask: nnx.update(model, compiled(nnx.state(model), x, mask))
    return nnx.jit(
        lambda model, x, mask: nnx.update(model, mapped(nnx.state(model), x, mask)), graph=True, graph_updates=False
    )


def on_mesh(model, mesh):
    """Puts what keeps no shares on every device, as an explicit mesh wants it."""
    for _, variable in nnx.iter_graph(model):
        if isinstance(variable, nnx.Variable) and not variable.get_metadata("per_replica", None):
            variable.set_raw_value(placed(variable.get_raw_value(), mesh))
    return model


def check(combined, whole):
    for name, item in whole.items.items():
        if name == "extrema":  # when extremes came is told in the count of their own replica
            left, right = item.compute(), combined.items[name].compute()
            for field in ("min", "max", "count", "nan"):
                assert getattr(left, field) == getattr(right, field)
        else:
            assert_counted_alike(combined.items[name], item, rtol=1e-5)
    for name in ("examples", "steps_once", "total", "low", "high", "step"):
        assert_same_state(getattr(combined, name), getattr(whole, name))
    assert float(combined.temperature.value) == float(whole.temperature.value)


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "kind"), by_turns(["graph", "tree", "graph-no-updates", "split-merge"], AXES))
def test_per_replica_counts_add_up_to_the_whole(kind, mode):
    """Combined per-replica state equals the count of one device, in every mode, on both kinds of mesh."""
    mesh = mesh_of(kind, (8,), ("data",))
    model = on_mesh(tallax.per_replica(Model(), mesh, "data"), mesh)
    step = steps_of(mode, model, mesh)
    for number in range(3):
        step(model, placed(X[number], mesh, "data"), placed(MASK[number], mesh, "data"))
        jax.block_until_ready(model.examples.get_raw_value())
        if number != 1:
            check(tallax.combine_replicas(model), expected(number + 1))


@pytest.mark.thorough
@pytest.mark.parametrize("kind", AXES)
@pytest.mark.parametrize(
    ("axis_name", "batch"), [("data", P("data")), (("data", "model"), P(("data", "model"))), ("model", P("model"))]
)
def test_per_replica_state_along_any_axes(kind, axis_name, batch):
    """On a mesh of two axes, each replica along the named axes has a value, with copies along the others."""
    mesh = mesh_of(kind)
    model = on_mesh(tallax.per_replica(Model(), mesh, axis_name), mesh)
    step = steps_of("split-merge", model, mesh, batch)
    for x, mask in zip(X, MASK, strict=True):
        step(model, placed(x, mesh, *batch), placed(mask, mesh, *batch))
        jax.block_until_ready(model.examples.get_raw_value())
    check(tallax.combine_replicas(model), expected())


@pytest.mark.parametrize(("name", "kind"), by_turns(KINDS, AXES))
def test_no_collective_in_the_step(name, kind):
    """The compiled step has no collectives for counts with per-replica state along all axes."""
    mesh = mesh_of(kind)
    x = placed(X[0], mesh, ("data", "model"))

    def step_of(item):
        model = nnx.Dict(item=item)
        graphdef, state = nnx.split(model)
        specs = tallax.replica_specs(state)

        def pure(state, x):
            model = nnx.merge(graphdef, state)
            feed(model.item, x)
            return nnx.state(model)

        mapped = jax.shard_map(pure, mesh=mesh, in_specs=(specs, P(("data", "model"))), out_specs=specs)
        return jax.jit(mapped), nnx.state(on_mesh(model, mesh)), x

    item = KINDS[name]()
    assert collectives(*step_of(tallax.per_replica(item, mesh, ("data", "model")))) == {}
    assert set(collectives(*step_of(tallax.per_replica(item, mesh, "data")))) == {"all-reduce"}
    assert set(collectives(*step_of(item))) == {"all-reduce"}


def items(axis_name=None):
    """Returns one of every kind; statistics know an axis name from the start."""
    return nnx.Dict({name: make(axis_name=axis_name) for name, make in KINDS.items()})


def feed_all(model, x, axis_name=None):
    for item in model.values():
        feed(item, x, axis_name=axis_name)


def fed_whole(*batches):
    whole = items()
    for x in batches:
        feed_all(whole, x)
    return whole


# Without XLA's fusion emitters (conftest.py) sums are taken in another order, so a mean near 0 differs by more than its
# share; entries are near 1. The newest stack and `make nightly` compile with them.
WITHOUT_EMITTERS = 1e-6 if "fusion_emitters=false" in os.environ["XLA_FLAGS"] else 0.0


def assert_counts_the_same(combined, whole):
    for name, item in whole.items():
        if name == "extrema":  # when extremes came is told in the count of their own replica
            for field in ("min", "max", "count", "nan"):
                assert getattr(combined[name].compute(), field) == getattr(item.compute(), field)
        else:
            assert_counted_alike(combined[name], item, rtol=1e-5, atol=WITHOUT_EMITTERS)


def step_over(mesh, model, spec, body=feed_all, **how):
    specs = tallax.replica_specs(model)
    return nnx.shard_map(body, mesh=mesh, in_specs=(specs, spec), out_specs=None, **how)


# Of the mesh: its shape, the axes of the shares, and the axes that the batch is split over.
SPLITS = {
    "all axes": ((4, 2), ("data", "model"), P(("data", "model"))),
    "shares over more": ((4, 2), ("data", "model"), P("data")),
    "shares over more, the other axis": ((4, 2), ("data", "model"), P("model")),
    "shares over another": ((4, 2), ("model",), P("data")),
    "shares over fewer": ((4, 2), ("model",), P(("data", "model"))),
    "one of one": ((8, 1), ("data", "model"), P("data")),
    "three axes": ((2, 2, 2), ("data", "model", "pipe"), P("pipe")),
    "two of three": ((2, 2, 2), ("data", "model"), P(("model", "pipe"))),
}


@pytest.mark.optimized  # sums in another order differ by more than the tolerance of a mean near 0
@pytest.mark.parametrize(("split", "kind"), by_turns(SPLITS, AXES))
def test_replicated_increments_count_once(split, kind):
    """An increment that is the same along an axis counts once, for every choice of replica axes."""
    shape, axes, spec = SPLITS[split]
    mesh = mesh_of(kind, shape, ("data", "model", "pipe")[: len(shape)])
    model = on_mesh(tallax.per_replica(items(), mesh, axes), mesh)
    step = nnx.jit(step_over(mesh, model, spec))
    for x in X[:2]:
        step(model, placed(x, mesh, *spec))
        jax.block_until_ready(nnx.state(model))
    assert_counts_the_same(tallax.combine_replicas(model), fed_whole(*X[:2]))


def test_a_batch_split_anew_counts_once():
    """State stays correct if one step splits the batch over both axes and the next step over one."""
    mesh = mesh_of("auto")
    model = tallax.per_replica(items(), mesh, ("data", "model"))
    for x, spec in zip(X, (P(("data", "model")), P("data"), P("model")), strict=True):
        nnx.jit(step_over(mesh, model, spec))(model, placed(x, mesh, *spec))
        jax.block_until_ready(nnx.state(model))
    assert_counts_the_same(tallax.combine_replicas(model), fed_whole(*X))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("kind", AXES)
def test_a_batch_that_is_not_split_raises(name, kind):
    """A batch that every device has as a whole raises and names the variable, on either mesh."""
    mesh = mesh_of(kind)
    for axes in ((), ("data",), ("data", "model")):
        model = nnx.Dict(item=KINDS[name]())
        model = on_mesh(tallax.per_replica(model, mesh, axes) if axes else model, mesh)
        step = step_over(mesh, model, P(), feed_all)
        with pytest.raises(tallax.ReplicasError, match=r"item\S*: inside shard_map"):
            nnx.jit(step)(model, placed(X[0], mesh))


def test_check_vma_false_needs_axis_names():
    """Under check_vma=False an update raises and names the variable, unless it has axis names."""
    mesh = mesh_of("auto")
    for make in KINDS.values():
        model = tallax.per_replica(nnx.Dict(item=make()), mesh, ("data", "model"))
        with pytest.raises(tallax.ReplicasError, match=r"item\S*: inside shard_map"):
            nnx.jit(step_over(mesh, model, P("data"), check_vma=False))(model, X[0])
    model = tallax.per_replica(items(axis_name="data"), mesh, ("data", "model"))
    body = functools.partial(feed_all, axis_name="data")
    nnx.jit(step_over(mesh, model, P("data"), body, check_vma=False))(model, X[0])
    jax.block_until_ready(nnx.state(model))
    assert_counts_the_same(tallax.combine_replicas(model), fed_whole(X[0]))


def _in_grad(model, x):
    def loss(model, x):
        feed_all(model.items_of, x)
        return (x @ model.w[...]).sum()

    tallax.value_and_grad(loss)(model, x)


INSIDE = {
    "cond": lambda m, x: nnx.cond(x[0, 0] < 9, lambda m, x: feed_all(m.items_of, x), lambda m, x: None, m, x),
    "remat": nnx.remat(lambda m, x: feed_all(m.items_of, x)),
    "grad": _in_grad,
}


@pytest.mark.slow
@pytest.mark.parametrize("inside", INSIDE.values(), ids=INSIDE)
def test_nested_transformations_count_once(inside):
    """Per-replica state counts once within cond, remat and grad inside `shard_map`, also over more axes."""
    mesh = mesh_of("auto")
    model = tallax.per_replica(nnx.Dict(items_of=items(), w=nnx.Param(jnp.ones(2))), mesh, ("data", "model"))
    nnx.jit(step_over(mesh, model, P("data"), lambda m, x: inside(m, x) and None))(model, X[0])
    jax.block_until_ready(nnx.state(model))
    assert_counts_the_same(tallax.combine_replicas(model).items_of, fed_whole(X[0]))


@pytest.mark.slow
def test_compile_step_counts_once():
    """Per-replica state counts once in compiled steps, called and scanned."""
    mesh = mesh_of("auto")
    model = tallax.per_replica(items(), mesh, ("data", "model"))
    step = step_over(mesh, model, P("data"))
    with tallax.compile_step(step, model) as compiled:
        compiled(placed(X[0], mesh))
        compiled.scan(placed(X[1:], mesh))
        compiled.sync()
    assert_counts_the_same(tallax.combine_replicas(model), fed_whole(*X))


def test_merging_shares():
    """Per-replica state merges per-replica state, and replicated state once; the reverse raises."""
    mesh = mesh_of("auto", (8,), ("data",))
    names = KINDS.keys() - {"counter"}

    def merge(model):
        for name in names:
            model.a[name].merge(model.b[name])

    def merged(left, right):
        model = nnx.Dict(a=nnx.clone(left), b=nnx.clone(right))
        specs = tallax.replica_specs(model)
        nnx.jit(nnx.shard_map(merge, mesh=mesh, in_specs=(specs,), out_specs=None))(model)
        return nnx.Dict({name: tallax.combine_replicas(model.a)[name] for name in names})

    wholes = fed_whole(X[0]), fed_whole(X[1])
    expected = nnx.Dict({name: nnx.clone(wholes[0][name]) for name in names})
    for name in names:
        expected[name].merge(wholes[1][name])
    shares = [tallax.per_replica(whole, mesh, "data") for whole in wholes]
    assert_counts_the_same(merged(shares[0], wholes[1]), expected)
    assert_counts_the_same(merged(*wholes), expected)
    with pytest.raises(tallax.ReplicasError, match=r"model\.a\S*: a replicated statistic cannot merge"):
        merged(wholes[0], shares[1])
    assert_counts_the_same(merged(*shares), expected)


def test_a_constant_increment_raises():
    """A constant increment does not show its axes, so it raises without axis_name=."""
    mesh = mesh_of("auto")
    model = tallax.per_replica(nnx.Dict(c=tallax.Counter()), mesh, "data")

    def run(by=None, like=False, **how):
        def count(model, x):
            model.c.increment(x.shape[0] if by is None else by, like=x if like else None, **how)

        specs = tallax.replica_specs(model)
        nnx.jit(nnx.shard_map(count, mesh=mesh, in_specs=(specs, P("data", "model")), out_specs=None))(model, X[0])
        return int(tallax.combine_replicas(model).c)

    for by in (None, 1, np.int32(1), np.ones((), np.uint32), True):
        with pytest.raises(tallax.ReplicasError, match=r"model\.c: inside shard_map"):
            run(by)
    assert run(axis_name="model") == 2 * 16
    assert run(axis_name=("data", "model")) == 32 + 2 * 64
    assert run(axis_name=()) == 160 + 16
    assert run(like=True) == 176 + 2 * 64
    assert run(2**40, axis_name=()) == 304 + 2**40


def test_axis_name_of_a_statistic_is_not_summed_into_shares():
    """A statistic with the axis name of its replicas counts each entry once."""
    mesh = mesh_of("auto", (8,), ("data",))
    for name in KINDS.keys() - {"counter"}:
        model = tallax.per_replica(nnx.Dict(s=KINDS[name](axis_name="data")), mesh, "data")
        specs = tallax.replica_specs(model)
        update = nnx.shard_map(lambda m, x: m.s.update(x), mesh=mesh, in_specs=(specs, P("data")), out_specs=None)
        nnx.jit(update)(model, X[0])
        whole = KINDS[name]()
        whole.update(X[0])
        combined = tallax.combine_replicas(model.s)
        if name == "extrema":
            assert combined.compute().count == whole.compute().count
        else:
            assert_counted_alike(combined, whole)


@pytest.mark.parametrize("start", [2**32 - 3, 2**40 - 3, 2**64 - 3])
def test_carries_cross_words_between_replicas(start):
    """Sums that cross 2**32 or 2**40 carry exactly; beyond 2**64 - 1 they saturate."""
    mesh = mesh_of("auto", (8,), ("data",))
    counter = tallax.Counter(start, shape=2)
    shares = tallax.per_replica(counter, mesh, "data")
    raw = np.asarray(shares.get_raw_value()).reshape(8, 2, 2).copy()
    assert (raw[1:] == 0).all()
    raw[1:, 0] = [2**32 - 1, 0]
    shares.set_raw_value(placed(raw.reshape(16, 2), mesh, "data"))
    combined = np.asarray(tallax.combine_replicas(shares))
    assert combined.tolist() == [min(start + 7 * (2**32 - 1), 2**64 - 1), start]


@pytest.mark.parametrize("name", KINDS)
def test_earlier_counts_stay(name):
    """Distributed and combined without a step in between, state is bit-equal, and counts on."""
    mesh = mesh_of("auto", (8,), ("data",))
    item = KINDS[name]()
    feed(item, np.where(X[0] > 1, np.float32(np.nan), X[0]))
    feed(item, X[1], MASK[1])
    combined = tallax.combine_replicas(tallax.per_replica(item, mesh, "data"))
    assert_same_state(combined, item)
    feed(combined, X[2])
    feed(item, X[2])
    assert_counted_alike(combined, item)


def test_the_model_is_left_as_it_was():
    """Both directions return copies: neither argument changes, also if they raise."""
    mesh = mesh_of("auto", (8,), ("data",))
    model = expected(1)
    before = leaves(model)
    shares = tallax.per_replica(model, mesh, "data")
    assert all(np.array_equal(a, b) for a, b in zip(leaves(model), before, strict=True))
    kept = leaves(shares)
    tallax.combine_replicas(shares)
    with pytest.raises(tallax.ReplicasError, match=r"shares\.\S+: already has per-replica state"):
        tallax.per_replica(shares, mesh, "data")
    assert all(np.array_equal(a, b) for a, b in zip(leaves(shares), kept, strict=True))
    assert shares.layer.kernel[...] is model.layer.kernel[...]
    assert_same_state(tallax.combine_replicas(model), model)


def test_only_selected_state_is_per_replica():
    """Only selected variables get per-replica state; others, and replicated ones, stay global."""
    mesh = mesh_of("auto", (8,), ("data",))
    model = tallax.per_replica(Model(), mesh, "data", only=nnx.PathContains("items"))
    keeping = {path[0] for path, item in nnx.iter_graph(model) if getattr(item, "_replica_axes", ())}
    assert keeping == {"items"}
    model = tallax.per_replica(Model(), mesh, "data")
    keeping = {path[0] for path, item in nnx.iter_graph(model) if getattr(item, "_replica_axes", ())}
    assert keeping == {"items", "examples", "steps_once", "total", "low", "high"}
    assert int(model.step) == 0


def test_per_replica_state_is_not_read_as_a_value():
    """Outside of the step every read, write and result of per-replica state raises, but printing works."""
    mesh = mesh_of("auto", (8,), ("data",))
    model = tallax.per_replica(Model(), mesh, "data")
    counter, buffer = model.examples, model.high
    acts = [
        lambda: int(counter),
        lambda: counter.value,
        lambda: counter[...],
        lambda: np.asarray(counter),
        lambda: counter.every(2),
        counter.increment,
        lambda: counter.set(3),
        counter._advance_by_one,
        lambda: buffer[...],
        lambda: np.asarray(buffer),
        lambda: buffer.set_value(np.zeros(16, np.float32)),
        lambda: nnx.jit(lambda model: model.examples.increment())(model),
        *(functools.partial(feed, item, X[0]) for item in model.items.values()),
        *(item.compute for name, item in model.items.items() if name != "counter"),
        *(item.reset for item in model.items.values()),
    ]
    before = leaves(model)
    for act in acts:
        with pytest.raises(tallax.ReplicasError, match="has per-replica state, which must be combined"):
            act()
    assert all(np.array_equal(a, b) for a, b in zip(leaves(model), before, strict=True))
    assert "per_replica=(('data',), (2,))" in repr(counter)
    nnx.display(counter)
    assert repr(model.items["rate"]) == "Rate(shape=())"
    assert repr(model.items["moments"]) == "Moments(shape=())"


def test_differing_copies_raise():
    """If check_vma=False let copies drift apart, combining and `assert_replicated` name the variable."""
    mesh = mesh_of("auto", (8,), ("data",))
    model = nnx.Dict(same=tallax.Counter(reduce="replicated"), fine=tallax.Counter(), w=nnx.Param(jnp.zeros(2)))
    tallax.assert_replicated(model, only=...)

    def drift(model, x):
        model.same.increment((x[0, 0] > 0).astype(jnp.int32))

    nnx.shard_map(drift, mesh=mesh, in_specs=(P(), P("data")), out_specs=None, check_vma=False)(model, X[0])
    for act in (tallax.combine_replicas, tallax.assert_replicated):
        with pytest.raises(tallax.ReplicasError, match=r"model\.same: the copies of a replicated value differ"):
            act(model)
    model.same.set_raw_value(np.zeros(2, np.uint32))
    tallax.assert_replicated(model)


@pytest.mark.parametrize("kind", AXES)
def test_assert_replicated_accepts_split_state(kind):
    """Parts of a split array differ by right; the same part on two devices must not."""
    mesh = mesh_of(kind)
    model = nnx.Dict(
        split=nnx.Param(placed(X[0], mesh, "data")),
        key=nnx.Variable(jax.random.key(3)),
        shares=tallax.per_replica(expected(1), mesh, "data"),
    )
    tallax.assert_replicated(model, only=...)
    shards = [shard.data for shard in model.split.get_raw_value().addressable_shards]
    shards[5] = shards[5].at[3, 1].add(1e-3)
    model.split.set_raw_value(
        jax.make_array_from_single_device_arrays((64, 2), jax.NamedSharding(mesh, P("data")), shards)
    )
    with pytest.raises(tallax.ReplicasError, match=r"model\.split: (.|\n)*2 different values"):
        tallax.assert_replicated(model, only=...)
    tallax.assert_replicated(model)


def test_a_count_that_is_the_same_takes_constants():
    """A Counter(reduce="replicated") counts a step once inside shard_map, and a count of the batch whole."""
    mesh = mesh_of("auto")
    model = nnx.Dict(step=tallax.Counter(reduce="replicated"))

    def body(model, x):
        model.step += 1
        model.step.count(x > 0)

    nnx.jit(nnx.shard_map(body, mesh=mesh, in_specs=(P(), P("data")), out_specs=None))(model, X[0])
    assert int(model.step) == 1 + (X[0] > 0).sum()


def test_one_device_and_shared_variables():
    """A mesh of one device works, and a variable with two paths has one per-replica state."""
    mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1], axis_types=(AXES["auto"],))
    counter = tallax.Counter(2**33)
    model = tallax.per_replica(nnx.Dict(a=counter, b=counter), mesh, "data")
    assert model.a is model.b
    specs = tallax.replica_specs(model)

    def body(model, x):
        model.a.increment(x.shape[0], like=x)

    nnx.jit(nnx.shard_map(body, mesh=mesh, in_specs=(specs, P("data")), out_specs=None))(model, X[0])
    assert int(tallax.combine_replicas(model).b) == 2**33 + 64


def test_setting_per_replica_state_sets_the_whole():
    """`set` and `reset` set the combined value; a write of a value that was read raises in every spelling."""
    mesh = mesh_of("auto", (4, 2))
    model = tallax.per_replica(nnx.Dict(c=tallax.Counter(5, shape=2)), mesh, ("data", "model"))

    def whole_after(body):
        nnx.jit(step_over(mesh, model, P("data"), body))(model, X[0])
        return np.asarray(tallax.combine_replicas(model).c).tolist()

    assert whole_after(lambda model, x: model.c.set(7)) == [7, 7]
    assert whole_after(lambda model, x: model.c.set(np.array([2**40, 3], np.uint64))) == [2**40, 3]
    assert whole_after(lambda model, x: model.c.set((x > 0).sum(0))) == (X[0] > 0).sum(0).tolist()
    assert whole_after(lambda model, x: model.c.reset()) == [0, 0]

    def part(model, x):
        model.c[0] += 1

    def value(model, x):
        model.c.value += (x > 0).sum(0)

    def all_of_it(model, x):
        model.c[...] = model.c[...] + 1

    for body in (part, value, all_of_it):
        with pytest.raises(tallax.ReplicasError, match=r"model\.c: with per-replica state"):
            whole_after(body)
    assert np.asarray(tallax.combine_replicas(model).c).tolist() == [0, 0]
