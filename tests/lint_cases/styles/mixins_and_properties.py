"""Mixins, properties, `setattr`, `match`, and aliases of attributes."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx


class CountsCalls:
    """Adds a count to a module that defines `calls`."""

    def count(self):
        self.calls += 1  # error: TLX007


class CountsSteps:
    def advance(self, n=1):
        self.steps = self.steps + n  # error: TLX002


class Counted(CountsCalls, CountsSteps, nnx.Module):
    def __init__(self):
        self.calls = 0
        self.steps = nnx.Variable(jnp.zeros((), jnp.int32))

    def __call__(self, x):
        self.count()
        self.advance()
        return x


class Temperature(nnx.Module):
    def __init__(self):
        self._t = nnx.Variable(jnp.ones(()))
        self._log = nnx.Variable(jnp.zeros(()))

    @property
    def t(self) -> jax.Array:
        return self._t[...]

    @t.setter
    def t(self, value):
        self._t = jnp.asarray(value)  # error: TLX002
        self._log[...] = jnp.log(value)

    @functools.cached_property
    def inverse(self):
        return 1 / self._t[...]


class Cache(nnx.Module):
    def __init__(self):
        self.hits = nnx.Variable(jnp.zeros((), jnp.int32))
        self.misses = nnx.Variable(jnp.zeros((), jnp.int32))
        self.buffer = nnx.Cache(jnp.zeros((8, 4)))

    def reset(self):
        for name in ("hits", "misses"):
            setattr(self, name, jnp.zeros((), jnp.int32))  # error: TLX002

    def push(self, i, row):
        self.buffer = self.buffer.at[i].set(row)  # error: TLX002

    def push_other(self, i, row):
        self.buffer = self.buffer[...].at[i].set(row)  # error: TLX002

    def push_right(self, i, row):
        self.buffer[...] = self.buffer[...].at[i].set(row)

    def push_old(self, i, row):
        self.buffer.value = self.buffer.value.at[i].set(row)  # error: TLX006


class Mode(nnx.Module):
    def __init__(self):
        self.mean = nnx.BatchStat(jnp.zeros(4))
        self.var = nnx.BatchStat(jnp.ones(4))
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))

    def __call__(self, x, mode: str):
        match mode:
            case "train":
                self.mean = 0.9 * self.mean + 0.1 * x.mean(0)  # error: TLX002
            case "swap":
                self.mean, self.var = x.mean(0), x.var(0)  # error: TLX002
            case _:
                pass
        calls = self.calls
        calls += 1  # error: TLX002
        try:
            self.var = self.var * 0.5  # error: TLX002
        finally:
            self.calls[...] += 1
        return x


class Outer(nnx.Module):
    scale = 1

    def __init__(self, rngs):
        self.norm = Mode()
        self.blocks = nnx.List([Mode() for _ in range(2)])
        self.extra = nnx.Dict(mean=nnx.BatchStat(jnp.zeros(4)), n=nnx.Variable(jnp.zeros((), jnp.int32)))

    def __call__(self, x):
        norm = self.norm
        norm.mean = x.mean(0)  # error: TLX002
        norm.var[...] = x.var(0)
        for block in self.blocks:
            block.calls += 1  # error: TLX002
        for k, block in enumerate(self.blocks):
            block.mean = jnp.zeros(4) + k  # error: TLX002
        self.extra["mean"] = x.mean(0)  # error: TLX002
        self.extra.n += 1  # error: TLX002
        self.scale = self.scale + 1  # error: TLX007
        return x


def bump(model: Mode):
    model.calls += 1  # error: TLX002


def follow(model: "Mode", value, *, decay: float = 0.9) -> None:
    model.mean = decay * model.mean[...] + (1 - decay) * value  # error: TLX002
    model.var[...] = decay * model.var[...] + (1 - decay) * value**2
