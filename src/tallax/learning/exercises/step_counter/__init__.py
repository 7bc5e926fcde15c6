# SPDX-License-Identifier: Apache-2.0
"""The claims of the exercise on a step counter."""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tallax.checking import _exercise
from tallax.learning._claims import Claims, Wrong, expect, number, require_untrained
from tallax.variables import Counter

CLAIMS = Claims()
NAMES = ("StepCounter", "counter_after_n_calls")


def _raise_first(mistakes: Iterable[_exercise.Mistake]) -> None:
    for mistake in mistakes:
        raise Wrong(mistake.name, mistake.got, mistake.expected, mistake.source)


@CLAIMS("a new counter starts at 0, and each call returns the new count")
def _counts(solution: ModuleType) -> None:
    _raise_first(mistake for mistake in _exercise.of_class(solution.StepCounter) if mistake.name != "no_key")
    other = float(number(solution.StepCounter(nnx.Rngs(1)).step))
    if other:
        raise Wrong("shared", f"a second counter starts at {other:g}", "a second counter starts at 0")


@CLAIMS("a new counter takes one key")
def _takes_a_key(solution: ModuleType) -> None:
    _raise_first(_exercise.of_class(solution.StepCounter))


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


@CLAIMS("counter_after_n_calls returns the count and n_calls")
def _function(solution: ModuleType) -> None:
    for case in _exercise.CASES:
        _raise_first(_exercise.of_function(solution.counter_after_n_calls, *case))


@CLAIMS("counter_after_n_calls reads the counter once, after the loop")
def _function_reads_the_counter(solution: ModuleType) -> None:
    _raise_first(_exercise.of_later_start(solution.counter_after_n_calls, solution.StepCounter))
    for _, line in _exercise.host_reads(solution.counter_after_n_calls, in_loop=True):
        raise Wrong("read_in_the_loop", line, "one read after the loop")
