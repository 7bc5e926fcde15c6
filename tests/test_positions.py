# SPDX-License-Identifier: Apache-2.0
"""The position in the data comes back with everything else, on any number of devices, and is checked."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import tallax
from tallax.checkpoints._positions import read_position, write_position
from tests.test_checkpoints import in_mode


@pytest.fixture(autouse=True)
def standard_promotion():
    """Flax's layers and optax mix dtypes."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


class Batches:
    """Shuffled batches of numbers; by the names of grain's methods."""

    def __init__(self, seed=0):
        self.rng, self.next_index, self.order = np.random.default_rng(seed), 0, ()

    def __next__(self):
        if not self.order:
            self.order = tuple(self.rng.permutation(8).tolist())
        first, *rest = self.order
        self.order, self.next_index = tuple(rest), self.next_index + 1
        return np.full((4, 3), first, np.float32)

    def get_state(self):
        return {"rng": self.rng.bit_generator.state, "next_index": self.next_index, "order": self.order}

    def set_state(self, state):
        self.rng.bit_generator.state = state["rng"]
        self.next_index, self.order = state["next_index"], state["order"]


class Loader:
    """The same by the names of torchdata's methods."""

    def __init__(self):
        self.inner = Batches()

    def state_dict(self):
        return self.inner.get_state()

    def load_state_dict(self, state):
        self.inner.set_state(state)


class Model(nnx.Module):
    def __init__(self, seed=0):
        self.layer = nnx.Linear(3, 2, rngs=nnx.Rngs(seed))
        self.step = tallax.Counter()
        self.examples = tallax.Counter()

    def count(self, x):
        self.step += 1
        self.examples += len(x)


def drawn(data, count):
    return [next(data).tolist() for _ in range(count)]


@pytest.mark.parametrize("mode", ["graph", "graph without updates", "tree"])
def test_the_position_comes_back_with_the_model(tmp_path, mode):
    """One call saves and one restores both; the next batches are those that would have come."""
    with in_mode(mode):
        model, data = Model(), Batches()
        for _ in range(5):
            model.count(next(data))
        with tallax.Checkpoints(tmp_path, batch_size=4) as checkpoints:
            checkpoints.save(5, model, data=data)
        following = drawn(data, 9)
        model, data = Model(1), Batches(1)
        with tallax.Checkpoints(tmp_path, batch_size=4) as checkpoints:
            report = checkpoints.restore(model, data=data)
        assert "data" in report.restored
        assert report.warnings == ()
        assert drawn(data, 9) == following


def test_an_iterator_without_a_name_is_called_data(tmp_path):
    """Also by the methods of torchdata."""
    loader = Loader()
    drawn(loader.inner, 3)
    tallax.save(tmp_path / "a", Model(), loader)
    other = Loader()
    assert "data" in tallax.restore(tmp_path / "a", Model(), other).restored
    assert drawn(other.inner, 9) == drawn(loader.inner, 9)


def test_a_tree_of_orbax_has_the_position():
    """`to_checkpoint` and `from_checkpoint` treat it as they treat everything else."""
    data = Batches()
    drawn(data, 3)
    tree = tallax.to_checkpoint(Model(), data=data)
    other = Batches(1)
    tallax.from_checkpoint(tree, Model(), data=other)
    assert other.get_state() == data.get_state()


def test_missing_and_unexpected_positions():
    """A position is named as any array is: in the errors, in the policies and in the report."""
    with_data, without = tallax.to_checkpoint(Model(), data=Batches()), tallax.to_checkpoint(Model())
    data = Batches(3)
    before = data.get_state()
    with pytest.raises(tallax.RestoreError, match=r"^data: in the checkpoint, but not in the objects"):
        tallax.from_checkpoint(with_data, Model())
    assert tallax.from_checkpoint(with_data, Model(), unexpected=["data"]).unexpected == ("data",)
    with pytest.raises(tallax.RestoreError, match=r"^data: is not in the checkpoint"):
        tallax.from_checkpoint(without, Model(), data=data)
    assert tallax.from_checkpoint(without, Model(), data=data, missing=["data"]).missing == ("data",)
    assert data.get_state() == before
    assert "stream" in tallax.from_checkpoint(with_data, Model(), stream=data, rename={"data": "stream"}).restored


class Refuses(Batches):
    def set_state(self, state):
        if state["next_index"] == 3:
            raise KeyError("iterators_in_use_states")
        super().set_state(state)


