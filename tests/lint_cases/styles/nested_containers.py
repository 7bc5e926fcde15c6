"""Modules in nested lists, tuples and dicts, and transformed modules in them."""

import jax
import jax.numpy as jnp
from flax import nnx


class Towers(nnx.Module):
    def __init__(self, depth: int, rngs: nnx.Rngs):
        self.towers = [[nnx.Linear(4, 4, rngs=rngs) for _ in range(2)] for _ in range(depth)]  # error: TLX014
        self.parts = {"encoder": [nnx.Linear(4, 4, rngs=rngs)], "decoder": [nnx.Linear(4, 4, rngs=rngs)]}  # error: TLX014
        self.heads = tuple(nnx.Linear(4, 4, rngs=rngs) for _ in range(depth))  # error: TLX014
        self.right = nnx.List([nnx.List([nnx.Linear(4, 4, rngs=rngs)]) for _ in range(depth)])
        self.named = nnx.Dict({f"head_{k}": nnx.Linear(4, 4, rngs=rngs) for k in range(depth)})
        self.sizes = [4 for _ in range(depth)]
        self.kinds = [nnx.Linear, nnx.Conv]
        self.shapes = {"in": (4, 4), "out": (4,)}

    def __call__(self, x):
        return x


class Grown(nnx.Module):
    def __init__(self, widths: list[int], rngs: nnx.Rngs):
        layers = []
        for a, b in zip(widths[:-1], widths[1:]):
            layers.append(nnx.Linear(a, b, rngs=rngs))
            layers.append(nnx.relu)
        self.layers = layers  # error: TLX014
        norms = {}
        for k, width in enumerate(widths):
            norms[f"norm_{k}"] = nnx.LayerNorm(width, rngs=rngs)
        self.norms = norms  # error: TLX014
        blocks = [nnx.Linear(a, a, rngs=rngs) for a in widths]
        self.blocks = nnx.List(blocks)
        self.body = nnx.Sequential(*layers)

    def __call__(self, x):
        return self.body(x)


def make_layers(n: int, rngs: nnx.Rngs):
    return [nnx.Linear(4, 4, rngs=rngs) for _ in range(n)]


class Made(nnx.Module):
    def __init__(self, n, rngs):
        self.layers = make_layers(n, rngs)  # error: TLX014
        self.others = nnx.List(make_layers(n, rngs))
        self.scales = [nnx.Param(jnp.ones(4)) for _ in range(n)]  # error: TLX014
        self.pair = (nnx.Linear(4, 4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs))  # error: TLX014
        self.maybe = [nnx.Linear(4, 4, rngs=rngs) if k else None for k in range(n)]  # error: TLX014
        self.merged = [*make_layers(n, rngs), nnx.Linear(4, 4, rngs=rngs)]  # error: TLX014
        self.mapped = list(map(lambda _: nnx.Linear(4, 4, rngs=rngs), range(n)))  # error: TLX014


class Block(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(4, 4, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.drop(self.linear(x))


class Remat(nnx.Module):
    def __init__(self, n, rngs):
        self.blocks = nnx.List([nnx.remat(Block(rngs)) for _ in range(n)])  # error: TLX016
        self.fast = nnx.jit(Block(rngs))  # error: TLX016
        wrap = nnx.remat if n > 2 else (lambda f: f)
        self.right = Block(rngs)
        self.call = wrap

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return nnx.remat(Block.__call__)(self.right, x)
