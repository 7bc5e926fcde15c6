# SPDX-License-Identifier: Apache-2.0
"""State under `jax.transfer_guard("disallow")`: moved to the devices once, it causes no implicit transfer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tallax
from tests.cases import MODES, STATE_CASES, Model, batch


def on_devices(model):
    """Does what the page says."""
    nnx.update(model, jax.device_put(nnx.state(model)))
    return model


@pytest.mark.parametrize("compiled", MODES.values(), ids=MODES)
@pytest.mark.parametrize("item", STATE_CASES.values(), ids=STATE_CASES)
def test_a_compiled_step_under_the_guard(item, compiled):
    """The first call, and those after it, transfer nothing implicitly."""
    model, alone, x = on_devices(Model(item.make)), Model(item.make), batch()
    step = compiled(lambda model, x: (item.touch(model, x), model(x))[1])
    with jax.transfer_guard("disallow"):
        step(model, x)
        step(model, x)
    step(alone, x)
    step(alone, x)
    np.testing.assert_array_equal(item.read(model.item), item.read(alone.item))


@pytest.mark.parametrize("write", ["reset", "set", "value"])
def test_a_write_keeps_the_value_on_the_device(write):
    """After reset() and other eager writes of a whole value, the next step transfers nothing implicitly."""
    model, x = (
        on_devices(nnx.Dict(c=tallax.Counter(5), v=tallax.Counter(shape=3), b=tallax.Buffer(np.ones(3)))),
        batch(),
    )
    step = nnx.jit(lambda model, x: model.v.count(x > 0))
    step(model, x)
    with jax.transfer_guard("disallow"):
        for item in (model.c, model.v):
            if write == "reset":
                item.reset()
            elif write == "set":
                item.set(3)
            else:
                item.value = 3
        model.b[...] = 0.5
        step(model, x)
    assert int(model.c) == (0 if write == "reset" else 3)
    assert float(model.b[0]) == 0.5


def test_eager_reads_under_the_guard():
    """Values on the host are transferred explicitly."""
    counter, vector, buffer = tallax.Counter(7), tallax.Counter(3, shape=2), tallax.Buffer(np.ones(2, np.float32))
    scheduled, step = tallax.ScheduledValue(lambda count: count.astype(jnp.float32)), jnp.int32(3)
    with jax.transfer_guard("disallow"):
        values = counter.value, vector[...], buffer[...], scheduled(step), scheduled(counter), scheduled.value
    assert [np.asarray(value).tolist() for value in values] == [7, [3, 3], [1.0, 1.0], 3.0, 7.0, 7.0]
