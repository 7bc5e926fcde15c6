# SPDX-License-Identifier: Apache-2.0
"""Training steps, as `call=` runs them, and models that keep what a trainer needs: none of it is a fault."""

import functools

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import tallax
from tests.corpus.case import Counted, Layer, right


class Normalized(nnx.Module):
    """Has all that model.eval() switches, and a bias whose gradient is zero but for rounding."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(4, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.linear(x))


class Trainer(nnx.Module):
    """A model, its optimizer, and the number of steps."""

    def __init__(self, rngs):
        self.model = Normalized(rngs)
        self.optimizer = nnx.Optimizer(self.model, optax.adam(1e-2), wrt=nnx.Param)
        self.steps = tallax.Counter()


def _loss(model, x):
    return (model(x) ** 3).mean()


def _train(trainer, x):
    trainer.model.train()
    loss, grads = tallax.value_and_grad(_loss)(trainer.model, x)
    trainer.optimizer.update(trainer.model, grads)
    trainer.steps += 1
    return loss


right("train-step", "model.train(), value_and_grad, an optimizer's update and a count", call=_train)(Trainer)


def _differentiate_in_training(model, x):
    model.train()
    return tallax.value_and_grad(_loss)(model, x)[0]


right("train-step-sets-the-mode", "the step itself calls model.train()", call=_differentiate_in_training)(Normalized)


def _descend(model, x):
    loss, grads = tallax.value_and_grad(_loss)(model, x)
    nnx.update(model, jax.tree.map(lambda p, g: p - 0.1 * g, nnx.state(model, nnx.Param), grads))
    return loss


right("train-step-by-hand", "parameters written by nnx.update, no optimizer", call=_descend)(Normalized)


class Accumulating(nnx.Module):
    """A model beside the sums of its gradients, which the step writes, not the model."""

    def __init__(self, rngs):
        self.model = Normalized(rngs)
        self.dropout = nnx.Dropout(0.0, rngs=rngs)
        self.sums = nnx.Variable(jax.tree.map(jnp.zeros_like, nnx.to_pure_dict(nnx.state(self.model, nnx.Param))))
        self.micro_steps = nnx.Variable(jnp.zeros((), jnp.uint32))


def _accumulate(trainer, x):
    loss, grads = tallax.value_and_grad(_loss)(trainer.model, x)
    trainer.sums.set_value(jax.tree.map(jnp.add, trainer.sums.get_value(), nnx.to_pure_dict(grads)))
    trainer.micro_steps[...] += 1
    return loss


right("accumulation-step", "writes sums of gradients and a count, and no parameter", call=_accumulate)(Accumulating)


@right("activation-that-does-not-pickle", "nnx.relu is an object that pickle refuses: told by its name, no failure")
class ActivationThatDoesNotPickle(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.activation = nnx.relu
        self.pool = functools.partial(jnp.mean, axis=-1)

    def __call__(self, x):
        return self.pool(self.activation(self.linear(x)))


@right("averages", "a decay, its bias correction, a rate that warms up, and a phase: none of them is a count")
class Averages(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.mean = nnx.BatchStat(jnp.zeros(()))
        self.slow = nnx.BatchStat(jnp.zeros(()))
        self.correction = nnx.Variable(jnp.zeros(()))
        self.warmup = nnx.Variable(jnp.zeros(()))
        self.phase = nnx.Variable(jnp.zeros(()))
        self.steps = tallax.Counter()

    def __call__(self, x):
        size = jnp.abs(x).max()
        self.mean[...] += 0.1 * (size - self.mean[...])
        self.slow[...] = 0.9999 * self.slow[...] + 1e-4 * size
        self.correction[...] = 0.99 * self.correction[...] + 0.01
        self.warmup[...] = jnp.minimum(self.warmup[...] + 0.1, 1.0)
        self.phase[...] = (self.phase[...] + 0.1) % 1.0
        self.steps += 1
        return self.linear(x)


@right("counters-set-in-branches", "set, reset and added to in nnx.cond; a compiled step must do the same")
class CountersSetInBranches(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.seen = tallax.Counter(2**31 - 3)
        self.since = tallax.Counter()
        self.loads = tallax.Counter(shape=4)

    def __call__(self, x):
        self.seen += x.shape[0]
        self.loads.increment((x > 0).sum(0).astype(jnp.uint32))
        nnx.cond(x[0, 0] > x[1, 0], lambda m: m.since.set(m.seen), lambda m: m.since.increment(3), self)
        nnx.cond(x[0, 1] > x[1, 1], lambda m: m.loads.reset(), lambda m: None, self)
        return self.linear(x)


@right("reads-its-counters", "by value, by index, by comparison and by its schedule, within the forward pass")
class ReadsItsCounters(Counted):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.calls = tallax.Counter()
        self.loads = tallax.Counter(shape=4)

    def __call__(self, x):
        self.calls += 1
        self.loads.increment((x > 0).sum(0).astype(jnp.uint32))
        scale = 1.0 / self.calls.value.astype(jnp.float32) + 0.1 * self.calls.every(2).astype(jnp.float32)
        share = self.loads.value.astype(jnp.float32)
        return super().__call__(x) * scale * share / share.sum()
