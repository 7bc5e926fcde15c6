"""A loop by index that fills an array."""

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
        self.peak[...] = jnp.maximum(self.peak[...], jnp.abs(y).max())
        return y


def run(block: Block, xs: jax.Array) -> jax.Array:
    """Applies the block to each row of xs; returns float32[length, 2]."""

    graphdef, state = nnx.split(block)

    def body(k: jax.Array, carry: tuple) -> tuple:
        state, ys = carry
        block = nnx.merge(graphdef, state, copy=True)
        ys = ys.at[k].set(block(xs[k]))
        return nnx.state(block), ys

    state, ys = jax.lax.fori_loop(0, len(xs), body, (state, jnp.zeros_like(xs)))
    nnx.update(block, state)
    return ys


if __name__ == "__main__":
    print(run(Block(nnx.Rngs(0)), jnp.zeros((5, 2)))[:, 0])
