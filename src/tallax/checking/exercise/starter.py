"""A step counter for Flax NNX: fill in the three bodies, then run `tallax check` on this file."""

import jax
import jax.numpy as jnp
from flax import nnx


class StepCounter(nnx.Module):
    """Counts how often it is called; its count is state, but nothing that is trained."""

    def __init__(self, rngs: nnx.Rngs):
        # Take one key from rngs (rngs.params() does), and start a count named `step` at 0.
        raise NotImplementedError

    def __call__(self) -> jax.Array:
        # Add 1 to the count, and return the new count.
        raise NotImplementedError


def counter_after_n_calls(seed: int, n_calls: int) -> jax.Array:
    """Returns float32[2]: a new counter's value after n_calls calls, and n_calls."""
    raise NotImplementedError
