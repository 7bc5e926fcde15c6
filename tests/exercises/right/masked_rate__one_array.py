"""Both counts in one array, with einsum."""

import jax
import jax.numpy as jnp
from flax import nnx


class FiringRate(nnx.Module):
    """The share of examples in which each head fired."""

    def __init__(self, heads: int):
        self.counts = nnx.Cache(jnp.zeros(heads + 1, jnp.uint32))

    def update(self, scores: jax.Array, mask: jax.Array) -> None:
        fires = jnp.pad(scores > 0, ((0, 0), (0, 1)), constant_values=True)
        more = jnp.einsum("n,nh->h", mask.astype(jnp.uint32), fires.astype(jnp.uint32))
        self.counts.set_value(self.counts.get_value() + more)

    def rate(self) -> jax.Array:
        *fired, seen = self.counts.get_value()
        return jax.lax.cond(seen > 0, lambda: jnp.stack(fired) / seen, lambda: jnp.zeros(len(fired)))


if __name__ == "__main__":
    rate = FiringRate(heads=2)
    everything = jnp.array([True, True])
    rate.update(jnp.array([[1.0, -1.0], [-1.0, 1.0]]), everything)
    rate.update(jnp.array([[1.0, -1.0], [-1.0, -1.0]]), everything)
    print(rate.rate())
