# SPDX-License-Identifier: Apache-2.0
"""`collect` and `snapshot`: all items at once, exact, as they were at the time, without waiting for the device."""

import gc
import threading
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import tallax
from tests.meshes import AXES, KINDS, P, feed, mesh_of, placed, result_of


class Gate(nnx.Module):
    def __init__(self, rngs):
        self.calls = tallax.StepCounter(rngs)
        self.temperature = tallax.ScheduledValue(optax.linear_schedule(5.0, 1.0, 100))
        self.experts = nnx.List([tallax.statistics.Rate(), tallax.statistics.Rate(2)])
        self.bias = tallax.Buffer(np.zeros(2, np.float32))
        self.scale = tallax.Buffer(0.5)


class Model(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.gate = Gate(rngs)
        self.layer = nnx.Linear(2, 2, rngs=rngs)
        self.step = tallax.Counter(2**40)
        self.tokens = tallax.Counter(2**33, shape=2)
        self.logits = tallax.statistics.Histogram(-1, 1, bins=4)
        self.flag = tallax.Buffer(np.array([True, False]))
        self.small = tallax.Buffer(np.array([1, -2], np.int8))

    def __call__(self, x):
        self.gate.calls()
        self.gate.temperature(self.gate.calls.step)
        for rate in self.gate.experts:
            rate.update(x > 0)
        self.gate.bias += x.mean(0)
        self.step += 1
        self.tokens.count(x > 0)
        self.logits.update(x)
        return self.layer(x)


def batch(seed=0):
    return np.random.default_rng(seed).normal(size=(8, 2)).astype(np.float32)


NAMES = {
    "flag", "gate/bias", "gate/calls/step", "gate/experts/0", "gate/experts/1", "gate/scale", "gate/temperature",
    "logits", "small", "step", "tokens",
}  # fmt: skip


def assert_reads(result, model):
    """Asserts that a reading is what the model's own methods say."""
    assert set(result) == NAMES
    assert result["step"] == int(model.step)
    assert type(result["step"]) is int
    assert result["gate/calls/step"] == int(model.gate.calls)
    assert result["tokens"].dtype == np.uint64
    assert result["tokens"].tolist() == np.asarray(model.tokens).tolist()
    assert result["gate/experts/0"] == model.gate.experts[0].compute()
    assert result["gate/experts/1"].fired.tolist() == model.gate.experts[1].compute().fired.tolist()
    assert result["logits"].counts.tolist() == model.logits.compute().counts.tolist()
    assert result["logits"].counts.dtype == np.uint64
    assert type(result["gate/temperature"]) is float
    assert result["gate/temperature"] == float(model.gate.temperature.value)
    assert (result["gate/bias"].dtype, result["gate/bias"].tolist()) == (np.float32, model.gate.bias[...].tolist())
    assert (type(result["gate/scale"]), result["gate/scale"]) == (float, 0.5)
    assert (result["flag"].dtype, result["flag"].tolist()) == (bool, [True, False])
    assert (result["small"].dtype, result["small"].tolist()) == (np.int8, [1, -2])


@pytest.mark.parametrize("where", ["host", "device", "step"])
def test_all_state_by_name(where):
    """On the host, on the device and in a compiled step: the same names, exact values."""
    model = Model()
    if where == "host":
        assert_reads(tallax.collect(model).result(), model)
    elif where == "device":
        for k in range(3):
            nnx.jit(Model.__call__)(model, batch(k))
        assert_reads(tallax.collect(model).result(), model)
    else:
        with tallax.compile_step(Model.__call__, model) as step:
            assert_reads(step.collect().result(), model)  # before it holds anything
            for k in range(3):
                step(batch(k))
            assert_reads(step.collect().result(), model)
            assert_reads(tallax.collect(model).result(), model)
            reading = step.collect()
        assert_reads(reading.result(), model)


def test_a_reading_shows_the_time_when_it_was_taken():
    """A reading has the values at the time of the call, regardless of when it is resolved."""
    model = Model()
    readings = []
    with tallax.compile_step(Model.__call__, model) as step:
        for k in range(5):
            step(batch(k))
            readings.append(step.collect())
    eager = tallax.collect(model)
    model.step += 10
    model.gate.bias += 1.0
    assert [reading.result()["step"] - 2**40 for reading in reversed(readings)] == [5, 4, 3, 2, 1]
    assert eager.result()["step"] == 2**40 + 5
    assert eager.result()["gate/bias"].tolist() == readings[-1].result()["gate/bias"].tolist()


def test_a_reading_of_donated_state():
    """`nnx.jit` with donation takes the arrays, not the reading."""
    model = Model()
    call = nnx.jit(Model.__call__, donate_argnums=0)
    call(model, batch())
    reading = tallax.collect(model)
    call(model, batch())
    assert reading.result()["step"] == 2**40 + 1


@pytest.mark.parametrize("compiled", [False, True])
def test_a_snapshot_is_the_same_as_arrays(compiled):
    """Inside jit, and outside."""
    model = Model()
    nnx.jit(Model.__call__)(model, batch())
    model.step.set(7)
    found = (nnx.jit(tallax.snapshot) if compiled else tallax.snapshot)(model)
    assert set(found) == NAMES
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(found))
    assert found["step"].dtype == jnp.int32
    expected = tallax.collect(model).result()
    assert int(found["step"]) == expected["step"]
    assert found["logits"].counts.tolist() == expected["logits"].counts.tolist()
    assert found["gate/experts/0"].rate == expected["gate/experts/0"].rate
    assert float(found["gate/temperature"]) == expected["gate/temperature"]
    assert found["tokens"].tolist() == [2**31 - 1] * 2  # int32, saturated


