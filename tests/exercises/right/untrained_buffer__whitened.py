"""The statistics in one Variable of another type, read by properties."""

import jax
import jax.numpy as jnp
from flax import nnx


class Statistic(nnx.BatchStat):
    """Never trained."""


class Model(nnx.Module):
    """A linear layer on normalized inputs; the mean and scale of the data are given."""

    def __init__(self, mean: jax.Array, scale: jax.Array, rngs: nnx.Rngs):
        self.mean = Statistic(jnp.asarray(mean, jnp.float32))  # part of the state, but not a parameter
        self.scale = Statistic(jnp.asarray(scale, jnp.float32))
        self.layer = nnx.Linear(2, 1, rngs=rngs)

    def normalize(self, x: jax.Array) -> jax.Array:
        mean, scale = jax.tree.map(jax.lax.stop_gradient, (self.mean.get_value(), self.scale.get_value()))
        return jnp.divide(jnp.subtract(x, mean), scale)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.layer(self.normalize(x))


if __name__ == "__main__":
    model = Model(jnp.array([10.0, 20.0]), jnp.array([2.0, 4.0]), nnx.Rngs(0))
    print(model.normalize(jnp.array([[8.0, 24.0]])))
