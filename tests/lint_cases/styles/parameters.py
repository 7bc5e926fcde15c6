"""Parameters, in other styles."""

import jax, jax.numpy as jnp, numpy as np
import flax.nnx as nnx
from flax.nnx import Param, Module


class A(Module):
    def __init__(self, n, eps=1e-6):
        self.step = Param(jnp.zeros(()))  # error: TLX001
        self.running_mean = Param(jnp.zeros(n))  # error: TLX001
        self.mask = Param(jnp.tril(jnp.ones((n, n))))  # error: TLX001
        self.pos = Param(jnp.arange(n))  # error: TLX001
        self.inv_freq = Param(1.0 / (10000 ** (jnp.arange(0, n, 2) / n)))  # error: TLX001
        self.frozen = Param(jnp.ones(n), trainable=False)  # error: TLX001
        self.lo = Param(jnp.full((n,), -jnp.inf))  # error: TLX001
        self.ema = Param(jnp.zeros(n))  # error: TLX001
        self.cnt = nnx.Param(jnp.zeros((), dtype=jnp.int32))  # error: TLX001
        self.ids = nnx.Param(jnp.array([1, 2, 3], dtype=jnp.int32))  # error: TLX001
        self.flag = nnx.Param(jnp.array(False))  # error: TLX001
        self.scale = Param(jnp.ones(n))
        # not trained
        self.table = Param(jnp.zeros((n, n)))  # error: TLX001
        self.basis = Param(jax.random.normal(jax.random.key(0), (n,)))  # fixed random features  # error: TLX001
        self.temperature = Param(jnp.ones(()))
        self.codebook = Param(jnp.zeros((n, n)))
        self.cluster_size = Param(jnp.zeros(n))  # error: TLX001
        self.proj = Param(jnp.zeros((n, n)))  # error: TLX001

    def __call__(self, x):
        self.ema[...] = 0.99 * self.ema[...] + 0.01 * x.mean(0)
        y = x @ jax.lax.stop_gradient(self.proj[...])
        return y * self.scale * self.temperature

    def tick(self):
        self.cnt.value = self.cnt.value + 1  # error: TLX006, TLX006
