"""Filters that are missing or take everything."""

import jax.numpy as jnp
import optax
from flax import nnx


class Counting(nnx.Module):
    def __init__(self):
        self.count = nnx.Variable(jnp.array(0, dtype=jnp.int32))


class Plain(nnx.Module):
    def __init__(self):
        self.kernel = nnx.Param(jnp.ones(3))


def make(unknown: nnx.Module):
    counting, plain = Counting(), Plain()
    return [
        nnx.Optimizer(unknown, optax.adam(1e-3), wrt=nnx.Variable),  # error: TLX010
        nnx.Optimizer(unknown, optax.adam(1e-3), wrt=...),  # error: TLX010
        nnx.Optimizer(unknown, optax.adam(1e-3), wrt=nnx.Param),
        nnx.EMA(counting, 0.9),  # error: TLX010
        nnx.EMA(counting, 0.9, only=nnx.Param),
        nnx.EMA(plain, 0.9),
        nnx.EMA(unknown, 0.9),
    ]
