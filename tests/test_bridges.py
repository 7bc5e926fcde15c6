# SPDX-License-Identifier: Apache-2.0
"""Counts stay exact where Flax keeps them itself: pure dicts, `nnx.bridge`, serialization."""

from __future__ import annotations

import copy
import pickle

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, serialization

import tallax
from tallax.interop import from_linen

STARTS = (0, 5, 2**31 - 3, 2**32 - 1, 2**40, 2**64 - 2)


@pytest.fixture(autouse=True)
def standard_promotion():
    """Flax's layers mix dtypes."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def make(start):
    model = nnx.Dict(one=tallax.Counter(start), many=tallax.Counter(start, shape=2), rate=tallax.statistics.Rate())
    model.rate.counts.set(start)
    return model


def by_replacing(model, other):
    state = nnx.state(other)
    nnx.replace_by_pure_dict(state, nnx.to_pure_dict(nnx.state(model)))
    nnx.update(other, state)


def by_msgpack(model, other):
    told = serialization.to_bytes(nnx.to_pure_dict(nnx.state(model)))
    nnx.update(other, serialization.from_bytes(nnx.to_pure_dict(nnx.state(other)), told))


WAYS = {
    "to_pure_dict": lambda model, other: nnx.update(other, nnx.to_pure_dict(nnx.state(model))),
    "to_pure_dict-jit": lambda model, other: nnx.update(other, jax.jit(nnx.to_pure_dict)(nnx.state(model))),
    "update-jit": lambda model, other: nnx.jit(nnx.update)(other, nnx.to_pure_dict(nnx.state(model))),
    "replace_by_pure_dict": by_replacing,
    "as_pure": lambda model, other: nnx.update(other, nnx.as_pure(nnx.state(model))),
    "tree-map": lambda model, other: nnx.update(other, jax.tree.map(jnp.asarray, nnx.state(model))),
    "msgpack": by_msgpack,
    "pickle": lambda model, other: nnx.update(other, nnx.state(pickle.loads(pickle.dumps(model)))),
    "deepcopy": lambda model, other: nnx.update(other, nnx.state(copy.deepcopy(model))),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("start", STARTS)
def test_a_count_survives(way, start):
    """A count survives every way in which state is extracted and written back, on any device."""
    for placed in (False, True):
        model, other = make(start), make(1)
        if placed:
            nnx.update(model, jax.device_put(nnx.state(model), jax.devices()[0]))
        WAYS[way](model, other)
        other.one += 1
        assert (int(other.one), np.asarray(other.many).tolist()) == (start + 1, [start] * 2)
        assert other.rate.compute().total == start


def test_a_count_in_a_computation_is_an_int32():
    """`value`, indexing, `jnp.asarray` and a user's `get_value()` saturate at int32; NumPy is exact."""
    counter = make(2**40).one
    own = nnx.to_pure_dict(nnx.state(nnx.Dict(c=counter)), lambda variable: variable.get_value())
    for read in (counter.value, counter[...], jnp.asarray(counter), counter.get_value(), counter + 0, own["c"]):
        assert (read.dtype, int(read)) == (jnp.int32, 2**31 - 1)
    assert int(np.asarray(counter)) == 2**40
    other = make(0)
    nnx.update(other, {"one": own["c"]})
    with pytest.raises(tallax.InvalidValueError, match="restored from a saturated int32 value"):
        int(other.one)


class Count(nnx.Module):
    def __init__(self, start, rngs):
        self.one = tallax.Counter(start)
        self.many = tallax.Counter(start, shape=2)
        self.rate = tallax.statistics.Rate()
        self.table = tallax.Buffer(jnp.zeros(2))

    def __call__(self, x):
        self.one += 1
        self.many += 1
        self.rate.update(x > 0)
        self.table += 1.0
        return self.one.every(2)


def counts(variables):
    """Returns the counts of Linen's variables, by the way that docs/coming-from-linen.md has."""
    model = Count(0, nnx.Rngs(0))
    from_linen(variables, model)
    return int(model.one), np.asarray(model.many).tolist(), model.rate.compute().total, model.table[...].tolist()


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("start", STARTS[:-1])
def test_a_module_within_linen_counts_on(start, jit):
    """`nnx.bridge.to_linen`: every count is exact after every call, and conditions see the true one."""
    linen, x = nnx.bridge.to_linen(Count, start), jnp.ones(3)
    variables = linen.init(jax.random.key(0), x)
    apply = jax.jit(lambda variables: linen.apply(variables, x, mutable=list(variables)))
    call = apply if jit else lambda variables: linen.apply(variables, x, mutable=list(variables))
    for k in range(1, 5):
        even, changed = call(variables)
        variables = {**variables, **changed}
        assert counts(variables) == (start + k, [start + k] * 2, 3 * k, [k, k])
        assert bool(even) == ((start + k) % 2 == 0)


def test_a_linen_module_within_nnx_counts_on():
    """`nnx.bridge.ToNNX` of a Linen module with an NNX module in it."""

    class Linen(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nnx.bridge.to_linen(Count, 2**40)(x)

    model = nnx.bridge.ToNNX(Linen(), rngs=nnx.Rngs(0)).lazy_init(jnp.ones(3))
    first = {path[-1]: int(np.asarray(node).max()) for path, node in found(model)}
    for _ in range(3):
        model(jnp.ones(3), mutable=True)
    assert {path[-1]: int(np.asarray(node).max()) for path, node in found(model)} == {
        name: count + (9 if name == "counts" else 3) for name, count in first.items()
    }
    assert first["one"] >= 2**40


def found(model):
    return [(path, node) for path, node in nnx.to_flat_state(nnx.state(model)) if isinstance(node, tallax.Counter)]
