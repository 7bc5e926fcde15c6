"""Variables replaced, in other styles."""

import jax, jax.numpy as jnp
import flax.nnx as fnx
from flax.nnx import Variable, BatchStat, Module, Rngs
from base_lib import Norm, Tracking, Stat
import base_lib as lib
from functools import partial


class A(Norm):
    def __init__(self, n):
        super().__init__(n)
        self.mean = jnp.full((n,), 0.5)  # error: TLX002

    def __call__(self, x):
        self.mean = self.mean * 0.9 + x.mean(0) * 0.1  # error: TLX002
        return x


class B(lib.Norm):
    def __init__(self, n):
        lib.Norm.__init__(self, n)
        self.count = 0  # error: TLX002

    def step(self):
        self.count += 1  # error: TLX007


class C(Norm):
    def make_weights(self, n):
        return jnp.ones((n,))

    def __call__(self, x):
        return x * self.weights


class D(Norm, Tracking):
    def __init__(self, n):
        super().__init__(n)
        self.start_tracking()

    def __call__(self, x):
        self.seen = self.seen + x.shape[0]  # error: TLX002
        self.count *= 2  # error: TLX002
        self.count -= 1  # error: TLX002
        self.mean /= 2.0  # error: TLX002
        return x


class E(Module):
    def __init__(self, n):
        self.stats = fnx.Dict(mean=BatchStat(jnp.zeros(n)), var=BatchStat(jnp.ones(n)))
        self.levels = fnx.List([Variable(jnp.zeros(())) for _ in range(3)])

    def __call__(self, x):
        self.stats.mean = 0.9 * self.stats.mean[...] + 0.1 * x  # error: TLX002
        self.stats["var"] = x.var(0)  # error: TLX002
        for i, level in enumerate(self.levels):
            level += 1  # error: TLX002
            self.levels[i] = level[...] * 0.5  # error: TLX002
        for i in range(3):
            self.levels[i] = jnp.zeros(())  # error: TLX002
        setattr(self.stats, "mean", x.mean(0))  # error: TLX002
        for name in ("mean", "var"):
            setattr(self.stats, name, x.mean(0))  # error: TLX002
        return x


class F(Module):
    def __init__(self):
        self.scale = fnx.Param(jnp.ones(()))
        self.stat = BatchStat(jnp.zeros(()))

    def update(self, x):
        old, new = self.stat[...], x.mean()
        self.stat = jnp.where(new > old, new, old)  # error: TLX002
        if (m := x.max()) is not None:
            self.stat = m  # error: TLX002
        match x.ndim:
            case 1:
                self.stat = x.sum()  # error: TLX002
            case _:
                self.stat[...] = x.sum()

    @property
    def doubled(self):
        return self.stat * 2

    @partial(jax.jit, static_argnums=0)  # comment
    def fast(self, x):  # error: TLX008
        return x


def helper(m: F, x):
    m.stat = x  # unknown: x could be a Variable
    m.scale = jnp.zeros(())  # error: TLX002
    m.scale = fnx.Param(jnp.zeros(()))


def freeze(model: F):
    model.scale = model.scale[...]  # error: TLX002


class G(Module):
    def __init__(self):
        self.cache = None
        self.stat = BatchStat(jnp.zeros(()))

    def __call__(self, x):
        self.cache = Variable(x)
        self.stat = self.stat.replace(x.mean())
        return x

    def reset(self):
        self.stat = BatchStat(jnp.zeros(()))


class H(Norm):
    def __init__(self, n, static):
        super().__init__(n)
        self.mean = Stat(jnp.ones(n))
        self.weights = fnx.Param(jnp.zeros(n))


class Cm(Module):
    def __init__(self, n, rngs):
        self.layers = fnx.List([fnx.Linear(n, n, rngs=rngs) for _ in range(2)])
        for i in range(2):
            setattr(self, f"bn_{i}", fnx.BatchNorm(n, rngs=rngs))

    def tie(self):
        self.layers[0].kernel = self.layers[1].kernel
        self.layers[0].kernel = jnp.zeros((2, 2))  # error: TLX002
        self.layers[0].bias = None
        for layer in self.layers:
            layer.kernel = layer.kernel * 0.5  # error: TLX002
        for k, layer in enumerate(self.layers):
            layer.kernel *= 0.5  # error: TLX002


def prune(model: Cm):
    for layer in model.layers:
        layer.kernel = jnp.where(jnp.abs(layer.kernel[...]) > 0.1, layer.kernel[...], 0.0)  # error: TLX002
    lin = model.layers[0]
    lin.bias = lin.bias[...] + 1.0  # error: TLX002
