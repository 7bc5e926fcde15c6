"""Training scripts: optax chains, seeds, logging within branches."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx


class Model(nnx.Module):
    def __init__(self, seed: int = 0, *, rngs: nnx.Rngs):
        self.linear = nnx.Linear(4, 4, rngs=rngs)
        self.drop = nnx.Dropout(0.1, rngs=rngs)
        self.loss_ema = nnx.Variable(jnp.zeros(()))
        self.seed = seed

    def __call__(self, x):
        noise = jax.random.normal(jax.random.key(self.seed), x.shape)  # error: TLX017
        key = jax.random.PRNGKey(42)  # error: TLX017
        x = self.drop(x, deterministic=not self.train)  # error: TLX018
        return self.linear(x) + noise + jax.random.uniform(key, x.shape)


class Sampler(nnx.Module):
    def __init__(self, rngs: nnx.Rngs = nnx.Rngs(0)):  # error: TLX017
        self.rngs = rngs

    def __call__(self, x, *, key=None):
        if key is None:
            key = self.rngs.sample()
        return x + jax.random.normal(key, x.shape)


hits = 0


def note(value):
    global hits
    hits += 1


def loss_fn(model: Model, x, y):
    jax.debug.callback(note, x.sum())  # error: TLX009
    return ((model(x) - y) ** 2).mean()


@nnx.jit
def train_step(model: Model, optimizer: nnx.Optimizer, x, y):
    loss, grads = nnx.value_and_grad(loss_fn)(model, x, y)
    optimizer.update(grads)  # error: TLX013
    model.loss_ema[...] = 0.9 * model.loss_ema[...] + 0.1 * loss
    return loss


def main(data):
    model = Model(rngs=nnx.Rngs(0))
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1e-3, 100, 1000)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule))
    optimizer = nnx.Optimizer(model, tx)  # error: TLX013
    everything = nnx.Optimizer(model, tx, wrt=...)  # error: TLX010
    right = nnx.Optimizer(model, tx, wrt=nnx.Param)
    losses = []
    for i, (x, y) in enumerate(data):
        loss = train_step(model, optimizer, x, y)
        losses.append(loss)
        if i % 100 == 0:
            print(f"{i}: {float(model.loss_ema[...]):.3f}")
        if float(model.loss_ema[...]) > 10.0:  # error: TLX003
            break
        if i % 10 == 0 and model.loss_ema[...] < 0.1:
            break
        if model.loss_ema[...] < 0.01:  # error: TLX003
            return right
    print(np.asarray(model.loss_ema[...]), np.mean(losses))
    return everything


@nnx.jit
def eval_step(model: Model, x):
    if model.loss_ema[...] > 0:  # error: TLX003
        x = x * 2
    scale = 2.0 if int(model.loss_ema[...]) else 1.0  # error: TLX003
    return model(x) * scale