def test_a_refused_position_changes_nothing():
    """The restore is all or nothing: if the iterator raises, the model has what it had."""
    data = Batches()
    drawn(data, 3)
    source = Model(1)
    source.step.set(3)
    tree = tallax.to_checkpoint(source, data=data)
    model, other = Model(), Refuses()
    kernel = np.array(model.layer.kernel[...])
    with pytest.raises(tallax.RestoreError, match="data: the iterator does not accept the saved position"):
        tallax.from_checkpoint(tree, model, data=other)
    assert np.array_equal(model.layer.kernel[...], kernel)
    assert (int(model.step), other.next_index) == (0, 0)


numbers = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
arrays = st.sampled_from([np.arange(6).reshape(2, 3), np.float32(0.5), np.array(["x"]), np.zeros(0, bool)])
states = st.recursive(
    numbers | arrays,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=12,
)


class Holds:
    def __init__(self, state=None):
        self.state = state

    def get_state(self):
        return self.state

    def set_state(self, state):
        self.state = state


@hypothesis.given(states)
def test_states_come_back_as_they_were(state):
    """Numbers of any size, text, bytes, arrays, tuples and keys that are numbers are the same, with their types."""
    try:
        position = read_position("data", Holds(state))
    except tallax.InvalidTypeError:
        hypothesis.assume(False)  # a dict with one key that is a tag of the encoding
    other = Holds()
    write_position("data", other, position)
    assert_equal(other.state, state)


def assert_equal(a, b):
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_equal(one, other)
    elif isinstance(a, np.ndarray):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert np.array_equal(a, b)
    else:
        assert a == b


# --- the check with the counters --------------------------------------------------------------------------------------


def saved(tmp_path, step, examples, position, **options):
    model, data = Model(), Batches()
    model.step.set(step)
    model.examples.set(examples)
    data.next_index = position
    with tallax.Checkpoints(tmp_path, **options) as checkpoints:
        checkpoints.save(step, model, data=data)


@pytest.mark.parametrize(
    ("step", "examples", "position", "options", "match"),
    [
        (5, 20, 5, {"batch_size": 4}, None),
        (5, 20, 20, {"batch_size": 4}, None),  # an iterator that counts examples
        (5, 20, 5, {}, None),
        (5, 21, 5, {"batch_size": 4}, r"model/examples: does not agree with model/step(.|\n)*20, for batches of 4"),
        (5, 20, 6, {"batch_size": 4}, r"data/next_index: does not agree(.|\n)*5 batches, or 20 examples"),
        (5, 21, 5, {}, r"model/examples: does not agree(.|\n)*a multiple of 5"),
        (2**33, 2**35, 2**33, {"batch_size": 4}, None),  # exact, past 32 bits
    ],
)
def test_counts_that_disagree_are_named(tmp_path, step, examples, position, options, match):
    """Saving warns once, by name; restoring warns too, and the report has the warning."""
    if match is None:
        saved(tmp_path, step, examples, position, **options)
    else:
        with pytest.warns(UserWarning, match=match):
            saved(tmp_path, step, examples, position, **options)
    with tallax.Checkpoints(tmp_path, **options) as checkpoints:
        if match is None:
            assert checkpoints.restore(Model(), data=Batches()).warnings == ()
        else:
            with pytest.warns(UserWarning, match=match):
                report = checkpoints.restore(Model(), data=Batches())
            assert report.warnings


# --- another number of devices ----------------------------------------------------------------------------------------


def mesh_of(count):
    return jax.make_mesh((count,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:count])


def per_replica_model(count, mesh):
    """State that each replica counts for itself, beside parameters that are split over all devices."""
    model = nnx.Dict(
        weights=nnx.Param(jax.device_put(jnp.zeros((8, 3)), jax.NamedSharding(mesh, jax.P("data")))),
        seen=tallax.Counter(2**32 - 3),
        odd=tallax.statistics.Rate(),
        largest=tallax.Buffer(jnp.float32(-jnp.inf), reduce="max"),
        steps=tallax.Counter(reduce="replicated"),
    )
    return tallax.per_replica(model, mesh, "data") if count else model


