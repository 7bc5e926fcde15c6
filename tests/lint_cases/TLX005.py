"""Weak initial values."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx


@dataclasses.dataclass
class Config:
    level: float = 0.5
    weights: list = dataclasses.field(default_factory=list)


class Model(nnx.Module):
    def __init__(self, config: Config, start: float, anything, shape, rngs: nnx.Rngs):
        self.scalar = nnx.Param(jnp.array(0.5))  # error: TLX005
        self.negative = nnx.Param(jnp.asarray(-1.0))  # error: TLX005
        self.full = nnx.Param(jnp.full(shape, -3.0))  # error: TLX005
        self.level = nnx.Param(jnp.array(config.level))  # error: TLX005
        self.start = nnx.Param(jnp.log(jnp.array(start)))  # error: TLX005
        self.noise = nnx.Param(jnp.asarray(math.log(start)))  # error: TLX005
        self.velocity = nnx.Variable(jnp.array(0.0))  # error: TLX005
        self.python = nnx.Variable(0)  # error: TLX005
        self.index = nnx.Variable(jax.process_index() if start else 0)  # error: TLX005
        self.trained = nnx.Param(0.5)  # error: TLX005
        self.host = nnx.Variable(0)  # error: TLX005
        self.epoch = nnx.Variable(0)
        self.weak_count = nnx.Variable(jnp.array(0))
        self.typed = nnx.Param(jnp.array(0.5, dtype=jnp.float32))
        self.also = nnx.Param(jnp.full(shape, 0.5, jnp.float32))
        self.ones = nnx.Param(jnp.ones((1,)) * 0.5)
        self.listed = nnx.Param(jnp.array([0.5]))
        self.weights = nnx.Param(jnp.array(config.weights))
        self.drawn = nnx.Param(nnx.initializers.constant(0.9)(rngs.params(), ()))
        self.unknown = nnx.Param(jnp.array(anything))

    def __call__(self, x):
        self.velocity[...] = self.velocity[...] * 0.9 + jnp.ones(())
        self.python[...] += 1
        self.weak_count[...] += 1
        self.host.set_value(self.host.get_value() + 1)
        return x * self.index[...]

    def begin_epoch(self):
        self.epoch.set_value(self.epoch.get_value() + 1)


def example():
    """Nothing in a string counts.

    self.scale = nnx.Param(jnp.array(0.8))
    """
