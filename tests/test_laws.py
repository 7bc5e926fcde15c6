# SPDX-License-Identifier: Apache-2.0
"""The laws of the design, each over every item and every mode of compilation."""

import copy
import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import tallax
from tests.cases import MODES, STATE_CASES, Everything, Model, assert_same_state, batch, leaves

every_state_case = pytest.mark.parametrize("item", STATE_CASES.values(), ids=STATE_CASES)
every_mode = pytest.mark.parametrize("compiled", MODES.values(), ids=MODES)


def model_of(item) -> Model:
    return Model(item.make)


# --- 1. Not trainable -------------------------------------------------------------------------------------------------


@every_state_case
def test_no_parameter(item):
    """No filter for parameters selects tallax state, and no parameter count includes it."""
    model = model_of(item)
    params = nnx.state(model, nnx.Param)
    assert set(params) == {"layer"}
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 3 * 2 + 2


@every_mode
def test_an_optimizer_with_weight_decay_leaves_it(compiled):
    """adamw changes the parameters, but no type of state."""
    model = Everything()
    model(batch())
    before = {name: leaves(part) for name, part in model.parts.items()}
    optimizer = nnx.Optimizer(model, optax.adamw(0.1, weight_decay=0.5), wrt=nnx.Param)
    both = nnx.Dict(model=model, optimizer=optimizer)

    def step(both, x):
        graphdef, params, rest = nnx.split(both.model, nnx.Param, ...)
        grads = jax.grad(lambda params: nnx.merge(graphdef, params, rest).layer(x).sum())(params)
        with jax.numpy_dtype_promotion("standard"):  # optax itself mixes dtypes
            both.optimizer.update(both.model, grads)

    kernel = np.asarray(model.layer.kernel[...])
    compiled(step)(both, batch())
    assert not np.array_equal(kernel, both.model.layer.kernel[...])
    for name, kept in before.items():
        for a, b in zip(kept, leaves(both.model.parts[name]), strict=True):
            assert a.tobytes() == b.tobytes(), name


def _read(inner):
    return inner.b[...] * inner.w[...]


def _write(inner):
    inner.b[...] = inner.w[...] * 10.0
    return inner.b.get_raw_value() * inner.w[...]  # what was stored, past the guard of reads


def _write_part(inner):
    inner.c[0] = inner.w[...] * 10.0
    return inner.c.get_raw_value()[0] * inner.w[...]


@every_mode
@pytest.mark.parametrize(("use", "by_param"), [(_read, 2.0), (_write, 30.0), (_write_part, 30.0)])
def test_no_gradient_flows_in_or_out(compiled, use, by_param):
    """A value that is read from or written to a buffer is constant to a gradient."""
    model = nnx.Dict(w=nnx.Param(jnp.float32(3.0)), b=tallax.Buffer(2.0), c=tallax.Buffer(np.ones(2)))

    def grads(model):
        graphdef, params, rest = nnx.split(model, nnx.Param, ...)
        return jax.grad(lambda params, rest: use(nnx.merge(graphdef, params, rest)), argnums=(0, 1))(params, rest)

    by_params, by_rest = compiled(grads)(model)
    assert jax.tree.leaves(by_params)[0] == by_param
    assert use is not _read or jax.tree.leaves(by_rest["b"]) == [0]


# --- 2. Exact ---------------------------------------------------------------------------------------------------------

EDGES = {"2**24": 2**24, "2**31": 2**31, "2**32": 2**32, "2**64": 2**64 - 1}


@every_mode
@pytest.mark.parametrize("edge", EDGES.values(), ids=EDGES)
def test_counts_pass_the_edges(compiled, edge):
    """Five compiled increments from two below an edge are five, or stay at 2**64 - 1; each mode agrees with eager."""
    model, eager = Model(tallax.Counter), Model(tallax.Counter)
    model.item.set(edge - 2)
    eager.item.set(edge - 2)
    step = compiled(STATE_CASES["counter"].touch)
    for k in range(1, 6):
        step(model, batch())
        STATE_CASES["counter"].touch(eager, batch())
        assert int(model.item) == int(eager.item) == min(edge - 2 + k, 2**64 - 1)


@every_mode
def test_large_increments_carry(compiled):
    """Increments beyond 32 bits, and sums beyond 32 bits, carry into the high word."""
    model = Model(lambda: tallax.Counter(shape=2))

    def step(model, x):
        model.item += 2**40 + 1
        model.item.increment(x)
        model.item.count(jnp.broadcast_to(x, (3, 2)))

    compiled(step)(model, jnp.array([2**32 - 1, 5], jnp.uint32))
    assert np.asarray(model.item).tolist() == [2**40 + 1 + 4 * (2**32 - 1), 2**40 + 1 + 20]


