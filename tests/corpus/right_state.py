# SPDX-License-Identifier: Apache-2.0
"""State kept by hand, as it should be: what a check must not mistake for a fault."""

import enum
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from tests.corpus.case import BATCH, SEQUENCE, Counted, Layer, right

right("counter", "uint32, one more a call")(Counted)


@right("running-mean", "obeys use_running_average")
class RunningMean(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.use_running_average = False
        self.mean = nnx.BatchStat(jnp.zeros(4))

    def __call__(self, x):
        if not self.use_running_average:
            self.mean[...] = 0.9 * self.mean[...] + 0.1 * jax.lax.stop_gradient(x.mean(0))
        return self.linear(x - self.mean[...])


@right("state-only", "no parameter at all, and nothing is returned")
class StateOnly(nnx.Module):
    def __init__(self):
        self.mean = nnx.Variable(jnp.zeros(4))

    def __call__(self, x):
        self.mean[...] = 0.9 * self.mean[...] + 0.1 * x.mean(0)


@right("sow-and-pop", "what is sown in a call is popped in it")
class SowAndPop(Layer):
    def __call__(self, x):
        y = nnx.relu(self.linear(x))
        self.sow(nnx.Intermediate, "activations", y.mean())
        sown = nnx.pop(self, nnx.Intermediate)
        return y, sum(jax.tree.leaves(sown))


class Teacher(nnx.Variable):
    """An average of weights, out of the optimizer's reach."""


@right("teacher", "an averaged teacher of its own Variable type, in arrays of its own")
class WithTeacher(nnx.Module):
    def __init__(self, rngs):
        self.student = nnx.Linear(4, 4, rngs=rngs)
        self.kernel, self.bias = (Teacher(jnp.copy(p[...])) for p in (self.student.kernel, self.student.bias))

    def __call__(self, x):
        for slow, fast in ((self.kernel, self.student.kernel), (self.bias, self.student.bias)):
            slow[...] = 0.99 * slow[...] + 0.01 * jax.lax.stop_gradient(fast[...])
        return ((self.student(x) - (x @ self.kernel[...] + self.bias[...])) ** 2).mean()


class Code(nnx.Variable):
    """A codebook, moved by its members."""


@right("codebook", "moves in training only, and is no parameter")
class Codebook(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.deterministic = False
        self.codes = Code(rngs.params.normal((5, 4)))
        self.members = Code(jnp.ones(5))

    def __call__(self, x):
        z = self.linear(x)
        held = jax.lax.stop_gradient(z)
        nearest = jnp.argmin(((held[:, None] - self.codes[...][None]) ** 2).sum(-1), -1)
        one_hot = jax.nn.one_hot(nearest, 5)
        quantized = self.codes[...][nearest]
        if not self.deterministic:
            self.members[...] = 0.9 * self.members[...] + 0.1 * one_hot.sum(0)
            moved = one_hot.T @ held / (one_hot.sum(0)[:, None] + 1e-3)
            self.codes[...] = jnp.where(one_hot.any(0)[:, None], 0.9 * self.codes[...] + 0.1 * moved, self.codes[...])
        return z + jax.lax.stop_gradient(quantized - z)


def cooling(step):
    """Returns the temperature at a step."""
    return jnp.maximum(5.0 * 0.9 ** step.astype(jnp.float32), 0.5)


@right("scheduled-temperature", "computed from a counter, not kept")
class ScheduledTemperature(Counted):
    def __call__(self, x):
        temperature = cooling(self.count[...])
        return nnx.softmax(super().__call__(x) / temperature)


@right("routing-bias", "a balancing bias of its own type")
class RoutingBias(Layer):
    class Bias(nnx.Variable):
        pass

    def __init__(self, rngs):
        super().__init__(rngs)
        self.deterministic = False
        self.bias = self.Bias(jnp.zeros(4))

    def __call__(self, x):
        scores = nnx.sigmoid(self.linear(x))
        chosen = jax.nn.one_hot(jnp.argmax(scores + self.bias[...], -1), 4)
        if not self.deterministic:
            load = chosen.mean(0)
            self.bias[...] += 0.01 * jnp.sign(load.mean() - load)
        return (scores * chosen).sum(-1)


@right("key-value-cache", "a cache goes on filling in evaluation; dropout does not", inputs=(SEQUENCE[:, 0],))
class KeyValueCache(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.keys = nnx.Cache(jnp.zeros((2, 32, 4)))
        self.position = nnx.Cache(jnp.zeros((), jnp.int32))

    def __call__(self, x):
        at = self.position[...]
        self.keys[...] = jax.lax.dynamic_update_index_in_dim(self.keys[...], self.linear(x), at, 1)
        self.position[...] = at + 1
        scores = jnp.einsum("bf,bkf->bk", x, self.keys[...])
        scores = jnp.where(jnp.arange(32) <= at, scores, -1e9)
        return self.dropout(jnp.einsum("bk,bkf->bf", nnx.softmax(scores), self.keys[...]))


@right("ring-buffer", "the pointer goes round: it never gets near the end of int32")
class RingBuffer(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.rows = nnx.Variable(jnp.zeros((6, 4)))
        self.next = nnx.Variable(jnp.zeros((), jnp.int32))

    def __call__(self, x):
        self.rows[...] = self.rows[...].at[self.next[...]].set(x.mean(0))
        self.next[...] = (self.next[...] + 1) % 6
        return self.linear(x + self.rows[...].mean(0))


@right("saturating-warmup", "int8, which stops at 100 by itself")
class SaturatingWarmup(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.warm = nnx.Variable(jnp.zeros((), jnp.int8))

    def __call__(self, x):
        self.warm[...] = jnp.where(self.warm[...] < 100, self.warm[...] + 1, self.warm[...])
        return self.linear(x) * (self.warm[...] / 100.0)


@right("patience", "infinite and NaN at first, an integer that starts over, and a bool")
class Patience(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.best = nnx.Variable(jnp.full((), jnp.inf, jnp.float32))
        self.last = nnx.Variable(jnp.full((), jnp.nan, jnp.float32))
        self.waited = nnx.Variable(jnp.zeros((), jnp.int32))
        self.stop = nnx.Variable(jnp.zeros((), bool))

    def __call__(self, x):
        loss = (self.linear(x) ** 2).mean()
        better = loss < self.best[...]
        self.best[...] = jnp.minimum(self.best[...], jax.lax.stop_gradient(loss))
        self.waited[...] = jnp.where(better, 0, self.waited[...] + 1)
        self.stop[...] = self.waited[...] > 10
        return loss


@right("loss-scaler", "doubles and halves between limits", inputs=(BATCH,))
class LossScaler(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.scaler = nnx.Dict(
            scale=nnx.Variable(jnp.full((), 8.0, jnp.float32)), good=nnx.Variable(jnp.zeros((), jnp.int32))
        )

    def __call__(self, x):
        scale, good = self.scaler["scale"], self.scaler["good"]
        loss = (self.linear(x) ** 2).mean()
        finite, due = jnp.isfinite(loss), good[...] >= 3
        good[...] = jnp.where(finite & ~due, good[...] + 1, 0)
        grown = jnp.where(due, jnp.minimum(scale[...] * 2, 65536.0), scale[...])
        scale[...] = jnp.where(finite, grown, jnp.maximum(scale[...] / 2, 1.0))
        return loss


@right("variable-of-a-dict", "one Variable, several arrays")
class VariableOfADict(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.stats = nnx.Variable({"mean": jnp.zeros(4), "square": jnp.ones(4)})

    def __call__(self, x):
        now = {"mean": x.mean(0), "square": (x**2).mean(0)}
        self.stats.set_value(jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, self.stats.get_value(), now))
        return self.linear(x)


@right("key-in-a-variable", "noise from a key that is kept and folded")
class KeyInAVariable(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.key = nnx.Variable(jax.random.key(0))

    def __call__(self, x):
        key, noise = jax.random.split(self.key[...])
        self.key[...] = key
        return self.linear(x + 0.1 * jax.random.normal(noise, x.shape))


class Pooling(enum.Enum):
    MEAN = "mean"
    MAX = "max"


@right("static-attributes", "numbers, enums, dtypes, partials and a lambda: none of them changes")
class StaticAttributes(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.axes = (0,)
        self.scale = 0.5
        self.pooling = Pooling.MEAN
        self.dtype = jnp.float32
        self.activation = lambda x: nnx.relu(x + 1)
        self.clip = functools.partial(jnp.clip, min=-1.0, max=1.0)

    def __call__(self, x):
        y = self.clip(self.activation(self.linear(x))).astype(self.dtype)
        return self.scale * (y.mean(self.axes) if self.pooling is Pooling.MEAN else y.max(self.axes))


@right(
    "static-list", "lists and dicts that nobody changes: nnx.jit takes them, though a GraphDef with them has no hash"
)
class StaticList(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.sizes = [4, 8]
        self.options = {"scale": 2.0}

    def __call__(self, x):
        return self.linear(x) * self.options["scale"] / len(self.sizes)


@right("bare-table", "an array that is no Variable, and is never written")
class BareTable(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.table = jnp.arange(4.0)

    def __call__(self, x):
        return self.linear(x + self.table[None])


@right("histogram-with-switch", "fed in training only; floats, which a decay keeps small")
class HistogramWithSwitch(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.deterministic = False
        self.hist = nnx.Variable(jnp.zeros(8))

    def __call__(self, x):
        y = self.linear(x)
        if not self.deterministic:
            bins = jnp.clip(y * 2 + 4, 0, 7).astype(jnp.int32)
            self.hist[...] = 0.99 * self.hist[...] + 0.01 * jnp.bincount(bins.ravel(), length=8)
        return y


@right("unused-head", "a parameter that this call does not touch has no gradient")
class UnusedHead(Layer):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.head = nnx.Linear(4, 2, rngs=rngs)
