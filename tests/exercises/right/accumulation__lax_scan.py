"""A scan over the parts, on split state."""

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
        self.seen[...] += x.shape[0]
        return jnp.mean((self.layer(x) - y) ** 2)


def train_step(
    model: Model, optimizer: nnx.Optimizer, x: jax.Array, y: jax.Array, parts: int
) -> jax.Array:
    """Makes a step with the mean gradient of equal parts of the batch; returns the loss before."""
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def body(rest: nnx.State, part: tuple) -> tuple:
        def loss_of(params: nnx.State) -> tuple:
            model = nnx.merge(graphdef, params, rest, copy=True)
            return model.loss(*part), nnx.state(model, nnx.Not(nnx.Param))

        (loss, rest), gradient = jax.value_and_grad(loss_of, has_aux=True)(params)
        return rest, (loss, gradient)

    stacked = jax.tree.map(lambda each: each.reshape(parts, -1, *each.shape[1:]), (x, y))
    rest, (losses, gradients) = jax.lax.scan(body, rest, stacked)
    nnx.update(model, rest)
    loss, total = losses.mean(), jax.tree.map(lambda each: each.mean(0), gradients)
    optimizer.update(model, total)
    model.steps[...] += 1
    return loss


if __name__ == "__main__":
    model = Model(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
    loss = train_step(model, optimizer, jnp.zeros((4, 2)), jnp.full((4, 1), 0.5), parts=2)
    print(f"loss before the step: {loss:.2f}")
