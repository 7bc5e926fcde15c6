# SPDX-License-Identifier: Apache-2.0
"""The matrix: every item under every transformation in every mode. Each cell is the right count, or an error.

All items are on one model, so a cell compiles once; and many cells are one program to XLA, which `make test` keeps.
What a cell leaves is compared with plain calls, item by item and to the bit. What an item refuses is run for each item
alone.
"""

import functools
import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import tallax
from tallax.checking import _transformations as package
from tallax.checking._program import called, program_of
from tallax.checking._transformations import RAW
from tallax.checking._usage_checks import silent_losses
from tests import misuses
from tests.cases import (
    CANNOT_KNOW,
    CAPTURED,
    REFUSED,
    STATE_CASES,
    TRANSFORMATIONS,
    Everything,
    Model,
    Reader,
    assert_same_state,
    batch,
    call,
    call_reader,
    leaves,
    matrix_table,
    silent_table,
)
from tests.quick import by_turns, cell

# tests/test_laws.py and tests/test_compile_step.py compile every type of state as users do.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("drops_programs")]

BATCHES = [(batch(k),) for k in range(3)]


@functools.cache
def reference(calls):
    """Returns what so many plain calls leave, item by item, and what they return."""
    model = Everything()
    outputs = [call(model, inputs) for inputs in BATCHES[:calls]]
    return state_of(model), outputs


def state_of(model):
    """Returns the bits of every item's state, by the item's name."""
    return {name: [(x.dtype, x.shape, x.tobytes()) for x in leaves(part)] for name, part in model.parts.items()}


def differing(model, calls):
    """Returns the names of the items whose state is not that after so many plain calls."""
    expected, _ = reference(calls)
    return [name for name, state in state_of(model).items() if state != expected[name]]


def test_the_reference_is_worth_comparing_with():
    """Every call changes every type of state, but a ScheduledValue, which only the first call with a step changes."""
    states = [reference(calls)[0] for calls in range(4)]
    for name in STATE_CASES:
        same = [before[name] == after[name] for before, after in itertools.pairwise(states)]
        assert same == ([False, True, True] if name == "scheduled" else [False] * 3), name


# --- right ------------------------------------------------------------------------------------------------------------

TURNS = {
    f"{t.name}-{mode.name}": (t, mode, k + j)
    for k, t in enumerate(TRANSFORMATIONS)
    for j, mode in enumerate(package.MODES)
    if t.run_in(mode)
}
CELLS = {name: (t, mode) for name, (t, mode, _) in TURNS.items()}


@pytest.mark.parametrize(
    "cell", [cell(name, quick=turn % len(package.MODES) == 0) for name, (_, _, turn) in TURNS.items()]
)
def test_counted_once(cell):
    """Three calls are bit-equal to three plain calls in state and outputs."""
    transformation, mode = CELLS[cell]
    model = Everything()
    with mode.active():
        outputs = transformation.run_in(mode)(call, model, BATCHES)
    assert differing(model, 3 if transformation.executes else 0) == []
    if outputs is not None and transformation.executes:
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), outputs, reference(3)[1])


_DERIVATIVES = ("vjp", "jvp", "linearize", "hessian", "grad of grad", "tallax.grad", "nnx.grad", "nothing_saveable")
DERIVATIVES = [name for name in CELLS if any(part in name for part in _DERIVATIVES)]
MADE = {"made eagerly": Reader, "made by nnx.jit": nnx.jit(Reader)}


@functools.cache
def read_by_plain_calls():
    """Returns what a model that reads every item gives in three plain calls, and what it leaves."""
    model = Reader()
    return [call_reader(model, inputs) for inputs in BATCHES], state_of(model)


@pytest.mark.parametrize(("cell", "made"), by_turns(DERIVATIVES, MADE, one_in=8))
def test_read_in_a_derivative(cell, made):
    """Every way to read state inside a derivative gives the value of a plain call."""
    transformation, mode = CELLS[cell]
    model = MADE[made]()
    with mode.active():
        outputs = transformation.run_in(mode)(call_reader, model, BATCHES)
    expected, left = read_by_plain_calls()
    assert [name for name, state in state_of(model).items() if state != left[name]] == []
    if outputs is not None:
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), outputs, expected)


