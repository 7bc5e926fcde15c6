"""Parameters of models, in other styles."""

import jax, jax.numpy as jnp, numpy as np, math
from flax import nnx
from flax.nnx import Param, Module
from functools import partial

class Rope(Module):
    def __init__(self, dim, max_len, theta=10000.0):
        inv = 1.0 / (theta ** (jnp.arange(0, dim, 2) / dim))
        t = jnp.arange(max_len)
        freqs = jnp.outer(t, inv)
        self.cos = Param(jnp.cos(freqs))  # error: TLX001
        self.sin = nnx.Param(jnp.sin(freqs))  # error: TLX001
        self.freqs_cis = nnx.Param(jnp.exp(1j * freqs))  # error: TLX001
        self.causal_mask = Param(jnp.triu(jnp.full((max_len, max_len), -jnp.inf), k=1))  # error: TLX001
        self.position_ids = Param(jnp.arange(max_len)[None])  # error: TLX001

def sinusoid(n, d):
    pos = jnp.arange(n)[:, None]
    div = jnp.exp(jnp.arange(0, d, 2) * (-math.log(10000.0) / d))
    pe = jnp.zeros((n, d))
    pe = pe.at[:, 0::2].set(jnp.sin(pos * div))
    return pe.at[:, 1::2].set(jnp.cos(pos * div))

class Pos(Module):
    def __init__(self, n, d):
        self.pe = nnx.Param(sinusoid(n, d))  # error: TLX001
        self.learned_pe = nnx.Param(sinusoid(n, d))
        # Not a trainable parameter
        self.scale = nnx.Param(jnp.ones(d))  # error: TLX001
        self.shift = nnx.Param(jnp.ones(d))  # learnable shift
        self.window = nnx.Param(np.hanning(n))  # error: TLX001

class VQ(Module):
    def __init__(self, k, d, rngs):
        self.embed = nnx.Param(jax.random.normal(rngs.params(), (k, d)))
        self.ema_count = nnx.Param(jnp.zeros(k))  # error: TLX001
        self.ema_sum = nnx.Param(jnp.zeros((k, d)))  # error: TLX001
        self.usage = nnx.Param(jnp.zeros(k))  # error: TLX001
    def __call__(self, x):
        onehot = jax.nn.one_hot(jnp.argmin(x, -1), 3)
        self.ema_count.value = 0.99 * self.ema_count.value + 0.01 * onehot.sum(0)  # error: TLX006, TLX006
        self.ema_sum[...] = self.ema_sum[...] * 0.99 + (onehot.T @ x) * 0.01
        self.usage[...] += onehot.sum(0)
        return x

class Opt(Module):
    def __init__(self):
        self.num_updates = nnx.Param(jnp.zeros((), jnp.int32))  # error: TLX001
        self.best = nnx.Param(jnp.array(jnp.inf))  # error: TLX001
        self.done = nnx.Param(jnp.zeros((), dtype=bool))  # error: TLX001
        self.alpha = nnx.Param(jnp.zeros(()))
        self.log_std = nnx.Param(jnp.zeros(3))
        self.frozen_w = nnx.Param(jnp.ones(3), requires_grad=False)  # error: TLX001
        self.key = nnx.Param(jax.random.key(0))
