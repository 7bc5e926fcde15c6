# SPDX-License-Identifier: Apache-2.0
"""Runs that statecheck traces and evaluates operation by operation have the results of compiled runs."""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental import io_callback
from jax.extend.core import Literal

import tallax
from tallax.checking._call_checks import reproducible
from tallax.checking._evaluation import evaluated
from tallax.checking._model_copies import template_of
from tallax.checking._numpy_operations import OPERATIONS, LeftToXla, in_numpy
from tallax.checking._program import program_of
from tallax.checking._report import Cell, Outcome
from tallax.checking._snapshot import changed, snapshot
from tallax.checking._statecheck import reference_of
from tallax.checking._transformation_checks import transformations
from tallax.checking._transformations import GRAPH, MODES, TRANSFORMATIONS
from tallax.checking._uncompiled_runs import UncompiledRuns
from tests.quick import cell
from tests.right_modules import RIGHT
from tests.wrong_modules import WRONG

CASES = WRONG | RIGHT
X = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32))

pytestmark = pytest.mark.usefixtures("standard_promotion")


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


def test_equal_parts_of_jaxprs_are_evaluated_once():
    """A second trace of a function, and its scan over the same values, find the results of the first."""
    results, rows = {}, jnp.stack([X, X + 1])

    def function(carry, x):
        return jnp.tanh(carry @ x.T), jnp.sin(x)

    carry = jnp.ones((6, 4))
    first = evaluated(jax.make_jaxpr(function)(carry, X), [carry, X], results)
    known = len(results)
    again = evaluated(jax.make_jaxpr(functools.partial(function))(carry, X), [carry + 0, X + 0], results)
    assert len(results) == known
    assert all(a is b for a, b in zip(first, again, strict=True))
    scan = jax.make_jaxpr(lambda xs: jax.lax.scan(lambda _, x: (0, jnp.sin(x)), 0, xs))(rows)
    _, sines = evaluated(scan, [rows], results)
    np.testing.assert_array_equal(sines[0], first[1])


def constant(value):
    return lambda x: x * jnp.asarray(value)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda x: x + 0.0, lambda x: x + -0.0),
        (lambda x: x - x[0], lambda x: x[0] - x),
        (lambda x: x.sum(0), lambda x: x.sum(1)),
        (lambda x: jax.lax.cond(True, jnp.sin, jnp.cos, x), lambda x: jax.lax.cond(True, jnp.cos, jnp.sin, x)),
        (jax.jit(jnp.sin), jax.jit(jnp.cos)),
        (constant(np.arange(4, dtype=np.float32)), constant(np.arange(4, dtype=np.float32) + 1)),
        (constant(np.zeros((600, 6, 4), np.float32)), constant(np.ones((600, 6, 4), np.float32))),
        (lambda x: (x, x + 1), lambda x: (x + 1, x)),
    ],
    ids=["zeros of both signs", "order", "axis", "branches", "inner", "constants", "large constants", "results"],
)
def test_parts_that_differ_have_their_own_results(one, other):
    """Signs of zero, orders, parameters, inner jaxprs and constants are compared."""
    x, results = jnp.asarray([[-0.0, 1.0, 2.0, 3.0]] * 6), {}
    for function in (one, other):
        got = evaluated(jax.make_jaxpr(function)(x), [x], results)
        for mine, due in zip(got, jax.tree.leaves(function(x)), strict=True):
            assert np.asarray(mine).tobytes() == np.asarray(due).tobytes()


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


# --- operations in NumPy ----------------------------------------------------------------------------------------------

# Zeros of both signs, NaN, infinities, values that overflow and underflow, and one that XLA flushes to zero.
SPECIAL = [0.0, -0.0, 1.0, -1.5, np.nan, np.inf, -np.inf, 3e38, -1e-30, 1e-40, 7.25, 2.0**24 + 2]
PLAIN = [0.0, 1.0, -1.5, 3.0, 7.25, -11.0, 2.0**20, 0.1, 1e-20, -0.3, 5.0, 2.0]
A = {
    "special": (jnp.asarray(SPECIAL, jnp.float32), jnp.asarray(SPECIAL[::-1], jnp.float32)),
    "floats": (jnp.asarray(PLAIN, jnp.float32), jnp.asarray(PLAIN[::-1], jnp.float32) + 4),
    "int32": (jnp.asarray([*range(-5, 5), 2**31 - 1, -(2**31)], jnp.int32), jnp.arange(12, dtype=jnp.int32) * 2**27),
    "uint32": (jnp.asarray([*range(10), 2**32 - 1, 2**31], jnp.uint32), jnp.arange(12, dtype=jnp.uint32) * 5),
    "shifts": (jnp.arange(12, dtype=jnp.uint32) * 2**28, jnp.arange(12, dtype=jnp.uint32)),
    "bool": (jnp.arange(12) % 3 == 0, jnp.arange(12) % 2 == 0),
}
lax = jax.lax


