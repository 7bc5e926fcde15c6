"""Classes that the other files import."""

import dataclasses
import jax, jax.numpy as jnp
import flax.nnx as fnx
from flax.nnx import Variable, BatchStat, Module, Rngs


class Stat(BatchStat):
    """Running statistic."""


class Norm(Module):
    def __init__(self, n: int):
        super().__init__()
        self.mean = Stat(jnp.zeros((n,), jnp.float32))
        self.count = Variable(jnp.zeros((), jnp.uint32))
        self.weights = self.make_weights(n)

    def make_weights(self, n):
        return fnx.Param(jnp.ones((n,)))


class Tracking:
    """A mixin."""

    def start_tracking(self):
        self.seen = Variable(jnp.zeros((), jnp.int32))


def bump(var: Variable, by=1):
    var[...] = var[...] + by


def set_mean(module: Norm, x):
    module.mean = 0.9 * module.mean + 0.1 * x.mean(0)  # error: TLX002
