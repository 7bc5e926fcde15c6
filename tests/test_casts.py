# SPDX-License-Identifier: Apache-2.0
"""A cast of the whole model's state: counts stay exact, and what was rounded raises at its first use."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tallax
from tests.meshes import KINDS, feed, result_of

X = np.random.default_rng(0).normal(size=(1001, 2)).astype(np.float32)
FLOAT_STATE = {"moments": "moments", "ema": "average"}  # the others keep words only
BAD = np.append(X, np.full_like(X, np.nan), 0)


def scheduled():
    schedule = tallax.ScheduledValue(lambda count: 0.1 + 0.001 * jnp.asarray(count, jnp.float32))
    schedule(33)
    return schedule


def cast(model, dtype, kinds=jnp.floating):
    """Casts the state as `model.half()` does."""
    state = jax.tree.map(lambda v: v.astype(dtype) if jnp.issubdtype(v.dtype, kinds) else v, nnx.state(model))
    nnx.update(model, state)


def fed(name):
    item = KINDS[name]()
    for _ in range(66):
        feed(item, BAD)
    return item


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", sorted(KINDS.keys() - FLOAT_STATE.keys()))
def test_words_are_not_cast(name, dtype):
    """Counts, extremes and activity are kept in words: a cast of floats does not reach them."""
    model, other = nnx.Dict(item=fed(name)), fed(name)
    cast(model, dtype)
    for a, b in zip(result_of(model.item), result_of(other), strict=True):
        assert np.array_equal(a, b)
    feed(model.item, X)
    feed(other, X)
    assert all(np.array_equal(a, b) for a, b in zip(result_of(model.item), result_of(other), strict=True))


def counts_of(item):
    return np.asarray(item.counts if hasattr(item, "counts") else item.nonfinite).tolist()


USES = {
    "update": lambda s: s.update(X),
    "compute": lambda s: s.compute(),
    "merge": lambda s: s.merge(nnx.clone(s)),
    "reset": lambda s: s.reset(),
    "snapshot": lambda s: tallax.snapshot(nnx.Dict(s=s)),
}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("name", FLOAT_STATE)
def test_a_cast_statistic_raises_at_its_first_use(name, use, dtype):
    """Every use names the statistic and the dtype, eager and traced, and leaves the state; counts are still exact."""
    model = nnx.Dict(item=fed(name))
    before, counts = nnx.clone(nnx.state(model)), counts_of(model.item)
    cast(model, dtype)
    kept = jax.tree.map(np.asarray, nnx.as_pure(nnx.state(model)))
    text = rf"model\.item: its state must be float32, but was cast(.|\n)*{jnp.dtype(dtype).name}\["
    whole = lambda model: use(model.item)  # noqa: E731
    for act in (whole, nnx.jit(whole), nnx.jit(whole, graph=False)):
        with pytest.raises(tallax.InvalidTypeError, match=text):
            act(model)
    jax.tree.map(np.testing.assert_array_equal, kept, nnx.as_pure(nnx.state(model)))
    assert counts_of(model.item) == counts
    assert repr(model.item).startswith(type(model.item).__name__)
    nnx.update(model, before)
    use(model.item)


@pytest.mark.parametrize("name", FLOAT_STATE)
def test_readings_of_a_cast_statistic_raise(name):
    """`collect`, a Logger, and a compiled step with a cast statistic raise."""
    model = nnx.Dict(item=KINDS[name](), step=tallax.Counter())
    cast(model, jnp.bfloat16)
    text = "item: its state must be float32, but was cast"
    with pytest.raises(tallax.InvalidTypeError, match=text):
        tallax.collect(model)
    with (
        pytest.raises(tallax.InvalidTypeError, match=text),
        tallax.compile_step(lambda m: m.item.update(X), model) as s,
    ):
        s()
    with tallax.compile_step(lambda m: m.step.increment(), model) as step:
        step()
        with pytest.raises(tallax.InvalidTypeError, match=text):
            step.collect()
    assert int(model.step) == 1


def test_a_cast_schedule_raises():
    """A ScheduledValue keeps its value in float32: calls, reads, pins and releases raise and name it."""
    for use in (lambda t: t(34), lambda t: t.value, lambda t: t(), lambda t: t.pin(1.0), lambda t: t.release()):
        model = nnx.Dict(t=scheduled())
        cast(model, jnp.bfloat16)
        for act in (use, nnx.jit(use)):
            with pytest.raises(tallax.InvalidTypeError, match=r"t: its state must be float32, but was cast"):
                act(model.t)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.int16])
def test_words_that_were_cast_raise(dtype):
    """If the integers are cast too, a Counter and statistics raise and name themselves."""
    for make, use in (
        (lambda: tallax.Counter(2**40), int),
        (lambda: tallax.Counter(2**40), lambda c: c.increment()),
        (lambda: tallax.Counter(2**40), lambda c: c.set(3)),
        (tallax.statistics.Rate, lambda s: s.compute()),
        (tallax.statistics.Extrema, lambda s: s.update(X)),
        (lambda: tallax.statistics.Activity(2), lambda s: s.update(X)),
        (lambda: tallax.statistics.Activity(2), lambda s: s.reset()),
    ):
        model = nnx.Dict(item=make())
        cast(model, dtype, jnp.unsignedinteger)
        with pytest.raises(tallax.InvalidTypeError, match=r"item\S*: its state must be uint32, but was cast"):
            use(model.item)


def test_a_buffer_follows_a_cast():
    """A Buffer has the dtype of its array, so a cast changes it, and a write of the old dtype raises and names it."""
    model = nnx.Dict(b=tallax.Buffer(jnp.zeros(3)))
    cast(model, jnp.bfloat16)
    assert model.b[...].dtype == jnp.bfloat16
    with pytest.raises(
        tallax.InvalidTypeError, match=r"model\.b: a write must not change the dtype of a Buffer(.|\n)*bfloat16"
    ):
        model.b.set_value(jnp.ones(3))