def _clamped(x, y):
    # XLA's compiler without fusion emitters has no clamp of booleans; `make nightly` compiles with them.
    if x.dtype == bool and "fusion_emitters=false" in os.environ["XLA_FLAGS"]:
        raise NotImplementedError
    return lax.clamp(x[1], y, x[6])


FUNCTIONS = {
    "add": lax.add,
    "add_any": jax.grad(lambda x, y: lax.mul(x, x).sum()),
    "sub": lax.sub,
    "mul": lax.mul,
    "neg": lambda x, y: lax.neg(x),
    "max": lax.max,
    "min": lax.min,
    "clamp": _clamped,
    "square": lambda x, y: lax.square(x),
    "integer_pow": lambda x, y: lax.integer_pow(x, 2),
    "div": lax.div,
    "shift_right_logical": lax.shift_right_logical,
    "shift_left": lax.shift_left,
    "convert_element_type": lambda x, y: (x.astype(jnp.float32), y.astype(jnp.uint8), x.astype(bool)),
    "eq": lax.eq,
    "ne": lax.ne,
    "lt": lax.lt,
    "le": lax.le,
    "gt": lax.gt,
    "ge": lax.ge,
    "and": lax.bitwise_and,
    "or": lax.bitwise_or,
    "xor": lax.bitwise_xor,
    "not": lambda x, y: lax.bitwise_not(x),
    "is_finite": lambda x, y: lax.is_finite(x),
    "stop_gradient": lambda x, y: lax.stop_gradient(x),
    "copy": lambda x, y: jnp.array(x, copy=True),
    "select_n": lambda x, y: lax.select_n(jnp.arange(12) % 2 == 0, x, y),
    "reduce_sum": lambda x, y: x.reshape(3, 4).sum(0),
    "reduce_max": lambda x, y: x.reshape(3, 4).max((0, 1)),
    "reduce_min": lambda x, y: x.reshape(3, 4).min(1),
    "reduce_and": lambda x, y: x.reshape(3, 4).all(1),
    "reduce_or": lambda x, y: x.reshape(3, 4).any(0),
    "argmin": lambda x, y: lax.argmin(x.reshape(3, 4), 1, jnp.int32),
    "argmax": lambda x, y: lax.argmax(x.reshape(3, 4), 0, jnp.int32),
    "broadcast_in_dim": lambda x, y: (lax.broadcast_in_dim(x, (3, 12), (1,)), lax.broadcast_in_dim(x[0], (2,), ())),
    "reshape": lambda x, y: x.reshape(2, 6),
    "squeeze": lambda x, y: lax.squeeze(x.reshape(1, 12), (0,)),
    "transpose": lambda x, y: x.reshape(2, 6).T,
    "concatenate": lambda x, y: lax.concatenate([x, y], 0),
    "stack": lambda x, y: jnp.stack([x, y], 1),
    "slice": lambda x, y: (lax.slice(x, (2,), (9,), (3,)), x[1:4]),
    "dynamic_slice": lambda x, y: [lax.dynamic_slice(x, (start,), (4,)) for start in (-3, 2, 11)],
    "dynamic_update_slice": lambda x, y: [lax.dynamic_update_slice(x, y[:4], (start,)) for start in (-3, 2, 11)],
    "iota": lambda x, y: lax.broadcasted_iota(x.dtype, (2, 3), 1),
    "bitcast_convert_type": lambda x, y: lax.bitcast_convert_type(x, jnp.float32),
}


def test_every_operation_in_numpy_has_a_case():
    """Each operation that NumPy evaluates is compared with XLA's."""
    assert FUNCTIONS.keys() == OPERATIONS.keys()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_operation_in_numpy_has_the_bits_of_xla(name):
    """For every dtype, NumPy's result has the bytes, dtype and shape of XLA's, or the operation is left to XLA."""
    compared, left = 0, 0
    for kind, arrays in A.items():
        try:
            traced = jax.make_jaxpr(FUNCTIONS[name])(*arrays)
        except Exception:
            continue
        values = dict(zip(traced.jaxpr.invars, arrays, strict=True)) | dict(
            zip(traced.jaxpr.constvars, traced.consts, strict=True)
        )
        for eqn in traced.jaxpr.eqns:
            arguments = [x.val if isinstance(x, Literal) else values[x] for x in eqn.invars]
            due = jax.tree.leaves(jax.jit(lambda *given, eqn=eqn: eqn.primitive.bind(*given, **eqn.params))(*arguments))
            values.update(zip(eqn.outvars, due, strict=True))
            if eqn.primitive.name != name:
                continue
            try:
                got = in_numpy(eqn, arguments)
            except LeftToXla:
                left += 1
                continue
            compared += 1
            assert (got.dtype, got.shape) == (due[0].dtype, due[0].shape), kind
            assert np.asarray(got).tobytes() == np.asarray(due[0]).tobytes(), (kind, got, due[0])
    if not compared + left:
        pytest.skip("this version of JAX has no such primitive")
    assert compared, left


