"""Containers, in other styles."""

import jax, jax.numpy as jnp
from flax import nnx
import flax.nnx as fx
from flax.nnx import Module, Linear, Variable
from functools import partial
from base_lib import Norm
import dataclasses


class A(Module):
    def __init__(self, rngs):
        self.layers = [Linear(2, 2, rngs=rngs) for _ in range(3)]  # error: TLX014
        self.heads = {"a": Linear(2, 2, rngs=rngs), "b": fx.Linear(2, 2, rngs=rngs)}  # error: TLX014
        self.t = (Linear(2, 2, rngs=rngs), 3)  # error: TLX014
        self.norms = [Norm(3)]  # error: TLX014
        self.l2 = []  # error: TLX014
        for _ in range(2):
            self.l2.append(Norm(2))
        self.l3 = list(Linear(2, 2, rngs=rngs) for _ in range(3))  # error: TLX014
        self.l4 = tuple(Linear(2, 2, rngs=rngs) for _ in range(3))  # error: TLX014
        self.l5 = dict(a=Linear(2, 2, rngs=rngs))  # error: TLX014
        layers = []
        for _ in range(2):
            layers.append(Linear(2, 2, rngs=rngs))
        self.l6 = layers  # error: TLX014
        blocks = [Linear(2, 2, rngs=rngs) for _ in range(2)]
        blocks += [Linear(2, 2, rngs=rngs)]
        self.l7 = blocks  # error: TLX014
        self.l8 = nnx.List(layers)
        self.l9 = nnx.Sequential(*layers)
        self.l10: list[Linear] = [Linear(2, 2, rngs=rngs)]  # error: TLX014
        self.l11 = {}  # error: TLX014
        for k in "ab":
            self.l11[k] = Linear(2, 2, rngs=rngs)
        self.l12 = [[Linear(2, 2, rngs=rngs)] for _ in range(2)]  # error: TLX014
        self.l13 = [Variable(jnp.zeros(2)) for _ in range(2)]  # error: TLX014
        self.l14 = nnx.data([Linear(2, 2, rngs=rngs)])
        self.sizes = [1, 2, 3]
        self.acts = [nnx.relu, nnx.gelu]
        make = partial(Linear, rngs=rngs)
        self.l15 = [make(2, 2) for _ in range(2)]  # error: TLX014
        self.l16 = [Linear(2, 2, rngs=rngs)] * 3  # error: TLX014
        self.l17 = [Linear(2, 2, rngs=rngs)] + [Linear(2, 3, rngs=rngs)]  # error: TLX014
        self.l18 = [self.block(rngs) for _ in range(2)]  # error: TLX014
        self.l19 = [layer for layer in layers]  # error: TLX014
        self.l20 = self._make(rngs)  # error: TLX014
        self.l21 = {f"b{i}": Linear(2, 2, rngs=rngs) for i in range(3)}  # error: TLX014
        self.l22 = make_layers(rngs)  # error: TLX014
        mods = [Linear(2, 2, rngs=rngs), nnx.relu]
        self.l23 = nnx.Sequential(*mods)

    def block(self, rngs):
        return Linear(2, 2, rngs=rngs)

    def _make(self, rngs):
        out = []
        for _ in range(2):
            out.append(Linear(2, 2, rngs=rngs))
        return out


def make_layers(rngs):
    return [Linear(2, 2, rngs=rngs)]


class B(nnx.Module, pytree=False):
    def __init__(self, rngs):
        self.layers = [Linear(2, 2, rngs=rngs)]


class C:
    def __init__(self, rngs):
        self.layers = [Linear(2, 2, rngs=rngs)]


class D(nnx.Module):
    layers: nnx.Data[list]

    def __init__(self, rngs):
        self.layers = [Linear(2, 2, rngs=rngs)]


class E(nnx.Module):
    def __init__(self, rngs, blocks: list[Linear]):
        self.blocks = blocks
        layers = [Linear(2, 2, rngs=rngs)]
        layers = nnx.List(layers)
        self.layers = layers
        self.names = list("abc")


class Versions(nnx.Module):
    def __init__(self, rngs):
        layers = [Linear(2, 2, rngs=rngs)]
        self.layers = nnx.List(layers) if hasattr(nnx, "List") else layers
        if hasattr(nnx, "List"):
            self.blocks = nnx.List(layers)
        else:
            self.blocks = [Linear(2, 2, rngs=rngs)]
