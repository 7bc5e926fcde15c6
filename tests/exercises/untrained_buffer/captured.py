"""The arrays of __init__ are used, not the Variables."""

import jax
import jax.numpy as jnp
from flax import nnx


class Model(nnx.Module):
    """A linear layer on normalized inputs; the mean and scale of the data are given."""

    def __init__(self, mean: jax.Array, scale: jax.Array, rngs: nnx.Rngs):
        self.mean = nnx.Variable(mean)  # part of the state, but not a parameter
        self.scale = nnx.Variable(scale)
        self._normalized = lambda x: (x - mean) / scale
        self.layer = nnx.Linear(2, 1, rngs=rngs)

    def normalize(self, x: jax.Array) -> jax.Array:
        return self._normalized(x)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.layer(self.normalize(x))


if __name__ == "__main__":
    model = Model(jnp.array([10.0, 20.0]), jnp.array([2.0, 4.0]), nnx.Rngs(0))
    print(model.normalize(jnp.array([[8.0, 24.0]])))
