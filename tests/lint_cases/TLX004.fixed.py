"""Counters that are too narrow."""

import jax.numpy as jnp
from flax import nnx


class Count(nnx.Variable):
    pass


class Counts(nnx.Module):
    def __init__(self, batch_size: int):
        self.batch_size = batch_size
        self.tokens = Count(jnp.array(0, dtype=jnp.int32))  # error: TLX004
        self.samples = Count(jnp.zeros((), jnp.uint32))  # error: TLX004
        self.position = Count(jnp.zeros((), jnp.int32))  # error: TLX004
        self.fired = Count(jnp.array(0, jnp.int32))  # error: TLX004
        self.calls = Count(jnp.zeros(()))  # error: TLX004
        self.observed = Count(jnp.ones((1,)))  # error: TLX004
        self.total = nnx.MetricState(jnp.array(0, dtype=jnp.float32))  # error: TLX004
        self.python = Count(jnp.array(0, dtype=jnp.int32))  # error: TLX004, TLX005
        self.host = Count(0)
        self.step = Count(jnp.zeros((), jnp.int32))
        self.ring = Count(jnp.zeros((), jnp.int32))
        self.capped = Count(jnp.zeros((), jnp.int32))
        self.accumulated = Count(jnp.zeros(()))
        self.amount = Count(jnp.zeros((), jnp.int32))
        self.average = Count(jnp.zeros(()))

    def __call__(self, x, mask):
        self.tokens[...] += x.size
        self.samples.set_value(self.samples[...] + x.shape[0])
        before = self.position[...]
        self.position[...] = before + jnp.int32(self.batch_size)
        self.fired[...] += (x > 0).sum()
        self.calls.value += 1  # noqa: TLX006
        self.observed[...] = grown(x, self.observed[...])
        self.total[...] += x.sum()
        self.python.set_value(self.python.get_value() + x.size)
        self.step[...] += 1
        self.ring[...] = (self.ring[...] + x.shape[0]) % 100
        self.capped[...] = jnp.minimum(self.capped[...] + x.shape[0], 100)
        self.accumulated[...] += 1
        self.amount[...] += mask
        self.average[...] = 0.9 * self.average[...] + 0.1 * x.mean()
        return x

    def load(self, batch):
        self.host.set_value(self.host.get_value() + len(batch))

    def reset(self):
        self.accumulated[...] = jnp.zeros(())


def grown(x, count):
    n = x.shape[0]
    total = count + n
    return total
