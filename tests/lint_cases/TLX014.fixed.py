"""Modules and Variables in plain lists, tuples and dicts."""

import functools

import jax.numpy as jnp
from flax import nnx


class Block(nnx.Module):
    pass


class Stack(nnx.Module):
    declared: nnx.Data[list]

    def __init__(self, n, rngs, layers):
        self.layers = nnx.List([nnx.Linear(n, n, rngs=rngs) for _ in range(3)])  # error: TLX014
        self.blocks = nnx.List([Block(), Block()])  # error: TLX014
        self.counts = nnx.List([nnx.Variable(jnp.zeros(n))])  # error: TLX014
        self.pair = (Block(), 1)  # error: TLX014
        self.named = {"a": Block()}  # error: TLX014
        self.grown = nnx.List([])  # error: TLX014
        for _ in range(n):
            self.grown.append(Block())
        self.right = nnx.List([Block()])
        self.data = nnx.data([Block()])
        self.sizes = [n, n]
        self.unknown = [layer for layer in layers]
        self.declared = [Block()]
        self.shape = (n, n)


class Plain(nnx.Module, pytree=False):
    def __init__(self):
        self.blocks = [Block()]


class Trainer:
    def __init__(self):
        self.models = [Block()]


class More(nnx.Module):
    annotated: list[Block]

    def __init__(self, n, rngs, unknown):
        self.annotated = nnx.List([Block() for _ in range(n)])  # error: TLX014
        self.starred = nnx.List([unknown, *[Block() for _ in range(n)]])  # error: TLX014
        conv = functools.partial(nnx.Conv, kernel_size=(3, 3))
        self.partial = nnx.List([conv(1, 2, rngs=rngs)])  # error: TLX014
        self.nested = nnx.List([])  # error: TLX014
        self.some = nnx.List([])  # error: TLX014
        for k in range(n):
            self.nested.append([unknown(k), Block()])
            block = Block()
            if k % 2:
                block = unknown(block)
            self.some.append(block)
        self.others = []
        self.others.append(unknown(n))