def test_a_snapshot_within_a_compiled_step():
    """A compiled step can return a snapshot."""
    model = Model()

    def run(model, x):
        model(x)
        return tallax.snapshot(model)["gate/experts/1"]

    with tallax.compile_step(run, model) as step:
        fired = [step(batch(k)).fired.tolist() for k in range(2)]
    assert fired[1] == model.gate.experts[1].compute().fired.tolist()


def test_several_objects():
    """Equal names of two objects get a prefix."""
    one, other = Model(), Model()
    one.step += 1
    found = tallax.collect(one, other).result()
    assert (found["step"], found["1/step"]) == (2**40 + 1, 2**40)
    assert len(found) == 2 * len(NAMES)
    with tallax.compile_step(lambda student, teacher: (student(batch()), None)[1], one, other) as step:
        step()
        found = step.collect().result()
    assert (found["step"], found["teacher/step"]) == (2**40 + 2, 2**40)


def test_a_scheduled_that_was_never_called():
    """It reads as the schedule's first value."""
    model = nnx.Dict(t=tallax.ScheduledValue(optax.linear_schedule(5.0, 1.0, 100)))
    assert tallax.collect(model).result() == {"t": 5.0}


def test_any_thread_may_ask():
    """Ten threads get the one result."""
    model = Model()
    nnx.jit(Model.__call__)(model, batch())
    reading = tallax.collect(model)
    results = []
    threads = [threading.Thread(target=lambda: results.append(reading.result())) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 10
    assert all(result is results[0] for result in results)
    assert reading.done()
    assert repr(reading) == "<Reading of 11 items: ready>"


def test_a_dropped_reading_keeps_nothing():
    """A dropped reading keeps neither its arrays nor the model alive; a resolved one keeps only the result."""
    model = Model()
    nnx.jit(Model.__call__)(model, batch())
    old = weakref.ref(model.gate.bias.get_raw_value())
    reading = tallax.collect(model)
    model.gate.bias.set_value(jnp.zeros(2))
    gc.collect()
    assert old() is None
    gathered = weakref.ref(reading._copies)
    del reading
    gc.collect()
    assert gathered() is None


@pytest.mark.parametrize("kind", AXES)
@pytest.mark.parametrize("name", KINDS)
def test_on_a_mesh(kind, name):
    """Values that are replicated on a mesh are read in one copy."""
    mesh = mesh_of(kind)
    model = nnx.Dict(item=KINDS[name]() if name not in ("rate", "moments", "extrema", "ema") else KINDS[name](shape=2))
    x = placed(jnp.asarray(batch()), mesh, "data")
    with jax.set_mesh(mesh):
        nnx.jit(lambda model, x: feed(model.item, x))(model, x)
        result = tallax.collect(model).result()["item"]
    for found, expected in zip(jax.tree.leaves(result), result_of(model.item), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_buffer_that_is_split():
    """It comes whole."""
    mesh = mesh_of("auto")
    model = nnx.Dict(bias=tallax.Buffer(placed(jnp.arange(8.0), mesh, "data")), step=tallax.Counter(3))
    assert model.bias[...].sharding.spec == P("data")
    found = tallax.collect(model).result()
    assert found["bias"].tolist() == list(range(8))
    assert found["step"] == 3


def test_counts_beyond_every_float():
    """A count is an int, exact up to 2**64 - 1, in a step, too."""
    model = nnx.Dict(a=tallax.Counter(2**53), b=tallax.Counter(2**64 - 1), c=tallax.Counter(2**63, shape=(2, 2)))

    def run(model):
        model.a += 1
        model.b += 1
        model.c += 1

    with tallax.compile_step(run, model) as step:
        step()
        found = step.collect().result()
    assert (found["a"], found["b"], found["c"].tolist()) == (2**53 + 1, 2**64 - 1, [[2**63 + 1] * 2] * 2)


def test_a_model_without_state():
    """Then there is nothing to wait for."""
    reading = tallax.collect(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
    assert reading.done()
    assert reading.result() == {}


def test_a_number_in_front_hides_nothing():
    """A prefix never hides a name: all three values are present."""
    first = nnx.Dict({"c": tallax.Counter(3), "1": nnx.Dict(c=tallax.Counter(4))})
    values = tallax.collect(first, nnx.Dict(c=tallax.Counter(5))).result()
    assert values == {"c": 3, "1/c": 4, "1/1/c": 5}
