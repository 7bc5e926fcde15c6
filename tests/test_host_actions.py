# SPDX-License-Identifier: Apache-2.0
"""Whatever the host does to the objects between two calls, a compiled step does as `nnx.jit` does, to the bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tallax
from tests.quick import cell


class Net(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(4, 2, rngs=rngs)
        self.clock = tallax.StepCounter(rngs)
        self.active = tallax.statistics.Rate(shape=4)
        self.scale = 1.0
        self.gain = nnx.data(None)

    def __call__(self, x):
        self.clock()
        y = nnx.relu(self.dropout(self.norm(self.first(x))))
        self.active.update(y > 0)
        if self.gain is not None:
            self.gain[...] += y.sum()
        return self.last(y) * self.scale


def train(model, x):
    def loss_of(model):
        return (model(x) ** 2).mean()

    loss, grads = nnx.value_and_grad(loss_of)(model)
    params = nnx.state(model, nnx.Param)
    nnx.update(model, jax.tree.map(lambda p, g: p - 0.1 * g, params, grads))
    return loss


def evaluate(model, x):
    return model(x).sum()


def replace(model, use_bias):
    model.last = nnx.Linear(4, 2, rngs=nnx.Rngs(1), use_bias=use_bias)


def rescale(model):
    model.scale = 3.0 - model.scale


def extend(model):
    model.gain = nnx.Variable(jnp.float32(0.0))


def shorten(model):
    model.gain = None


def recount(model):
    model.clock.step.set_value(2**32 - 2)


# Each takes the model; only `sync` and `read` differ between the two ways, and change no state in either.
ON_THE_HOST = {
    "eval": lambda model: model.eval(),
    "train": lambda model: model.train(),
    "replace": lambda model: replace(model, True),
    "replace-otherwise": lambda model: replace(model, False),
    "rescale": rescale,
    "extend": extend,
    "shorten": shorten,
    "recount": recount,
    "new-clock": lambda model: setattr(model, "clock", tallax.StepCounter(nnx.Rngs(0))),
}
ACTIONS = ["step", "step", "step", "evaluate", "sync", "read", *ON_THE_HOST]


def state_of(model):
    return {"/".join(map(str, path)): np.asarray(leaf.get_raw_value())
            for path, leaf in nnx.iter_graph(model)
            if isinstance(leaf, nnx.Variable) and not isinstance(leaf, nnx.RngKey)}  # fmt: skip


PLAIN = {"step": nnx.jit(train), "evaluate": nnx.jit(evaluate)}


@pytest.mark.usefixtures("drops_programs")
@pytest.mark.parametrize("seed", [0, 1, *(cell(seed, quick=False) for seed in range(2, 6))])
def test_random_host_actions(seed):
    """Changes of mode, layers, attributes and counts between calls of two steps on one model leave the same state."""
    rng = np.random.default_rng(seed)
    model, other = Net(nnx.Rngs(seed)), Net(nnx.Rngs(seed))
    steps = {"step": tallax.compile_step(train, model), "evaluate": tallax.compile_step(evaluate, model)}
    actions = [str(rng.choice(ACTIONS)) for _ in range(24)]
    for number, action in enumerate(actions):
        done = f"after {actions[: number + 1]}"
        if action in steps:
            x = jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)
            np.testing.assert_array_equal(steps[action](x), PLAIN[action](other, x), done)
        elif action == "sync":
            steps["step"].sync()
        elif action == "read":
            assert int(model.clock.step) == int(other.clock.step), done
            got, expected = steps["step"].collect().result(), tallax.collect(other).result()
            assert list(got) == list(expected), done
            jax.tree.map(np.testing.assert_array_equal, got, expected)
        else:
            ON_THE_HOST[action](model)
            ON_THE_HOST[action](other)
    for step in steps.values():
        step.sync()
    got, expected = state_of(model), state_of(other)
    assert list(got) == list(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value, f"{name} after {actions}")


def test_a_structure_is_traced_once():
    """Going to and fro between evaluation and training traces twice, however often."""
    model = Net(nnx.Rngs(0))
    with tallax.compile_step(evaluate, model) as step:
        for _ in range(3):
            model.eval()
            step(jnp.ones((5, 3)))
            model.train()
            step(jnp.ones((5, 3)))
        assert step.traces == 2
