"""Constant seeds in steps, and streams as default arguments."""

import jax
import jax.numpy as jnp
from flax import nnx


class Noisy(nnx.Module):
    def __init__(self, rngs: nnx.Rngs = nnx.Rngs(0)):  # error: TLX017
        self.rngs = rngs
        self.start = jax.random.normal(jax.random.key(0), (3,))
        self.layer = None

    def __call__(self, x, key=None):
        x = x + jax.random.normal(jax.random.PRNGKey(0), x.shape)  # error: TLX017
        x = x + nnx.Rngs(0).normal(x.shape)  # error: TLX017
        key = jax.random.key(42)  # error: TLX017
        mask = jax.random.bernoulli(key, 0.5, x.shape)
        return self.helped(x * mask)

    def helped(self, x):
        return x + nnx.Rngs(noise=1).noise.normal(x.shape)  # error: TLX017

    def stands_in(self, x, rngs=None, key=None):
        rngs = rngs or nnx.Rngs(0)
        if key is None:
            key = jax.random.key(0)
        return x + rngs.normal(x.shape) + jax.random.normal(key, x.shape)


class Lazy(nnx.Module):
    def __init__(self):
        self.layer = nnx.data(None)

    def __call__(self, x, key=None):
        if self.layer is None:
            self.layer = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
        streams = nnx.Rngs(0)
        other = nnx.Linear(3, 3, rngs=streams)
        key = jax.random.key(0) if key is None else key
        return other(self.layer(x)) + jax.random.normal(key, x.shape)


@nnx.jit
def step(model: Noisy, x, seed):
    def loss(model):
        noise = jax.random.normal(jax.random.key(0), x.shape)  # error: TLX017
        return model(x + noise + jax.random.normal(jax.random.key(seed), x.shape)).sum()

    return nnx.grad(loss)(model)


@nnx.jit
def made():
    return Noisy(rngs=nnx.Rngs(0))


def script():
    return jax.random.normal(jax.random.key(0), (3,))


def shared(x, *, rngs=nnx.Rngs(params=0)):  # error: TLX017
    return x + rngs.normal(x.shape)


def not_shared(x, key=jax.random.key(0), n=3):
    return jnp.sum(x) + n, key


class Sampled(nnx.Module):
    @nnx.jit
    def sample(self, logits, key):
        other = jax.random.categorical(key, logits)
        return jax.random.categorical(jax.random.key(0), logits) + other  # error: TLX017

    def host(self, logits):
        return jax.random.categorical(jax.random.key(0), logits)
