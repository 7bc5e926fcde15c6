"""Idioms of Equinox, Haiku and Linen in NNX: functional state, `setup`, modules as arguments of `lax` loops."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx, struct
from jax import numpy as np_


class Count(nnx.Variable):
    """Calls."""


class Running(nnx.Variable): ...


class Memory(nnx.Module):
    cell: nnx.Module
    state: Running

    def __init__(self, features, *, rngs):
        self.cell = nnx.LSTMCell(features, features, rngs=rngs)
        self.state = Running(np_.zeros((features,)))
        self.count = Count(np_.asarray(0, np_.int32))
        self.gate = nnx.Linear(features, 1, rngs=rngs)

    def reset(self):
        self.state = np_.zeros_like(self.state[...])  # error: TLX002
        self.count.value = 0  # error: TLX006

    def step(self, x):
        self.state[:] = x
        self.count[...] += 1
        return x

    def __call__(self, x):
        g = nnx.sigmoid(self.gate(x))
        self.state = g * self.state + (1 - g) * x  # error: TLX002
        return self.state, self.count.value  # error: TLX006


class Carry(NamedTuple):
    hidden: jax.Array
    count: jax.Array


def unroll(memory: Memory, xs):
    def f(carry: Carry, x):  # error: TLX008
        y = memory.step(x)
        return Carry(y, carry.count + 1), y

    return jax.lax.scan(f, Carry(xs[0], 0), xs)


def repeat(memory: Memory, x):
    return jax.lax.fori_loop(0, 3, lambda i, y: memory.step(y), x)  # error: TLX008


def choose(memory: Memory, x, flag):
    return jax.lax.cond(flag, lambda x: memory.step(x), lambda x: x, x)  # error: TLX008


def choose_right(memory: Memory, x, flag):
    return nnx.cond(flag, lambda m, x: m.step(x), lambda m, x: x, memory, x)


def split_right(memory: Memory, xs):
    graphdef, state = nnx.split(memory)

    def f(state, x):
        memory = nnx.merge(graphdef, state)
        y = memory.step(x)
        return nnx.state(memory), y

    state, ys = jax.lax.scan(f, state, xs)
    nnx.update(memory, state)
    return ys


@struct.dataclass
class TrainState:
    model: Memory
    step: int = 0


@jax.jit
def train(state: TrainState, x):  # error: TLX008
    y = state.model.step(x)
    return y


@jax.jit
def train_returned(state: TrainState, x):
    y = state.model.step(x)
    return state, y


class Dense(nnx.Module):
    def __init__(self, n: int, rngs: nnx.Rngs, *, bias: bool = True, init_scale: float = 1.0):
        self.kernel = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), (n, n)))
        self.bias = nnx.Param(jnp.zeros(n)) if bias else None
        self.log_scale = nnx.Param(jnp.log(init_scale))  # error: TLX005
        self.alpha = nnx.Param(0.25)  # error: TLX005
        self.eps = 1e-6
        self.use_running_average = False
        self.cache = None

    def __call__(self, x):
        y = x @ self.kernel + self.eps
        if self.bias is not None:
            y = y + self.bias
        return y * jnp.exp(self.log_scale[...]) * self.alpha[...]

    def decode(self, x):
        if self.cache is None:
            self.cache = nnx.Cache(jnp.zeros_like(x))
        self.cache[...] += x
        return self.cache[...]


class Ema(nnx.Module):
    def __init__(self, model: nnx.Module, decay: float):
        self.decay = decay
        self.num_updates = nnx.Variable(0)  # error: TLX005
        self.shadow = nnx.Param(jnp.zeros(4), trainable=False)  # error: TLX001

    def update(self, value):
        self.num_updates[...] += 1
        self.shadow[...] = self.decay * self.shadow[...] + (1 - self.decay) * value


@nnx.jit(donate_argnums=0)
def compiled(dense: Dense, opt: nnx.Optimizer, batch):
    def objective(d):
        return d(batch).mean()

    loss, grads = nnx.value_and_grad(objective)(dense)
    opt.update(dense, grads)
    return loss


def fit(data, rngs=nnx.Rngs(params=0, dropout=1)):  # error: TLX017
    dense = Dense(4, rngs)
    opt = nnx.Optimizer(model=dense, tx=optax.adam(1e-3))  # error: TLX013
    counter = Memory(4, rngs=rngs)
    step = nnx.jit(lambda d, o, b: compiled(d, o, b))
    n = 0
    while n < 1000:
        for batch in data:
            n += 1
            loss = compiled(dense, opt, batch)
            if n % 50 == 0:
                print(n, float(loss), int(counter.count[...]))
            if int(counter.count[...]) % 100 == 0:  # error: TLX003
                print("saved")
            print(counter.count[...])  # error: TLX003
    return step
