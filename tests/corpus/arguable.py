# SPDX-License-Identifier: Apache-2.0
"""Modules that one may call wrong or right: a check may fail them by the rules given, or pass them."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import tallax
from tests.corpus.case import SEQUENCE, Counted, Layer, arguable


@arguable("tied-weights", "raises", None, "one Param under two names: documented for graph mode, refused by tree mode")
class TiedWeights(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.kernel = self.linear.kernel

    def __call__(self, x):
        return self.linear(x) @ self.kernel[...].T


@arguable(
    "shared-counter",
    "raises lost-update differs",
    None,
    "one counter in two experts: tree mode refuses, jax.jit splits it",
)
class SharedCounter(nnx.Module):
    def __init__(self, rngs):
        self.experts = nnx.List([Counted(rngs), Counted(rngs)])
        self.experts[1].count = self.experts[0].count

    def __call__(self, x):
        return sum(expert(x) for expert in self.experts)


@arguable(
    "parent-reference",
    "raises",
    None,
    "a cycle: fine in graph mode; tree mode recurses without end, which spoils JAX for the process",
)
class ParentReference(nnx.Module):
    def __init__(self, rngs):
        self.child = Layer(rngs)
        self.child.parent = self

    def __call__(self, x):
        return self.child(x)


@arguable(
    "frozen-features-as-param", "param-state", "frequencies", "stop_gradient stops the gradient, not the weight decay"
)
class FrozenFeaturesAsParam(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.frequencies = nnx.Param(rngs.params.normal((4, 4)))

    def __call__(self, x):
        return self.linear(jnp.cos(x @ jax.lax.stop_gradient(self.frequencies[...])))


@arguable(
    "flax-weight-norm",
    "param-state raises round-trip differs lost-update retrace",
    None,
    "writes normalized weights to its layer's Param",
)
def make_weight_norm(rngs):
    return nnx.WeightNorm(nnx.Linear(4, 4, rngs=rngs), rngs=rngs)


@arguable(
    "flax-spectral-norm",
    "param-state eval-mode differs lost-update round-trip",
    None,
    "writes to its layer's Param, in evaluation too",
)
def make_spectral_norm(rngs):
    return nnx.SpectralNorm(nnx.Linear(4, 4, rngs=rngs), rngs=rngs)


@arguable(
    "weak-int-counter",
    "retrace round-trip",
    "count",
    "jnp.array(0) + 1 stays weak: one trace, but a restored one is strong",
)
class WeakIntCounter(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.count = nnx.Variable(jnp.array(0))

    def __call__(self, x):
        self.count[...] += 1
        return self.linear(x)


@arguable("float32-total", "narrow-counter", "total", "a float32 sum that loses digits, as Adagrad's does")
class Float32Total(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.total = nnx.Variable(jnp.zeros(4))

    def __call__(self, x):
        self.total[...] += (x**2).mean(0)
        return self.linear(x) / jnp.sqrt(self.total[...] + 1e-3)


@arguable(
    "float64-of-numpy",
    "retrace round-trip differs",
    "mean",
    "np.zeros is float64: eager calls keep that, jit makes it float32",
)
class Float64OfNumpy(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.mean = nnx.Variable(np.zeros(4))

    def __call__(self, x):
        self.mean[...] = 0.9 * self.mean[...] + 0.1 * x.mean(0)
        return self.linear(x - self.mean[...])


@arguable(
    "fixed-table-as-param",
    "param-state",
    "table",
    "sinusoids that should stay; as a Param they train like any bias",
    inputs=(SEQUENCE,),
)
class FixedTableAsParam(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        angle = jnp.arange(5.0)[:, None] / 10.0 ** jnp.arange(4.0)[None]
        self.table = nnx.Param(jnp.sin(angle))

    def __call__(self, x):
        return self.linear(x + self.table[...][None])


@arguable(
    "counter-beside-a-statistic", "eval-mode", "examples", "the README's model: evaluation stops the statistic only"
)
class CounterBesideAStatistic(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.examples = tallax.Counter()
        self.active = tallax.statistics.Rate(shape=4)

    def __call__(self, x):
        y = self.linear(x)
        self.examples += x.shape[0]
        self.active.update(y > 0)
        return y
