"""JAX's own derivative, with the rest of the state as its second result."""

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
    graphdef, parameters, rest = nnx.split(model, nnx.Param, ...)

    def pure(parameters: nnx.State) -> tuple:
        model = nnx.merge(graphdef, parameters, rest, copy=True)
        loss = model.loss(x, y)
        return loss, nnx.state(model, nnx.Not(nnx.Param))

    (loss, rest_after), slopes = jax.value_and_grad(pure, has_aux=True)(parameters)
    nnx.update(model, rest_after, jax.tree.map(lambda p, g: p - learning_rate * g, parameters, slopes))
    return loss


if __name__ == "__main__":
    model = Model(nnx.Rngs(0))
    loss = train_step(model, jnp.zeros((4, 2)), jnp.full((4, 1), 0.5), 0.1)
    print(f"loss of the first step: {loss:.2f}")
