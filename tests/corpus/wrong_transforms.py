# SPDX-License-Identifier: Apache-2.0
"""Updates that a transformation, a copy or a closure swallows, doubles or freezes."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

import tallax
from tests.corpus.case import SEQUENCE, Counted, Layer, wrong

SILENT = "every mode agrees, so only watching the writes finds it"


def _under_jax_jit(model, x):
    return jax.jit(lambda model, x: model(x))(model, x)


@wrong("jax-jit-of-the-module", "lost-update", "count", "jax.jit copies the module, silently", call=_under_jax_jit)
class UnderJaxJit(Counted):
    pass


@wrong(
    "jax-vmap-of-the-module", "lost-update", "layer/count", "jax.vmap(in_axes=(None, 0)) copies the module; " + SILENT
)
class JaxVmapOfTheModule(nnx.Module):
    def __init__(self, rngs):
        self.layer = Counted(rngs)

    def __call__(self, x):
        return jax.vmap(lambda layer, row: layer(row), in_axes=(None, 0))(self.layer, x)


@wrong("jax-checkpoint-of-the-module", "lost-update", "block/count", "jax.checkpoint copies the module; " + SILENT)
class JaxCheckpointOfTheModule(nnx.Module):
    def __init__(self, rngs):
        self.block = Counted(rngs)

    def __call__(self, x):
        return jax.checkpoint(lambda block, x: block(x))(self.block, x)


@wrong("lax-cond-of-the-module", "lost-update", "experts/0/count", "the taken branch counts on a copy of its expert")
class LaxCondOfTheModule(nnx.Module):
    def __init__(self, rngs):
        self.experts = nnx.List([Counted(rngs), Counted(rngs)])

    def __call__(self, x):
        a, b = self.experts
        return jax.lax.cond(x[0, 0] > -9.0, lambda a, b, x: a(x), lambda a, b, x: b(x), a, b, x)


@wrong(
    "lax-scan-carry-dropped",
    "lost-update",
    "cell/count",
    "the scanned module comes back, and nobody takes it; " + SILENT,
)
class LaxScanCarryDropped(nnx.Module):
    def __init__(self, rngs):
        self.cell = Counted(rngs)

    def __call__(self, x):
        def step(cell, row):
            return cell, cell(row)

        _, y = jax.lax.scan(step, self.cell, x)
        return y


@wrong(
    "nnx-scan-broadcast",
    "lost-update",
    "cell/count",
    "in graph mode a module broadcast over nnx.scan loses what is written: 0 of 5",
    inputs=(SEQUENCE,),
)
class NnxScanBroadcast(nnx.Module):
    def __init__(self, rngs):
        self.cell = Counted(rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(None, nnx.Carry, 1), out_axes=(nnx.Carry, 1))
        def run(cell, h, x):
            h = nnx.tanh(cell(x + h))
            return h, h

        return run(self.cell, jnp.zeros_like(x[:, 0]), x)[1]


class Calls(nnx.Variable):
    """A count of calls."""


@wrong(
    "nnx-scan-state-axes-none",
    "lost-update",
    "cell/calls",
    "StateAxes({Calls: None}) broadcasts the counter, where nnx.Carry would carry it",
    inputs=(SEQUENCE,),
)
class NnxScanStateAxesNone(nnx.Module):
    def __init__(self, rngs):
        self.cell = Layer(rngs)
        self.cell.calls = Calls(jnp.zeros((), jnp.uint32))

    def __call__(self, x):
        axes = nnx.StateAxes({Calls: None, ...: None})

        @functools.partial(nnx.scan, in_axes=(axes, 1), out_axes=1)
        def run(cell, x):
            cell.calls[...] += 1
            return cell(x)

        return run(self.cell, x)


@wrong(
    "nnx-vmap-broadcast",
    "lost-update",
    "layer/count",
    "a constant increment, broadcast: once a call, not once a lane; " + SILENT,
    is_warned=True,
)
class NnxVmapBroadcast(nnx.Module):
    def __init__(self, rngs):
        self.layer = Counted(rngs)

    def __call__(self, x):
        return nnx.vmap(lambda layer, row: layer(row), in_axes=(None, 0))(self.layer, x)


@wrong(
    "writes-to-a-clone", "lost-update", "normalizer/mean", "nnx.clone for safety; the statistic stays at 0; " + SILENT
)
class WritesToAClone(nnx.Module):
    def __init__(self, rngs):
        self.normalizer = nnx.BatchNorm(4, rngs=rngs)
        self.linear = nnx.Linear(4, 4, rngs=rngs)

    def __call__(self, x):
        return self.linear(nnx.clone(self.normalizer)(x))


@wrong(
    "merge-without-update",
    "lost-update",
    "block/count",
    "split, merge, call, and the new state is thrown away; " + SILENT,
)
class MergeWithoutUpdate(nnx.Module):
    def __init__(self, rngs):
        self.block = Counted(rngs)

    def __call__(self, x):
        graphdef, params, rest = nnx.split(self.block, nnx.Param, ...)
        return jax.checkpoint(lambda params: nnx.merge(graphdef, params, rest, copy=True)(x))(params)


@wrong("unstacked-layers", "lost-update", "layers/count", "layer i is a slice, so it counts on a copy; " + SILENT)
class UnstackedLayers(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.vmap(Counted)(rngs.fork(split=2))

    def __call__(self, x):
        for i in range(2):
            x = jax.tree.map(lambda leaf, i=i: leaf[i], self.layers)(x)
        return x


@wrong("forward-rule-forgets", "lost-update differs", "block/count", "the rule that runs in training does not count")
class ForwardRuleForgets(nnx.Module):
    """Straight-through rounding, with a gradient of its own."""

    def __init__(self, rngs):
        self.block = Counted(rngs)

    def __call__(self, x):
        @nnx.custom_vjp
        def rounded(block, x):
            return jnp.round(block(x))

        def forward(block, x):
            return jnp.round(block.linear(x)), block.linear.kernel[...]

        def backward(kernel, g):
            updates, g = g if isinstance(g, tuple) else (None, g)  # graph mode: of the inputs too
            gradient = jax.tree.map(jnp.zeros_like, updates[0] if updates else nnx.state(self.block))
            return gradient, g @ kernel.T

        rounded.defvjp(forward, backward)
        return rounded(self.block, x)


@wrong("jitted-closure", "frozen-value", "temperature", "the attribute made in __init__ saw the first temperature")
class JittedClosure(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.temperature = nnx.Variable(jnp.full((), 5.0, jnp.float32))
        self.route = jax.jit(lambda logits: nnx.softmax(logits / self.temperature[...]))

    def __call__(self, x):
        self.temperature[...] *= 0.9
        return self.route(self.linear(x))


@wrong("static-self", "frozen-value raises", "temperature", "jax.jit with self static: compiled with the first value")
class StaticSelf(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.temperature = nnx.Variable(jnp.full((), 5.0, jnp.float32))

    @functools.partial(jax.jit, static_argnums=0)
    def route(self, logits):
        return nnx.softmax(logits / self.temperature[...])

    def __call__(self, x):
        self.temperature[...] *= 0.9
        return self.route(self.linear(x))


@wrong("cached-property", "frozen-value raises differs", None, "read once, and kept for ever")
class CachedProperty(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.momentum = nnx.Variable(jnp.full((), 0.9, jnp.float32))

    @functools.cached_property
    def keep(self):
        return 1.0 - self.momentum[...]

    def __call__(self, x):
        self.momentum[...] *= 0.9
        return self.linear(x) * self.keep


@wrong("cached-method", "frozen-value raises differs", None, "functools.cache on a method that reads state")
class CachedMethod(Counted):
    @functools.cache  # noqa: B019
    def decay(self):
        return 0.9 ** self.count[...].astype(jnp.float32)

    def __call__(self, x):
        return super().__call__(x) * self.decay()


TEMPERATURE = nnx.Variable(jnp.full((), 5.0, jnp.float32))


@wrong(
    "global-variable",
    "not-reproducible",
    None,
    "annealed in a module-level Variable; jit refuses the write",
)
class GlobalVariable(Layer):
    def __call__(self, x):
        TEMPERATURE[...] = 0.9 * TEMPERATURE[...] + 0.1
        return nnx.softmax(self.linear(x) / TEMPERATURE[...])


@wrong(
    "class-variable",
    "raises frozen-value lost-update round-trip",
    "count",
    "one Variable for all instances, and no state of any",
)
class ClassVariable(Layer):
    count = nnx.Variable(jnp.zeros((), jnp.uint32))

    def __call__(self, x):
        self.count[...] += 1
        return self.linear(x)


_SHARED = nnx.Variable(jnp.zeros((), jnp.uint32))


@wrong(
    "state-in-the-closure-of-make",
    "not-reproducible",
    "count",
    "each make() gives a model that shares its counter with the others",
)
def make_sharing(rngs):
    model = Counted(rngs)
    model.count = _SHARED
    return model


@wrong(
    "ref-under-remat",
    "counted-twice raises lost-update",
    "block/count",
    "with ref=True a rematerialized update counts twice",
)
class RefUnderRemat(nnx.Module):
    def __init__(self, rngs):
        self.block = Layer(rngs)
        self.block.count = nnx.Variable(jnp.zeros((), jnp.uint32), ref=True)

    def __call__(self, x):
        @functools.partial(nnx.remat, graph=False)
        def run(block, x):
            block.count[...] += 1
            return nnx.tanh(block(x))

        return run(self.block, x)


@wrong(
    "ref-counter",
    "lost-update raises counted-twice round-trip",
    "count",
    "ref=True: lost in graph-mode grad and vmap, no checkpoint",
)
class RefCounter(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.count = nnx.Variable(jnp.zeros((), jnp.uint32), ref=True)

    def __call__(self, x):
        self.count[...] += 1
        return self.linear(x)


@wrong("hijax-counter", "raises lost-update differs", "count", "hijax=True: nnx.jit in graph mode raises")
class HijaxCounter(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.count = nnx.Variable(jnp.zeros((), jnp.uint32), hijax=True)

    def __call__(self, x):
        self.count[...] += 1
        return self.linear(x)


@wrong(
    "two-names-for-one-array",
    "shared-array",
    "teacher",
    "the teacher starts as the student's own array: donation raises",
    is_warned=True,
)
class TwoNamesForOneArray(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.teacher = nnx.Variable(self.linear.kernel[...])

    def __call__(self, x):
        y = x @ self.teacher[...]
        self.teacher[...] = 0.9 * self.teacher[...] + 0.1 * jax.lax.stop_gradient(self.linear.kernel[...])
        return ((self.linear(x) - y) ** 2).mean()


class Slow(nnx.Variable):
    """Averaged weights, not trained."""


@wrong(
    "clone-shares-arrays",
    "shared-array",
    "target",
    "nnx.clone copies Variables, not arrays: donation raises",
    is_warned=True,
)
class CloneSharesArrays(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.target = nnx.Dict({name: Slow(p[...]) for name, p in nnx.state(nnx.clone(self.linear)).items()})

    def __call__(self, x):
        kernel = self.target["kernel"]
        kernel[...] = 0.9 * kernel[...] + 0.1 * jax.lax.stop_gradient(self.linear.kernel[...])
        return self.linear(x) - x @ kernel[...]


def _under_grad_of_a_copy(model, x):
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params):
        return (nnx.merge(graphdef, params, rest, copy=True)(x) ** 2).mean()

    value, grads = jax.value_and_grad(loss)(params)
    return value, grads


@wrong(
    "train-step-without-aux",
    "lost-update",
    "mean",
    "only gradients come back from jax.grad; " + SILENT,
    call=_under_grad_of_a_copy,
)
def make_batch_norm(rngs):
    return nnx.BatchNorm(4, rngs=rngs)


@wrong(
    "value-written-in-a-closure",
    "lost-update raises",
    "count",
    "`.value = ` within a jax.jit that does not have the module as its argument",
)
class ValueWrittenInAClosure(Counted):
    def __call__(self, x):
        @jax.jit
        def forward(x):
            self.count.value = self.count.value + 1
            return self.linear(x)

        return forward(x)


@wrong(
    "counter-value-written-in-a-closure",
    "lost-update raises",
    "calls",
    "the same on a tallax.Counter, which raises by name",
)
class CounterValueWrittenInAClosure(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.calls = tallax.Counter()

    def __call__(self, x):
        @jax.jit
        def forward(x):
            self.calls.value = self.calls.value + 1
            return self.linear(x)

        return forward(x)
