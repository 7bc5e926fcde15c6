# SPDX-License-Identifier: Apache-2.0
"""What a step does with its counts is read off its jaxpr: which it reads, and whether what it adds fits one word."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tallax
from tallax._limbs import WORD
from tallax._variables import Pending
from tallax.compiling._uses import uses

INT32 = np.int32(5)
MASK = np.ones(7, bool)


class Two(nnx.Module):
    """Two counts, of which the programs below use mostly the first."""

    def __init__(self, *words):
        self.a, self.b = tallax.Counter(), tallax.Counter(shape=2)
        for counter, parts in zip((self.a, self.b), words, strict=True):
            counter.set_raw_value(Pending(*parts))


def found(program, *args):
    """Returns which counts a function of a model reads, and which it must be given whole."""

    def flat(bases, added, *args):
        model = Two(*zip(bases, added, strict=True))
        out = program(model, *args)
        parts = [model.a.get_raw_value(), model.b.get_raw_value()]
        return [part.base for part in parts], [part.added for part in parts], out

    zeros = [np.zeros(2, np.uint32), np.zeros((2, 2), np.uint32)]
    words = [np.zeros((), np.uint32), np.zeros(2, np.uint32)]
    result = uses(jax.make_jaxpr(flat)(zeros, words, *args), 2)
    return result.read, result.written, result.wide


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
        model.a.increment(jnp.uint32(3), at_most=100)

    nnx.cond(flag, counted, lambda model: None, model)


def advanced(model, *args):
    model.a.advance()  # returns the count, which is dropped


def read_within(transform):
    """Returns a program that reads a count within a transformation."""

    def program(model, x):
        return transform(lambda model, x: model.a.value * x)(model, x)

    return program


def by_counter(model, *args):
    other = tallax.Counter(3)
    model.a.increment(other)


ADDED = {
    "constant": (increments,),
    "many": (lambda model: [model.a.increment(2**20) for _ in range(3)],),
    "python-int": (lambda model: model.a.increment(WORD),),
    "int32": (lambda model, n: model.a.increment(n), INT32),
    "mask": (lambda model, mask: model.a.count(mask), MASK),
    "at-most": (lambda model, n: [model.a.increment(n, at_most=2**20) for _ in range(10)], INT32),
    "grad": (lambda model, x: tallax.grad(lambda x, model: (increments(model), x * x)[1])(x, model), jnp.float32(2)),
    "remat": (nnx.remat(increments), INT32),
    "jit": (nnx.jit(increments), INT32),
    "fori": (looped(1000, np.uint8(255)),),
    "scan": (scanned(2**10, 2**20),),
    "cond": (in_a_branch, np.bool_(True)),
    "dropped-result": (advanced,),
    "reset-elsewhere": (lambda model: nnx.clone(model).a.set(3),),
}
READ = {
    "value": lambda model, x: model.a.value * x,
    "every": lambda model, x: model.a.every(3),
    "jit": read_within(nnx.jit),
    "remat": read_within(nnx.remat),
    "raw": lambda model, x: nnx.as_pure(nnx.state(model))["a"].base[0] + 1,
    "returned-state": lambda model, x: jax.tree.leaves(nnx.state(model))[0],
    "schedule": lambda model, x: tallax.Scheduled(jnp.float32)(model.a),
    "cond": lambda model, x: nnx.cond(x > 0, lambda model: model.a.value, lambda model: 0, model),
    "loop-condition": lambda model, x: nnx.while_loop(
        lambda carry: carry[0].a.value < 3, lambda carry: (carry[0], carry[1]), (model, 0)
    )[1],
    "scan-input": lambda model, x: jax.lax.scan(
        lambda total, word: (total + word, None), jnp.uint32(0), model.a.get_raw_value().base
    )[0],
}
WRITTEN = {
    "set": (lambda model: model.a.set(3),),
    "reset": (lambda model: model.a.reset(),),
    "reset-then-added": (lambda model: (model.a.reset(), increments(model)),),
    "value-plus": (lambda model: setattr(model.a, "value", model.a.value + 1),),
    "python-int": (lambda model: model.a.increment(2**32),),
    "counter": (by_counter,),
    "int32-array": (lambda model, xs: model.a.count(xs), np.ones(9, np.int32)),
    "in-a-branch": (lambda model, flag: nnx.cond(flag, lambda m: m.a.set(1), lambda m: None, model), np.bool_(True)),
}
WIDE = {
    "too-much": (lambda model, n: [model.a.increment(n) for _ in range(3)], INT32),
    "twice": (lambda model: [model.a.increment(2**31) for _ in range(2)],),
    "fori": (looped(2**10, 2**22),),
    "scan": (scanned(2**10, 2**23),),
    "while": (while_less, np.int32(3)),
    "at-most": (lambda model, n: [model.a.increment(n, at_most=2**31) for _ in range(3)], np.uint32(5)),
    "reset-in-a-loop": (looped_with_reset,),
}


@pytest.mark.parametrize("name", ADDED)
def test_added_to(name):
    """A count that is only added to is not read, and what a step adds to it is seen to fit 32 bits."""
    program, *args = ADDED[name]
    assert found(program, *args) == (set(), set(), set())


@pytest.mark.parametrize("name", READ)
def test_read(name):
    """Whatever way a count is read, that is seen, and only that one is."""
    assert found(READ[name], np.int32(2)) == ({0}, set(), set())


@pytest.mark.parametrize("name", WRITTEN)
def test_written(name):
    """A count that is written over is known from the one trace; what is added to it afterwards still fits a word."""
    program, *args = WRITTEN[name]
    _, whole = found(program, *args)
    assert (written, wide) == ({0}, set())


@pytest.mark.parametrize("name", WIDE)
def test_wide(name):
    """A count that one step may add more to than 32 bits hold can't go in two parts."""
    program, *args = WIDE[name]
    assert found(program, *args)[2] == {0}


def test_swapped():
    """Bases that change places are not where they belong, and are read there."""

    def program(model):
        first, second = model.a.get_raw_value(), model.b.get_raw_value()
        model.a.set_raw_value(Pending(second.base[0], first.added))
        model.b.set_raw_value(Pending(jnp.stack([first.base] * 2), second.added))

    assert found(program) == ({0, 1}, {0, 1}, set())


def test_handed_to_another_count():
    """A base that is another count's now is read, though nothing is computed of it."""

    def program(model):
        model.a.set_raw_value(Pending(nnx.clone(model).a.get_raw_value().base, model.a.get_raw_value().added))
        return model.a.get_raw_value().base

    assert found(program) == ({0}, set(), set())
