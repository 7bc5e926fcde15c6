"""Weak types, in other styles."""

import jax, jax.numpy as jnp
from flax import nnx
from flax.nnx import Variable as Var, Param


class Temp(Var):
    pass


class S(nnx.Module):
    def __init__(self, init_t: float = 1.0, n: int = 3):
        self.a = Param(jnp.array(0.5))  # error: TLX005
        self.b = Param(jnp.asarray(init_t))  # error: TLX005
        self.c = nnx.Param(jnp.full((n,), 0.1))  # error: TLX005
        self.d = nnx.Param(0.5)  # error: TLX005
        self.e = nnx.Param(jnp.log(init_t))  # error: TLX005
        self.f = nnx.Param(jnp.full((n,), jnp.log(10.0)))  # error: TLX005
        self.g = nnx.Param(jnp.array(0.5, jnp.float32))
        self.h = nnx.Param(jnp.ones(n) * 0.5)
        self.i = nnx.Param(jnp.array([0.5]))
        self.k = Var(0)  # error: TLX005
        self.l = Temp(0.0)  # error: TLX005
        self.m = nnx.Variable(jnp.array(0.0))  # error: TLX005
        self.o = nnx.data(nnx.Param(jnp.array(1.0)))  # error: TLX005
        self.p = nnx.Param(value=jnp.array(2.0))  # error: TLX005
        t = jnp.array(3.0)
        self.q = nnx.Param(t)  # error: TLX005
        self.r = nnx.Param(jnp.array(init_t).reshape(1))  # error: TLX005
        self.s = nnx.Param(-jnp.array(1.5))  # error: TLX005
        self.t: nnx.Param = nnx.Param(jnp.array(-1.0))  # error: TLX005
        self.u = nnx.Param(jnp.float32(1.0))

    def __call__(self, x):
        self.k[...] += 1
        self.l.value = self.l.value + x.mean()  # error: TLX006, TLX006
        self.m[...] = 0.9 * self.m[...] + 0.1 * x.astype(jnp.float32).mean()
        return x


class Cnt(nnx.Module):
    def __init__(self):
        self.n = nnx.Variable(0)
        self.steps = nnx.Variable(0)  # error: TLX005

    def tick(self):
        self.steps[...] = self.steps[...] + 1

    def get(self):
        return self.n.get_value()
