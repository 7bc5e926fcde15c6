"""`.value` of Variables, and of what is none."""

import enum
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx


class Kind(enum.Enum):
    BLOCK = 1


class Count(nnx.Variable):
    pass


class Boxed(nnx.Variable):
    @property
    def value(self):
        return self.get_value()


@dataclass
class Transition:
    value: jax.Array


class Holder(nnx.Module):
    def __init__(self):
        self.value = nnx.Param(jnp.ones(()))


class Model(nnx.Module):
    def __init__(self, n, kind: Kind, start, rngs: nnx.Rngs):
        self.kernel = nnx.Param(jnp.ones((n, n)))
        self.count = Count(jnp.array(0))
        self.epoch = Count(0)  # error: TLX005
        self.tree = Count({"a": 1})
        self.boxed = Boxed(jnp.ones(()))
        self.linear = nnx.Linear(n, n, rngs=rngs)
        self.value = nnx.Linear(n, n, rngs=rngs)
        self.holder = Holder()
        self.kind = kind
        self.many = nnx.List([nnx.Param(jnp.ones(n)) for _ in range(3)])
        if n > 3:
            self.either = nnx.Param(jnp.ones(n))
        else:
            self.either = jnp.ones(n)

    def __call__(self, x, transition: Transition):
        self.count.value += 1  # error: TLX006
        self.count.value = self.count[...] * 2  # error: TLX006
        self.epoch.value += 1  # error: TLX006
        x = x @ self.kernel.value + self.linear.bias.value  # error: TLX006, TLX006
        x = x @ self.kernel.value.T  # error: TLX006
        x = x * self.either.value  # error: TLX006
        x = self.value(x) * self.holder.value + transition.value
        x = x * self.holder.value.value  # error: TLX006
        for each in self.many:
            x = x * each.value  # error: TLX006
        if self.kind == Kind.BLOCK.value or self.kind.value == 1:
            x = x + self.boxed.value
        self.tree.value = {"a": 2}  # error: TLX006
        return x, self.tree.value  # error: TLX006


def read(model: Model, unknown, optimizer: nnx.Optimizer, other: "nnx.Variable | None"):
    shown = model.count.value  # error: TLX006
    shown += other.value  # error: TLX006
    shown += unknown.epoch.value  # error: TLX006
    shown += unknown.layer.kernel.value  # error: TLX006
    shown += unknown.field.value
    shown += unknown.value
    shown += unknown.value if isinstance(unknown, nnx.Variable) else 0  # error: TLX006
    print("self.count.value", shown, dict(value=1))
    return optimizer.step.value  # error: TLX006


class Statistics(nnx.Module):
    """`[...]` of a dict raises KeyError: one that may be held is left to get_value."""

    def __init__(self, shape):
        if isinstance(shape, tuple):
            self.mean = nnx.BatchStat(jnp.zeros(shape))
        else:
            self.mean = nnx.BatchStat(jax.tree.map(jnp.zeros_like, shape))

    def __call__(self, x):
        return jax.tree.map(jnp.subtract, x, self.mean.value)  # error: TLX006


class Abstract(nnx.Module):
    """A model may be made without arrays: then its Variables have shapes and dtypes, and no `[...]`."""

    def __init__(self, n):
        self.kernel = nnx.Param(jnp.ones((n, n)))

    def shape(self):
        if isinstance(self.kernel.value, jax.ShapeDtypeStruct):  # error: TLX006
            return self.kernel.value.shape  # error: TLX006
        return self.kernel.value.sum()  # error: TLX006


def flat(model, optimizer):
    leaves = dict(nnx.to_flat_state(nnx.state(model)))
    for path, leaf in leaves.items():
        leaves[path].value = leaf.value * 2  # error: TLX006, TLX006
    for path, leaf in nnx.to_flat_state(nnx.state(model)):
        print(path, leaf.value)  # error: TLX006
    for leaf in leaves:
        print(leaf.value)
    return optimizer.step.value, model.step.value  # error: TLX006
