# SPDX-License-Identifier: Apache-2.0
"""Shapes, dtypes and weak types that drift, and counters too narrow for what they count."""

import jax
import jax.numpy as jnp
from flax import nnx

from tests.corpus.case import BATCH, Layer, wrong

LOGITS, LABELS = BATCH, jnp.arange(6, dtype=jnp.int32) % 4


@wrong("weak-scalar", "retrace", "scale", "jnp.array(1.0) is weakly typed, what is written is not: two traces")
class WeakScalar(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.scale = nnx.Variable(jnp.array(1.0))

    def __call__(self, x):
        self.scale[...] = 0.9 * self.scale[...] + 0.1 * jnp.abs(x).mean()
        return self.linear(x) / self.scale[...]


@wrong("full-is-weak", "retrace", "load", "jnp.full(4, 0.25) without a dtype is weakly typed too")
class FullIsWeak(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.load = nnx.Variable(jnp.full(4, 0.25))

    def __call__(self, x):
        gates = nnx.softmax(self.linear(x))
        self.load[...] = 0.9 * self.load[...] + 0.1 * jax.lax.stop_gradient(gates.mean(0))
        return gates / (self.load[...] + 1e-3)


@wrong("python-scalar-variable", "retrace", "scaler/loss", "a Variable of the Python number 0.0 becomes an array")
class PythonScalarVariable(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.scaler = nnx.Dict(loss=nnx.Variable(0.0))

    def __call__(self, x):
        loss = (self.linear(x) ** 2).mean()
        running = self.scaler["loss"]
        running.set_value(0.9 * running.get_value() + 0.1 * loss)
        return loss


@wrong("int-becomes-float", "retrace", "useful", "int32 + float32 is float32, and set_value does not cast")
class IntBecomesFloat(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.useful = nnx.Variable(jnp.zeros((), jnp.int32))

    def __call__(self, x):
        y = self.linear(x)
        self.useful.set_value(self.useful[...] + 0.5 * nnx.sigmoid(y).mean())
        return y


@wrong("uint-becomes-int", "retrace narrow-counter", "tokens", "uint32 + int32 is int32 without x64")
class UintBecomesInt(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.tokens = nnx.Variable(jnp.zeros((), jnp.uint32))

    def __call__(self, x):
        self.tokens.set_value(self.tokens[...] + (x > 0).sum())
        return self.linear(x)


@wrong(
    "bfloat16-becomes-float32", "retrace", "norms/0/mean", "half the state is saved in bfloat16, until the first call"
)
class Bfloat16BecomesFloat32(nnx.Module):
    class Norm(Layer):
        def __init__(self, rngs):
            super().__init__(rngs)
            self.mean = nnx.BatchStat(jnp.zeros(4, jnp.bfloat16))

        def __call__(self, x):
            self.mean.set_value(0.9 * self.mean[...] + 0.1 * x.mean(0))
            return self.linear(x - self.mean[...])

    def __init__(self, rngs):
        self.norms = nnx.List([self.Norm(rngs)])

    def __call__(self, x):
        return self.norms[0](x)


@wrong("scalar-becomes-vector", "retrace", "center", "a running mean that starts as a scalar and broadcasts")
class ScalarBecomesVector(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.center = nnx.Variable(jnp.zeros(()))

    def __call__(self, x):
        y = self.linear(x)
        self.center.set_value(0.9 * self.center[...] + 0.1 * y.mean(0))
        return y - self.center[...]


@wrong("history-grows", "retrace", "history", "concatenation: one more row and one more compilation a call")
class HistoryGrows(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.history = nnx.Variable(jnp.zeros((1, 4)))

    def __call__(self, x):
        y = self.linear(x)
        self.history.set_value(jnp.concatenate([self.history[...], y.mean(0, keepdims=True)]))
        return y


@wrong(
    "key-value-cache-grows", "retrace", "keys", "attention over all keys so far, by concatenation", inputs=(BATCH[:1],)
)
class KeyValueCacheGrows(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.keys = nnx.Cache(jnp.ones((1, 4)))

    def __call__(self, x):
        self.keys.set_value(jnp.concatenate([self.keys[...], self.linear(x)]))
        return nnx.softmax(x @ self.keys[...].T) @ self.keys[...]


@wrong("window-of-a-tuple", "retrace", "window", "a Variable of a tuple that fills up")
class WindowOfATuple(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.window = nnx.Variable((jnp.zeros(()),))

    def __call__(self, x):
        loss = (self.linear(x) ** 2).mean()
        self.window.set_value((*self.window.get_value(), jax.lax.stop_gradient(loss))[-3:])
        return loss / (1.0 + sum(self.window.get_value()))


class Narrow(Layer):
    """Counts in `dtype` what `added` says."""

    dtype = jnp.float32

    def __init__(self, rngs):
        super().__init__(rngs)
        self.count = nnx.Variable(jnp.zeros((), self.dtype))

    def added(self, x):
        return 1

    def __call__(self, x):
        self.count[...] += self.added(x)
        return self.linear(x)


@wrong("float32-steps", "narrow-counter", "count", "sticks at 2**24")
class Float32Steps(Narrow):
    pass


@wrong("bfloat16-steps", "narrow-counter", "count", "sticks at 256")
class Bfloat16Steps(Narrow):
    dtype = jnp.bfloat16


@wrong("float16-steps", "narrow-counter", "count", "sticks at 2048")
class Float16Steps(Narrow):
    dtype = jnp.float16


@wrong("int8-steps", "narrow-counter", "count", "wraps at 128")
class Int8Steps(Narrow):
    dtype = jnp.int8


@wrong("int16-steps", "narrow-counter", "count", "wraps at 32768")
class Int16Steps(Narrow):
    dtype = jnp.int16


@wrong("int32-examples", "narrow-counter", "count", "wraps at 2**31 examples: a long run")
class Int32Examples(Narrow):
    dtype = jnp.int32

    def added(self, x):
        return x.shape[0]


@wrong("uint32-elements", "narrow-counter", "count", "wraps at 2**32 elements: an hour")
class Uint32Elements(Narrow):
    dtype = jnp.uint32

    def added(self, x):
        return x.size


@wrong("float32-tokens", "narrow-counter", "count", "adds less than it should from 2**24 on")
class Float32Tokens(Narrow):
    def added(self, x):
        return (x > 0).sum()


@wrong("uint8-histogram", "narrow-counter", "gate/usage", "a histogram in uint8 wraps at 256")
class Uint8Histogram(nnx.Module):
    class Gate(Layer):
        def __init__(self, rngs):
            super().__init__(rngs)
            self.usage = nnx.Variable(jnp.zeros(4, jnp.uint8))

        def __call__(self, x):
            logits = self.linear(x)
            self.usage[...] += (jnp.argmax(logits, -1)[:, None] == jnp.arange(4)).sum(0).astype(jnp.uint8)
            return nnx.softmax(logits)

    def __init__(self, rngs):
        self.gate = self.Gate(rngs)

    def __call__(self, x):
        return self.gate(x)


@wrong(
    "int32-histogram", "narrow-counter", "hist", "activations per bin in int32: the bin of the zeros wraps within hours"
)
class Int32Histogram(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.hist = nnx.Variable(jnp.zeros(8, jnp.int32))

    def __call__(self, x):
        y = nnx.relu(self.linear(x))
        bins = jnp.clip(y * 4, 0, 7).astype(jnp.int32)
        self.hist[...] += jnp.bincount(bins.ravel(), length=8)
        return y


@wrong("float32-load", "narrow-counter", "experts/load", "tokens per expert in float32, declared in nnx.Dict")
class Float32Load(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.experts = nnx.Dict(load=nnx.Variable(jnp.zeros(4)))

    def __call__(self, x):
        gates = nnx.softmax(self.linear(x))
        self.experts["load"][...] += jax.nn.one_hot(jnp.argmax(gates, -1), 4).sum(0)
        return gates


@wrong(
    "float32-welford",
    "narrow-counter",
    "n",
    "the weight of a running mean loses counts from 2**24 on: 6 are exact on even totals only",
)
class Float32Welford(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.n = nnx.BatchStat(jnp.zeros(()))
        self.mean = nnx.BatchStat(jnp.zeros(4))

    def __call__(self, x):
        self.n[...] += x.shape[0]
        self.mean[...] += (x.mean(0) - self.mean[...]) * x.shape[0] / self.n[...]
        return self.linear(x - self.mean[...])


def _update(metric, logits, labels):
    metric.update(logits=logits, labels=labels, values=jnp.abs(logits).mean(-1))


@wrong(
    "flax-average",
    "narrow-counter",
    "count",
    "int32 elements: a negative mean at 2**31; the total sticks before",
    inputs=(LOGITS, LABELS),
    call=_update,
)
def make_average():
    return nnx.metrics.Average()


@wrong(
    "flax-accuracy",
    "narrow-counter",
    "count",
    "as Average, which it derives from",
    inputs=(LOGITS, LABELS),
    call=_update,
)
def make_accuracy():
    return nnx.metrics.Accuracy()


@wrong(
    "flax-welford",
    "narrow-counter",
    "count",
    "int32 elements: the mean jumps at 2**31",
    inputs=(LOGITS, LABELS),
    call=_update,
)
def make_welford():
    return nnx.metrics.Welford()


@wrong("flax-multi-metric", "narrow-counter", "loss/count", "an Average inside", inputs=(LOGITS, LABELS), call=_update)
def make_multi_metric():
    return nnx.MultiMetric(accuracy=nnx.metrics.Accuracy(), loss=nnx.metrics.Average())


def _from(start, dtype, increment):
    """Returns a layer with a BatchStat that starts at `start`, and to which each call adds `increment(x)`."""

    class Sums(Layer):
        def __init__(self, rngs):
            super().__init__(rngs)
            self.count = nnx.BatchStat(jnp.full((), start, dtype))

        def __call__(self, x):
            self.count[...] += jnp.asarray(increment(x), dtype)
            return self.linear(x)

    return Sums


for _name, _start, _dtype, _increment, _why in (
    ("from-epsilon", 1e-4, jnp.float32, len, "starts at 1e-4, as stable-baselines' RunningMeanStd"),
    ("from-a-half", 0.5, jnp.float32, lambda x: 1, "starts at 0.5"),
    ("from-any-number", 1000.3, jnp.float32, lambda x: (x > 0).sum(), "starts anywhere"),
    ("float16-from-epsilon", 1e-4, jnp.float16, len, "float16 sticks at 2048"),
    ("bfloat16-from-epsilon", 1e-3, jnp.bfloat16, len, "bfloat16 sticks at 256"),
    ("in-units-of-a-tenth", 0.0, jnp.float32, lambda x: 0.1 * len(x), "the number of examples times a scale"),
    ("in-float16-seconds", 0.0, jnp.float16, lambda x: 0.02, "time in steps of 20 ms: sticks after a minute"),
    (
        "of-fixed-weights",
        1e-8,
        jnp.float32,
        lambda x: jnp.full(len(x), 0.3).sum(),
        "a sum of weights that never change",
    ),
):
    wrong(f"count-{_name}", "narrow-counter", "count", _why)(_from(_start, _dtype, _increment))


@wrong(
    "sum-of-weights",
    "narrow-counter",
    "count",
    "weights come with the data; sums of squares look alike",
    is_warned=True,
)
class SumOfWeights(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.count = nnx.BatchStat(jnp.full((), 1e-4, jnp.float32))

    def __call__(self, x):
        self.count[...] += jnp.abs(x).sum()
        return self.linear(x)


@wrong(
    "model-cast-to-bfloat16", "narrow-counter", "count", "`model.half()` casts a float32 count too: it sticks at 256"
)
def make_model_cast_to_bfloat16(rngs):
    model = _from(0.0, jnp.bfloat16, len)(rngs)
    model.count.set_value(jnp.zeros(()))  # as it was made; the cast makes it bfloat16

    def cast(leaf):
        return leaf.astype(jnp.bfloat16) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    nnx.update(model, jax.tree.map(cast, nnx.state(model)))
    return model
