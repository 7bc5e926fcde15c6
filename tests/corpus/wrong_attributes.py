# SPDX-License-Identifier: Apache-2.0
"""Attributes that are replaced, swapped, made or removed in a call: tree mode loses them, graph mode traces again."""

import jax
import jax.numpy as jnp
from flax import nnx

from tests.corpus.case import Layer, wrong

LOST = "only Variables that were there before the call come back in tree mode"


@wrong("rebinds-step", "replaced-variable", "step", "`self.step = ...` puts an array where the Variable was")
class RebindsStep(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.step = nnx.Variable(jnp.zeros((), jnp.uint32))

    def __call__(self, x):
        self.step = self.step + 1
        return self.linear(x)


class Expert(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.count = nnx.Variable(jnp.zeros((), jnp.uint32))


@wrong("rebinds-in-experts", "replaced-variable", "experts/0/count", "the gate rebinds a counter of each expert")
class RebindsInExperts(nnx.Module):
    def __init__(self, rngs):
        self.experts = nnx.List([Expert(rngs) for _ in range(2)])

    def __call__(self, x):
        for expert in self.experts:
            expert.count = expert.count + 1
        return sum(expert(x) for expert in self.experts)


@wrong("rebinds-histogram", "replaced-variable", "hist", "`variable.at[...].add(...)` is an array")
class RebindsHistogram(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.hist = nnx.Variable(jnp.zeros(8))

    def __call__(self, x):
        bins = jnp.clip(jnp.floor(x + 4), 0, 7).astype(jnp.int32)
        self.hist = self.hist.at[bins].add(0.01)
        return self.linear(x)


@wrong("rebinds-mean", "replaced-variable", "mean", "a BatchNorm clone that forgets the brackets")
class RebindsMean(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.use_running_average = False
        self.mean = nnx.BatchStat(jnp.zeros(4))

    def __call__(self, x):
        if not self.use_running_average:
            self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        return self.linear(x - self.mean[...])


@wrong("rebinds-dict-item", "replaced-variable", "stats/load", "an item of nnx.Dict is replaced by an array")
class RebindsDictItem(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.stats = nnx.Dict(load=nnx.Variable(jnp.zeros(4)))

    def __call__(self, x):
        gates = nnx.softmax(self.linear(x))
        self.stats["load"] = 0.9 * self.stats["load"] + 0.1 * gates.mean(0)
        return gates


@wrong("rebinds-list-items", "replaced-variable", "loads/1", "a loop over nnx.List by `enumerate` replaces each item")
class RebindsListItems(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.loads = nnx.List([nnx.Variable(jnp.zeros((), jnp.uint32)) for _ in range(2)])

    def __call__(self, x):
        for i, load in enumerate(self.loads):
            self.loads[i] = load + 1
        return self.linear(x)


@wrong("rebinds-deep-in-containers", "replaced-variable", "blocks/0/seen", "an attribute of an nnx.Dict in an nnx.List")
class RebindsDeepInContainers(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.blocks = nnx.List([nnx.Dict(seen=nnx.Variable(jnp.zeros((), jnp.uint32)))])

    def __call__(self, x):
        self.blocks[0].seen = self.blocks[0].seen + 1
        return self.linear(x)


@wrong(
    "rebinds-in-sequential", "replaced-variable", "layers/layers/0/mean", "a layer of nnx.Sequential rebinds its mean"
)
class RebindsInSequential(nnx.Module):
    class Centered(Layer):
        def __init__(self, rngs):
            super().__init__(rngs)
            self.mean = nnx.BatchStat(jnp.zeros(4))

        def __call__(self, x):
            self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
            return self.linear(x - self.mean)

    def __init__(self, rngs):
        self.layers = nnx.Sequential(self.Centered(rngs), nnx.relu)

    def __call__(self, x):
        return self.layers(x)


@wrong("rebinds-by-setattr", "replaced-variable", "seen_1", "a loop over names, in a helper")
class RebindsBySetattr(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        for name in ("seen_0", "seen_1"):
            setattr(self, name, nnx.Variable(jnp.zeros((), jnp.uint32)))

    def tick(self):
        for name in ("seen_0", "seen_1"):
            setattr(self, name, getattr(self, name) + 1)

    def __call__(self, x):
        self.tick()
        return self.linear(x)


@wrong("becomes-a-python-float", "replaced-variable host-sync", "temperature", "`max(...)` of float() stops the device")
class BecomesAPythonFloat(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.temperature = nnx.Variable(jnp.full((), 5.0, jnp.float32))

    def __call__(self, x):
        now = self.temperature
        self.temperature = max(0.9 * float(now[...] if isinstance(now, nnx.Variable) else now), 0.5)
        return nnx.softmax(self.linear(x) / self.temperature)


@wrong("fresh-variable-each-call", "lost-update replaced-variable", "count", LOST)
class FreshVariableEachCall(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.count = nnx.Variable(jnp.zeros((), jnp.uint32))

    def __call__(self, x):
        self.count = nnx.Variable(self.count[...] + 1)
        return self.linear(x)


@wrong("bare-array-counter", "lost-update", "count", LOST + "; Flax's toy example 07 counts so")
class BareArrayCounter(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.count = jnp.zeros((), jnp.uint32)

    def __call__(self, x):
        self.count += jnp.uint32(1)
        return self.linear(x)


@wrong("bare-key", "lost-update frozen-value", "key", "the same noise at every step in tree mode: " + LOST)
class BareKey(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.key = jax.random.key(0)

    def __call__(self, x):
        self.key, key = jax.random.split(self.key)
        return self.linear(x + 0.1 * jax.random.normal(key, x.shape))


@wrong("swaps-buffers", "lost-update differs", "front", "double buffering by exchanging two Variables; " + LOST)
class SwapsBuffers(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.front = nnx.Variable(jnp.zeros(4))
        self.back = nnx.Variable(jnp.ones(4))

    def __call__(self, x):
        self.back[...] = self.front[...] + x.mean(0)
        self.front, self.back = self.back, self.front
        return self.linear(x) + self.front[...]


class Target(nnx.Variable):
    """Weights that are not trained."""


@wrong("swaps-submodules", "lost-update differs", "online", "two stored tables change places; " + LOST)
class SwapsSubmodules(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.online = nnx.Dict(table=Target(jnp.zeros(4)))
        self.offline = nnx.Dict(table=Target(jnp.ones(4)))

    def __call__(self, x):
        self.online, self.offline = self.offline, self.online
        return self.linear(x) + self.online["table"][...]


@wrong(
    "stashes-activations",
    "lost-update retrace raises",
    "last",
    "an attribute that appears in a call: graph mode raises",
)
class StashesActivations(Layer):
    """For a penalty that is computed later."""

    def __call__(self, x):
        self.last = nnx.relu(self.linear(x))
        return self.last


class Loss(nnx.Variable):
    """A term of the loss, left on the module that computed it."""


@wrong("loss-left-behind", "lost-update retrace", "encoder/kl", "a second trace; never there in tree mode, nor popped")
class LossLeftBehind(nnx.Module):
    def __init__(self, rngs):
        self.encoder = Layer(rngs)

    def __call__(self, x):
        mean = self.encoder(x)
        self.encoder.kl = Loss(0.5 * (mean**2).mean())
        return mean


@wrong("sows-without-pop", "retrace lost-update", "activations", "the tuple grows at each call, and so does the trace")
class SowsWithoutPop(Layer):
    def __call__(self, x):
        y = self.linear(x)
        self.sow(nnx.Intermediate, "activations", y.mean())
        return y


@wrong("appends-a-variable", "retrace lost-update", "losses", "one more Variable, and one more trace, at each call")
class AppendsAVariable(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.losses = nnx.List()

    def __call__(self, x):
        y = self.linear(x)
        self.losses.append(nnx.Variable((y**2).mean()))
        return y


@wrong("made-at-the-first-call", "lost-update retrace round-trip", "center", "None becomes a Variable; " + LOST)
class MadeAtTheFirstCall(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.center = nnx.data(None)

    def __call__(self, x):
        y = self.linear(x)
        if self.center is None:
            self.center = nnx.Variable(jnp.zeros(y.shape[-1]))
        self.center[...] = 0.9 * self.center[...] + 0.1 * y.mean(0)
        return y - self.center[...]


@wrong("new-key-in-dict", "lost-update retrace", "loads", "an entry for each batch size, made when it first comes")
class NewKeyInDict(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.loads = nnx.Dict()

    def __call__(self, x):
        name = f"batch_{x.shape[0]}"
        if name not in self.loads:
            self.loads[name] = nnx.Variable(jnp.zeros((), jnp.uint32))
        self.loads[name][...] += 1
        return self.linear(x)
