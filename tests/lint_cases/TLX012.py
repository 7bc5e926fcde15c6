"""Values sown in loops, and never taken out."""

import jax.numpy as jnp
from flax import nnx


class Gate(nnx.Module):
    def __call__(self, x):
        self.sow(nnx.Intermediate, "load", x.mean())  # error: TLX012
        self.sow(nnx.Intermediate, "last", x.mean(), reduce_fn=lambda old, new: new)
        return x


class Once(nnx.Module):
    def __call__(self, x):
        self.sow(nnx.Intermediate, "load", x.mean())
        return x


def run(batches):
    gate, once = Gate(), Once()
    once(jnp.ones(3))
    for batch in batches:
        gate(batch)