def test_no_cell_is_there_twice_or_missing():
    """A transformation of one name is in a mode once: right, refused or silent."""
    cells = [(t.name, mode) for t in TRANSFORMATIONS for mode in package.MODES if t.run_in(mode)]
    cells += [(refused.name, mode) for refused in REFUSED for mode in refused.modes]
    cells += [("scan, broadcast", mode) for mode in CANNOT_KNOW["scan"].modes]
    assert len(cells) == len(set(cells))


# --- loud -------------------------------------------------------------------------------------------------------------

CLOSED_OVER = {
    f"{name}-{mode.name}": (transform, mode) for name, (transform, modes) in CAPTURED.items() for mode in modes
}


@pytest.mark.parametrize("cell", CLOSED_OVER)
def test_a_model_closed_over_raises(cell):
    """A write to a model that is not an argument raises, names the variable and the fix, and changes nothing."""
    transform, mode = CLOSED_OVER[cell]
    for item in STATE_CASES.values():
        model, untouched = Model(item.make), Model(item.make)

        def f(x):
            item.touch(model, x)  # noqa: B023
            return x.sum()

        text = (
            r"^model\.item(\.\w+)?: a (Counter|Buffer) was written from a different trace (.|\n)*fix:  pass the model"
        )
        with mode.active(), pytest.raises(tallax.TraceError, match=text):
            transform(f, batch())
        assert_same_state(model.item, untouched.item)


REFUSALS = {f"{refused.name}-{mode.name}": (refused, mode) for refused in REFUSED for mode in refused.modes}


@pytest.mark.parametrize("cell", REFUSALS)
def test_refused(cell):
    """If Flax or JAX rejects a use, it raises, and the state does not change."""
    refused, mode = REFUSALS[cell]
    for name in refused.names if refused.names != tuple(STATE_CASES) else ("all",):
        model = Everything(STATE_CASES if name == "all" else [name])
        with mode.active(), pytest.raises(refused.error) as caught:
            refused.run(call, model, BATCHES)
        assert refused.says in str(caught.value)
        assert differing(model, 0) == []


@pytest.mark.parametrize("mode", [package.NO_UPDATES, package.TREE], ids=lambda mode: mode.name)
@pytest.mark.parametrize("item", STATE_CASES.values(), ids=STATE_CASES)
def test_flax_own_gradients_outside_graph_mode(item, mode):
    """nnx.value_and_grad refuses integers; floats get zero gradients, which an optimizer of nnx.Param leaves aside."""
    model, alone = Model(item.make), Model(item.make)

    def loss(model, x):
        buffers = [node for _, node in nnx.iter_graph(model.item) if isinstance(node, tallax.Buffer)]
        read = sum(buffer[...].astype(jnp.float32).sum() for buffer in buffers)
        item.touch(model, x)
        return model(x).sum() + read

    with mode.active():
        if any(leaf.dtype.kind == "u" for leaf in leaves(model.item)):
            with pytest.raises(TypeError, match="but got uint32"):
                nnx.value_and_grad(loss)(model, batch())
            assert_same_state(model.item, alone.item)
            return
        _, grads = nnx.value_and_grad(loss)(model, batch())
        item.touch(alone, batch())
        assert_same_state(model.item, alone.item)
        assert not any(leaf.any() for leaf in leaves(grads.item))
        optimizer = nnx.Optimizer(model, optax.adamw(0.1, weight_decay=0.5), wrt=nnx.Param)
        kernel = np.asarray(model.layer.kernel[...])
        with jax.numpy_dtype_promotion("standard"):  # optax itself mixes dtypes
            optimizer.update(model, grads)
    assert not np.array_equal(kernel, model.layer.kernel[...])
    assert_same_state(model.item, alone.item)


# --- silent -----------------------------------------------------------------------------------------------------------

LOSSES = {f"{name}-{mode.name}": (silent, mode) for name, silent in CANNOT_KNOW.items() for mode in silent.modes}
CALLS_LEFT = {"lost": 0, "once a call": 1, "a copy each": 3}


