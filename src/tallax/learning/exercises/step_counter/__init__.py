# SPDX-License-Identifier: Apache-2.0
"""The claims of the exercise on a step counter."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tallax.checking import _exercise
from tallax.checking._source_lines import line_of_error
from tallax.learning._claims import Claims, Wrong, expect, number, require_untrained
from tallax.variables import Counter

CLAIMS = Claims()
NAMES = ("StepCounter", "counter_after_n_calls")


def explain(error: Exception) -> str:
    """Returns the mistake behind an error, or an empty string."""
    line = line_of_error(error)
    is_in_place = "+=" in line and "[" not in line and ".value" not in line
    return "in_place" if is_in_place and isinstance(error, NotImplementedError | TypeError) else ""


@CLAIMS("a new counter starts at 0, and each call returns the new count")
def _counts(solution: ModuleType) -> None:
    counter = solution.StepCounter(nnx.Rngs(0))
    start = number(counter.step)
    results = [counter(), counter()]
    if any(result is None for result in results):
        raise Wrong("no_result", "None", "the new count")
    counts = [float(start), *(float(number(result)) for result in results)]
    if counts != [0, 1, 2]:
        raise Wrong("miscounts", counts, [0, 1, 2])
    other = float(number(solution.StepCounter(nnx.Rngs(1)).step))
    if other:
        raise Wrong("shared", f"a second counter starts at {other:g}", "a second counter starts at 0")


@CLAIMS("a new counter takes one key")
def _takes_a_key(solution: ModuleType) -> None:
    rngs = nnx.Rngs(0)
    solution.StepCounter(rngs)
    taken = int(rngs.params.count[...])
    if taken != 1:
        raise Wrong("no_key", f"{taken} keys", "1 key")


@CLAIMS("the count is state: it is in a Variable after a call")
def _stays_a_variable(solution: ModuleType) -> None:
    counter = solution.StepCounter(nnx.Rngs(0))
    counter()
    if isinstance(counter.step, nnx.Variable):
        return
    is_array = isinstance(counter.step, jax.Array | np.ndarray)
    raise Wrong("replaced" if is_array else "python_number", counter.step, "a Variable that holds 1")


@CLAIMS("an optimizer does not change the count")
def _is_not_trained(solution: ModuleType) -> None:
    counter = solution.StepCounter(nnx.Rngs(0))
    for _ in range(5):
        counter()
    require_untrained(counter, "step", "param")


@CLAIMS("compiled calls count")
def _counts_when_compiled(solution: ModuleType) -> None:
    counter = solution.StepCounter(nnx.Rngs(0))
    step = nnx.jit(lambda counter: counter())
    for _ in range(3):
        step(counter)
    expect(counter.step, 3, "lost_when_compiled")


@CLAIMS("the count is exact for 2**24 calls")
def _counts_far(solution: ModuleType) -> None:
    counter: Any = solution.StepCounter(nnx.Rngs(0))
    if isinstance(counter.step, Counter):
        return
    dtype = jnp.result_type(counter.step.get_value())
    far = 2**24 - 2
    if jnp.issubdtype(dtype, jnp.integer) and jnp.iinfo(dtype).max < far:
        raise Wrong("narrow", f"{dtype} ends at {jnp.iinfo(dtype).max}", "exact for 2**24 calls")
    counter.step.set_value(jnp.asarray(far, dtype))
    counter()
    count = float(number(counter.step))
    if count != far + 1:
        mistake = "capped" if count < far else "narrow"
        raise Wrong(mistake, f"{dtype} after {far} + 1 calls is {count:g}", far + 1)


# No call, one, several, floats that hold whole numbers, and a seed of 32 bits.
_CASES = ((0, 0), (0, 1), (42, 5), (7, 12), (2**32 - 1, 3))


@CLAIMS("counter_after_n_calls returns the count and n_calls")
def _function(solution: ModuleType) -> None:
    for seed, n_calls in _CASES:
        result = solution.counter_after_n_calls(seed, n_calls)
        if not isinstance(result, jax.Array) or result.shape != (2,):
            raise Wrong("not_an_array", result, "a JAX array of two numbers")
        expect(result, [n_calls, n_calls], "function_miscounts")
    try:
        result = solution.counter_after_n_calls(3.0, 4.0)
    except Exception as error:
        got = f"counter_after_n_calls(3.0, 4.0) raises {type(error).__name__}"
        raise Wrong("whole_floats", got, [4.0, 4.0]) from error
    expect(result, [4, 4], "function_miscounts")


@CLAIMS("counter_after_n_calls reads the counter once, after the loop")
def _function_reads_the_counter(solution: ModuleType) -> None:
    original = solution.StepCounter

    class Later(original):  # pyright: ignore[reportUntypedBaseClass]
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            step: Any = self.step
            if isinstance(step, Counter):
                step.set(3)
            else:
                step.set_value(step.get_value() + 3)

    vars(solution)["StepCounter"] = Later  # the function looks the class up by its name
    try:
        expect(solution.counter_after_n_calls(11, 4), [7, 4], "uncounted")
    finally:
        vars(solution)["StepCounter"] = original
    reads = _exercise._host_reads(solution.counter_after_n_calls, in_loop=True)
    if reads:
        raise Wrong("read_in_the_loop", reads[0].source, "one read after the loop")
