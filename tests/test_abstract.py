# SPDX-License-Identifier: Apache-2.0
"""Abstract models on a mesh: `nnx.eval_shape` puts each Variable's sharding on its abstract value, by `set_value`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tallax
from tests.cases import STATE_CASES, Model
from tests.meshes import AXES, KINDS, P, mesh_of

MAKERS = {
    **{name: item.make for name, item in STATE_CASES.items()},
    **{f"mesh-{name}": make for name, make in KINDS.items()},
}


def forms(model):
    """Returns the shape and dtype of every value in a model, by path."""
    flat = nnx.to_flat_state(nnx.state(model))
    return {path: (leaf.get_raw_value().shape, leaf.get_raw_value().dtype) for path, leaf in flat}


class Sharded(nnx.Module):
    """A Counter and a Buffer whose sharding is declared, beside a Variable of Flax's."""

    def __init__(self):
        self.counter = tallax.Counter(shape=(4, 8), out_sharding=("data", "model"))
        self.buffer = tallax.Buffer(jnp.ones((4, 8)), out_sharding=("data", "model"))
        self.plain = nnx.Variable(jnp.ones((4, 8)), out_sharding=("data", "model"))
        self.step = tallax.Counter()


@pytest.mark.parametrize("graph", [True, False], ids=["graph", "tree"])
@pytest.mark.parametrize("kind", AXES)
@pytest.mark.parametrize("name", MAKERS)
def test_an_abstract_model_is_the_same_on_a_mesh(name, kind, graph):
    """On a mesh, `nnx.eval_shape` gives each type of state the same shape and dtype as without a mesh."""
    expected = forms(nnx.eval_shape(lambda: Model(MAKERS[name]), graph=graph))
    with jax.set_mesh(mesh_of(kind)):
        model = nnx.eval_shape(lambda: Model(MAKERS[name]), graph=graph)
    assert forms(model) == expected
    assert type(model.item) is type(Model(MAKERS[name]).item)
    repr(model)


@pytest.mark.parametrize("kind", AXES)
def test_an_abstract_value_has_the_declared_sharding(kind):
    """The sharding of counts is that of their words, whose last axis is whole."""
    mesh = mesh_of(kind)
    with jax.set_mesh(mesh):
        model = nnx.as_abstract(nnx.eval_shape(Sharded))
    for name in ("counter", "buffer", "plain"):
        raw = getattr(model, name).get_raw_value()
        assert (*raw.sharding.spec, None)[:3] == ("data", "model", None), name
    assert model.counter.shape == (4, 8)
    assert model.counter.get_raw_value().shape == (4, 8, 2)
    assert model.step.get_raw_value().shape == (2,)


@pytest.mark.parametrize("kind", AXES)
def test_a_model_is_made_where_its_abstract_one_lies(kind):
    """`nnx.get_abstract_model` gives the shardings to make a model with, which then counts."""
    mesh = mesh_of(kind)
    _, abstract = nnx.get_abstract_model(Sharded, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    with jax.set_mesh(mesh):
        graphdef, state = jax.jit(lambda: nnx.split(Sharded()), out_shardings=(None, shardings))()
        model = nnx.merge(graphdef, state)
        model.counter += 1
        model.step += 2
        model.buffer[...] = model.buffer[...] + 1.0
    assert model.buffer.get_raw_value().sharding.is_equivalent_to(jax.NamedSharding(mesh, P("data", "model")), 2)
    assert np.asarray(model.counter).tolist() == [[1] * 8] * 4
    assert int(model.step) == 2
    assert np.asarray(model.buffer).tolist() == [[2.0] * 8] * 4


WRITES = {
    "set_value": lambda item, value: item.set_value(value),
    "value": lambda item, value: setattr(item, "value", value),
    "index": lambda item, value: item.__setitem__(..., value),
}
COUNTER, BUFFER = (lambda: tallax.Counter(3, shape=2)), (lambda: tallax.Buffer(jnp.ones(2, jnp.uint32)))


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("make", [COUNTER, BUFFER], ids=["counter", "buffer"])
def test_an_abstract_value_never_replaces_an_array(make, write):
    """A shape is not a value to write: the error leaves the state unchanged."""
    item = make()
    before = np.asarray(item)
    with pytest.raises(tallax.InvalidTypeError, match="ShapeDtypeStruct"):
        write(item, jax.ShapeDtypeStruct((2,), jnp.uint32))
    assert np.asarray(item).tolist() == before.tolist()


@pytest.mark.parametrize("wrong", [((3,), jnp.uint32), ((2,), jnp.float32)], ids=["shape", "dtype"])
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("make", [COUNTER, BUFFER], ids=["counter", "buffer"])
def test_an_abstract_value_keeps_its_shape_and_dtype(make, write, wrong):
    """Only the sharding of an abstract value can be replaced."""
    item = nnx.eval_shape(make)
    before = item.get_raw_value()
    with pytest.raises((tallax.InvalidTypeError, tallax.InvalidValueError)):
        write(item, jax.ShapeDtypeStruct(*wrong))
    assert item.get_raw_value() == before
