# SPDX-License-Identifier: Apache-2.0
"""A model of `nnx.eval_shape` is restored into: it never has other values than those of the checkpoint."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import tallax
from tallax.interop import from_linen, from_torch
from tests.cases import STATE_CASES, Everything
from tests.test_checkpoints import bits, in_mode, same

MESH = jax.make_mesh((4,), ("model",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])


@pytest.fixture(autouse=True)
def standard_promotion():
    """Flax's layers and optax mix dtypes."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


class Model(nnx.Module):
    """Parameters, statistics, streams, a stack of layers, bare arrays and every item."""

    def __init__(self, seed: int = 0):
        rngs = nnx.Rngs(seed)
        self.layer = nnx.Linear(4, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.stack = nnx.vmap(lambda rngs: nnx.Linear(2, 2, rngs=rngs), in_axes=0)(nnx.Rngs(seed).split(3))
        self.half = nnx.Param(jnp.full(3, seed, jnp.bfloat16))
        self.narrow = nnx.Variable(jnp.full(3, seed, jnp.uint4))
        self.pair = nnx.Variable((jnp.full(1, seed), {"of": jnp.zeros(2) + seed}))
        self.table = nnx.data(jnp.arange(3.0) * seed)
        self.everything = Everything()
        self.count = tallax.Counter(2**60 + seed, shape=2)


def make(seed=0):
    model = Model(seed)
    tx = tallax.inject_schedules(optax.adamw, learning_rate=optax.cosine_decay_schedule(1e-3, 100))
    return nnx.Dict(model=model, optimizer=nnx.Optimizer(model, tx, wrt=nnx.Param))


def abstract_leaves(thing):
    return [leaf for leaf in jax.tree.leaves(nnx.state(thing)) if isinstance(leaf, jax.ShapeDtypeStruct)]


@pytest.mark.parametrize("mode", ["graph", "graph-no-updates", "tree"])
def test_an_abstract_model_is_restored_into(mode, tmp_path):
    """From a folder and from memory, to the bit, without a call that makes values."""
    with in_mode(mode):
        saved = Model(3), nnx.Rngs(5)
        tallax.save(tmp_path / "one", *saved)
        for restore in (
            lambda *things: tallax.restore(tmp_path / "one", *things),
            lambda *things: tallax.from_checkpoint(tallax.to_checkpoint(*saved), *things),
        ):
            things = nnx.eval_shape(Model), nnx.eval_shape(lambda: nnx.Rngs(0))
            assert abstract_leaves(things)
            report = restore(*things)
            assert not report.missing
            assert not abstract_leaves(things)
            assert same(bits(*saved), bits(*things))
            assert isinstance(things[0].count.get_raw_value(), np.ndarray)  # on the host, as it is made
            things[0].count += 1


def test_an_abstract_optimizer_too(tmp_path):
    """With the model, and its state trains on as the saved one does."""
    saved = make(3)
    tallax.save(tmp_path / "one", saved.model, saved.optimizer)
    abstract = nnx.eval_shape(make)
    tallax.restore(tmp_path / "one", abstract.model, abstract.optimizer)
    assert same(bits(saved), bits(abstract))
    with ocp.StandardCheckpointer() as checkpointer:
        state = {"model": nnx.to_pure_dict(nnx.state(saved.model.layer))}
        checkpointer.save(tmp_path / "old", state)
    layer = nnx.eval_shape(lambda: nnx.Linear(4, 8, rngs=nnx.Rngs(0)))
    tallax.restore(tmp_path / "old", layer)
    assert same(bits(layer), bits(saved.model.layer))


def sharded(seed=0):
    init = nnx.with_partitioning(nnx.initializers.normal(), (None, "model"))
    layer = nnx.Linear(4, 8, kernel_init=init, rngs=nnx.Rngs(seed))
    return nnx.Dict(
        layer=layer, count=tallax.Counter(2**40 + seed), table=tallax.Buffer(jnp.full(4, seed)), r=Everything()
    )


def test_a_sharded_abstract_model_goes_to_its_devices(tmp_path):
    """By `nnx.eval_shape` within a mesh, by `nnx.get_abstract_model`, and by shardings of one's own."""
    with jax.set_mesh(MESH):
        saved = sharded(3)
        tallax.save(tmp_path / "one", saved)
        within = nnx.eval_shape(sharded)
        tallax.restore(tmp_path / "one", within)
    definition, state = nnx.get_abstract_model(sharded, MESH)
    by_flax = nnx.merge(definition, state)
    report = tallax.restore(tmp_path / "one", by_flax)
    assert not report.missing
    by_hand = nnx.merge(definition, jax.tree.map(lambda leaf: leaf, state))
    tallax.from_checkpoint(tallax.to_checkpoint(saved), by_hand)
    for model in (within, by_flax, by_hand):
        assert same(bits(saved), bits(model))
        assert model.layer.kernel[...].sharding.is_equivalent_to(jax.NamedSharding(MESH, jax.P(None, "model")), 2)
        assert len(model.count.get_raw_value().sharding.device_set) == 4
        model.count += 1
        assert int(model.count) == 2**40 + 4


def test_a_mesh_without_devices_is_an_error():
    """A sharding on an abstract mesh finds its devices only where the mesh is set."""
    with jax.set_mesh(MESH):
        saved, abstract = sharded(3), nnx.eval_shape(sharded)
    tree = tallax.to_checkpoint(saved)
    with pytest.raises(tallax.InvalidValueError, match=r"model/count: has a sharding without devices"):
        tallax.from_checkpoint(tree, abstract)
    with jax.set_mesh(MESH):
        tallax.from_checkpoint(tree, abstract)
    assert same(bits(saved), bits(abstract))


def new_model():
    parts = nnx.Dict({name: item.make() for name, item in STATE_CASES.items()})
    scratch = nnx.Dict(count=tallax.Counter(5, persistent=False), rate=tallax.statistics.Rate())
    scratch.rate.counts.set_metadata("persistent", False)
    return nnx.Dict(layer=nnx.Linear(2, 2, rngs=nnx.Rngs(0)), parts=parts, scratch=scratch)


def test_new_state_of_an_abstract_model_has_its_reset_value():
    """Counts are 0, statistics empty and schedules not called; other missing state is an error that names it."""
    old = nnx.Dict(layer=nnx.Linear(2, 2, rngs=nnx.Rngs(3)))
    tree = tallax.to_checkpoint(old)
    abstract, fresh = nnx.eval_shape(new_model), new_model()
    for name in [name for name, node in fresh.parts.items() if isinstance(node, tallax.Buffer)]:
        del abstract.parts[name], fresh.parts[name]  # a Buffer declares no reset value
    tallax.from_checkpoint(tree, abstract, missing="state")
    tallax.from_checkpoint(tree, fresh, missing="state")
    assert not abstract_leaves(abstract)
    assert same(bits(abstract.parts), bits(fresh.parts))
    assert int(abstract.scratch.count) == 0


@pytest.mark.parametrize("persistent", [True, False])
def test_a_variable_without_a_value_is_named(persistent):
    """The error names a parameter, a buffer or a stream without a value; the model stays abstract."""
    old = nnx.Dict(layer=nnx.Linear(2, 2, rngs=nnx.Rngs(3)))

    def make():
        layer = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
        return nnx.Dict(layer=layer, seen=tallax.Counter(), b=tallax.Buffer(jnp.ones(2), persistent=persistent))

    abstract = nnx.eval_shape(make)
    before = nnx.state(abstract)
    with pytest.raises(tallax.RestoreError, match=r"^model/b: of an abstract model is not in the checkpoint"):
        tallax.from_checkpoint(tallax.to_checkpoint(old), abstract, missing="init")
    assert nnx.to_pure_dict(nnx.state(abstract)) == nnx.to_pure_dict(before)
    abstract.b.set_raw_value(jnp.full(2, 7.0))
    tallax.from_checkpoint(tallax.to_checkpoint(old), abstract, missing="init")
    assert abstract.b[...].tolist() == [7, 7]
    assert same(bits(abstract.layer), bits(old.layer))


def test_a_restore_that_fails_leaves_a_model_abstract(tmp_path, monkeypatch):
    """A mismatch, and a failure in the middle of the write."""
    saved = nnx.Dict(a=nnx.Param(jnp.ones(2)), b=nnx.Param(jnp.ones(3)), c=tallax.Counter(3))
    tree = tallax.to_checkpoint(saved)
    tallax.save(tmp_path / "one", saved)
    real = tallax.Counter.set_raw_value

    def fail(self, value, **options):
        if not isinstance(value, jax.ShapeDtypeStruct):
            raise RuntimeError("no")
        real(self, value, **options)

    for shape, error in ((4, tallax.RestoreError), (3, RuntimeError)):
        abstract = nnx.eval_shape(
            lambda shape=shape: nnx.Dict(a=nnx.Param(jnp.ones(2)), b=nnx.Param(jnp.ones(shape)), c=tallax.Counter())
        )
        if error is RuntimeError:
            monkeypatch.setattr(tallax.Counter, "set_raw_value", fail)
        with pytest.raises(error):
            tallax.from_checkpoint(tree, abstract)
        with pytest.raises(tallax.TallaxError):
            tallax.restore(tmp_path / "one", abstract)
        assert len(abstract_leaves(abstract)) == 3


def test_other_libraries_fill_abstract_models():
    """PyTorch's and Linen's arrays, by the same rules."""
    arrays = {"kernel": np.ones((2, 3), np.float32), "bias": np.zeros(3, np.float32)}
    for fill in (
        lambda layer: from_torch({"weight": arrays["kernel"].T, "bias": arrays["bias"]}, layer),
        lambda layer: from_linen({"params": arrays}, layer),
    ):
        layer = nnx.eval_shape(lambda: nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
        fill(layer)
        assert layer(jnp.ones((1, 2))).tolist() == [[2, 2, 2]]


def test_abstract_values_are_not_saved():
    """Saving abstract values is an error."""
    with pytest.raises(tallax.InvalidTypeError, match=r"^model/w: cannot save abstract values"):
        tallax.to_checkpoint(nnx.eval_shape(lambda: nnx.Dict(w=nnx.Param(jnp.ones(2)))))
