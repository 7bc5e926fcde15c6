"""Replaced through objects, in other styles."""

import flax
import jax
import jax.numpy as jnp
from dataclasses import dataclass, field
from typing import Optional, Generic, TypeVar
from flax import nnx
from flax.nnx import variablelib
from flax.nnx import *
from base_lib import Norm, Stat

T = TypeVar("T")

class Root(flax.nnx.Module):
    def __init__(self):
        self.hits = flax.nnx.Variable(jnp.zeros((), jnp.int32))
        self.ema = variablelib.BatchStat(jnp.zeros(3))
        self.opt: Optional[nnx.Variable] = None
    def __call__(self, x):
        self.hits = self.hits + 1  # error: TLX002
        self.ema = jax.lax.stop_gradient(0.9 * self.ema + 0.1 * x)  # error: TLX002
        self.hits = jnp.add(self.hits, 1)  # error: TLX002
        self.hits = jax.tree.map(lambda a: a + 1, self.hits)
        self.ema, y = jnp.zeros(3), x  # error: TLX002
        self.hits = self.hits[...] + 1  # error: TLX002
        self.hits = self.hits.get_value() + 1  # error: TLX002
        self.ema = jax.nn.relu(self.ema)  # error: TLX002
        self.hits = int(3)  # error: TLX002
        return x

@dataclass
class DC(nnx.Module):
    n: int
    def __post_init__(self):
        self.stat = nnx.BatchStat(jnp.zeros(self.n))
    def update(self, x):
        self.stat = self.stat * 0.5  # error: TLX002
        self.stat += x  # error: TLX002

class Gen(nnx.Module, Generic[T]):
    def __init__(self):
        self.v = nnx.Variable(jnp.zeros(()))
    def bump(self):
        v = self.v
        v += 1  # error: TLX002
        self.v **= 2  # error: TLX002
        self.v //= 2  # error: TLX002

class Outer(nnx.Module):
    def __init__(self):
        self.inner = Gen()
        self.norm = Norm(3)
        self.many = nnx.List([Gen() for _ in range(2)])
        self.table = nnx.Dict({"a": Gen()})
    def __call__(self, x):
        self.inner.v = x.sum()  # error: TLX002
        self.norm.mean = self.norm.mean * 0.5  # error: TLX002
        self.many[0].v = jnp.zeros(())  # error: TLX002
        self.table["a"].v = jnp.ones(())  # error: TLX002
        self.table.a.v += 1  # error: TLX002
        for m in self.many:
            m.v = m.v * 2  # error: TLX002
        for k, m in self.table.items():
            m.v = m.v * 2  # error: TLX002
        for a, b in zip(self.many, self.many):
            a.v = b.v[...]  # error: TLX002
        [setattr(m, "v", jnp.zeros(())) for m in self.many]  # error: TLX002
        first, *rest = self.many
        first.v = jnp.zeros(())  # error: TLX002
        inner = self.inner
        inner.v = inner.v[...] + 1  # error: TLX002
        with jax.named_scope("x"):
            self.inner.v = jnp.zeros(())  # error: TLX002
        try:
            self.inner.v = jnp.zeros(())  # error: TLX002
        finally:
            pass
        return x

def soft_update(target: Outer, online: Outer, tau=0.01):
    target.inner.v = (1 - tau) * target.inner.v + tau * online.inner.v  # error: TLX002
    target.inner.v[...] = (1 - tau) * target.inner.v[...] + tau * online.inner.v[...]

def build() -> Gen:
    return Gen()

def use():
    g = build()
    g.v = jnp.zeros(())  # error: TLX002
    h = [Gen() for _ in range(2)]
    h[0].v = jnp.zeros(())  # error: TLX002
    m = {"a": Gen()}
    m["a"].v = jnp.zeros(())  # error: TLX002
    c = nnx.clone(g)
    c.v = jnp.ones(())  # error: TLX002
    lin = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    lin.kernel = jnp.zeros((2, 2))  # error: TLX002
    lin.bias = None
    lin.kernel = nnx.Param(jnp.zeros((2, 2)))
    seq = nnx.Sequential(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), nnx.relu)
    emb = nnx.Embed(3, 2, rngs=nnx.Rngs(0))
    emb.embedding = emb.embedding * 2  # error: TLX002
    emb.embedding *= 2  # error: TLX002

class Over(Norm):
    @property
    def scaled(self):
        return self.mean * 2
    def reset(self):
        super().reset() if hasattr(super(), "reset") else None
        self.mean = jnp.zeros_like(self.mean)  # error: TLX002
        self.count = jnp.zeros((), jnp.uint32)  # error: TLX002
        self.mean = Stat(jnp.zeros(3))
    @classmethod
    def load(cls, n, values):
        obj = cls(n)
        obj.mean = jnp.asarray(values)  # error: TLX002
        return obj

class Deep(Over):
    def __init__(self, n):
        super().__init__(n)
        self.mean = jnp.zeros(n)  # error: TLX002
        self.count = self.count[...] + 1  # error: TLX002
