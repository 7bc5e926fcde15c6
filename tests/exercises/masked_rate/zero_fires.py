"""A score of zero fires."""

import jax
import jax.numpy as jnp
from flax import nnx


class FiringRate(nnx.Module):
    """The share of examples in which each head fired."""

    def __init__(self, heads: int):
        self.fired = nnx.Variable(jnp.zeros(heads, jnp.int32))
        self.seen = nnx.Variable(jnp.zeros((), jnp.int32))

    def update(self, scores: jax.Array, mask: jax.Array) -> None:
        fires = (scores >= 0) & mask[:, None]
        self.fired[...] += fires.sum(0)
        self.seen[...] += mask.sum()

    def rate(self) -> jax.Array:
        return self.fired[...] / jnp.maximum(self.seen[...], 1)


if __name__ == "__main__":
    rate = FiringRate(heads=2)
    everything = jnp.array([True, True])
    rate.update(jnp.array([[1.0, -1.0], [-1.0, 1.0]]), everything)
    rate.update(jnp.array([[1.0, -1.0], [-1.0, -1.0]]), everything)
    print(rate.rate())
