"""References under remat."""

import jax
import jax.numpy as jnp
from flax import nnx


class Block(nnx.Module):
    def __init__(self):
        self.count = nnx.Variable(jnp.array(0, dtype=jnp.int32), ref=True)  # error: TLX011
        self.held = nnx.Variable(jnp.array(0, dtype=jnp.int32))
        self.read = nnx.Variable(jnp.ones(()), ref=True)

    @nnx.remat
    def __call__(self, x):
        self.count[...] += 1
        self.held[...] += 1
        return x * self.read[...]


class Checkpointed(nnx.Module):
    def __init__(self):
        self.count = nnx.Variable(jnp.array(0, dtype=jnp.int32), ref=True)  # error: TLX011

    def __call__(self, x):
        return jax.checkpoint(self.forward)(x)

    def forward(self, x):
        self.count[...] += 1
        return x


class Plain(nnx.Module):
    def __init__(self):
        self.count = nnx.Variable(jnp.array(0, dtype=jnp.int32), ref=True)

    def __call__(self, x):
        self.count[...] += 1
        return x
