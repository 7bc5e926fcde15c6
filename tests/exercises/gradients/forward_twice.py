"""The loss is computed once more, to return it."""

import jax
import jax.numpy as jnp
from flax import nnx


class Model(nnx.Module):
    """A linear layer on scaled inputs, with a loss whose temperature follows a counter."""

    def __init__(self, rngs: nnx.Rngs):
        self.layer = nnx.Linear(2, 1, rngs=rngs)
        self.scale = nnx.BatchStat(jnp.full(2, 2.0))
        self.step = nnx.Variable(jnp.zeros((), jnp.int32))

    def loss(self, x: jax.Array, y: jax.Array) -> jax.Array:
        temperature = 1.0 + 0.1 * self.step[...]
        self.step[...] += 1
        return jnp.mean((self.layer(x / self.scale[...]) / temperature - y) ** 2)


def train_step(model: Model, x: jax.Array, y: jax.Array, learning_rate: float) -> jax.Array:
    """Makes one step of gradient descent; returns the loss before it."""
    # Differentiates each nnx.Param; all other state keeps what the forward pass has written.
    gradient = nnx.grad(lambda model: nnx.clone(model).loss(x, y))(model)
    loss = model.loss(x, y)
    model.step[...] += 1  # the gradient's
    parameters = nnx.state(model, nnx.Param)
    nnx.update(
        model,
        jax.tree.map(lambda value, slope: value - learning_rate * slope, parameters, gradient),
    )
    return loss


if __name__ == "__main__":
    model = Model(nnx.Rngs(0))
    loss = train_step(model, jnp.zeros((4, 2)), jnp.full((4, 1), 0.5), 0.1)
    print(f"loss of the first step: {loss:.2f}")
