"""Exercise 4: how often did the masked head fire?

It prints the right number, and it is wrong. Correct it.
"""

import jax
import jax.numpy as jnp
from flax import nnx


class FiringRate(nnx.Module):
    """The share of examples in which each head fired."""

    def __init__(self, heads: int):
        self.total = nnx.Variable(jnp.zeros(heads))
        self.batches = nnx.Variable(jnp.zeros(()))

    def update(self, scores: jax.Array, mask: jax.Array) -> None:
        fires = (scores > 0) & mask[:, None]
        self.total[...] += fires.mean(0)
        self.batches[...] += 1

    def rate(self) -> jax.Array:
        return self.total[...] / jnp.maximum(self.batches[...], 1)


if __name__ == "__main__":
    rate = FiringRate(heads=2)
    everything = jnp.array([True, True])
    rate.update(jnp.array([[1.0, -1.0], [-1.0, 1.0]]), everything)
    rate.update(jnp.array([[1.0, -1.0], [-1.0, -1.0]]), everything)
    print(rate.rate())
