# SPDX-License-Identifier: Apache-2.0
"""Runs that statecheck traces and evaluates operation by operation have the results of compiled runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental import io_callback

import tallax
from tallax.checking._program import program_of
from tallax.checking._snapshot import changed, snapshot
from tallax.checking._statecheck import reference_of
from tallax.checking._transformation_checks import transformations
from tallax.checking._transformations import GRAPH, MODES, TRANSFORMATIONS
from tallax.checking._uncompiled_runs import UncompiledRuns, evaluated

X = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32))

pytestmark = pytest.mark.usefixtures("as_users_run_it")


class Noisy(nnx.Module):
    """A layer with parameters, a random stream, a count and a tallax variable."""

    def __init__(self, rngs):
        self.layer = nnx.Linear(4, 4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.count = nnx.Variable(jnp.zeros((), jnp.int32))
        self.step = tallax.Counter()

    def __call__(self, x):
        self.count[...] += 1
        self.step += 1
        return nnx.relu(self.dropout(self.layer(x)))


def loops(x, key):
    """Uses every kind of call, loop and branch that is evaluated in Python."""
    keys = jax.random.split(key, 3)
    total, rows = jax.lax.scan(lambda c, k: (c + jax.random.normal(k), c), 0.0, keys)
    last, suffix = jax.lax.scan(lambda c, row: (c + row, c * row), jnp.zeros(4), x, reverse=True)
    _, long = jax.lax.scan(lambda c, _: (c + 1, c), 0, None, length=40)
    short = jax.lax.while_loop(lambda n: n < 3, lambda n: n + 1, 0)
    endless = jax.lax.while_loop(lambda n: n < 300, lambda n: n + 1, 0)
    chosen = jax.lax.switch(jnp.int32(1), [jnp.sin, jnp.cos], x)
    slope = jax.grad(jax.checkpoint(lambda x: jnp.sum(jax.nn.relu(x) ** 2)))(x)
    return total, rows, last, suffix, long, short, endless, chosen, slope, jax.random.key_data(keys[0]), keys


def test_a_jaxpr_evaluates_to_the_results_of_its_program():
    """Scans forward and backward, long and short loops, branches, derivatives and keys."""
    key = jax.random.key(3)
    *got, keys = evaluated(jax.make_jaxpr(loops)(X, key), [X, key])
    *expected, expected_keys = jax.tree.leaves(jax.jit(loops)(X, key))
    assert len(got) == len(expected) == 10
    for mine, due in zip(
        (*got, jax.random.key_data(keys)), (*expected, jax.random.key_data(expected_keys)), strict=True
    ):
        assert (np.shape(mine), np.asarray(mine).dtype) == (due.shape, due.dtype)
        np.testing.assert_allclose(mine, due, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_a_run_leaves_the_state_of_a_compiled_run(mode):
    """Integers, keys and parameters to the bit, in every mode."""
    program = program_of(Noisy, (X,), 3, None)
    (run,) = (each.run_in(mode) for each in TRANSFORMATIONS if each.name == "scan")
    with mode.active():
        runs = UncompiledRuns(program)
        (model,), outputs = runs.run(lambda models, xs: run(program.call, models[0], xs), program.batches)
        compiled = program.make()
        expected = run(program.call, compiled, program.batches)
    assert changed(snapshot(compiled), snapshot(model)) == []
    assert int(model.count[...]) == int(model.step) == 3
    np.testing.assert_allclose(np.stack([y for (y,) in outputs]), np.stack([y for (y,) in expected]), rtol=1e-5)


class ReadsInInit(nnx.Module):
    def __init__(self):
        self.size = nnx.Variable(jnp.zeros(int(jnp.ones(3).sum())))

    def __call__(self, x):
        return x


class CallsBack(nnx.Module):
    def __call__(self, x):
        io_callback(lambda: None, None)
        return x


@pytest.mark.parametrize("make", [ReadsInInit, CallsBack], ids=lambda make: make.__name__)
def test_a_run_that_does_not_fit_raises_and_is_then_compiled(make):
    """Host reads of the factory and effects need a compiled run, and statecheck makes one."""
    program = program_of(make, (X,), 2, None)
    runs = UncompiledRuns(program)
    calls = []

    def run(models, batches):
        calls.append(nnx.jit(program.call)(models[0], batches[0]))

    with GRAPH.active():
        with pytest.raises(Exception):  # noqa: B017 - whichever JAX raises
            runs.run(run, program.batches)
        calls.clear()
        runs.run_or_compile(run, program.batches)
    assert np.array_equal(calls[-1][0], X)


def test_most_transformations_compile_only_operations():
    """The 61 cells of a small model compile fewer than 60 programs, of which most are single operations."""
    compiled = []

    def listen(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(seconds)

    with GRAPH.active():
        program = program_of(Noisy, (X,), 3, None)
        reference = reference_of(program)
        jax.monitoring.register_event_duration_secs_listener(listen)
        try:
            cells = list(transformations(program, reference))
        finally:
            jax.monitoring.clear_event_listeners()
    assert len(cells) > 60
    assert len(compiled) < 60