@every_mode
def test_counters_add_and_set_counters_exactly(compiled):
    """A Counter adds to a Counter, and sets one, beyond int32 also where both are traced; so do merged statistics."""
    model = nnx.Dict(a=tallax.Counter(5), b=tallax.Counter(2**40), c=tallax.Counter())
    model.r, model.s = tallax.statistics.Rate(), tallax.statistics.Rate()
    model.s.counts.set(np.array([2**33, 2**34], np.uint64))

    def step(model):
        model.a += model.b
        model.c.set(model.b)
        model.r.merge(model.s)

    compiled(step)(model)
    compiled(step)(model)
    assert (int(model.a), int(model.c)) == (2**41 + 5, 2**40)
    assert model.r.compute().total == 2**35


@every_mode
def test_the_seeds_spelling_is_exact_in_a_trace(compiled):
    """`counter.value += 1` passes 2**31 - 1 also where it is traced."""
    model = Model(lambda: tallax.Counter(2**31 - 3))

    def step(model):
        model.item.value += 1
        model.item[...] += 1

    for _ in range(3):
        compiled(step)(model)
    assert int(model.item) == 2**31 + 3


# Counted once (3) and loud where it can't be (4): tests/test_matrix.py.

# --- 5 and 6. The same in every mode; shape, dtype and weak type never drift -----------------------------------------


@every_state_case
@every_mode
def test_modes_agree_to_the_bit(item, compiled):
    """Compiled steps with eager writes in between are bit-equal to eager ones, trace once, and keep all types."""
    model, eager = model_of(item), model_of(item)
    traces = []

    def touch(model, x):
        traces.append(1)
        item.touch(model, x)

    step = compiled(touch)
    before = [(leaf.shape, leaf.dtype) for leaf in leaves(model)]
    for k in range(4):
        step(model, batch(k))
        item.touch(model, batch(3 - k))
        for seed in (k, 3 - k):
            item.touch(eager, batch(seed))
        assert_same_state(model.item, eager.item)
    assert len(traces) == 1
    assert [(leaf.shape, leaf.dtype) for leaf in leaves(model)] == before
    assert not any(getattr(leaf, "weak_type", False) for leaf in jax.tree.leaves(nnx.as_pure(nnx.state(model))))


# --- copies -----------------------------------------------------------------------------------------------------------

compiled_touch = functools.cache(lambda item: nnx.jit(item.touch))
COPIES = {
    "pickle": lambda item: pickle.loads(pickle.dumps(item)),
    "deepcopy": copy.deepcopy,
    "clone": lambda item: nnx.clone(nnx.Dict(item=item)).item,
    "split-merge": lambda item: nnx.merge(*nnx.split(nnx.Dict(item=item)), copy=True).item,
}


@every_state_case
@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("compiled", [False, True])
def test_copies_keep_the_value_and_live_on(item, copied, compiled):
    """A copy has the same bits, counts on as the original does, and does not change the original."""
    model = model_of(item)
    touch = compiled_touch(item) if compiled else item.touch
    touch(model, batch(0))
    other = model_of(item)
    other.item = copied(model.item)
    assert type(other.item) is type(model.item)
    assert_same_state(other.item, model.item)
    before = leaves(model.item)
    touch(other, batch(1))
    for a, b in zip(before, leaves(model.item), strict=True):
        assert a.tobytes() == b.tobytes()
    touch(model, batch(1))
    assert_same_state(other.item, model.item)


# --- 7. Few arrays ----------------------------------------------------------------------------------------------------


@every_state_case
def test_few_arrays(item):
    """A type owns one array, or a Counter and a Buffer; no count is stored in floats."""
    variables = [v for _, v in nnx.iter_graph(nnx.Dict(i=item.make())) if isinstance(v, nnx.Variable)]
    kinds = sorted(type(variable).__name__ for variable in variables)
    assert kinds in (["Buffer"], ["Counter"], ["Buffer", "Counter"])
    assert all(len(jax.tree.leaves(variable)) == 1 for variable in variables)


# --- eval mode --------------------------------------------------------------------------------------------------------


STOPPED = [name for name in STATE_CASES if name.partition("-")[0] not in ("counter", "buffer")]


@every_mode
def test_eval_mode_counts_nothing(compiled):
    """model.eval() and nnx.view(model, deterministic=True) stop counting; model.train() starts it again."""
    model, eager = Everything(STOPPED), Everything(STOPPED)
    step = compiled(lambda model, x: (model(x), None)[1])

    def assert_same():
        for name in STOPPED:
            assert_same_state(model.parts[name], eager.parts[name])

    model(batch())
    eager(batch())
    model.eval()
    step(model, batch())
    model(batch())
    assert_same()
    model.train()
    step(nnx.view(model, deterministic=True), batch())
    assert_same()
    step(model, batch())
    eager(batch())
    assert_same()
