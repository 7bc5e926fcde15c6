"""Optimizers of both kinds, in other styles."""

import optax, jax, dataclasses
import flax.nnx as nnx
from flax.nnx import Optimizer
from flax import struct
from typing import NamedTuple


class Net(nnx.Module):
    def __init__(self, rngs):
        self.lin = nnx.Linear(4, 4, rngs=rngs)


def mk(m):
    return Optimizer(m, optax.adam(1e-3))  # error: TLX013


def mk2(m):
    return nnx.Optimizer(model=m, tx=optax.adam(1e-3))  # error: TLX013


def mk3(m):
    tx = optax.adam(1e-3)
    o = nnx.optimizer.Optimizer(m, tx)  # error: TLX013
    o.update(1)  # error: TLX013
    return o


def mk4(m):
    return nnx.Optimizer(m, optax.adam(1e-3), wrt=nnx.Param)


def mk5(m):
    return nnx.ModelAndOptimizer(m, optax.adam(1e-3))


class Tr:
    def __init__(self, m):
        self.optimizer = nnx.Optimizer(m, optax.sgd(0.1))  # error: TLX013
        self.opt2 = nnx.ModelAndOptimizer(m, optax.sgd(0.1))

    def go(self, x):
        grads = nnx.grad(lambda m: m(x))(self.m)
        self.optimizer.update(grads)  # error: TLX013
        self.opt2.update(grads)
        self.optimizer.update(grads=grads)  # error: TLX013


class Ts(nnx.Optimizer):
    def step(self, grads):
        self.update(grads)  # error: TLX013
        super().update(grads)  # error: TLX013


@nnx.jit
def s8(m: Net, optimizer, x):
    (loss, aux), grads = nnx.value_and_grad(lambda m: m(x), has_aux=True)(m)
    optimizer.update(grads)


model8 = Net(nnx.Rngs(0))
optimizer8 = nnx.ModelAndOptimizer(model8, optax.adam(1e-3))
s8(model8, optimizer8, 1)


def make_all(m):
    tx = optax.chain(optax.clip(1.0), optax.adam(1e-3))
    opts = [nnx.Optimizer(m, tx) for _ in range(2)]  # error: TLX013
    return opts
