"""Functional: split, a loop of JAX, merge."""

import jax
import jax.numpy as jnp
from flax import nnx


class StepCounter(nnx.Module):
    """Counts how often it is called."""

    def __init__(self, rngs: nnx.Rngs):
        rngs.params()
        # An nnx.Param would be trained.
        self.step = nnx.Variable(jnp.zeros((), jnp.int32))

    def __call__(self) -> jax.Array:
        self.step[...] += 1  # writes into the Variable
        return self.step[...]


def counter_after_n_calls(seed: int, n_calls: int) -> jax.Array:
    """Returns float32[2]: a new counter's value after n_calls calls, and n_calls."""
    graphdef, state = nnx.split(StepCounter(nnx.Rngs(int(seed))))

    def call(_: int, state: nnx.State) -> nnx.State:
        counter = nnx.merge(graphdef, state, copy=True)
        counter()
        return nnx.state(counter)

    state = jax.lax.fori_loop(0, int(n_calls), call, state)
    return jnp.stack([nnx.merge(graphdef, state).step[...], jnp.int32(n_calls)]).astype(jnp.float32)


if __name__ == "__main__":
    print(counter_after_n_calls(seed=0, n_calls=5))
