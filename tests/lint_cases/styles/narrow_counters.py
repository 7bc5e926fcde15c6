"""Narrow counters, in other styles."""

import jax, jax.numpy as jnp
import flax.nnx as nnx
from flax.nnx import Variable, Module


class A(Module):
    def __init__(self):
        self.tokens = Variable(jnp.zeros((), jnp.int32))  # error: TLX004
        self.calls = Variable(jnp.zeros(()))  # error: TLX004
        self.seen = nnx.BatchStat(jnp.array(0, dtype=jnp.uint32))  # error: TLX004
        self.hits = nnx.Variable(jnp.array(0.0, jnp.float32))  # error: TLX004
        self.steps = Variable(jnp.zeros((), jnp.int32))
        self.n = Variable(jnp.zeros((), jnp.int32))  # error: TLX004
        self.m = Variable(jnp.zeros((), jnp.int32))  # error: TLX004

    def __call__(self, tokens, mask):
        b, t = tokens.shape
        self.tokens[...] += b * t
        self.calls[...] = self.calls[...] + 1
        self.seen.value += tokens.shape[0]  # error: TLX006
        self.hits.set_value(self.hits[...] + jnp.sum(mask))
        self.steps[...] += 1
        n = jnp.prod(jnp.array(tokens.shape))
        self.n[...] += n
        self.m[...] += jnp.asarray(len(tokens), jnp.int32)
        return tokens
