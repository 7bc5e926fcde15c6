"""The model runs once for the loss and once for the state."""

import jax
import jax.numpy as jnp
from flax import nnx


class Model(nnx.Module):
    """A linear layer that counts its calls and keeps a running mean of its inputs."""

    def __init__(self, rngs: nnx.Rngs):
        self.layer = nnx.Linear(2, 1, rngs=rngs)
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))
        self.mean = nnx.BatchStat(jnp.zeros(2))

    def __call__(self, x: jax.Array) -> jax.Array:
        self.calls[...] += 1
        self.mean[...] = 0.9 * self.mean[...] + 0.1 * x.mean(0)
        return self.layer(x)


@nnx.jit  # brings the new state back
def loss_of(model: Model, x: jax.Array) -> jax.Array:
    return jnp.mean((model(x) - 0.5) ** 2)


def run(model: Model, batches: list[jax.Array]) -> jax.Array:
    """Returns the loss of each batch: float32[len(batches)]."""
    losses = []
    for x in batches:
        losses.append(loss_of(model, x))
        model(x)  # so that the state is updated
    return jnp.stack(losses)


if __name__ == "__main__":
    model = Model(nnx.Rngs(0))
    losses = run(model, [jnp.zeros((4, 2)), jnp.ones((4, 2))])
    print(f"loss of the first batch: {losses[0]:.2f}")
