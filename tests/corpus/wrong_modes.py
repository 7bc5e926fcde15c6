# SPDX-License-Identifier: Apache-2.0
"""State that evaluation changes, that a copy or a checkpoint loses, and that is differentiated in some modes only."""

import copy

import jax
import jax.numpy as jnp
from flax import nnx

from tests.corpus.case import Counted, Layer, wrong


@wrong("own-training-flag", "eval-mode", "mean", "model.eval() knows `deterministic`, not `training`")
class OwnTrainingFlag(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.training = True
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.mean = nnx.BatchStat(jnp.zeros(4))

    def __call__(self, x):
        if self.training:
            self.mean[...] = 0.9 * self.mean[...] + 0.1 * x.mean(0)
        return self.dropout(self.linear(x - self.mean[...]))


@wrong(
    "train-argument", "eval-mode", "gate/load", "a default of train=True beside nnx.Dropout: evaluation feeds the load"
)
class TrainArgument(nnx.Module):
    class Gate(Layer):
        def __init__(self, rngs):
            super().__init__(rngs)
            self.load = nnx.Variable(jnp.zeros(4))

        def __call__(self, x, train=True):
            gates = nnx.softmax(self.linear(x))
            if train:
                self.load[...] = 0.9 * self.load[...] + 0.1 * gates.mean(0)
            return gates

    def __init__(self, rngs):
        self.gate = self.Gate(rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.gate(x))


@wrong("half-switched", "eval-mode", "var", "the mean obeys use_running_average, the variance does not")
class HalfSwitched(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.use_running_average = False
        self.mean = nnx.BatchStat(jnp.zeros(4))
        self.var = nnx.BatchStat(jnp.ones(4))

    def __call__(self, x):
        self.var[...] = 0.9 * self.var[...] + 0.1 * x.var(0)
        if not self.use_running_average:
            self.mean[...] = 0.9 * self.mean[...] + 0.1 * x.mean(0)
        return self.linear((x - self.mean[...]) / jnp.sqrt(self.var[...] + 1e-3))


@wrong("histogram-beside-batch-norm", "eval-mode", "hist", "a debug histogram that evaluation fills too")
class HistogramBesideBatchNorm(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.hist = nnx.Variable(jnp.zeros(8))

    def __call__(self, x):
        y = self.norm(self.linear(x))
        bins = jnp.clip(y * 2 + 4, 0, 7).astype(jnp.int32)
        self.hist[...] = 0.99 * self.hist[...] + 0.01 * jnp.bincount(bins.ravel(), length=8)
        return y


@wrong("codebook-learns-in-eval", "eval-mode", "codebook", "the average of the codes goes on in evaluation")
class CodebookLearnsInEval(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.deterministic = False
        self.codebook = nnx.Variable(rngs.params.normal((5, 4)))

    def __call__(self, x):
        z = self.linear(x)
        member = jax.nn.one_hot(jnp.argmin(((z[:, None] - self.codebook[...][None]) ** 2).sum(-1), -1), 5)
        target = jax.lax.stop_gradient(member.T @ z / (member.sum(0)[:, None] + 1e-3))
        self.codebook[...] = 0.9 * self.codebook[...] + 0.1 * target
        return z + jax.lax.stop_gradient(member @ self.codebook[...] - z)


@wrong("pickle-drops-the-cache", "round-trip", "cache", "__getstate__ leaves the cache out, to save space")
class PickleDropsTheCache(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.cache = nnx.Cache(jnp.zeros(4))

    def __getstate__(self):
        state = dict(vars(self))
        del state["cache"]
        return state

    def __call__(self, x):
        self.cache[...] = 0.5 * self.cache[...] + x.mean(0)
        return self.linear(x + self.cache[...])


@wrong("pickle-resets-the-mean", "round-trip", "mean", "unpickled with fresh statistics")
class PickleResetsTheMean(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.mean = nnx.BatchStat(jnp.zeros(4))

    def __setstate__(self, state):
        vars(self).update(state)
        self.mean = nnx.BatchStat(jnp.zeros(4))

    def __call__(self, x):
        self.mean[...] = 0.9 * self.mean[...] + 0.1 * x.mean(0)
        return self.linear(x - self.mean[...])


@wrong("deepcopy-resets-the-count", "round-trip", "count", "__deepcopy__ copies the layer and starts the count again")
class DeepcopyResetsTheCount(Counted):
    def __deepcopy__(self, memo):
        other = type(self)(nnx.Rngs(0))
        other.linear = copy.deepcopy(self.linear, memo)
        return other


@wrong("zero-size-buffer", "round-trip", "replay", "Orbax refuses arrays without elements")
class ZeroSizeBuffer(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.replay = nnx.Variable(jnp.zeros((0, 4)))

    def __call__(self, x):
        return self.linear(jnp.concatenate([self.replay[...], x]))


def loss_and_gradients(model, x):
    """Takes the gradient of a whole model, which is of its parameters in graph mode only."""
    return nnx.value_and_grad(lambda model, x: (model(x) ** 2).mean())(model, x)


@wrong("gradient-of-a-count", "raises", None, "outside graph mode, integers are refused", call=loss_and_gradients)
class GradientOfACount(Counted):
    pass


@wrong(
    "gradient-of-a-statistic",
    "differs raises",
    "output",
    "outside graph mode, the statistic has a gradient too",
    call=loss_and_gradients,
)
class GradientOfAStatistic(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.scale = nnx.BatchStat(jnp.ones(4))

    def __call__(self, x):
        self.scale[...] = 0.9 * self.scale[...] + 0.1 * jnp.abs(x).mean(0)
        return self.linear(x / self.scale[...])
