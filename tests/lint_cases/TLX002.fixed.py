"""Variables that are replaced."""

from typing import TYPE_CHECKING, cast

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx import Variable as V


class Count(nnx.Variable):
    pass


class Adding(nnx.Variable):
    def __iadd__(self, other):
        self.set_value(self.get_value() + other)
        return self


class Base(nnx.Module):
    def __init__(self):
        self.count = Count(jnp.array(0))


class Derived(Base):
    def __call__(self, x):
        self.count[...] += 1  # error: TLX002
        return x


class Model(nnx.Module):
    state: V

    def __init__(self, n, start):
        self.count = V(jnp.zeros((), jnp.int32))
        self.number = nnx.Variable(0)
        self.mean, self.var = nnx.BatchStat(jnp.zeros(n)), nnx.BatchStat(jnp.ones(n))
        self.losses = nnx.Intermediate(jnp.zeros(()))
        self.adding = Adding(jnp.zeros((), jnp.int32))
        self.array = jnp.zeros(())
        self.maybe = nnx.Variable(jnp.zeros(n)) if start is None else start
        if isinstance(start, nnx.Variable):
            self.start = start
        else:
            self.start = nnx.Variable(jnp.asarray(start, jnp.float32))
            if TYPE_CHECKING:
                self.start = cast(nnx.Variable, self.start)
        if n:
            self.bias = nnx.Param(jnp.zeros(n))
        else:
            self.bias = None

    def __call__(self, x):
        self.count[...] += 1  # error: TLX002
        self.count = self.count + 1  # error: TLX002
        self.number += 1  # error: TLX002
        self.bias = self.bias * 2  # error: TLX002
        self.state -= 1  # error: TLX002
        self.losses = nnx.Intermediate(x.mean())
        self.adding += 1
        self.array += 1
        self.maybe = unknown(self.maybe)
        self.count[...] += 1
        self.mean.value, self.var.value = x.mean(), x.var()  # noqa: TLX006
        self.mean, self.var = self.statistics(x)  # error: TLX002
        return x

    @staticmethod
    @jax.jit
    def statistics(x):
        return x.mean(), x.var() + jnp.ones(())


def unknown(x):
    return globals()["something"](x)


def train():
    model, other = Model(1, None), nnx.Variable(jnp.zeros(()))
    model.count[...] += 1  # error: TLX002

    @nnx.jit
    def step(model, other, derived: Derived):
        model.count[...] += 1  # error: TLX002
        derived.count[...] += 1  # error: TLX002
        other[...] += 1  # error: TLX002

    step(model, other, Derived())

    def local():
        scale = model.bias
        scale[...] += 1  # error: TLX002
        return scale

    return local


class TakenAway(Base):
    def __init__(self):
        self.count = jnp.zeros(())

    def __call__(self):
        self.count += 1


class NoBase(Base):
    def __init__(self):
        self.other = 1

    def __call__(self):
        self.count = 0
        self.count += 1


class NotAModule:
    def __init__(self):
        self.count = 0

    def __call__(self):
        self.count += 1


class Replacing(Base):
    """Replaces what its base has made, in a method of its own."""

    def observe(self, x):
        self.count = x.sum()  # error: TLX002

    def note(self):
        self.count: jax.Array = self.count + 1  # error: TLX002


class Shared(nnx.Linear):
    """Gives what Flax's layer holds another name."""

    def __init__(self, n, rngs: nnx.Rngs):
        super().__init__(n, n, rngs=rngs)
        self.weight = self.kernel

    def halve(self):
        self.weight = self.weight / 2  # error: TLX002
        self.kernel = self.kernel[...] / 2  # error: TLX002


class Many(nnx.Module):
    def __init__(self, n):
        self.all = nnx.List([nnx.Variable(jnp.zeros(n)) for _ in range(3)])
        self.named = nnx.Dict({"a": nnx.Variable(jnp.zeros(n)), "b": nnx.Variable(jnp.zeros(n))})
        self.late = None
        self.arrays = [jnp.zeros(n)]

    def fill(self, n):
        self.late = nnx.Variable(jnp.zeros(n))

    def __call__(self, x):
        self.all[0][...] += x  # error: TLX002
        self.all[1] = self.all[1] + x  # error: TLX002
        self.named["a"] = x.mean()  # error: TLX002
        self.all[2][...] += x
        self.arrays[0] += x
        self.late[...] += x  # error: TLX002
        return x