@pytest.mark.parametrize("cell", LOSSES)
def test_silent(cell):
    """These uses are silent today: if one fails, Flax or JAX has changed, and the page must change too."""
    silent, mode = LOSSES[cell]
    model = Everything(silent.names)
    # Within a compiled step, as in real code; it is also quicker to compile what is lost than to run it op by op.
    compiled = nnx.jit if mode is RAW and silent.happens == "lost" else lambda f: f
    with mode.active():
        came = compiled(lambda model: silent.run(call, model, BATCHES))(model)
    if silent.happens == "frozen":
        assert differing(model, 3) == []
        first, *others = [[x.tobytes() for x in map(np.asarray, values)] for values in came]
        assert others == [first, first]
    else:
        assert differing(model, CALLS_LEFT[silent.happens]) == []


def test_under_two_names_each_call_counts_twice():
    """Under nnx.jit, a counter with two names counts six in three calls, the reference of the silent case."""
    model = Everything(["counter"])
    misuses.under_two_names(nnx.jit)(call, model, BATCHES)
    assert int(model.parts["counter"].item) == 6


# --- what statecheck says of the silent -------------------------------------------------------------------------------


class Part(nnx.Module):
    """Counts its calls."""

    def __init__(self):
        self.count = tallax.Counter()

    def __call__(self, x):
        self.count += 1
        return x


class Misused(nnx.Module):
    """Uses a part in each of the ways that are silent."""

    def __init__(self):
        self.parts = nnx.Dict({name: Part() for name in set(CANNOT_KNOW) - set(MISUSED)})

    def __call__(self, x):
        for name, part in self.parts.items():
            CANNOT_KNOW[name].run(call, part, [(x,), (x + 1,)])
        return x


class TwoNames(nnx.Module):
    """Holds one part under two names, and gives it to jax.jit."""

    def __init__(self):
        self.parts = nnx.Dict({"two-names": misuses.two_names_of(Part())})

    def __call__(self, x):
        misuses.under_two_names(jax.jit)(call, self.parts["two-names"], [(x,)])
        return x


class Forgets(nnx.Module):
    """Calls its part by a function with a derivative of its own."""

    def __init__(self):
        self.parts = nnx.Dict({"custom-vjp": Everything(["counter"])})

    def __call__(self, x):
        return misuses.forgetful(call)(self.parts["custom-vjp"], (x,))


class Frozen(nnx.Module):
    """Reads a temperature in a function that was compiled with the first one."""

    def __init__(self):
        self.temperature = tallax.Buffer(5.0)
        self.route = jax.jit(lambda x: x / self.temperature[...])

    def __call__(self, x):
        self.temperature *= 0.9
        return self.route(x)


MISUSED = {"two-names": TwoNames, "custom-vjp": Forgets, "closure": Frozen}
checked = functools.cache(lambda make: tallax.statecheck(make, batch(), calls=2))


@pytest.mark.thorough
@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("name", CANNOT_KNOW)
def test_statecheck_reports_each_loss(name):
    """If a module uses a part of its own in this way, statecheck reports the rule on the page, at the path."""
    silent = CANNOT_KNOW[name]
    report = checked(MISUSED.get(name, Misused))
    path = "temperature" if name == "closure" else f"parts/{name}"
    found = {(finding.rule, finding.is_warning) for finding in report.findings if finding.path.startswith(path)}
    assert (silent.says, silent.warns) in found, report


@pytest.mark.thorough
@pytest.mark.usefixtures("standard_promotion")
def test_statecheck_warns_of_every_type_of_state():
    """A correct model gets a warning about the uses that lose its state."""
    program = program_of(Everything, (batch(),), 2, None)
    _, finding = silent_losses(program, called(program, program.make()))
    assert (finding.rule, finding.is_warning) == ("lost-update", True)
    assert "can be lost silently" in finding.message
    assert finding.path.startswith("parts/")
    nodes = [node for _, node in nnx.iter_graph(Everything().parts)]
    variables = [node for node in nodes if isinstance(node, tallax.Counter | tallax.Buffer)]
    changed = len(variables) - 1  # the batch has no NaN, so the Ema's count of them stays
    assert finding.path.endswith(f" and {changed - 4} more")


# --- the page ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", [matrix_table, silent_table])
def test_the_page_has_these_tables(table):
    """The page shows the registries line by line."""
    page = pathlib.Path(__file__).parents[1] / "docs" / "state-under-transformations.md"
    assert "\n".join(["", *table(), ""]) in page.read_text(), "\n".join(table())
