"""Optimizers, in other styles."""

import inspect

import optax, jax, dataclasses
import flax.nnx as nnx
from flax.nnx import Optimizer
from flax import struct
from typing import NamedTuple


class Net(nnx.Module):
    def __init__(self, rngs):
        self.lin = nnx.Linear(4, 4, rngs=rngs)


def mk4(m):
    return nnx.Optimizer(m, optax.adam(1e-3), wrt=nnx.Param)


@nnx.jit
def s1(m, opt: nnx.Optimizer, grads):
    opt.update(grads)  # error: TLX013


@nnx.jit
def s2(m, optimizer, x):
    loss, grads = nnx.value_and_grad(lambda m: m(x))(m)
    optimizer.update(grads)  # error: TLX013
    return loss


@nnx.jit
def s3(m, optimizer, x):
    loss, grads = nnx.value_and_grad(lambda m: m(x))(m)
    optimizer.update(m, grads)
    return loss


def s4(m, tx, opt_state, x):
    grads = jax.grad(lambda m: m(x))(m)
    updates, opt_state = tx.update(grads, opt_state)


def s5(graphdef, state, x):
    m, opt = nnx.merge(graphdef, state)
    grads = nnx.grad(lambda m: m(x))(m)
    opt.update(grads)  # error: TLX013


def s6(metrics, loss):
    metrics.update(loss)


@dataclasses.dataclass
class T:
    opt: nnx.Optimizer

    def go(self, grads):
        self.opt.update(grads)  # error: TLX013


@nnx.jit
def s7(m, optimizer: optax.GradientTransformation, x):
    loss, grads = nnx.value_and_grad(lambda m: m(x))(m)
    optimizer.update(grads)  # error: TLX013


@nnx.jit
def for_two_versions(m, optimizer: nnx.Optimizer, x):
    loss, grads = nnx.value_and_grad(lambda m: m(x))(m)
    if "model" in inspect.signature(optimizer.update).parameters:
        optimizer.update(m, grads)
    else:
        optimizer.update(grads)


def make_for_two_versions(m, tx):
    try:
        return nnx.Optimizer(m, tx, wrt=nnx.Param)
    except TypeError:
        return nnx.Optimizer(m, tx)
