"""The count is capped."""

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
        self.step[...] = jnp.minimum(self.step[...] + 1, 10_000)
        return self.step[...]


def counter_after_n_calls(seed: int, n_calls: int) -> jax.Array:
    """Returns float32[2]: a new counter's value after n_calls calls, and n_calls."""
    counter = StepCounter(nnx.Rngs(int(seed)))
    for _ in range(int(n_calls)):
        counter()
    return jnp.array([counter.step[...], int(n_calls)], jnp.float32)


if __name__ == "__main__":
    print(counter_after_n_calls(seed=0, n_calls=5))
