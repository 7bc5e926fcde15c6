"""The run begins again after its end."""

import jax
import jax.numpy as jnp
from flax import nnx

STEPS = 100


class Controls(nnx.Module):
    """The temperature, the learning rate and the clipping threshold of the current step."""

    def __init__(self):
        self.step = nnx.Variable(jnp.zeros((), jnp.int32))

    def advance(self) -> None:
        self.step[...] += 1

    def temperature(self) -> jax.Array:
        return self._between(5.0, 1.0)

    def learning_rate(self) -> jax.Array:
        return self._between(0.1, 0.0)

    def clip(self) -> jax.Array:
        return self._between(10.0, 1.0)

    def _between(self, first: float, last: float) -> jax.Array:
        return first + (last - first) * (self.step[...] % (STEPS + 1)) / STEPS


if __name__ == "__main__":
    controls = Controls()
    for step in range(STEPS + 1):
        if step in (0, 50, 100):
            values = controls.temperature(), controls.learning_rate(), controls.clip()
            temperature, rate, clip = map(float, values)
            print(f"step {step}: temperature {temperature:.1f}, ", end="")
            print(f"learning rate {rate:.3f}, clip {clip:.1f}")
        controls.advance()
