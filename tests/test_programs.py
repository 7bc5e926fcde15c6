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

COUNT, SEED = int(os.environ.get("PROGRAMS", "40")), int(os.environ.get("SEED", "0"))


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
    "plain calls": (True, True, lambda f, m: Steps(f, m)),
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
        drive(m, steps, lambda shown: seen.append(jax.tree.map(np.asarray, jax.tree.leaves(nnx.as_pure(shown)))))
        steps.sync()
        return seen, jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.as_pure(nnx.state(m))))


def check(program):
    """Asserts that a program does the same in every way to run it, and what the oracle says."""
    seen, state = observed(program, "nnx.jit")
    for way in WAYS:
        if way != "nnx.jit":
            assert_same(observed(program, way), (seen, state), f"{way} differs from nnx.jit:\n{program}")
    if program.is_known_to_oracle:
        m = programs.oracles_model_of(program)
        step, drive = programs.run(program, ORACLE)
        drive(m, Foreseen(step, m), lambda shown: None)
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
            (state[name][lane].astype(np.uint64) << np.uint64([0, 32])).sum(-1, dtype=np.uint64).ravel() for name in "cdv"
        ]
        return [int(count) for part in counts for count in part] + [int(state["t"][lane])]

    return [*of(state), *(of(state["w"], lane) for lane in range(2))]


def assert_same(got, expected, message):
    left, right = jax.tree.leaves(got), jax.tree.leaves(expected)
    assert jax.tree.structure(got) == jax.tree.structure(expected), f"{message}\n{jax.tree.structure(got)}\n{jax.tree.structure(expected)}"
    for a, b in zip(left, right, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape), message
        if a.dtype.kind == "f":
            assert np.allclose(a, b, rtol=1e-5, equal_nan=True), message
        else:
            assert np.array_equal(a, b), f"{message}\n{a} instead of {b}"


@pytest.fixture
def quick_compilation():
    """Programs that are compiled once and run for a moment."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()


@pytest.mark.usefixtures("quick_compilation")
@hypothesis.seed(SEED)
@hypothesis.settings(max_examples=COUNT, derandomize=False, database=None, suppress_health_check=list(hypothesis.HealthCheck), print_blob=False)
@given(programs.programs())
def test_random_programs(program):
    """Whatever a program does to counters and statistics, every mode does to the bit, and Python's integers agree."""
    check(program)
