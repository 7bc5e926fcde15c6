"""Owners of models: dataclass trainers, factories, states, and loops over several attributes."""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from flax import nnx


class Block(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs):
        self.linear = nnx.Linear(4, 4, rngs=rngs)
        self.mean = nnx.BatchStat(jnp.zeros(4))
        self.count = nnx.Variable(jnp.zeros((), jnp.int32))

    def __call__(self, x):
        def write(value):
            self.mean = 0.9 * self.mean[...] + 0.1 * value  # error: TLX002

        write(x.mean(0))
        self.count = self.count.value + 1  # error: TLX002, TLX006
        return self.linear(x)

    @classmethod
    def create(cls, seed: int = 0):
        return cls(rngs=nnx.Rngs(seed))


class Pair(nnx.Module):
    def __init__(self, rngs):
        self.a = Block(rngs=rngs)
        self.b = Block(rngs=rngs)
        self.blocks = nnx.List([Block(rngs=rngs)])
        self.norms = nnx.List([nnx.BatchNorm(4, rngs=rngs)])
        self.parts = nnx.Dict({"a": Block(rngs=rngs)})

    def __call__(self, x):
        for block in (self.a, self.b):
            block.count += 1  # error: TLX002
        both = [self.a, self.b]
        for block in both:
            block.mean = jnp.zeros(4)  # error: TLX002
        for block, norm in zip(self.blocks, self.norms):
            x = norm(block(x))
            block.count += 1  # error: TLX002
            norm.mean = x.mean(0)  # error: TLX002
        self.parts["a"].count += 1  # error: TLX002
        self.a.mean[...] = x.mean(0)
        return x


@dataclass
class Trainer:
    model: Block
    optimizer: nnx.Optimizer
    steps: int = 0

    def step(self, x):
        loss, grads = nnx.value_and_grad(lambda m: m(x).sum())(self.model)
        self.optimizer.update(grads)  # error: TLX013
        self.steps += 1
        return loss


class Runner:
    def __init__(self, seed=0):
        self.model = Block.create(seed)
        self.tx = optax.adam(1e-3)
        self.opt = nnx.Optimizer(self.model, self.tx)  # error: TLX013
        self.metrics = nnx.metrics.MultiMetric(loss=nnx.metrics.Average("loss"))

    def reset(self):
        self.model.count = jnp.zeros((), jnp.int32)  # error: TLX002
        self.model.mean.value = jnp.zeros(4)  # error: TLX006

    def train(self, x):
        grads = nnx.grad(lambda m: m(x).sum())(self.model)
        self.opt.update(grads=grads)  # error: TLX013


def get_model() -> Block:
    return Block(rngs=nnx.Rngs(0))


def make(n: int):
    models = [Block.create(k) for k in range(n)]
    first = get_model()
    first.count += 1  # error: TLX002
    for model in models:
        model.count += 1  # error: TLX002
    other = Block.create()
    other.count += 1  # error: TLX002
    return models


def train_step(model: Block, x):  # error: TLX008
    model(x)
    model.count[...] += 1  # error: TLX008
    return x


compiled = jax.jit(train_step)


def shows(model: Block):
    state = nnx.state(model)
    print(state["mean"].value)  # error: TLX006
    print(state.mean.value, state["linear"]["kernel"].value)  # error: TLX006
    params = nnx.state(model, nnx.Param)
    total = sum(p.value.size for p in jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, nnx.Variable)))  # error: TLX006
    _, state = nnx.split(model)
    state["mean"].value = jnp.zeros(4)  # error: TLX006
    sizes = jax.tree.map(lambda p: p.value.shape, params, is_leaf=lambda x: isinstance(x, nnx.Variable))  # error: TLX006
    pure = nnx.to_pure_dict(state)
    return total, sizes, pure["mean"].sum()


@jax.jit
def through_state(graphdef, state, x):
    model = nnx.merge(graphdef, state)
    y = model(x)
    return y, nnx.state(model)


def plain(model: Block, xs):
    return jax.lax.map(model, xs)  # error: TLX008


@dataclasses.dataclass
class Box:
    value: int


def boxes(state: dict[str, Box]):
    return state["mean"].value
