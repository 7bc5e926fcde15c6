"""Transformations applied to module objects and to bound methods."""

import functools

import jax
from flax import nnx


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.linear = nnx.Linear(3, 3, rngs=rngs)

    def __call__(self, x):
        return self.linear(x)

    def step(self, x):
        return self.linear(x)


class Stack(nnx.Module):
    def __init__(self, n, rngs: nnx.Rngs, compiled: bool = False):
        self.first = nnx.remat(Block(rngs))  # error: TLX016
        self.second = nnx.jit(nnx.Linear(3, 3, rngs=rngs))  # error: TLX016
        self.blocks = nnx.List([jax.checkpoint(Block(rngs)) for _ in range(n)])  # error: TLX016
        self.model = Block(rngs)
        self.run = nnx.jit(self.model)  # error: TLX016
        self.rerun = nnx.remat(self.model)
        self.encoder = Block(rngs)
        if compiled:
            self.encoder = nnx.jit(self.encoder)  # error: TLX016
        self.forward = nnx.remat(Block.__call__)
        self.function = nnx.jit(lambda x: x)

    def __call__(self, x):
        x = nnx.remat(self.model)(x)
        block = nnx.remat(self.model)
        return nnx.remat(self.model.step)(block(x))  # error: TLX016


class Trainer:
    def __init__(self, model: Block):
        self.step = nnx.jit(self.train)
        self.predict = nnx.jit(model.step)  # error: TLX016

    def train(self, model, x):
        return model(x)


def script(x):
    model = Block(nnx.Rngs(0))
    run = nnx.jit(model)
    grad = nnx.grad(model.step)  # error: TLX016
    right = nnx.jit(Block.step)
    partial = nnx.jit(functools.partial(Block.step, model))
    return run(x), grad(x), right(model, x), partial(x), jax.jit(model.step)(x)


class Local(nnx.Module):
    def __init__(self, n, rngs: nnx.Rngs):
        self.blocks = nnx.List([])
        for k in range(n):
            block = Block(rngs)
            if k % 2:
                block = nnx.remat(block)  # error: TLX016
            self.blocks.append(block)
