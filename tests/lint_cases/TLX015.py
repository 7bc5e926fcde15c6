"""Modules, optimizers and streams changed through a closure under transformations of Flax."""

import jax.numpy as jnp
import optax
import pytest
from flax import nnx


class Counting(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.count = nnx.Variable(jnp.array(0, dtype=jnp.int32))
        self.linear = nnx.Linear(3, 3, rngs=rngs)
        self.calls = 0

    def __call__(self, x):
        self.count[...] += 1
        return self.linear(x)

    def evaluate(self, x):
        return self.linear(x)

    def differentiated(self, x):
        def loss(linear):
            self.count[...] += 1  # error: TLX015
            return linear(x).sum()

        return nnx.grad(loss)(self.linear)

    def scanned(self, xs):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))
        def step(carry, x):
            return carry, self(x)  # error: TLX015

        return step(0, xs)

    @nnx.jit
    def compiled(self, x):
        self.count[...] += 1
        return x

    @nnx.jit
    def keyword(self, x, *, rngs: nnx.Rngs):
        return x + rngs.normal(x.shape)


class Dropping(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(x)


model = Counting(nnx.Rngs(0))
dropping = Dropping(nnx.Rngs(0))
rngs = nnx.Rngs(0)
optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
metrics = nnx.MultiMetric(loss=nnx.metrics.Average("loss"))
total = nnx.Variable(jnp.zeros(()))


@nnx.jit
def closed(x):
    model.calls = 3  # error: TLX015
    total[...] += 1  # error: TLX015
    total.set_value(x)  # error: TLX015
    noise = rngs.normal(x.shape)  # error: TLX015
    metrics.update(loss=x)  # error: TLX015
    dropping(x)  # error: TLX015
    return model(x) + noise  # error: TLX015


@nnx.jit
def step(model: Counting, x):
    def loss(model):
        return model(x).sum()

    grads = nnx.grad(loss)(model)
    optimizer.update(model, grads)  # error: TLX015


@nnx.jit
def read(x):
    return model.evaluate(x) + total[...] + model.linear.kernel[...]


@nnx.jit
def given(model: Counting, total: nnx.Variable, x):
    total[...] += 1
    return model(x)


@nnx.jit
def made(x):
    own = Counting(nnx.Rngs(0))
    return own(x)


def evaluated(x):
    dropping.eval()

    @nnx.jit
    def run(x):
        return dropping(x)

    return run(x)


def chosen(x):
    return nnx.cond(x > 0, lambda x: model(x), lambda x: x, x)  # error: TLX015


def test_raises(x):
    with pytest.raises(Exception, match="trace"):

        @nnx.jit
        def run(x):
            return model(x)

        run(x)


def plain(x):
    model(x)
    total[...] += 1


@nnx.jit
def updated(state, x):
    nnx.update(model, state)  # error: TLX015
    return model.evaluate(x)


@nnx.jit
def updated_argument(model: Counting, state):
    nnx.update(model, state)
