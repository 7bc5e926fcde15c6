# SPDX-License-Identifier: Apache-2.0
"""State in Python and NumPy, and values that the host must wait for."""

import time
from collections import deque

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.corpus.case import Counted, Layer, wrong


@wrong("python-int", "python-counter", "calls", "one compilation a call in graph mode; lost in tree mode")
class PythonInt(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.calls = 0

    def __call__(self, x):
        self.calls += 1
        return self.linear(x)


@wrong("python-float-annealed", "python-counter frozen-value", "temperature", "compiles again or stays at its start")
class PythonFloatAnnealed(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.temperature = 5.0

    def __call__(self, x):
        self.temperature *= 0.99
        return nnx.softmax(self.linear(x) / self.temperature)


class Hits(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.hits = 0

    def __call__(self, x):
        self.hits += x.shape[0]
        return self.linear(x)


@wrong("python-int-in-experts", "python-counter", "experts/1/hits", "in a list of submodules")
class PythonIntInExperts(nnx.Module):
    def __init__(self, rngs):
        self.experts = nnx.List([Hits(rngs), Hits(rngs)])

    def __call__(self, x):
        return sum(expert(x) for expert in self.experts)


@wrong("python-dict", "python-counter", "counts", "a mutable static attribute: 1 after any number of jitted calls")
class PythonDict(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.counts = {"calls": 0}

    def __call__(self, x):
        self.counts["calls"] += 1
        return self.linear(x)


@wrong("python-list", "python-counter retrace", "sizes", "appended to while tracing only")
class PythonList(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.sizes = []

    def __call__(self, x):
        self.sizes.append(x.shape[0])
        return self.linear(x)


@wrong("initialized-flag", "python-counter lost-update", "initialized", "ActNorm starts over at each call in tree mode")
class InitializedFlag(Layer):
    """Takes its scale from the first batch."""

    def __init__(self, rngs):
        super().__init__(rngs)
        self.initialized = False
        self.scale = nnx.Variable(jnp.ones(4))

    def __call__(self, x):
        y = self.linear(x)
        if not self.initialized:
            self.scale[...] = 1.0 / (y.std(0) + 1e-3)
            self.initialized = True
        self.scale[...] *= 0.99
        return y * self.scale[...]


@wrong("variable-metadata", "python-counter retrace", "scale", "metadata is static: one compilation a call")
class VariableMetadata(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.scale = nnx.Variable(jnp.ones(4), reads=0)

    def __call__(self, x):
        self.scale.set_metadata(reads=self.scale.get_metadata("reads") + 1)
        return self.linear(x) * self.scale[...]


@wrong("numpy-in-place", "python-counter lost-update raises host-sync", "hist", "a tracer can't be written in place")
class NumpyInPlace(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.hist = np.zeros(8, np.int64)

    def __call__(self, x):
        self.hist[x.shape[0]] += 1
        return self.linear(x)


@wrong("numpy-in-a-variable", "raises host-sync lost-update", "hist", "written in place through the Variable")
class NumpyInAVariable(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.hist = nnx.Variable(np.zeros(8, np.int32))

    def __call__(self, x):
        hist = self.hist.get_value()
        hist[x.shape[0]] += 1
        return self.linear(x)


@wrong("numpy-by-its-type", "raises", None, "vjp and jvp alone hand out a subclass of NumPy's array, to who reads")
class NumpyByItsType(Counted):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.scale = nnx.Variable(np.full(4, 2, np.int32))

    def __call__(self, x):
        scale = self.scale.get_raw_value()
        if not isinstance(scale, jax.Array):
            scale = {np.ndarray: jnp.asarray}[type(scale)](scale)
        return super().__call__(x) * scale


class Tracker:
    """A plain class, as a logging library would hand out: NNX does not look inside."""

    def __init__(self):
        self.calls = 0
        self.mean = np.zeros(4)

    def update(self, size):
        self.calls += 1
        self.mean += (size - self.mean) / self.calls


@wrong("plain-object", "python-counter frozen-value", "tracker", "counts traces; shared by every clone")
class PlainObject(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.tracker = Tracker()

    def __call__(self, x):
        self.tracker.update(x.shape[0])
        return self.linear(x) / self.tracker.calls


class Holder:
    """A plain class with a Variable inside."""

    def __init__(self):
        self.count = nnx.Variable(jnp.zeros((), jnp.uint32))


@wrong(
    "variable-in-a-plain-object",
    "python-counter raises lost-update frozen-value round-trip",
    "tracker",
    "no state of the module: raises TraceContextError under jit, and clones share it",
)
class VariableInAPlainObject(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.tracker = Holder()

    def __call__(self, x):
        self.tracker.count[...] += 1
        return self.linear(x)


CALLS = {"gate": 0}


@wrong("global-dict", "not-reproducible", None, "the schedule reads a count of traces")
class GlobalDict(Layer):
    def __call__(self, x):
        CALLS["gate"] += 1
        return self.linear(x) / (1.0 + CALLS["gate"])


@wrong("numpy-noise", "not-reproducible", None, "drawn once, while tracing")
class NumpyNoise(Layer):
    def __call__(self, x):
        return self.linear(x + np.random.normal(size=x.shape).astype(np.float32))


@wrong("generator-attribute", "python-counter frozen-value differs", "generator", "advances while tracing only")
class GeneratorAttribute(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.generator = np.random.default_rng(0)

    def __call__(self, x):
        return self.linear(x) * (self.generator.random(4) > 0.5).astype(np.float32)


@wrong("clock", "not-reproducible", None, "the time of compilation, for ever")
class Clock(Layer):
    def __call__(self, x):
        key = jax.random.key(time.perf_counter_ns() % 2**31)
        return self.linear(x + jax.random.normal(key, x.shape))


@wrong(
    "debug-callback",
    "python-counter lost-update raises",
    "hits",
    "the callback finds the traced copy, and may not write to it",
)
class DebugCallback(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.hits = 0

    def add(self, fired):
        self.hits += int(fired)

    def __call__(self, x):
        y = nnx.relu(self.linear(x))
        jax.debug.callback(self.add, (y > 0).sum())
        return y


TOTALS = np.zeros(2)


@wrong(
    "io-callback",
    "not-reproducible",
    None,
    "a host total, once more for each replay",
)
class IoCallback(Layer):
    """Asks the host for the running total: state that no checkpoint holds."""

    def __call__(self, x):
        def add(size):
            TOTALS[0] += size
            return np.float32(TOTALS[0])

        total = jax.experimental.io_callback(add, jax.ShapeDtypeStruct((), jnp.float32), jnp.float32(1.0))
        return self.linear(x) / (1.0 + total)


@wrong("if-on-a-value", "host-sync", None, "a Python branch on a running loss")
class IfOnAValue(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.loss = nnx.Variable(jnp.zeros(()))

    def __call__(self, x):
        y = self.linear(x)
        self.loss[...] = 0.9 * self.loss[...] + 0.1 * jnp.abs(y).mean()
        if self.loss[...] > 0.5:
            y = y / 2
        return y


@wrong("int-of-a-step", "host-sync", None, "int() to update every third step")
class IntOfAStep(Counted):
    def __call__(self, x):
        y = super().__call__(x)
        return y * 2 if int(self.count[...]) % 3 == 0 else y


@wrong("item", "host-sync", None, ".item() for an optax schedule")
class Item(Counted):
    def __call__(self, x):
        y = super().__call__(x)
        return nnx.softmax(y / max(5.0 * 0.9 ** self.count[...].item(), 1.0))


@wrong("numpy-of-a-histogram", "host-sync", None, "NumPy on a Variable's value, in a submodule")
class NumpyOfAHistogram(nnx.Module):
    def __init__(self, rngs):
        self.gate = Layer(rngs)
        self.load = nnx.Variable(jnp.zeros(4))

    def __call__(self, x):
        gates = nnx.softmax(self.gate(x))
        self.load[...] = 0.9 * self.load[...] + 0.1 * gates.mean(0)
        return gates[:, int(np.argsort(np.asarray(self.load[...]))[-1])]


@wrong("while-on-a-value", "host-sync", None, "a Python loop until the normalization converges")
class WhileOnAValue(Layer):
    def __call__(self, x):
        plan = jnp.exp(self.linear(x))
        while jnp.abs(plan.sum(-1) - 1).max() > 1e-3:
            plan = plan / plan.sum(-1, keepdims=True)
        return plan


@wrong("bool-of-a-check", "host-sync", None, "`if jnp.isnan(...).any(): raise`")
class BoolOfACheck(Layer):
    def __call__(self, x):
        y = self.linear(x)
        if jnp.isnan(y).any():
            raise FloatingPointError("the gate made NaN")
        return y


@wrong("range-of-a-variable", "host-sync", None, "a curriculum: the number of rounds is a Variable")
class RangeOfAVariable(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.rounds = nnx.Variable(jnp.full((), 2, jnp.int32))

    def __call__(self, x):
        for _ in range(int(self.rounds.get_value())):
            x = nnx.tanh(self.linear(x))
        return x


@wrong("float-into-a-deque", "host-sync python-counter", None, "each loss is fetched as it is made")
class FloatIntoADeque(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.recent = deque(maxlen=10)

    def __call__(self, x):
        loss = (self.linear(x) ** 2).mean()
        self.recent.append(float(loss))
        return loss
