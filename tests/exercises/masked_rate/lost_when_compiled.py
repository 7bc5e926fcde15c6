"""NumPy arrays and Python numbers, which a compiled update cannot reach."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


class FiringRate(nnx.Module):
    """The share of examples in which each head fired."""

    def __init__(self, heads: int):
        self.fired = np.zeros(heads)
        self.seen = 0

    def update(self, scores: jax.Array, mask: jax.Array) -> None:
        fires = (scores > 0) & mask[:, None]
        self.fired = self.fired + np.asarray(fires.sum(0))
        self.seen += int(mask.sum())

    def rate(self) -> jax.Array:
        return jnp.asarray(self.fired / max(self.seen, 1), jnp.float32)


if __name__ == "__main__":
    rate = FiringRate(heads=2)
    everything = jnp.array([True, True])
    rate.update(jnp.array([[1.0, -1.0], [-1.0, 1.0]]), everything)
    rate.update(jnp.array([[1.0, -1.0], [-1.0, -1.0]]), everything)
    print(rate.rate())
