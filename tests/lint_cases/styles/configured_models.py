"""Models that are configured by dataclasses, with annotated attributes."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Optional

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx import BatchStat, Param, Variable


@dataclass(frozen=True)
class NormConfig:
    width: int = 64
    momentum: float = 0.99
    start: float = 1.0
    base: int = 10_000
    extra: dict = field(default_factory=dict)


class NormStats(nnx.Module):
    def __init__(self, config: NormConfig, *, rngs: nnx.Rngs):
        super().__init__()
        self.config = config
        self.mean = BatchStat(jnp.zeros(config.width))
        self.var = BatchStat(jnp.ones((config.width,)))
        self.proj = nnx.Linear(config.width, config.width, rngs=rngs)

    def __call__(self, x):
        m = self.config.momentum
        self.mean = m * self.mean + (1 - m) * x.mean(0)  # error: TLX002
        self.var[...] = m * self.var[...] + (1 - m) * x.var(0)
        return self.proj((x - self.mean[...]) / jnp.sqrt(self.var[...] + 1e-5))


class Scaled(nnx.Module):
    def __init__(self, cfg: NormConfig):
        self.scale = Param(jnp.full((cfg.width,), cfg.start))  # error: TLX005
        self.gain = Param(jnp.asarray(cfg.start))  # error: TLX005
        self.shift = Param(cfg.start * jnp.ones((cfg.width,)))
        self.freqs = Param(1.0 / (cfg.base ** (jnp.arange(0, cfg.width, 2) / cfg.width)))  # error: TLX001
        self.frozen = nnx.Param(jax.random.normal(jax.random.key(0), (4,)), trainable=False)  # error: TLX001

    def __call__(self, x):
        return x * self.scale[...] * self.gain[...] + self.shift[...] + self.freqs[...].sum() + self.frozen[...].sum()


class Annotated(nnx.Module):
    seen: nnx.Variable[jax.Array]
    hits: "Variable"

    def __init__(self):
        self.seen: nnx.Variable = nnx.Variable(jnp.zeros((), jnp.int32))
        self.hits: Variable[jax.Array] = Variable(jnp.zeros((), jnp.int32))
        self.last: Optional[nnx.Variable] = nnx.Variable(jnp.zeros(3))

    def __call__(self, x):
        self.seen = self.seen + 1  # error: TLX002
        self.hits += 1  # error: TLX002
        self.last: Any = x  # the argument may be a Variable
        return x


@dataclasses.dataclass
class Tally(nnx.Module):
    width: int
    calls: int = 0

    def __call__(self, x):
        self.calls += 1  # error: TLX007
        return x.reshape(-1, self.width)


@nnx.dataclass
class Loaded(nnx.Module):
    kernel: nnx.Param
    used: nnx.Variable
    name: str = "loaded"

    def __call__(self, x):
        self.used = jnp.ones((), jnp.bool_)  # error: TLX002
        self.kernel[...] = self.kernel[...]
        return x @ self.kernel[...]


class Tokens(nnx.Module):
    def __init__(self, start: int = 0):
        self.seen = nnx.Variable(jnp.zeros((), jnp.int32))  # error: TLX004
        self.rows = nnx.Variable(jnp.array(start, dtype=jnp.int32))  # error: TLX004
        self.steps = nnx.Variable(jnp.array(start, dtype=jnp.uint32))

    def __call__(self, batch):
        rows, columns = batch.shape
        self.seen[...] = self.seen[...] + rows * columns
        self.rows.set_value(self.rows.get_value() + batch.shape[0])
        self.steps[...] += 1
        return batch
