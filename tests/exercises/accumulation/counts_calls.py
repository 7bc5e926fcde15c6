"""Calls are counted, not examples."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx


class Model(nnx.Module):
    """A linear layer that counts its examples and its steps."""

    def __init__(self, rngs: nnx.Rngs):
        self.layer = nnx.Linear(2, 1, rngs=rngs)
        self.seen = nnx.Variable(jnp.zeros((), jnp.int32))
        self.steps = nnx.Variable(jnp.zeros((), jnp.int32))

    def loss(self, x: jax.Array, y: jax.Array) -> jax.Array:
        self.seen[...] += 1
        return jnp.mean((self.layer(x) - y) ** 2)


def train_step(
    model: Model, optimizer: nnx.Optimizer, x: jax.Array, y: jax.Array, parts: int
) -> jax.Array:
    """Makes a step with the mean gradient of equal parts of the batch; returns the loss before."""
    total, loss = jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param)), jnp.zeros(())
    for x_part, y_part in zip(jnp.split(x, parts), jnp.split(y, parts), strict=True):
        value, gradient = nnx.value_and_grad(lambda model, x, y: model.loss(x, y))(
            model, x_part, y_part
        )
        total = jax.tree.map(lambda a, b: a + b / parts, total, gradient)
        loss += value / parts
    optimizer.update(model, total)
    model.steps[...] += 1
    return loss


if __name__ == "__main__":
    model = Model(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
    loss = train_step(model, optimizer, jnp.zeros((4, 2)), jnp.full((4, 1), 0.5), parts=2)
    print(f"loss before the step: {loss:.2f}")
