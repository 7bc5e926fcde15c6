# SPDX-License-Identifier: Apache-2.0
"""The seed: StepCounter, counter_after_n_calls, and the module that guards its Variables."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tallax


def test_it_starts_at_zero_and_counts_calls():
    """A new counter is at 0; each call adds 1 and returns the new value."""
    counter = tallax.StepCounter(nnx.Rngs(0))
    assert isinstance(counter.step, nnx.Variable)
    assert counter.step.value == 0
    assert [int(counter()) for _ in range(3)] == [1, 2, 3]
    assert counter.step.value == 3
    assert counter().dtype == np.int32


def test_a_stream_that_is_not_there_is_missed_in_flax_words():
    """The error for a missing stream is Flax's own."""
    with pytest.raises(AttributeError, match="params"):
        tallax.StepCounter(nnx.Rngs(dropout=0))


def test_it_takes_one_key():
    """The next key of the stream is the one after exactly one `rngs.params()`."""
    rngs, reference = nnx.Rngs(7), nnx.Rngs(7)
    tallax.StepCounter(rngs)
    reference.params()
    assert int(rngs.params.count[...]) == 1
    assert jnp.array_equal(jax.random.key_data(rngs.params()), jax.random.key_data(reference.params()))


@pytest.mark.parametrize("n", [0, 1, 5, 5.0, 1000, np.int64(3), np.float32(3.0), jnp.int32(3)])
@pytest.mark.parametrize("seed", [0, 1.0, -3, 2**31, 2**40, 2**63, 2**64 - 1, 10**30])
def test_counter_after_n_calls(seed, n):
    """The result is [n, n] as float32, for integers and integral floats, and any seed."""
    result = tallax.counter_after_n_calls(seed, n)
    assert isinstance(result, jax.Array)
    assert (result.shape, result.dtype, result.weak_type) == ((2,), jnp.float32, False)
    assert result.tolist() == [float(n), float(n)]


@pytest.mark.parametrize(
    "n", [-1, -1.0, 1.5, float("nan"), float("inf"), -float("inf"), "five", None, [1], jnp.ones(2)]
)
def test_impossible_numbers_of_calls_raise(n):
    """Negative, fractional, infinite and missing numbers are refused by name."""
    with pytest.raises(ValueError, match=r"n_calls: (.|\n)*got:(.|\n)*fix:"):
        tallax.counter_after_n_calls(0, n)


@pytest.mark.parametrize("seed", [0.5, float("nan"), "zero"])
def test_impossible_seeds_raise(seed):
    """A seed is a whole number."""
    with pytest.raises(ValueError, match="seed: must be an integer"):
        tallax.counter_after_n_calls(seed, 1)


def test_a_compiled_call_returns_the_new_value():
    """Under jit a call returns a traced int32, and eager calls before and after continue the count."""
    counter = tallax.StepCounter(nnx.Rngs(0))
    counter()
    value = nnx.jit(lambda c: c())(counter)
    assert (int(value), value.dtype) == (2, jnp.int32)
    assert counter() == 3
    assert int(counter) == 3


def test_the_returned_value_saturates():
    """Past 2**31 - 1 the int32 value stays, and the count goes on."""
    counter = tallax.StepCounter(nnx.Rngs(0))
    counter.step.set(2**31 - 2)
    assert [int(counter()) for _ in range(3)] == [2**31 - 1] * 3
    assert int(counter.step) == 2**31 + 1


class Plain(nnx.Module):
    def __init__(self):
        self.step = tallax.Counter()
        self.bias = tallax.Buffer(np.zeros(2))


class Guarded(tallax.Module):
    def __init__(self):
        self.step = tallax.Counter()
        self.bias = tallax.Buffer(np.zeros(2))
        self.weight = nnx.Param(jnp.zeros(2))
        self.name = "a"


