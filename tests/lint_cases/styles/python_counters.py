"""Python counters, in other styles."""

import jax, jax.numpy as jnp
from flax import nnx
from flax.nnx import Module
import dataclasses
from typing import Any


class Lazy(nnx.Module):
    def __init__(self):
        self.initialized = False
        self.calls = 0
        self.history = []
        self.mode = "train"
        self.scale = 1.0

    def _init(self, x):
        self.initialized = True  # error: TLX007
        self.w = nnx.Param(jnp.ones(x.shape[-1]))

    def __call__(self, x):
        if not self.initialized:
            self._init(x)
        self._tick()
        return x

    def _tick(self):
        self.calls += 1  # error: TLX007
        self.scale *= 0.99  # error: TLX007

    def infer(self, x):
        self.mode = "infer"
        return self(x)


class Counter2(Module):
    step: int = 0
    warm = False

    def __call__(self, x):
        self.step = self.step + 1  # error: TLX007
        self.warm = True  # error: TLX007
        return x


@dataclasses.dataclass
class Cfg(nnx.Module):
    n: int
    seen: int = 0

    def __call__(self, x):
        self.seen += x.shape[0]  # error: TLX007
        return x


class Base(nnx.Module):
    def __init__(self):
        self.n = 0
        self.ready = False


class Child(Base):
    def forward(self, x):
        self.n = 1 + self.n  # error: TLX007
        return x

    @nnx.jit
    def train_step(self, x):
        self.ready = True  # error: TLX007
        self.n |= 1  # error: TLX007


def mark(m: Base):
    m.ready = True


@nnx.jit
def run(m: Base, x):
    m.ready = True  # error: TLX007
    m.n += 1  # error: TLX007
    return x


@nnx.jit
def run2(m: Base, x):
    helper2(m)
    return x


def helper2(m: Base):
    m.n += 1  # error: TLX007


class Buf(nnx.Module):
    def __init__(self, size):
        self.ptr = 0
        self.cache = None
        self.total = 0.0

    def add(self, x):
        self.ptr = (self.ptr + 1) % 100
        self.total = self.total + x.sum()  # error: TLX007

    def __call__(self, x):
        self.cache = x * jnp.ones(3)  # error: TLX007
        return x


class Plain:
    def __init__(self):
        self.n = 0

    def __call__(self, x):
        self.n += 1
        return x


class Iter(nnx.Module):
    def __init__(self):
        self.n = 0

    def __next__(self):
        self.n += 1


class Setter(nnx.Module):
    def __init__(self):
        self.deterministic = False
        self.depth = 0

    def eval(self):
        self.deterministic = True

    def set_depth(self, d):
        self.depth = d

    def add_layer(self, layer):
        self.depth = self.depth + 1  # error: TLX007


class InnerFn(nnx.Module):
    def __init__(self):
        self.k = 0

    def __call__(self, xs):
        def body(carry, x):
            self.k += 1  # error: TLX007, TLX008
            return carry, x

        return jax.lax.scan(body, 0, xs)
