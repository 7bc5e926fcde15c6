"""Compiled code does not advance."""

import jax
import jax.numpy as jnp
from flax import nnx

STEPS = 100


class Controls(nnx.Module):
    """The temperature, the learning rate and the clipping threshold of the current step."""

    def __init__(self):
        self.step = nnx.Variable(jnp.zeros((), jnp.int32))

    def advance(self) -> None:
        if not isinstance(self.step[...], jax.core.Tracer):
            self.step[...] += 1

    def temperature(self) -> jax.Array:
        return self._between(5.0, 1.0)

    def learning_rate(self) -> jax.Array:
        return self._between(0.1, 0.0)

    def clip(self) -> jax.Array:
        return self._between(10.0, 1.0)

    def _between(self, first: float, last: float) -> jax.Array:
        return first + (last - first) * jnp.minimum(self.step[...], STEPS) / STEPS


if __name__ == "__main__":
    controls = Controls()
    for step in range(STEPS + 1):
        if step in (0, 50, 100):
            values = f"temperature {controls.temperature():.1f}, learning rate {controls.learning_rate():.3f}"
            print(f"step {step}: {values}, clip {controls.clip():.1f}")
        controls.advance()
