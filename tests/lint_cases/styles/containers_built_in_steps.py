"""Containers built in steps, in other styles."""

import flax.nnx as nnx
from flax.nnx import Linear, Module
import jax.numpy as jnp
import jax
from typing import Sequence, Callable, Any

class A(nnx.Module):
    def __init__(self, dims: Sequence[int], act: Callable, *, rngs: nnx.Rngs):
        self.layers = [nnx.Linear(a, b, rngs=rngs) for a, b in zip(dims[:-1], dims[1:])]  # error: TLX014
        self.norms = [nnx.LayerNorm(d, rngs=rngs) if d > 3 else None for d in dims]  # error: TLX014
        self.pairs = [(nnx.Linear(2, 2, rngs=rngs), nnx.relu) for _ in dims]  # error: TLX014
        self.acts = [act] * len(dims)
        self.dims = list(dims)
        self.out = {"mean": nnx.Linear(2, 2, rngs=rngs), "std": nnx.Linear(2, 2, rngs=rngs)}  # error: TLX014
        layers = [nnx.Linear(2, 2, rngs=rngs)]
        for d in dims:
            layers.extend([nnx.Linear(d, d, rngs=rngs), nnx.relu])
        self.net = layers  # error: TLX014
        self.seq = nnx.Sequential(*layers)
        params = []
        for i in range(3):
            params.append(nnx.Param(jnp.zeros(i)))
        self.params = params  # error: TLX014
        self.stats = tuple(nnx.BatchStat(jnp.zeros(2)) for _ in range(2))  # error: TLX014
        self.heads = {}  # error: TLX014
        for name in ("a", "b"):
            self.heads[name] = nnx.Linear(2, 2, rngs=rngs)
        self.lazy = None
        experts = {str(i): Linear(2, 2, rngs=rngs) for i in range(2)}
        self.experts = experts  # error: TLX014
        self.wrapped = nnx.List(params)
        self.wrapped2 = nnx.Dict(experts)
        self.rng_list = [rngs.params(), rngs.params()]
        self.cfg = dict(a=1)
    def setup_lazy(self, rngs):
        self.lazy = []  # error: TLX014
        for _ in range(2):
            self.lazy.append(Linear(2, 2, rngs=rngs))

class B(Module):
    def __init__(self, block_cls: type[Module], n, rngs):
        self.blocks = [block_cls(rngs=rngs) for _ in range(n)]  # error: TLX014
        self.stages = [self._stage(rngs) for _ in range(n)]  # error: TLX014
        a, self.b = 1, [Linear(2, 2, rngs=rngs)]  # error: TLX014
        self.down, self.up = [], []  # error: TLX014, TLX014
        for _ in range(2):
            self.down.append(Linear(2, 2, rngs=rngs))
            self.up.append(Linear(2, 2, rngs=rngs))
        setattr(self, "c", [Linear(2, 2, rngs=rngs)])
    def _stage(self, rngs):
        return nnx.Sequential(Linear(2, 2, rngs=rngs))
