"""Exercise 4: how often did the masked head fire? With tallax."""

import jax
import jax.numpy as jnp

import tallax


class FiringRate(tallax.Module):
    """The share of examples in which each head fired."""

    def __init__(self, heads: int):
        self.fires = tallax.statistics.Rate(shape=heads)

    def update(self, scores: jax.Array, mask: jax.Array) -> None:
        self.fires.update(scores > 0, where=mask[:, None])

    def rate(self) -> jax.Array:
        return jnp.asarray(self.fires.compute().rate)


if __name__ == "__main__":
    rate = FiringRate(heads=2)
    everything = jnp.array([True, True])
    rate.update(jnp.array([[1.0, -1.0], [-1.0, 1.0]]), everything)
    rate.update(jnp.array([[1.0, -1.0], [-1.0, -1.0]]), everything)
    print(rate.rate())
