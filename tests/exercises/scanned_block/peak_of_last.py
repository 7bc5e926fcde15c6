"""The peak is that of the last row."""

import jax
import jax.numpy as jnp
from flax import nnx


class Block(nnx.Module):
    """A layer that counts its calls and keeps its largest absolute output."""

    def __init__(self, rngs: nnx.Rngs):
        self.layer = nnx.Linear(2, 2, rngs=rngs)
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))
        self.peak = nnx.Variable(jnp.zeros(()))

    def __call__(self, x: jax.Array) -> jax.Array:
        y = jnp.tanh(self.layer(x))
        self.calls[...] += 1
        self.peak[...] = jnp.abs(y).max()
        return y


def run(block: Block, xs: jax.Array) -> jax.Array:
    """Applies the block to each row of xs; returns float32[length, 2]."""

    def body(block: Block, x: jax.Array) -> tuple[Block, jax.Array]:
        return block, block(x)

    scan = nnx.scan(body, in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))
    _, ys = scan(block, xs)
    return ys


if __name__ == "__main__":
    print(run(Block(nnx.Rngs(0)), jnp.zeros((5, 2)))[:, 0])
