"""Transformed objects, in other styles."""

import jax, jax.numpy as jnp
import flax.nnx as nnx
from functools import partial
from flax.nnx import remat, jit


class Block(nnx.Module):
    def __init__(self, rngs):
        self.lin = nnx.Linear(2, 2, rngs=rngs)

    def __call__(self, x):
        return self.lin(x)


class S(nnx.Module):
    def __init__(self, rngs):
        self.b = remat(Block(rngs))  # error: TLX016
        self.c = jax.checkpoint(Block(rngs))  # error: TLX016
        blk = Block(rngs)
        self.d = nnx.jit(blk)  # error: TLX016
        self.e = nnx.List([nnx.remat(Block(rngs)) for _ in range(2)])  # error: TLX016
        self.g = nnx.remat(Block)(rngs)
        self.h = Block(rngs)
        self.h2 = jax.remat(self.h)

    def __call__(self, x):
        return nnx.remat(self.h)(x)


def go(m: Block, x):
    return nnx.jit(m.__call__)(x)  # error: TLX016


def go2(x):
    m = Block(nnx.Rngs(0))
    f = jit(m.__call__)  # error: TLX016
    g = nnx.jit(Block.__call__)
    return f(x)
