"""Randomness and optimizers, in other styles."""

import jax, jax.numpy as jnp, optax
from flax import nnx
from jax import random

class Noise(nnx.Module):
    def __init__(self, std, rngs=nnx.Rngs(0)):  # error: TLX017
        self.std = std
    def __call__(self, x, key=None):
        if key is None:
            key = random.key(0)
        eps = random.normal(jax.random.key(0), x.shape)  # error: TLX017
        rngs = nnx.Rngs(noise=0)  # error: TLX017
        return x + self.std * eps + rngs.noise.normal(x.shape)
    def sample(self, n, *, rngs: nnx.Rngs = nnx.Rngs(sample=0)):  # error: TLX017
        return random.normal(rngs.sample(), (n,))

def make(rngs: nnx.Rngs = nnx.Rngs(params=0)):  # error: TLX017
    return Noise(1.0, rngs=rngs)

class Drop(nnx.Module):
    def __init__(self, rngs):
        self.d = nnx.Dropout(0.1, rngs=rngs)
        self.training = True
    def __call__(self, x):
        x = self.d(x, deterministic=not self.training)
        if not self.train:  # error: TLX018
            return x
        return self.d(x, deterministic=self.eval)  # error: TLX018

class Opts(nnx.Module):
    def __init__(self, m):
        self.o = nnx.Optimizer(m, optax.adam(1e-3), wrt=nnx.Variable)  # error: TLX010
        self.p = nnx.Optimizer(m, optax.adam(1e-3), wrt=...)  # error: TLX010
        self.q = nnx.Optimizer(m, tx=optax.adam(1e-3), wrt=nnx.Param)
        self.r = nnx.Optimizer(tx=optax.adam(1e-3), model=m)  # error: TLX013

def go(model, x):
    opt = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
    grads = nnx.grad(lambda m: m(x).sum())(model)
    opt.update(grads)  # error: TLX013
    opt.update(model, grads)

@nnx.jit
def go2(model, optimizer, x):
    def loss(m):
        return m(x).sum()
    g = nnx.grad(loss)
    grads = g(model)
    optimizer.update(grads)  # error: TLX013

class S(nnx.Module):
    def __init__(self, rngs):
        self.step = nnx.Variable(0)
        self.k = 0
    @property
    def ready(self):
        return self.k > 0
    def __call__(self, x):
        self.k -= 1  # error: TLX007
        self.k = self.k + 1 if x.ndim else 0
        return x
    def bump(self):
        self.k, y = self.k + 1, 2
        return y