@pytest.mark.parametrize("cls", [Plain, Guarded])
def test_the_pitfall_is_the_api(cls):
    """`self.step += 1` counts on any module, and the attribute stays the same Variable."""
    model = cls()
    kept = model.step, model.bias
    model.step += 1
    model.bias += 1.0

    @nnx.jit
    def step(m):
        m.step += 1
        m.bias += 1.0

    step(model)
    assert model.step is kept[0]
    assert model.bias is kept[1]
    assert (int(model.step), model.bias[...].tolist()) == (2, [2, 2])


@pytest.mark.parametrize("value", [3, np.int32(3), jnp.int32(3), None, "x", jnp.zeros(2)])
@pytest.mark.parametrize("name", ["step", "bias", "weight"])
def test_a_variable_is_not_replaced(name, value):
    """Assigning another value over a Variable raises with a fix, and keeps the Variable."""
    model = Guarded()
    kept = getattr(model, name)
    with pytest.raises(tallax.ReplacedVariableError, match=rf"model\.{name}: (.|\n)*fix:  self\.{name}"):
        setattr(model, name, value)
    assert getattr(model, name) is kept


def test_replacement_in_a_compiled_step_raises():
    """`self.step = self.step + 1` raises while tracing too."""
    model = Guarded()

    @nnx.jit
    def step(m):
        m.step = m.step + 1

    with pytest.raises(tallax.ReplacedVariableError, match=r"m\.step"):
        step(model)
    assert int(model.step) == 0


def test_intended_uses_stay_possible():
    """Other attributes, other Variables, deletion and explicit data may be assigned."""
    model = Guarded()
    model.name = "b"
    model.extra = jnp.zeros(1)
    model.extra = jnp.ones(1)
    model.step = tallax.Counter(5)
    assert int(model.step) == 5
    del model.step
    model.step = 3
    assert model.step == 3
    model.weight = nnx.data(jnp.ones(2))


@pytest.mark.slow
def test_importing_makes_no_array_and_starts_no_backend():
    """`import tallax` and building a model leave JAX's backends alone, as distributed initialisation needs."""
    code = """
import jax, tallax
from flax import nnx
tallax.Counter(), tallax.Buffer(0.0), tallax.statistics.Histogram(0, 1), tallax.statistics.Rate(3)
jax.config.update("jax_platforms", "nowhere")  # raises at the first use of a backend
try:
    jax.numpy.zeros(())
except RuntimeError:
    print("none yet")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "none yet\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["count", "--seed", "0", "--calls", "5"], 0, "[5. 5.]"),
        (["count", "--seed", "1e3", "--calls", "2.0"], 0, "[2. 2.]"),
        (["count", "--calls", "-1"], 2, "the number of calls must not be negative"),
        (["count", "--calls", "many"], 2, "must be an integer"),
        (["count", "--calls", "nan"], 2, "must be an integer"),
        (["--help"], 0, "--install-completion"),
        (["--version"], 0, f"tallax {tallax.__version__}\n"),
    ],
)
def test_the_command_line_counts(arguments, code, text):
    """`tallax count` prints the pair, and an error without a traceback."""
    pytest.importorskip("typer")
    program = [sys.executable, "-c", "from tallax.cli import main; main()", *arguments]
    done = subprocess.run(program, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stderr
    assert text in (done.stdout if code == 0 else done.stderr)
    assert "Traceback" not in done.stderr


def test_printing_shows_the_count():
    """The repr is one line with the count, or only the kind if the count cannot be read."""
    counter = tallax.StepCounter(nnx.Rngs(0))
    counter()
    counter.step += 2**40
    assert repr(counter) == str(counter) == "StepCounter(): 1099511627777"
    assert repr(nnx.eval_shape(lambda: tallax.StepCounter(nnx.Rngs(0)))) == "StepCounter()"
    said = []
    nnx.jit(lambda counter: said.append(repr(counter)))(counter)
    assert said == ["StepCounter()"]
    assert "step=Counter(" in repr(nnx.Dict(calls=counter))
