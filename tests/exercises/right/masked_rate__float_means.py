"""Floats, and `.value`."""

import jax
import jax.numpy as jnp
from flax import nnx


class FiringRate(nnx.Module):
    """The share of examples in which each head fired."""

    def __init__(self, heads: int):
        self.fired = nnx.Variable(jnp.zeros(heads))
        self.seen = nnx.Variable(jnp.zeros(()))

    def update(self, scores: jax.Array, mask: jax.Array) -> None:
        weights = mask.astype(jnp.float32)
        fires = jnp.where(mask[:, None], scores > 0, 0.0).astype(jnp.float32)
        self.fired.value = self.fired.value + fires.sum(axis=0)
        self.seen.value = self.seen.value + weights.sum()

    def rate(self) -> jax.Array:
        return jnp.where(self.seen.value > 0, self.fired.value / jnp.maximum(self.seen.value, 1.0), 0.0)


if __name__ == "__main__":
    rate = FiringRate(heads=2)
    everything = jnp.array([True, True])
    rate.update(jnp.array([[1.0, -1.0], [-1.0, 1.0]]), everything)
    rate.update(jnp.array([[1.0, -1.0], [-1.0, -1.0]]), everything)
    print(rate.rate())
