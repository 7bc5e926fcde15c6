# SPDX-License-Identifier: Apache-2.0
"""Random programs do the same in every mode, and the counters in them do what Python's integers do.

`PROGRAMS=2000 SEED=7 pytest tests/test_programs.py -k random` runs more of them, and others.
"""

import os

import hypothesis
import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given

import tallax
from tests import programs
from tests.programs import DEVICE, ORACLE, Program

COUNT, SEED = int(os.environ.get("PROGRAMS", "12")), int(os.environ.get("SEED", "0"))
MORE = 40  # in each part of the thorough test


class Steps:
    """A function of a model as a step, with the interface of a compiled one."""

    def __init__(self, step, m):
        self._step, self._m = step, m

    def __call__(self, x):
        return jax.block_until_ready(self._step(self._m, x))

    def scan(self, xs):
        return [self(x) for x in xs]

    def sync(self):
        pass

    def counts(self):
        return _counts_of(tallax.collect(self._m))


class Compiled(Steps):
    """A compiled step."""

    def __call__(self, x):
        return jax.block_until_ready(self._step(x))

    def scan(self, xs):
        results = jax.block_until_ready(self._step.scan(xs))
        return [jax.tree.map(lambda leaf, k=k: leaf[k], results) for k in range(len(xs))]

    def sync(self):
        self._step.sync()

    def counts(self):
        return _counts_of(self._step.collect())


def _counts_of(reading):
    values = reading.result()
    return [np.asarray(values[name], np.uint64) for name in ("c", "d", "v")]


WAYS = {
    "plain calls": (True, True, Steps),
    "nnx.jit": (True, True, lambda f, m: Steps(nnx.jit(f), m)),
    "nnx.jit, graph_updates=False": (True, False, lambda f, m: Steps(nnx.jit(f), m)),
    "nnx.jit, tree": (False, False, lambda f, m: Steps(nnx.jit(f), m)),
    "compile_step": (True, True, lambda f, m: Compiled(tallax.compile_step(f, m), m)),
    "compile_step, tree": (False, False, lambda f, m: Compiled(tallax.compile_step(f, m), m)),
}


def observed(program, way):
    """Runs a program; returns what it shows on the way, and all state at its end."""
    graph, updates, start = WAYS[way]
    with nnx.set_graph_mode(graph), nnx.set_graph_updates(updates):
        step, drive = programs.run(program, DEVICE)
        m, seen = programs.model_of(program), []
        steps = start(step, m)
        drive(m, steps, lambda *shown: seen.append(jax.tree.map(np.asarray, jax.tree.leaves(nnx.as_pure(shown)))))
        steps.sync()
        return seen, jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.as_pure(nnx.state(m))))


def check(program, ways=tuple(WAYS)):
    """Asserts that a program does the same in every way to run it, and what the oracle says."""
    seen, state = observed(program, "nnx.jit")
    for way in ways:
        if way != "nnx.jit":
            assert_same(observed(program, way), (seen, state), f"{way} differs from nnx.jit:\n{program}")
    if program.is_known_to_oracle:
        m = programs.oracles_model_of(program)
        step, drive = programs.run(program, ORACLE)
        drive(m, Foreseen(step, m), lambda *shown: None)
        assert numbers(state) == programs.everything(m), f"nnx.jit differs from Python's integers:\n{program}"


class Foreseen(Steps):
    """The oracle's steps."""

    def __call__(self, x):
        self._step(self._m, x)

    def counts(self):
        return None


def numbers(state):
    """Returns what `programs.everything` does, of a state."""

    def of(state, *lane):
        counts = [
            (state[name][lane].astype(np.uint64) << np.uint64([0, 32])).sum(-1, dtype=np.uint64).ravel()
            for name in "cdv"
        ]
        return [int(count) for part in counts for count in part] + [int(state["t"][lane])]

    return [*of(state), *(of(state["w"], lane) for lane in range(2))]


def assert_same(got, expected, message):
    left, right = jax.tree.leaves(got), jax.tree.leaves(expected)
    assert jax.tree.structure(got) == jax.tree.structure(expected), message
    for a, b in zip(left, right, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape), message
        if a.dtype.kind == "f":
            assert np.allclose(a, b, rtol=1e-5, equal_nan=True), message
        else:
            assert np.array_equal(a, b), f"{message}\n{a} instead of {b}"


def drawn(count):
    """Returns settings for `count` programs."""
    checks = list(hypothesis.HealthCheck)  # they measure the machine
    return hypothesis.settings(max_examples=count, derandomize=False, database=None, suppress_health_check=checks)


@pytest.mark.usefixtures("quick_compilation")
@hypothesis.seed(SEED)
@drawn(COUNT)
@given(programs.programs())
def test_random_programs(program):
    """Whatever a program does to counters and statistics, every mode does to the bit, and Python's integers agree."""
    check(program)


@pytest.mark.thorough
@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("part", range(4))
def test_more_random_programs(part):
    """The same, of other programs."""

    @hypothesis.seed(SEED + 1 + part)
    @drawn(MORE)
    @given(programs.programs())
    def each(program):
        check(program)

    each()


