"""Exercise 3: one counter drives three values.

It prints the right numbers, and it is wrong. Correct it.
"""

import jax
import jax.numpy as jnp
from flax import nnx

STEPS = 100


class Controls(nnx.Module):
    """The temperature, the learning rate and the clipping threshold of the current step."""

    def __init__(self):
        self.step = nnx.Variable(jnp.zeros((), jnp.int32))
        self.calls = 0  # for the temperature
        self.clip_step = nnx.Variable(jnp.zeros((), jnp.int32))

    def advance(self) -> None:
        self.step[...] += 1
        self.calls += 1
        self.clip_step[...] += 1

    def temperature(self) -> jax.Array:
        return jnp.float32(5.0 + (1.0 - 5.0) * min(self.calls, STEPS) / STEPS)

    def learning_rate(self) -> jax.Array:
        return 0.1 - 0.1 * jnp.minimum(self.step[...], STEPS) / STEPS

    def clip(self) -> jax.Array:
        return 10.0 + (1.0 - 10.0) * jnp.minimum(self.clip_step[...], STEPS) / STEPS


if __name__ == "__main__":
    controls = Controls()
    for step in range(STEPS + 1):
        if step in (0, 50, 100):
            values = controls.temperature(), controls.learning_rate(), controls.clip()
            temperature, rate, clip = map(float, values)
            print(f"step {step}: temperature {temperature:.1f}, ", end="")
            print(f"learning rate {rate:.3f}, clip {clip:.1f}")
        controls.advance()