class Named(nnx.Module):
    """Variables in dicts and lists, under names, by position, and one after another."""

    def __init__(self, n):
        self.kept = nnx.Dict(seen=nnx.Variable(jnp.zeros(n)), table=jnp.zeros(n))
        self.both = nnx.Dict({"a": nnx.Variable(jnp.zeros(n))}, b=nnx.BatchStat(jnp.zeros(n)))
        self.plain = dict(seen=nnx.Variable(jnp.zeros(n)))  # error: TLX014
        self.deep = nnx.Dict(inner=nnx.Dict(seen=nnx.Variable(jnp.zeros(n))))
        self.pair = nnx.List([nnx.Variable(jnp.zeros(n)), nnx.BatchStat(jnp.zeros(n))])
        self.mixed = nnx.List([nnx.Variable(jnp.zeros(n)), nnx.Linear(1, 1, rngs=nnx.Rngs(0))])
        self.unknown = nnx.Dict(**unknown(n))
        self.count = nnx.Variable(jnp.zeros(()))
        self.adding = Adding(jnp.zeros(()))
        setattr(self, "count", nnx.Variable(jnp.ones(())))

    def __call__(self, x):
        self.kept["seen"] = self.kept["seen"] + 1  # error: TLX002
        self.kept.seen = self.kept.seen + 1  # error: TLX002
        self.kept["seen"][...] += x  # error: TLX002
        self.kept.seen[...] += x  # error: TLX002
        self.kept["table"] = self.kept["table"] + 1
        self.kept.table = x.mean()
        self.kept.table += x
        self.kept["seen"][...] += x
        self.kept.seen[...] = x
        self.kept["seen"] = nnx.Variable(x)
        self.both.a = x.mean()  # error: TLX002
        self.both["b"] = x.mean()  # error: TLX002
        self.plain["seen"] = x.mean()  # error: TLX002
        self.deep["inner"]["seen"] = x.mean()  # error: TLX002
        self.deep.inner.seen = x.mean()  # error: TLX002
        self.unknown["seen"] = x.mean()
        self.unknown.seen = x.mean()
        for i, c in enumerate(self.pair):
            self.pair[i] = c + 1  # error: TLX002
            c[...] += 1
        for i in range(len(self.pair)):
            self.pair[i] = self.pair[i] * 2  # error: TLX002
            self.pair[i][...] += 1  # error: TLX002
            self.mixed[i] = x.mean()
        self.pair[-1] = x.mean()  # error: TLX002
        for name, c in self.both.items():
            self.both[name] = c * 2  # error: TLX002
        self.pair = nnx.List([c + 1 for c in self.pair])  # error: TLX002
        self.pair = nnx.List([nnx.Variable(c + 1) for c in self.pair])
        return x

    def by_name(self, x, name):
        setattr(self, "count", self.count + 1)  # error: TLX002
        setattr(self, "count", getattr(self, "count") + 1)  # error: TLX002
        object.__setattr__(self, "count", x.mean())  # error: TLX002
        self.__setattr__("count", x.mean())  # error: TLX002
        super().__setattr__("count", x.mean())  # error: TLX002
        setattr(self.kept, "seen", x.mean())  # error: TLX002
        setattr(self, "count", nnx.Variable(x.mean()))
        setattr(self, "other", x.mean())
        setattr(self, name, x.mean())
        setattr(self, "count", unknown(x))


def from_outside(model: Named, x):
    setattr(model, "count", x.mean() + 1)  # error: TLX002
    setattr(model, "count", jnp.mean(x))  # error: TLX002
    model.kept.seen = jnp.mean(x)  # error: TLX002


class Padded(Named):
    """A subclass that overwrites what its base made; the other methods still see the base's Variables."""

    def __init__(self, n, flag=False):
        self.count = 0  # the base's __init__ makes it again
        super().__init__()
        if n:
            self.count = jnp.zeros(n)  # error: TLX002
        if flag:
            self.other = jnp.zeros(n)

    def rebuild(self, x):
        self.count = x.mean()  # error: TLX002


class Remade(Named):
    """A subclass that makes a Variable of its own, in one of two branches."""

    def __init__(self, n):
        super().__init__()
        if n:
            self.count = nnx.Variable(jnp.zeros(n))
        else:
            self.count = jnp.zeros(n)


class Unmade(Named):
    """A subclass that does not run its base's `__init__`, so there is nothing to overwrite."""

    def __init__(self, n):
        self.count = jnp.zeros(n)


class Reused(nnx.Module):
    """Arithmetic never gives a Variable, whatever it works on."""

    def __init__(self):
        self.gain = nnx.Variable(jnp.ones(3))
        self.shift = nnx.Variable(jnp.ones(3))

    def __call__(self, x):
        self.gain = x * 2  # error: TLX002
        self.shift = x
        return x

    def negated(self, x):
        self.gain = -x  # error: TLX002
        self.shift = x > 0  # error: TLX002
