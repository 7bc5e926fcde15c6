"""Transformations by `partial`, over closures, lambdas and methods."""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import lax


class Cell(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.linear = nnx.Linear(4, 4, rngs=rngs)
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        self.calls[...] += 1
        return self.drop(self.linear(x))


class Pure(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.linear = nnx.Linear(4, 4, rngs=rngs)

    def __call__(self, x):
        return self.linear(x)


metrics = nnx.MultiMetric(loss=nnx.metrics.Average("loss"))


@functools.partial(nnx.jit, static_argnames=("train",))
def logged(x, train):
    metrics.update(loss=x.mean())  # error: TLX015
    return x


@partial(jax.jit, static_argnames="n")
def run(cell: Cell, x, n):  # error: TLX008
    for _ in range(n):
        x = cell(x)
    return x


@partial(jax.jit, static_argnums=(1,))
def run_pure(model: Pure, n, x):
    return model(x) * n


def rollout(cell: Cell, xs):
    def body(carry, x):  # error: TLX008
        y = cell(x)
        return carry + y.sum(), y

    return lax.scan(body, 0.0, xs)


def rollout_right(cell: Cell, xs):
    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))
    def body(cell, x):
        return cell, cell(x)

    return body(cell, xs)


def rollout_pure(model: Pure, xs):
    def body(carry, x):
        return carry, model(x)

    return lax.scan(body, None, xs)


def mapped(cell: Cell, xs):
    return jax.vmap(lambda x: cell(x))(xs)  # error: TLX008


def mapped_object(xs):
    cell = Cell(nnx.Rngs(0))
    return jax.vmap(cell)(xs)  # error: TLX008


def mapped_pure(xs):
    model = Pure(nnx.Rngs(0))
    return jax.vmap(model)(xs)


def gradient(cell: Cell, x):
    return jax.grad(lambda m: m(x).sum())(cell)  # error: TLX008


def gradient_named(cell: Cell, x):
    def loss_fn(model: Cell):  # error: TLX008
        return model(x).sum()

    return jax.value_and_grad(loss_fn)(cell)


class Wrapper(nnx.Module):
    def __init__(self, rngs):
        self.cell = Cell(rngs)
        self.pure = Pure(rngs)

    def __call__(self, x):
        x = jax.checkpoint(self.cell)(x)  # error: TLX008
        return jax.checkpoint(self.pure)(x)

    @partial(jax.jit, static_argnums=0)
    def embed(self, x):  # error: TLX008
        return self.cell(x)

    @nnx.jit
    def embed_right(self, x):
        return self.cell(x)


class Trainer:
    def __init__(self, rngs: nnx.Rngs):
        self.model = Cell(rngs)
        self.optimizer = nnx.Optimizer(self.model, optax.adam(1e-3), wrt=nnx.Param)
        self.step = nnx.jit(self._step)

    def _step(self, x):
        self.model(x)  # error: TLX015
        return x

    def fit(self, data):
        for x in data:
            self.step(x)


class GoodTrainer:
    def __init__(self, rngs: nnx.Rngs):
        self.model = Cell(rngs)
        self.step = nnx.jit(self._step)

    @staticmethod
    def _step(model, x):
        return model(x)

    def fit(self, data):
        for x in data:
            self.step(self.model, x)
