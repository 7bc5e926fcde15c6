"""Lost in trainers, in other styles."""

import jax, optax, jax.numpy as jnp
from functools import partial
import flax.nnx as nnx

class Net(nnx.Module):
    def __init__(self, rngs):
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.lin = nnx.Linear(4, 4, rngs=rngs)
    def __call__(self, x):
        return self.drop(self.lin(x))

class Plain(nnx.Module):
    def __init__(self, rngs):
        self.lin = nnx.Linear(4, 4, rngs=rngs)
    def __call__(self, x):
        return self.lin(x)

class Trainer:
    def __init__(self, rngs):
        self.model = Net(rngs)
        self.opt = nnx.Optimizer(self.model, optax.adam(1e-3), wrt=nnx.Param)
        self.step = nnx.jit(self._step)
        self.metrics = nnx.MultiMetric(loss=nnx.metrics.Average("loss"))
    def _step(self, x):
        loss, grads = nnx.value_and_grad(lambda m: m(x).sum())(self.model)  # error: TLX015
        self.opt.update(self.model, grads)  # error: TLX015
        self.metrics.update(loss=loss)  # error: TLX015
        return loss
    @staticmethod
    @nnx.jit
    def good(model, opt, x):
        loss, grads = nnx.value_and_grad(lambda m: m(x).sum())(model)
        opt.update(model, grads)
    def fit(self, xs):
        @jax.jit
        def inner(x):  # error: TLX008
            return self.model(x)
        return [inner(x) for x in xs]
    def predict(self, xs):
        return jax.vmap(lambda x: self.model(x))(xs)  # error: TLX008
    def scan(self, xs):
        def body(c, x):  # error: TLX008
            return c, self.model(x)
        return jax.lax.scan(body, 0, xs)

def train(rngs, xs):
    model = Net(rngs)
    @jax.jit
    def step(x):  # error: TLX008
        return model(x)
    @jax.value_and_grad
    def loss(w):  # error: TLX008
        return model(xs).sum()
    @partial(jax.jit, donate_argnums=(0,))
    def step2(m: Net, x):  # error: TLX008
        return m(x).sum()
    f = jax.jit(lambda m, x: m(x))
    g = jax.checkpoint(model)  # error: TLX008
    plain = Plain(rngs)
    @jax.jit
    def fine(x):
        return plain(x)
    graphdef, state = nnx.split(model)
    @jax.jit
    def fine2(state, x):
        m = nnx.merge(graphdef, state)
        y = m(x)
        return y, nnx.state(m)
    @jax.jit
    def dropped(state, x):
        m = nnx.merge(graphdef, state)
        return m(x)
    return step(xs)

@nnx.jit
def ema(m: Net, x):
    return jax.vmap(m, in_axes=0)(x)  # error: TLX008

def accumulate(m: Net, xs):
    def body(i, acc):  # error: TLX008
        return acc + m(xs[i]).sum()
    return jax.lax.fori_loop(0, 3, body, 0.0)

def cond(m: Net, x, p):
    return jax.lax.cond(p, lambda x: m(x), lambda x: x, x)  # error: TLX008
def cond2(m: Net, x, p):
    return nnx.cond(p, lambda m, x: m(x), lambda m, x: x, m, x)
