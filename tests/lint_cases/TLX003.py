"""Values read into Python in a step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx


class Model(nnx.Module):
    def __init__(self, n):
        self.count = nnx.Variable(jnp.array(0, dtype=jnp.int32))
        self.mean = nnx.BatchStat(jnp.zeros(n))
        self.weight = nnx.Param(jnp.ones(n))
        self.epoch = nnx.Variable(0)
        self.scale = nnx.Param(jnp.ones(n))
        self.momentum = 0.9

    def __call__(self, x):
        if self.count[...] > 100:  # error: TLX003
            x = x * 2
        while self.mean.get_value().sum() > 0:  # error: TLX003
            x = x + 1
        total = int(self.count[...])  # error: TLX003
        mean = x.mean()
        self.mean[...] = self.momentum * self.mean[...] + float(jnp.mean(x))  # error: TLX003
        print(self.mean[...])  # error: TLX003
        if self.weight[...].shape[0] == 3 and self.scale is not None:
            x = x + self.weight[...] if self.scale else x
        if self.mean.ndim > 1 or len(self.weight[...]) > 2:
            x = x * 2
        return self.helper(x) + total + mean

    def helper(self, x):
        return x * self.mean[...].sum().item()  # error: TLX003

    def summary(self):
        return {"count": int(self.count[...]), "mean": np.asarray(self.mean[...])}

    @property
    def seen(self):
        return int(self.count[...])

    def __next__(self):
        if self.epoch.get_value() > 3:
            raise StopIteration
        return int(self.epoch.get_value())


@nnx.jit
def step(model: Model, x):
    jax.debug.callback(lambda n: print(int(n)), model.count[...])
    return bool(model.count[...] > 1)  # error: TLX003


def train(batches):
    model = Model(3)
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
    first = int(optimizer.step[...])
    for k, batch in enumerate(batches):
        loss = step(model, batch)
        print(int(optimizer.step[...]))  # error: TLX003
        seen = int(model.count[...])  # error: TLX003
        if k % 100 == 0:
            print(float(model.mean[...].sum()), float(loss))
    return first, seen, float(model.mean[...].sum())


class Conditions(nnx.Module):
    """What Python asks for its truth, its length or its number."""

    def __init__(self, n):
        self.count = nnx.Variable(jnp.array(0, dtype=jnp.int32))
        self.table = nnx.Variable(jnp.zeros(n))

    def __call__(self, x, train):
        if train and self.count[...] > 3:  # error: TLX003
            x = x * 2
        if not (train or self.count.get_value() == 0):  # error: TLX003
            x = x * 2
        assert self.count[...] >= 0  # error: TLX003
        assert train and self.table.shape == x.shape
        for _ in range(self.count[...]):  # error: TLX003
            x = x * 2
        for _ in range(self.table.shape[0]):
            x = x * 2
        return x if train or self.table is not None else -x


def log_now_and_then(batches, verbose):
    """The condition of a branch is asked at every step; what stands behind it is not."""
    model = Model(3)
    for k, batch in enumerate(batches):
        loss = step(model, batch)
        if int(model.count[...]) % 100 == 0:  # error: TLX003
            print(float(loss), int(model.count[...]))
        if model.count[...] % 100 == 0:  # error: TLX003
            print(float(loss))
        if not model.count[...] % 100:  # error: TLX003
            print(float(loss))
        if model.count.get_value() > 3 and verbose:  # error: TLX003
            print(float(loss))
        if float(model.mean[...].sum()) > 3 or verbose:  # error: TLX003
            print(float(loss))
        assert model.mean[...].sum() < 9  # error: TLX003
        name = "late" if model.count[...] > 3 else "early"  # error: TLX003
        shown = float(loss) if k % 100 == 0 else float(model.count[...])
        if k % 100 == 0:
            if model.count[...] > 3:
                print(float(model.mean[...].sum()), name, shown)
            seen = int(model.count[...]) if model.count[...] > 3 else 0
            print(seen)
        if k % 100 == 0 and int(model.count[...]) > 3:
            print(float(loss))
        if verbose and model.count[...] > 3:
            print(float(loss))
        if model.epoch.get_value() > 3 or model.mean[...].shape[0] > 3 or model.count is None:
            print(float(loss))
    if int(model.count[...]) > 3:
        print("done")


def train_until(batch):
    """A loop asks its own condition at every step, and what it runs over once."""
    model = Model(3)
    while model.count[...] < 1000:  # error: TLX003
        step(model, batch)
    while int(model.count[...]) < 2000:  # error: TLX003
        step(model, batch)
    for _ in range(int(model.count[...])):
        step(model, batch)
    for _ in range(3):
        if model.count[...] > 3:
            print("nothing is trained here")


class Balanced(nnx.Module):
    """A number is written back that was an array."""

    def __init__(self):
        self.count = nnx.Variable(jnp.array(0, dtype=jnp.int32))
        self.limit = nnx.Variable(jnp.array(3, dtype=jnp.int32))

    def balance(self, x):
        self.count[...] = int(jnp.where(x > 0, 0, self.count[...]))  # error: TLX003
        self.limit[...] = int(self.limit[...] + 1)  # error: TLX003
        self.limit[...] = int(x.shape[0])
        return int(self.limit[...])

    def load(self, values):
        self.count.set_value(int(values["count"]))


class Compiled(nnx.Module):
    def __init__(self):
        self.frozen = nnx.Variable(jnp.array(False))
        self.count = nnx.Variable(jnp.zeros((), jnp.int32))

    def learn(self):  # called on the host
        if self.frozen[...]:
            return
        self.count[...] += 1

    def learn_jit(self):
        if self.frozen[...]:  # error: TLX003
            return
        self.count[...] += 1