# --- copies of the model ----------------------------------------------------------------------------------------------


class Remembers(Noisy):
    """Has a list, which copies would share."""

    def __init__(self, rngs):
        super().__init__(rngs)
        self.sizes = nnx.static([1, 2])


class Encloses(Noisy):
    """Has a function that writes to the model of which copies would be made."""

    def __init__(self, rngs):
        super().__init__(rngs)
        self.count_one = lambda: self.count.set_value(self.count[...] + 1)


@pytest.mark.parametrize(("make", "templates"), [(Noisy, 4), (Remembers, 0), (Encloses, 0)])
def test_models_are_copied_only_if_copies_share_nothing(make, templates):
    """A new model, and the model after each call, are copied; a list or a closure leaves it to the factory."""
    with GRAPH.active():
        program = program_of(make, (X,), 3, None)
        list(reproducible(program, reference_of(program)))
        assert len(program.templates) == templates
        for calls in (0, 2):
            due = program.make()
            for batch in program.batches[:calls]:
                program.plain_call(due, batch)
            model = program.model_after(calls)
            assert changed(snapshot(due), snapshot(model)) == []
            program.plain_call(model, program.batches[0])
            assert changed(snapshot(due), snapshot(program.model_after(calls))) == []


def test_a_template_makes_its_model_again_if_its_arrays_are_donated():
    """A call that donates the arrays of a copy does not spoil later copies."""
    template = template_of(Noisy(nnx.Rngs(0)), lambda: Noisy(nnx.Rngs(0)))
    before = snapshot(template.copy())
    nnx.jit(lambda model: None, donate_argnums=0)(template.copy())
    assert changed(before, snapshot(template.copy())) == []


def test_most_transformations_compile_only_operations():
    """The 61 cells of a small model compile fewer than 36 programs, of which most are single operations."""
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
    assert len(compiled) < 36, len(compiled)


class StaticSelf(nnx.Module):
    """Its inner function is compiled with the first temperature, which `jit` of the call does not show."""

    def __init__(self):
        self.temperature = nnx.Variable(jnp.float32(5.0))

    @functools.partial(jax.jit, static_argnums=0)
    def route(self, x):
        return x / self.temperature[...]

    def __call__(self, x):
        self.temperature[...] *= 0.9
        return self.route(x)


class NumpyByItsType(nnx.Module):
    """Accepts no array but JAX's and NumPy's own, and derivatives pass a type of their own."""

    def __init__(self, rngs):
        self.layer = nnx.Linear(4, 4, rngs=rngs)
        self.scale = nnx.Variable(np.full(4, 2, np.int32))
        self.count = nnx.Variable(jnp.zeros((), jnp.int32))

    def __call__(self, x):
        self.count[...] += 1
        scale = self.scale.get_raw_value()
        return self.layer(x) * (
            scale if isinstance(scale, jax.Array) else {np.ndarray: jnp.asarray}[type(scale)](scale)
        )


@pytest.mark.parametrize(
    ("make", "name", "modes"),
    [
        (StaticSelf, "plain calls", ["graph", "graph_updates=False", "tree"]),
        (NumpyByItsType, "vjp", ["graph_updates=False", "tree", "split/merge"]),
    ],
)
def test_no_run_is_shortened_after_a_finding(make, name, modes):
    """A transformation that fails in its first mode runs in full in the others, and fails there too."""
    with GRAPH.active():
        program = program_of(make, (X,), 3, None)
        reference = reference_of(program)
        list(reproducible(program, reference))
        assert program.is_copied
        cells = [cell for cell in transformations(program, reference) if isinstance(cell, Cell)]
    assert [cell.mode for cell in cells if cell.check == name and cell.outcome is Outcome.FAILED] == modes


@pytest.mark.parametrize(
    "name",
    [
        cell("numpy-by-its-type", quick=True),
        cell("numpy-in-place", quick=False),  # this one and the one above fail under derivatives alone
        cell("static-self", quick=False),
        cell("weak-scalar", quick=False),
        cell("tallax-histogram", quick=False),
        cell("flax-batch-norm", quick=False),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_runs_that_others_imply_pass_in_full(name):
    """The shortcuts of `Transformation` change no cell and no finding: `implied_by`, `first_call` and `is_eager`."""
    case, found = CASES[name], []
    with GRAPH.active():
        for shortcuts in (True, False):
            program = program_of(case.make, case.inputs, 3, case.call)
            reference = reference_of(program)
            list(reproducible(program, reference))
            assert program.is_copied
            found.append(list(transformations(program, reference, shortcuts=shortcuts)))
    assert found[0] == found[1]
    assert len(found[0]) > 60
