"""Lost updates, in other styles."""

import jax, jax.numpy as jnp, optax, functools
from functools import partial
import flax
from flax import nnx, struct
from jax.experimental.shard_map import shard_map
from jax import value_and_grad, grad, vjp, jvp

class Net(nnx.Module):
    def __init__(self, rngs):
        self.bn = nnx.BatchNorm(4, rngs=rngs)
        self.lin = nnx.Linear(4, 4, rngs=rngs)
    def __call__(self, x):
        return self.bn(self.lin(x))

class Pure(nnx.Module):
    def __init__(self, rngs):
        self.lin = nnx.Linear(4, 4, rngs=rngs)
    def __call__(self, x):
        return self.lin(x)

@jax.jit
def f1(m: Net, x):  # error: TLX008
    return m(x)

@partial(jax.jit, static_argnames=("n",))
def f2(m: Net, x, n):  # error: TLX008
    return m(x) * n

def loss_fn(m: Net, x):  # error: TLX008
    return m(x).sum()

g = value_and_grad(loss_fn)

def loss_fn2(m: Net, x):  # error: TLX008
    return m(x).sum()
def go(m: Net, x):
    return jax.grad(loss_fn2)(m, x)

def go2(m: Net, x):
    out, pull = jax.vjp(lambda mm: mm(x), m)  # error: TLX008
    return out

def go3(m: Net, x):
    def inner(x):  # error: TLX008
        return m(x)
    return jax.jvp(inner, (x,), (x,))

def go4(m: Net, x, mesh, P):
    f = shard_map(lambda x: m(x), mesh=mesh, in_specs=P, out_specs=P)  # error: TLX008
    return f(x)

def go5(m: Net, xs):
    return jax.vmap(m)(xs)  # error: TLX008

def go6(m: Net, xs):
    return jax.lax.map(lambda x: m(x), xs)  # error: TLX008

def go7(m: Pure, xs):
    return jax.vmap(m)(xs)

@jax.jit
def f3(m: Net, x):
    y = m(x)
    return y, m

@jax.jit
def f4(state, x, graphdef):
    m = nnx.merge(graphdef, state)
    y = m(x)
    return y, nnx.state(m)

@struct.dataclass
class TS:
    model: Net = struct.field(pytree_node=False)
    step: int = 0
    tx: nnx.Optimizer = flax.struct.field(pytree_node=False)

@jax.jit
def f5(ts: TS, x):  # error: TLX008
    return ts.model(x)

@nnx.jit
def f6(ts: TS, x, grads):  # error: TLX008
    ts.tx.update(ts.model, grads)
    return ts

@flax.struct.dataclass
class TS2:
    model: Net
    def apply(self, x):
        return self.model(x)

@jax.jit
def f7(ts: TS2, x):  # error: TLX008
    return ts.model(x)

@jax.jit
def f8(ts: TS2, x):
    y = ts.model(x)
    return ts, y

@jax.jit
def f9(ts: TS2, x):  # error: TLX008
    return ts.apply(x)

@jax.jit
def f10(opt: nnx.Optimizer, model: Pure, grads):  # error: TLX008
    opt.update(model, grads)
    
jstep = jax.jit(Net.__call__)

class Trainer:
    def __init__(self, m: Net):
        self.m = m
        self.step = jax.jit(self._step)
    def _step(self, x):  # error: TLX008
        return self.m(x)

class Trainer2:
    def __init__(self, m: Net):
        self.model = m
        self.opt = nnx.Optimizer(m, optax.adam(1e-3), wrt=nnx.Param)
    @partial(jax.jit, static_argnums=(0,))
    def _step(self, x):  # error: TLX008
        loss, grads = nnx.value_and_grad(lambda m: m(x).sum())(self.model)
        self.opt.update(self.model, grads)
        return loss
