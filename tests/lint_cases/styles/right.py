"""Right programs that look like wrong ones: none of them is reported."""

import jax, jax.numpy as jnp, numpy as np, optax
from flax import nnx, struct
from flax.nnx import Module, Variable, Linear
from functools import partial
from typing import Any

class Net(Module):
    def __init__(self, rngs, n=3):
        self.lin = Linear(n, n, rngs=rngs)
        self.bn = nnx.BatchNorm(n, rngs=rngs)
        self.count = Variable(jnp.zeros((), jnp.int32))
        self.names = [str(i) for i in range(n)]
        self.fns = {"a": nnx.relu, "b": nnx.gelu}
        layers = [Linear(n, n, rngs=rngs)]
        self.layers = nnx.List(layers)
        self.seq = nnx.Sequential(*layers, nnx.relu)
        self.depth = len(layers)
        self.sizes = tuple(l.kernel.shape for l in layers)
        self.kernels = nnx.data([l.kernel[...] for l in layers])
        self.training = True
        self.key = rngs.params()
    def __call__(self, x):
        self.count[...] += 1
        self.count.set_value(self.count.get_value() + 0)
        total = 0
        for layer in self.layers:
            total += 1
            x = layer(x)
        count = self.count[...]
        count += 1
        names = list(self.names)
        names.append("x")
        return self.bn(x)
    def set_mode(self, training):
        self.training = training
    def extra_repr(self):
        return f"{int(self.count[...])}"

class Swap(Net):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.count = Variable(jnp.zeros((), jnp.uint32))
        self.lin = nnx.Conv(3, 3, (1,), rngs=rngs)

class Trainer:
    def __init__(self, model: Net):
        self.model = model
        self.opt = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
        self.step_fn = nnx.jit(self.make_step())
        self.steps = 0
        self.history = [model]
    def make_step(self):
        def step(model, opt, x):
            loss, grads = nnx.value_and_grad(lambda m: m(x).sum())(model)
            opt.update(model, grads)
            return loss
        return step
    def fit(self, xs):
        for i, x in enumerate(xs):
            loss = self.step_fn(self.model, self.opt, x)
            self.steps += 1
            if self.steps % 100 == 0:
                print(float(loss), int(self.model.count[...]))
    @partial(jax.jit, static_argnums=(0,))
    def pure(self, x):
        return x * 2
    @partial(jax.jit, static_argnums=0)
    def functional(self, state, x):
        model = nnx.merge(self.graphdef, state)
        return model(x), nnx.state(model)

@struct.dataclass
class State:
    params: Any
    graphdef: Any = struct.field(pytree_node=False)
    apply_fn: Any = struct.field(pytree_node=False)

@jax.jit
def train(state: State, x):
    model = nnx.merge(state.graphdef, state.params)
    y = model(x)
    return state.replace(params=nnx.state(model)), state.apply_fn(y)

@nnx.jit
def step(model: Net, opt: nnx.Optimizer, metrics: nnx.MultiMetric, x):
    loss, grads = nnx.value_and_grad(lambda m: m(x).sum())(model)
    opt.update(model, grads)
    metrics.update(loss=loss)

def optax_step(params, opt_state, tx: optax.GradientTransformation, grads):
    updates, opt_state = tx.update(grads, opt_state)
    return updates

@nnx.jit
def distill(student: Net, teacher: Net, opt, x):
    def loss(s):
        return ((s(x) - jax.lax.stop_gradient(teacher.lin(x))) ** 2).mean()
    opt.update(student, nnx.grad(loss)(student))

def init(rngs=None, seed=0):
    rngs = nnx.Rngs(seed) if rngs is None else rngs
    return Net(rngs)

def load(model: Net, weights: dict):
    model.lin.kernel[...] = jnp.asarray(weights["k"])
    model.lin.bias = nnx.Param(jnp.asarray(weights["b"]))
    for name, value in weights.items():
        model.names.append(name)
    for k, v in nnx.to_flat_state(nnx.state(model)):
        v.set_value(weights[k])
    x = model.lin.kernel[...]
    x += 1
    x *= 2
    s = nnx.state(model)
    s = jax.tree.map(lambda a: a + 1, s)
    nnx.update(model, s)

def scan_layers(model: Net, x):
    @nnx.scan(in_axes=(0, nnx.Carry))
    def body(layer, x):
        return layer(x)
    return body(model.layers, x)

@nnx.vmap(in_axes=0, out_axes=0)
def make_many(key):
    return Net(nnx.Rngs(key))

class Reg(Module):
    def __init__(self):
        self.items: dict[str, int] = {}
        self.log: list[float] = []
    def add(self, k, v):
        self.items[k] = v
        self.log.append(float(v))

class Cached(Module):
    def __init__(self, n):
        self.cache = nnx.Cache(jnp.zeros(n))
        self.index = nnx.Cache(jnp.zeros((), jnp.int32))
        self.mode = nnx.static("decode")
    def __call__(self, x):
        self.cache[...] = jax.lax.dynamic_update_slice(self.cache[...], x, (self.index[...],))
        self.index[...] = self.index[...] + 1
        new = jnp.where(self.index[...] > 3, x, -x)
        return new
    def reset(self):
        self.cache = nnx.Cache(jnp.zeros_like(self.cache[...]))
        self.index.value = jnp.zeros((), jnp.int32)  # noqa: TLX006


class Predictor:
    def __init__(self, model: Net):
        self.model = model
        self.model.eval()
        self.predict = jax.jit(self._predict)
        self.also = nnx.jit(self._also)
        self.traced = jax.vmap(self._predict)

    def _predict(self, x):
        return self.model.seq(x)

    def _also(self, x):
        return self.model.bn(x)
