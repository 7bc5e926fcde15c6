"""Randomness, in other styles."""

import jax, jax.numpy as jnp
from flax import nnx
from flax.nnx import Rngs
from jax import random
import jax.random as jr
from jax.random import PRNGKey

SEED = 0


class M(nnx.Module):
    def __init__(self, rngs: Rngs = Rngs(0)):  # error: TLX017
        self.w = nnx.Param(random.normal(random.key(0), (2,)))
        self.drop = nnx.Dropout(0.5)

    def __call__(self, x, rngs=nnx.Rngs(params=0)):  # error: TLX017
        k = jr.PRNGKey(42)  # error: TLX017
        x = x + jr.normal(k, x.shape)
        x = x + random.normal(random.key(SEED), x.shape)  # error: TLX017
        x = self.drop(x, rngs=Rngs(dropout=1))  # error: TLX017
        a, b = random.split(PRNGKey(0))  # error: TLX017
        return self.noise(x)

    def noise(self, x):
        return x + random.uniform(PRNGKey(1), x.shape)  # error: TLX017

    def init_weights(self):
        return random.normal(random.key(0), (2,))


def make(rngs=None):
    rngs = rngs or nnx.Rngs(0)
    return M(rngs)


@nnx.jit
def step(m: M, x):
    def loss(m):
        noise = random.normal(random.key(0), x.shape)  # error: TLX017
        return m(x + noise).sum()

    return nnx.grad(loss)(m)


@nnx.jit
def evaluate(m, x):
    return m(x + random.normal(random.key(0), x.shape))


class Fixed(nnx.Module):
    def __init__(self, key=PRNGKey(42)):
        self.key = key
        self.moving = key
        self.stream = nnx.Variable(key)

    def __call__(self, x):
        self.moving, key = random.split(self.moving)
        x = x + random.normal(key, x.shape) + random.normal(self.stream[...], x.shape)
        return x + random.normal(self.key, x.shape)  # error: TLX017

    def init_noise(self, x):
        return random.normal(self.key, x.shape)
