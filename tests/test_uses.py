# SPDX-License-Identifier: Apache-2.0
"""The jaxpr of a step tells which counts it only adds to and reads; any other count is kept whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tallax
from tallax._uint64 import WORD
from tallax.compiling._count_uses import uses
from tallax.variables import TwoPartCount

INT32 = np.int32(5)
MASK = np.ones(7, bool)


class Three(nnx.Module):
    """Three counts, of which the programs below use mostly the first."""

    def __init__(self, *words):
        self.a, self.b, self.c = tallax.Counter(), tallax.Counter(shape=2), tallax.Counter()
        for counter, parts in zip((self.a, self.b, self.c), words, strict=True):
            counter.set_raw_value(TwoPartCount(*parts))


def found(program, *args):
    """Returns which counts a function of a model reads, and which may not stay in two parts."""

    def flat(bases, added, *args):
        model = Three(*zip(bases, added, strict=True))
        out = program(model, *args)
        parts = [model.a.get_raw_value(), model.b.get_raw_value(), model.c.get_raw_value()]
        return [part.base for part in parts], [part.added for part in parts], out

    zeros = [np.zeros(2, np.uint32), np.zeros((2, 2), np.uint32), np.zeros(2, np.uint32)]
    words = [np.zeros((), np.uint32), np.zeros(2, np.uint32), np.zeros((), np.uint32)]
    result = uses(jax.make_jaxpr(flat)(zeros, words, *args), 3)
    return result.read, result.whole


def increments(model, *args):
    model.a += 1
    model.b.count(jnp.ones((3, 2), bool))


def looped(times, by):
    """Returns a program that counts in a loop."""

    def body(_, model):
        model.a.increment(by)
        return model

    return lambda model, *args: nnx.update(model, nnx.state(nnx.fori_loop(0, times, body, model)))


def looped_with_reset(model):
    """Counts and forgets; the bound does not see that it forgets each time."""

    def body(_, model):
        model.a.reset()
        model.a += 2**20
        return model

    nnx.update(model, nnx.state(nnx.fori_loop(0, 2**13, body, model)))


def scanned(times, by):
    def body(model, _):
        model.a.increment(by)
        return model, None

    def program(model, *args):
        nnx.scan(body, in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))(model, jnp.zeros(times))

    return program


def while_less(model, limit):
    def body(carry):
        model, k = carry
        model.a += 1
        return model, k + 1

    nnx.while_loop(lambda carry: carry[1] < limit, body, (model, 0))


def in_a_branch(model, flag):
    def counted(model):
        model.a.increment(jnp.uint16(3))

    nnx.cond(flag, counted, lambda model: None, model)


def advanced(model, *args):
    model.a._advance_by_one()  # returns the count, which is dropped


def read_within(transform):
    """Returns a program that reads a count within a transformation."""

    def program(model, x):
        return transform(lambda model, x: model.a.value * x)(model, x)

    return program


def looped_in_a_branch(model, flag):
    nnx.cond(flag, looped(100, np.uint8(255)), lambda model: None, model)


def read_in_a_loop(model):
    def body(model, _):
        model.a += 1
        return model, model.a.value

    return nnx.scan(body, in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))(model, jnp.zeros(3))[1]


def copy_that_wraps(model):
    """Counts a few; but a copy, which is only read, wraps in the last iterations."""

    def body(model, _):
        model.a += 2**10
        copy = nnx.clone(model)
        copy.a += 2**32 - 2**12
        return model, copy.a.value

    nnx.scan(body, in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))(model, jnp.zeros(8))


def over_devices(model):
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.PartitionSpec("x")
    jax.shard_map(lambda base: base, mesh=mesh, in_specs=split, out_specs=split)(model.a.get_raw_value().base)


def by_counter(model, *args):
    other = tallax.Counter(3)
    model.a.increment(other)


ADDED = {
    "constant": (increments,),
    "many": (lambda model: [model.a.increment(2**20) for _ in range(3)],),
    "python-int": (lambda model: model.a.increment(WORD),),
    "int32": (lambda model, n: model.a.increment(n), INT32),
    "mask": (lambda model, mask: model.a.count(mask), MASK),
    "uint16": (lambda model, n: [model.a.increment(n) for _ in range(10)], np.uint16(5)),
    "tally": (lambda model, n: [model.b._tally(jnp.stack([n, n]), 2**20, None) for _ in range(10)], np.uint32(5)),
    "grad": (lambda model, x: tallax.grad(lambda x, model: (increments(model), x * x)[1])(x, model), jnp.float32(2)),
    "remat": (nnx.remat(increments), INT32),
    "jit": (nnx.jit(increments), INT32),
    "fori": (looped(1000, np.uint8(255)),),
    "scan": (scanned(2**10, 2**20),),
    "cond": (in_a_branch, np.bool_(True)),
    "nested": (looped_in_a_branch, np.bool_(True)),
}
READ = {
    "value": lambda model, x: model.a.value * x,
    "every": lambda model, x: model.a.every(3),
    "jit": read_within(nnx.jit),
    "remat": read_within(nnx.remat),
    "dropped-result": lambda model, x: advanced(model),
    "schedule": lambda model, x: tallax.ScheduledValue(jnp.float32)(model.a),
    "cond": lambda model, x: nnx.cond(x > 0, lambda model: model.a.value, lambda model: 0, model),
    "loop-condition": lambda model, x: nnx.while_loop(
        lambda carry: carry[0].a.value < 3, lambda carry: (carry[0], carry[1]), (model, 0)
    )[1],
    "closure-of-a-loop": lambda model, x: jax.lax.fori_loop(0, 3, lambda _, total: total + model.a.value, 0),
    "in-a-loop": lambda model, x: read_in_a_loop(model),
}
WHOLE = {
    # Written over.
    "set": (lambda model: model.a.set(3),),
    "reset": (lambda model: model.a.reset(),),
    "reset-then-added": (lambda model: (model.a.reset(), increments(model)),),
    "value-plus": (lambda model: setattr(model.a, "value", model.a.value + 1),),
    "counter": (by_counter,),
    "set-in-a-branch": (
        lambda model, flag: nnx.cond(flag, lambda m: m.a.set(1), lambda m: None, model),
        np.bool_(True),
    ),
    "reset-in-a-loop": (looped_with_reset,),
    "reset-of-a-copy": (lambda model: nnx.clone(model).a.set(3),),
    # One step may add more than 32 bits hold.
    "python-int": (lambda model: model.a.increment(2**32),),
    "int32-array": (lambda model, xs: model.a.count(xs), np.ones(9, np.int32)),
    "too-much": (lambda model, n: [model.a.increment(n) for _ in range(3)], INT32),
    "twice": (lambda model: [model.a.increment(2**31) for _ in range(2)],),
    "fori": (looped(2**10, 2**22),),
    "scan": (scanned(2**10, 2**23),),
    "while": (while_less, np.int32(3)),
    "in-the-last-iteration": (copy_that_wraps,),
    # The parts reach other operations than a Counter's own.
    "raw": (lambda model: nnx.as_pure(nnx.state(model))["a"].base[0] + 1,),
    "returned-part": (lambda model: jax.tree.leaves(nnx.state(model))[0],),
    "scan-input": (
        lambda model: jax.lax.scan(lambda c, x: (c + x, None), jnp.uint32(0), model.a.get_raw_value().base),
    ),
    "added-elsewhere": (lambda model: model.a.get_raw_value().added + model.a.get_raw_value().added,),
    "reduced": (lambda model: jax.lax.reduce(model.a.get_raw_value().base, np.uint32(0), jax.lax.max, (0,)),),
    "split-over-devices": (over_devices,),
}


@pytest.mark.parametrize("name", ADDED)
def test_added_to(name):
    """A count that is only added to is not read, and its increments are known to fit 32 bits."""
    program, *args = ADDED[name]
    assert found(program, *args) == (set(), set())


@pytest.mark.parametrize("name", READ)
def test_read(name):
    """Every kind of read of a count is detected, for that count only."""
    assert found(READ[name], np.int32(2)) == ({0}, set())


@pytest.mark.parametrize("name", WHOLE)
def test_whole(name):
    """A count that anything but an increment or a read may reach, or that may get more than a word, is kept whole."""
    program, *args = WHOLE[name]
    assert found(program, *args)[1] == {0}


def swap(model):
    first, second = model.a.get_raw_value(), model.c.get_raw_value()
    model.a.set_raw_value(second)
    model.c.set_raw_value(first)


def swapped_in_a_loop(model):
    nnx.scan(lambda model, _: (swap(model), (model, None))[1], in_axes=(nnx.Carry, 0))(model, jnp.zeros(2))


SWAPS = {
    "plain": swap,
    "branch": lambda model: nnx.cond(np.bool_(True), swap, lambda model: None, model),
    "loop": swapped_in_a_loop,
    "loop-dropped": lambda model: swapped_in_a_loop(nnx.clone(model)),
}


@pytest.mark.parametrize("program", SWAPS.values(), ids=SWAPS)
def test_swapped(program):
    """Counts that change places are kept whole, both, also where only a copy of them does."""
    assert found(program)[1] == {0, 2}
