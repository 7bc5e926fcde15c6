# SPDX-License-Identifier: Apache-2.0
"""State kept as `nnx.Param`: the optimizer trains it, decays it, and counts it as a parameter."""

import jax
import jax.numpy as jnp
from flax import nnx

from tests.corpus.case import Layer, wrong


@wrong("step-as-param", "param-state", "step", "one adamw step makes 9.9 of a count of 10")
class StepAsParam(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.step = nnx.Param(jnp.zeros(()))

    def __call__(self, x):
        self.step[...] += 1
        return self.linear(x)


@wrong("routing-bias-as-param", "param-state", "bias", "the balancing bias is set by hand, and decays")
class RoutingBiasAsParam(Layer):
    """Auxiliary-loss-free load balancing, as language models keep it."""

    def __init__(self, rngs):
        super().__init__(rngs)
        self.bias = nnx.Param(jnp.zeros(4))

    def __call__(self, x):
        scores = nnx.sigmoid(self.linear(x))
        chosen = jax.nn.one_hot(jnp.argmax(scores + self.bias[...], -1), 4)
        load = chosen.mean(0)
        self.bias[...] += 0.01 * jnp.sign(load.mean() - load)
        return (scores * chosen).sum(-1)


class Statistic(nnx.Param):
    """Looks like a type of its own, and is a parameter to every filter."""


@wrong("statistic-derived-from-param", "param-state", "mean", "`wrt=nnx.Param` selects the subclass too")
class StatisticDerivedFromParam(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.mean = Statistic(jnp.zeros(4))

    def __call__(self, x):
        self.mean[...] = 0.9 * self.mean[...] + 0.1 * jax.lax.stop_gradient(x.mean(0))
        return self.linear(x - self.mean[...])


@wrong("codebook-as-param", "param-state", "codebook", "the codebook moves by its own average, and by the optimizer")
class CodebookAsParam(Layer):
    """Vector quantization with codes that follow their members."""

    def __init__(self, rngs):
        super().__init__(rngs)
        self.codebook = nnx.Param(rngs.params.normal((5, 4)))

    def nearest(self, z):
        return jax.nn.one_hot(jnp.argmin(((z[:, None] - self.codebook[...][None]) ** 2).sum(-1), -1), 5)

    def __call__(self, x):
        z = self.linear(x)
        member = self.nearest(z)
        target = jax.lax.stop_gradient(member.T @ z / (member.sum(0)[:, None] + 1e-3))
        self.codebook[...] = 0.9 * self.codebook[...] + 0.1 * target
        return z + jax.lax.stop_gradient(member @ self.codebook[...] - z)


@wrong("teacher-of-params", "param-state", "teacher/kernel", "the averaged teacher has Params, so it decays too")
class TeacherOfParams(nnx.Module):
    def __init__(self, rngs):
        self.student = nnx.Linear(4, 4, rngs=rngs)
        self.teacher = nnx.Linear(4, 4, rngs=rngs)

    def follow(self):
        for name in ("kernel", "bias"):
            slow, fast = getattr(self.teacher, name), getattr(self.student, name)
            slow[...] = 0.99 * slow[...] + 0.01 * jax.lax.stop_gradient(fast[...])

    def __call__(self, x):
        self.follow()
        return ((self.student(x) - jax.lax.stop_gradient(self.teacher(x))) ** 2).mean()


@wrong(
    "flax-ema-on-the-model",
    "param-state",
    "ema/params/kernel",
    "nnx.EMA copies Params as Params; it writes what it held already",
)
class FlaxEmaOnTheModel(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.ema = nnx.EMA(self.linear, decay=0.9)

    def __call__(self, x):
        self.ema.update(self.linear)
        return self.linear(x)


@wrong("pruning-mask-as-param", "param-state", "mask", "a bool parameter: differentiating for Param raises")
class PruningMaskAsParam(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.mask = nnx.Param(jnp.array([True, True, False, True]))

    def __call__(self, x):
        return jnp.where(self.mask[...], self.linear(x), 0.0)


@wrong("permutation-as-param", "param-state", "flow/order", "an integer parameter, in a submodule")
class PermutationAsParam(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.flow = nnx.Dict(order=nnx.Param(jnp.array([2, 0, 3, 1])))

    def __call__(self, x):
        return self.linear(x)[:, self.flow["order"][...]]


@wrong("loss-scale-as-param", "param-state", "scaler/scale", "the loss scale is a parameter, inside nnx.Dict")
class LossScaleAsParam(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.scaler = nnx.Dict(
            scale=nnx.Param(jnp.full((), 1024.0, jnp.float32)), good=nnx.Variable(jnp.zeros((), jnp.uint32))
        )

    def __call__(self, x):
        scale, good = self.scaler["scale"], self.scaler["good"]
        finite = jnp.isfinite(x).all()
        good[...] = jnp.where(finite, good[...] + 1, 0)
        scale[...] = jnp.where(finite, jnp.where(good[...] % 3 == 0, scale[...] * 2, scale[...]), scale[...] / 2)
        return self.linear(x)


@wrong("history-of-params", "param-state", "history/0", "a window of past losses, as Params in nnx.List")
class HistoryOfParams(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.history = nnx.List([nnx.Param(jnp.zeros(())) for _ in range(3)])

    def __call__(self, x):
        loss = (self.linear(x) ** 2).mean()
        for older, newer in zip(self.history[:-1], self.history[1:], strict=True):
            older[...] = newer[...]
        self.history[-1][...] = jax.lax.stop_gradient(loss)
        return loss


class Monitored(Layer):
    """A base class that watches its subclasses' outputs."""

    def __init__(self, rngs):
        super().__init__(rngs)
        self.peak = nnx.Param(jnp.zeros(()))

    def watch(self, y):
        self.peak[...] = jnp.maximum(self.peak[...], jax.lax.stop_gradient(jnp.abs(y).max()))
        return y


@wrong("inherited-peak-as-param", "param-state", "blocks/1/peak", "declared and written in a base class's helper")
class InheritedPeakAsParam(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.List([Monitored(rngs), Monitored(rngs)])

    def __call__(self, x):
        for block in self.blocks:
            x = block.watch(nnx.relu(block(x)))
        return x
