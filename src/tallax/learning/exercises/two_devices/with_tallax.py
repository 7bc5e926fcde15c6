"""Exercise 11: two devices, counted by one. With tallax."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

import tallax


class Counts(tallax.Module):
    """Counts of all examples, and of the positive ones."""

    def __init__(self):
        self.seen = tallax.Counter()
        self.positive = tallax.Counter()


def train_step(counts: Counts, x: jax.Array, mesh: jax.sharding.Mesh) -> jax.Array:
    """Returns the mean loss of a batch, split over the axis "data", and counts its examples."""

    def on_each_device(counts: Counts, x: jax.Array) -> jax.Array:
        counts.seen.count(jnp.ones(x.shape[0], bool), axis_name="data")
        counts.positive.count(x[:, 0] > 0, axis_name="data")
        return jax.lax.pmean(jnp.mean((x - 0.5) ** 2), "data")

    step = nnx.shard_map(on_each_device, mesh=mesh, in_specs=(P(), P("data")), out_specs=P())
    return nnx.jit(step)(counts, x)


if __name__ == "__main__":
    mesh = jax.sharding.Mesh(jax.devices(), ("data",))
    loss = train_step(Counts(), jnp.zeros((8, 2)), mesh)
    print(f"loss of the first step: {loss:.2f}")
