"""Closures, in other styles."""

import jax, jax.numpy as jnp, optax
import flax.nnx as nnx
from flax.nnx import jit, value_and_grad

class Net(nnx.Module):
    def __init__(self, rngs):
        self.bn = nnx.BatchNorm(4, rngs=rngs)
        self.count = nnx.Variable(jnp.zeros((), jnp.int32))
    def __call__(self, x):
        self.count[...] += 1
        return self.bn(x)

net = Net(nnx.Rngs(0))
opt = nnx.Optimizer(net, optax.adam(1e-3), wrt=nnx.Param)
metrics = nnx.MultiMetric(loss=nnx.metrics.Average("loss"))

@jit
def step(x):
    loss, grads = value_and_grad(lambda m: m(x).sum())(net)  # error: TLX015
    opt.update(net, grads)  # error: TLX015
    metrics.update(loss=loss)  # error: TLX015
    return loss

def train(m: Net, data):
    opt = nnx.Optimizer(m, optax.adam(1e-3), wrt=nnx.Param)
    @nnx.jit
    def inner(m, x):
        loss, grads = nnx.value_and_grad(lambda mm: mm(x).sum())(m)
        opt.update(m, grads)  # error: TLX015
        return loss
    rngs = nnx.Rngs(0)
    @nnx.jit
    def inner2(m, x):
        k = rngs.dropout()  # error: TLX015
        return m(x)
    @nnx.jit
    def inner3(x):
        return m(x)  # error: TLX015
    @nnx.jit
    def inner4(m: Net, x):
        def loss(x):
            return m(x).sum()  # error: TLX015
        return nnx.grad(loss)(x)
    for x in data:
        inner(m, x)