def test_restores_on_8_4_2_and_8_devices_with_every_count_exact(tmp_path):
    """Per-replica state is combined by its reduction at each save, and parameters go where the new mesh has them."""
    seen, odd, largest, steps = 2**32 - 3, 0, -np.inf, 0
    for number, devices in enumerate((8, 4, 2, 8)):
        mesh = mesh_of(devices)
        model = per_replica_model(devices, mesh)
        data = Batches()
        with tallax.Checkpoints(tmp_path) as checkpoints:
            if number:
                checkpoints.restore(model, data=data)
                assert model.weights[...].sharding == jax.NamedSharding(mesh, jax.P("data"))
                assert np.array_equal(model.weights[...], np.full((8, 3), steps))
            assert data.next_index == steps
            graphdef, state = nnx.split(model)
            specs = tallax.replica_specs(state)

            def body(state, x, graphdef=graphdef):
                model = nnx.merge(graphdef, state)
                model.seen.increment(x.shape[0], like=x)
                model.odd.update(x % 2)
                model.largest[...] = jnp.maximum(model.largest[...], x.max().reshape(model.largest[...].shape))
                model.steps += 1
                return nnx.state(model)

            step = jax.jit(jax.shard_map(body, mesh=mesh, in_specs=(specs, jax.P("data")), out_specs=specs))
            for _ in range(3):
                next(data)
                x = np.arange(64.0, dtype=np.float32) + steps
                state = step(state, jax.device_put(x, jax.NamedSharding(mesh, jax.P("data"))))
                seen, odd, largest, steps = seen + 64, odd + int((x % 2).sum()), max(largest, x.max()), steps + 1
            nnx.update(model, state)
            model.weights[...] = model.weights[...] + 3
            checkpoints.save(steps, model, data=data)
        whole = tallax.combine_replicas(model)
        assert (int(whole.seen), whole.odd.compute().fired, int(whole.steps)) == (seen, odd, steps)
        assert float(jnp.squeeze(whole.largest[...])) == largest


def test_abstract_models_take_each_array_once(tmp_path):
    """A sharded model of `nnx.eval_shape` is restored onto other devices, and no array is made twice."""

    class Wide(nnx.Module):
        def __init__(self, rngs):
            init = nnx.with_partitioning(nnx.initializers.lecun_normal(), ("data", None))
            self.layer = nnx.Linear(64, 512, kernel_init=init, rngs=rngs)
            self.step = tallax.Counter(7)

    def sharded(mesh):
        with jax.set_mesh(mesh):
            return nnx.jit(lambda: Wide(nnx.Rngs(0)))()

    def abstract(mesh):
        with jax.set_mesh(mesh):
            return nnx.eval_shape(lambda: Wide(nnx.Rngs(1)))

    source, data = sharded(mesh_of(8)), Batches()
    drawn(data, 3)
    optimizer = nnx.Optimizer(source, optax.sgd(0.1), wrt=nnx.Param)
    tallax.save(tmp_path / "a", source, optimizer, data)
    kernel = np.array(source.layer.kernel[...])
    for devices in (4, 2, 8):
        mesh, other = mesh_of(devices), Batches(1)
        model = abstract(mesh)
        before = {id(array) for array in jax.live_arrays()}
        with jax.set_mesh(mesh):
            tallax.restore(tmp_path / "a", model, data=other, unexpected=["optimizer"])
        new = [array for array in jax.live_arrays() if id(array) not in before and array.shape == (64, 512)]
        assert len(new) == 1
        assert np.array_equal(model.layer.kernel[...], kernel)
        assert len(model.layer.kernel[...].sharding.device_set) == devices
        assert int(model.step) == 7
        assert other.next_index == 3


# --- grain ------------------------------------------------------------------------------------------------------------


def grain_iterators():
    """Returns makers of iterators as grain's users have them, by name."""
    grain = pytest.importorskip("grain")
    base = grain.MapDataset.source(np.arange(40)).shuffle(seed=3)
    return {
        "dataset": lambda: iter(base.batch(4).repeat().to_iter_dataset()),
        "batched iterator": lambda: iter(base.repeat().to_iter_dataset().batch(4)),
        "mixed": lambda: iter(grain.MapDataset.mix([base, base.map(lambda x: x + 100)], [0.3, 0.7]).to_iter_dataset()),
        "loader": lambda: iter(
            grain.DataLoader(
                data_source=range(40),
                sampler=grain.samplers.IndexSampler(40, shuffle=True, num_epochs=9, seed=1),
                operations=[grain.transforms.Batch(4)],
                worker_count=0,
            )
        ),
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dataset", "batched iterator", "mixed", "loader"])
def test_iterators_of_grain(tmp_path, kind):
    """Every kind of iterator, whose state is a dict or bytes, goes on with the batch that would have come."""
    make = grain_iterators()[kind]
    data = make()
    for _ in range(13):
        next(data)
    tallax.save(tmp_path / "a", Model(), data=data)
    other = make()
    tallax.restore(tmp_path / "a", Model(), data=other)
    for _ in range(9):
        assert np.array_equal(next(other), next(data))
