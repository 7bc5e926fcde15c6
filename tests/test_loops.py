# SPDX-License-Identifier: Apache-2.0
"""The loops that people write, each with `nnx.jit` and with `compile_step`: equal to the bit."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import tallax


class Net(nnx.Module):
    def __init__(self, inputs, outputs, rngs):
        self.first = nnx.Linear(inputs, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.25, rngs=rngs)
        self.last = nnx.Linear(4, outputs, rngs=rngs)
        self.calls = tallax.StepCounter(rngs)
        self.active = tallax.statistics.Rate(shape=4)

    def __call__(self, x):
        self.calls()
        y = nnx.relu(self.dropout(self.norm(self.first(x))))
        self.active.update(y > 0)
        return self.last(y)


def adam(model, rate=1e-2):
    return nnx.Optimizer(model, optax.adam(rate), wrt=nnx.Param)


def plainly(function, **options):
    """The same with Flax; its tree mode returns no objects that it was given."""
    return nnx.jit(function, graph=True, graph_updates=True, **options)


def bits(*things):
    found = {}
    for path, leaf in nnx.iter_graph(things):
        if isinstance(leaf, nnx.Variable):
            raw = leaf.get_raw_value()
            raw = jax.random.key_data(raw) if jnp.issubdtype(raw.dtype, jax.dtypes.prng_key) else raw
            found["/".join(map(str, path))] = np.asarray(raw).tobytes()
    return found


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert {name for name in one if one[name] != other[name]} == set()


def batches(count, shape, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(count)]


# --- a GAN ------------------------------------------------------------------------------------------------------------


def d_step(g, d, d_opt, real, noise):
    fake = g(noise)

    def loss_of(d):
        return (d(real) ** 2).mean() - (d(fake) ** 2).mean()

    loss, grads = tallax.value_and_grad(loss_of)(d)
    d_opt.update(d, grads)
    return loss


def g_step(g, d, g_opt, noise):
    loss, grads = tallax.value_and_grad(lambda g, d: (d(g(noise)) ** 2).mean())(g, d)
    g_opt.update(g, grads)
    return loss


def gan(compiled, graph):
    g, d = Net(2, 3, nnx.Rngs(0)), Net(3, 1, nnx.Rngs(1))
    g_opt, d_opt = adam(g), adam(d)
    if compiled:
        train_d = tallax.compile_step(d_step, g, d, d_opt, graph=graph)
        train_g = tallax.compile_step(g_step, g, d, g_opt, graph=graph)
        steps = (train_d, train_g)
    else:
        jit_d, jit_g = plainly(d_step), plainly(g_step)
        train_d = lambda real, noise: jit_d(g, d, d_opt, real, noise)  # noqa: E731
        train_g = lambda noise: jit_g(g, d, g_opt, noise)  # noqa: E731
        steps = ()
    losses = []
    for number, (real, noise) in enumerate(zip(batches(4, (4, 3)), batches(4, (4, 2), 1), strict=True)):
        losses.append(train_d(real, noise))
        if number % 2:
            losses.append(train_g(noise))
    for step in steps:
        step.sync()
    return losses, (g, d, g_opt, d_opt)


# --- an actor-critic, whose TrainState has modules and arrays ---------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    actor: Any
    critic: Any
    optimizers: dict[str, Any]
    key: jax.Array
    episodes: jax.Array


def actor_critic_step(
    env, state, batch, steps, gamma, lam, clip, entropy, value_cost, epochs, minibatches, normalize, discrete, log
):
    """Eleven static arguments decide what is traced; the TrainState is replaced, as in functional code."""
    key, draw = jax.random.split(state.key)
    noise = jax.random.normal(draw, batch.shape) * (clip if discrete else 1.0)
    advantages = env(batch) * gamma**steps
    if normalize:
        advantages = advantages / (1.0 + jnp.abs(advantages).max())

    def actor_loss(actor):
        return (actor(batch + noise)[:, 0] * advantages * lam).mean() - entropy

    def critic_loss(critic):
        return ((critic(batch)[:, 0] - advantages) ** 2).mean() * value_cost

    metrics = {}
    for _ in range(epochs * minibatches):
        loss, grads = tallax.value_and_grad(actor_loss)(state.actor)
        state.optimizers["actor"].update(state.actor, grads)
        metrics["critic"], grads = tallax.value_and_grad(critic_loss)(state.critic)
        state.optimizers["critic"].update(state.critic, grads)
        metrics["actor"] = loss
    state = dataclasses.replace(state, key=key, episodes=state.episodes + len(batch))
    return state, (metrics if log == "all" else {})


def rewards(batch):
    return batch.sum(axis=1)


def actor_critic(compiled, graph):
    actor, critic = Net(3, 1, nnx.Rngs(0)), Net(3, 1, nnx.Rngs(1))
    optimizers = {"actor": adam(actor), "critic": adam(critic, 1e-3)}
    state = TrainState(actor, critic, optimizers, jax.random.key(3), jnp.int32(0))
    static = (0, *range(3, 14))
    settings = (2, 0.5, 0.25, 0.5, 0.125, 2.0, 1, 1, True, False)
    if compiled:
        step = tallax.compile_step(actor_critic_step, bound=state, graph=graph, static_argnums=static)
    else:
        step = plainly(actor_critic_step, static_argnums=static)
    losses = []
    for number, batch in enumerate(batches(4, (4, 3))):
        state, metrics = step(rewards, state, batch, *settings, "all" if number % 2 else "none")
        losses.append(metrics)
    assert state.actor is actor
    assert state.optimizers["critic"] is optimizers["critic"]
    assert int(state.episodes) == 16
    if compiled:
        assert step.traces == 2
        step.sync()
    losses.append(jax.random.key_data(state.key))
    return losses, (actor, critic, nnx.Dict(optimizers))


# --- a language model with evaluation and checkpoints in the loop -----------------------------------------------------


class Words(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(5, 4, rngs=rngs)
        self.body = Net(4, 5, rngs)
        self.tokens = tallax.Counter()

    def __call__(self, text):
        self.tokens.count(text >= 0)
        return self.body(self.embed(text).reshape(-1, 4))


def loss_of(model, text):
    logits = model(text[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, text[:, 1:].reshape(-1)).mean()


def lm_step(model, optimizer, text):
    loss, grads = tallax.value_and_grad(loss_of)(model, text)
    optimizer.update(model, grads)
    return loss


def lm_eval(model, text):
    return loss_of(model, text)


def language_model(compiled, graph, path):
    model = Words(nnx.Rngs(0))
    optimizer = adam(model)
    rng = np.random.default_rng(0)
    texts = [jnp.asarray(rng.integers(0, 5, (2, 4)), jnp.int32) for _ in range(4)]
    if compiled:
        train = tallax.compile_step(lm_step, model, optimizer, graph=graph)
        evaluate = tallax.compile_step(lm_eval, model, graph=graph)
    else:
        jit_train, jit_eval = plainly(lm_step), plainly(lm_eval)
        train = lambda text: jit_train(model, optimizer, text)  # noqa: E731
        evaluate = lambda text: jit_eval(model, text)  # noqa: E731
    losses = []
    for number, text in enumerate(texts):
        losses.append(train(text))
        model.eval()
        losses.append(evaluate(text))
        model.train()
        if number == 1:
            saved = train if compiled else (model, optimizer)
            tallax.save(path, *([saved] if compiled else saved))
    if compiled:
        assert (train.traces, evaluate.traces) == (1, 1)
        train.sync()
        evaluate.sync()
    restored, other = Words(nnx.Rngs(1)), None
    other = adam(restored)
    tallax.restore(path, restored, other)
    return losses, (model, optimizer, restored, other)


# --- gradient accumulation --------------------------------------------------------------------------------------------


def accumulate(model, optimizer, micro):
    losses, total = [], None
    for x in micro:
        loss, grads = tallax.value_and_grad(lambda model, x: (model(x) ** 2).mean())(model, x)
        total = grads if total is None else jax.tree.map(jnp.add, total, grads)
        losses.append(loss)
    optimizer.update(model, jax.tree.map(lambda g: g / len(micro), total))
    return losses


def accumulation(compiled, graph):
    model = Net(3, 2, nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.MultiSteps(optax.adam(1e-2), 2), wrt=nnx.Param)
    if compiled:
        step = tallax.compile_step(accumulate, model, optimizer, graph=graph)
    else:
        jitted = plainly(accumulate)
        step = lambda micro: jitted(model, optimizer, micro)  # noqa: E731
    losses = [step(batches(2, (4, 3), seed)) for seed in range(3)]
    if compiled:
        step.sync()
    return losses, (model, optimizer)


# --- a student with a teacher that is its moving average --------------------------------------------------------------


def distill(model, teacher, optimizer, x):
    target = nnx.view(teacher, deterministic=True, use_running_average=True)(x)
    loss, grads = tallax.value_and_grad(lambda model: ((model(x) - target) ** 2).mean())(model)
    optimizer.update(model, grads)
    averaged = optax.incremental_update(nnx.state(model, nnx.Param), nnx.state(teacher, nnx.Param), 0.25)
    nnx.update(teacher, averaged)
    return {"loss": loss, "teacher": teacher}


def teaching(compiled, graph):
    model = Net(3, 2, nnx.Rngs(0))
    teacher, optimizer = nnx.clone(model), adam(model)
    norm = lambda *objects: optax.tree.norm(nnx.as_pure(nnx.state(objects[1], nnx.Param)))  # noqa: E731
    losses = []
    if compiled:
        step = tallax.compile_step(distill, model, teacher, optimizer, graph=graph)
    else:
        jitted, jitted_norm = plainly(distill), plainly(norm)
        step = lambda x: jitted(model, teacher, optimizer, x)  # noqa: E731
    for x in batches(3, (4, 3)):
        result = step(x)
        assert result["teacher"] is teacher
        read = step.read(norm) if compiled else jitted_norm(model, teacher, optimizer)
        losses += [result["loss"], read]
    if compiled:
        step.sync()
    return losses, (model, teacher, optimizer)


LOOPS = {"gan": gan, "actor-critic": actor_critic, "accumulation": accumulation, "teacher": teaching}


@pytest.mark.usefixtures("quick_compilation")  # both are compiled in the same way
@pytest.mark.parametrize("graph", [True, False], ids=["graph", "tree"])
@pytest.mark.parametrize("name", [*LOOPS, "language-model"])
def test_the_loop_is_that_of_nnx_jit(name, graph, tmp_path):
    """Losses, parameters, optimizer state, statistics, streams and counts, after every kind of loop."""
    with jax.numpy_dtype_promotion("standard"):
        if name == "language-model":
            runs = [language_model(compiled, graph, tmp_path / str(compiled)) for compiled in (True, False)]
        else:
            runs = [LOOPS[name](compiled, graph) for compiled in (True, False)]
    (losses, objects), (expected, others) = runs
    assert [np.asarray(x).tobytes() for x in jax.tree.leaves(losses)] == [
        np.asarray(x).tobytes() for x in jax.tree.leaves(expected)
    ]
    assert_same(bits(*objects), bits(*others))
