"""A Python number in a Variable, which nnx.jit passes as state."""

import jax
import jax.numpy as jnp
from flax import nnx


class StepCounter(nnx.Module):
    """Counts how often it is called."""

    def __init__(self, rngs: nnx.Rngs):
        rngs.params()
        # An nnx.Param would be trained.
        self.step = nnx.Variable(0)

    def __call__(self) -> jax.Array:
        self.step.value = self.step.value + 1
        return jnp.asarray(self.step.value)


def counter_after_n_calls(seed: int, n_calls: int) -> jax.Array:
    """Returns float32[2]: a new counter's value after n_calls calls, and n_calls."""
    counter = StepCounter(nnx.Rngs(int(seed)))
    for _ in range(int(n_calls)):
        counter()
    return jnp.array([counter.step.value, int(n_calls)], jnp.float32)


if __name__ == "__main__":
    print(counter_after_n_calls(seed=0, n_calls=5))