# Each is the body of `m, x, k`; a batch decides which branch is taken.
WRITES = {
    "set": "m.c.set(3)",
    "reset": "m.c.reset()",
    "reset of a vector": "m.v.reset()",
    "set of an entry": "m.v[1] = 7",
    "set of an entry that is computed": "m.v[x[0] % 3] = x[1]",
    "set to another counter": "m.c.set(m.d)",
    "set to what another counter reads": "m.c.set(m.v[1])",
    "swap": "swap(m.c, m.d)",
    "reset, then added to": "m.c.reset(); m.c += 5; m.v.reset(); m.v.increment(x)",
    "added to, then set, then added to": "m.c += 2**31; m.c.set(1); m.c += 2**32 - 1",
    "assigned": "m.c.value += 1; m.v[2] += 2",
    "added and read": "m.c += 1; m.t[...] = mix(m.t[...], m.c.value)",
    "another counter's count added": "m.c.increment(m.d); m.v.increment(m.c)",
    "merge": "m.q.update(x > 1); m.r.merge(m.q)",
    "reset of statistics": "m.r.update(x > 0); m.r.reset(); m.h.update(f(x)); m.h.reset(); m.h.update(f(x))",
    "undone": "saved = snapshot(m); m.c.set(9); m.v += 2; undo(m, saved)",
    "a sum that wraps in a copy": "saved = snapshot(m); m.c += 2**31; m.c += 2**31; "
    "m.t[...] = mix(m.t[...], m.c.every(7)); undo(m, saved)",
}
AROUND = {
    "cond": "cond(x[0] > 1, {}, nothing, m, x, k)",
    "other branch of cond": "cond(x[0] > 1, adding, {}, m, x, k)",
    "switch": "switch(x[0] % 3, [nothing, {}, adding], m, x, k)",
    "nested cond": "cond(x[0] > 1, lambda m, x, k: cond(x[1] > 1, {0}, adding, m, x, k), nothing, m, x, k)",
    "scan": "scan(3, {}, m, x, k)",
    "fori": "fori(3, {}, m, x, k)",
    "while": "loop(x[0] % 4, {}, m, x, k)",
    "cond in scan": "scan(3, lambda m, x, k: cond(k > 1, {0}, adding, m, x, k), m, x, k)",
    "scan in cond": "cond(x[0] > 1, lambda m, x, k: scan(2, {0}, m, x, k), nothing, m, x, k)",
    "remat": "remat({}, m, x, k)",
    "cond in grad": "grad(lambda m, x, k: cond(x[0] > 1, {0}, adding, m, x, k), m, x, k)",
    "jit": "jit({}, m, x, k)",
}
STEP = """
def nothing(m, x, k):
    pass
def adding(m, x, k):
    m.c += 3; m.d.count(x); m.v.increment(x); m.r.update(x > 1)
def inner(m, x, k):
    {inner}
def step(m, x, k=np.int32(0)):
    m.v.count(x > 1); m.d += 1
    {outer}
    m.c.count(x > 4)
    return m.t[...], m.v[...]
"""
DRIVE = """
def drive(m, step, see):
    for values in ([5, 2, 1], [0, 1, 2], [0, 5, 5], [4, 0, 3]):
        see(step(batch(values)), step.counts())
    m.c += 2
    see(step.scan(batch([[5, 1, 0], [1, 5, 5], [2, 2, 2]])), step.counts())
    m.v[1] = 3
    see(step(batch([1, 2, 4])), step.counts())
    see(step(batch([4, 4, 4])), step.counts())
"""


SHORT = ("nnx.jit", "compile_step")
# Each write begins with another way to get to it, so that the share of them that CI runs has them all.
CROSSED = [(inner, list(AROUND)[(k + j) % len(AROUND)]) for k, inner in enumerate(WRITES) for j in range(len(AROUND))]
FEW = ("set", "reset, then added to", "swap")
WITHIN = [(FEW[k % len(FEW)], around) for k, around in enumerate(AROUND)]


def check_write(inner, around, ways):
    step = STEP.format(inner=WRITES[inner], outer=AROUND[around].format("inner"))
    check(Program(step, DRIVE, (2**32 - 2, 2**31 - 3, (5, 2**31 - 2, 2**32 - 3)), ("r", "q", "h")), ways)


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("inner", WRITES)
def test_writes_in_a_branch(inner):
    """Every kind of write to a count, in a branch, is what it is in plain calls."""
    check_write(inner, "cond", SHORT)


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize(("inner", "around"), WITHIN)
def test_writes_within(inner, around):
    """Every way to get to a write is followed, and so are the additions of other branches."""
    check_write(inner, around, SHORT)


@pytest.mark.thorough
@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize(("inner", "around"), CROSSED)
def test_all_writes_everywhere(inner, around):
    """Every kind of write, within each of them, in every mode."""
    check_write(inner, around, tuple(WAYS))
