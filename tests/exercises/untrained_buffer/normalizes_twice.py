"""Normalized in the call and once more before the layer."""

import jax
import jax.numpy as jnp
from flax import nnx


class Model(nnx.Module):
    """A linear layer on normalized inputs; the mean and scale of the data are given."""

    def __init__(self, mean: jax.Array, scale: jax.Array, rngs: nnx.Rngs):
        self.mean = nnx.Variable(mean)  # part of the state, but not a parameter
        self.scale = nnx.Variable(scale)
        self.layer = nnx.Linear(2, 1, rngs=rngs)

    def normalize(self, x: jax.Array) -> jax.Array:
        return (x - self.mean[...]) / self.scale[...]

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.normalize(x)
        return self.layer(self.normalize(x))


if __name__ == "__main__":
    model = Model(jnp.array([10.0, 20.0]), jnp.array([2.0, 4.0]), nnx.Rngs(0))
    print(model.normalize(jnp.array([[8.0, 24.0]])))
