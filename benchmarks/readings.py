# SPDX-License-Identifier: Apache-2.0
"""Group `readings`: bringing many values to the host after a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

import tallax
from benchmarks import _reference_step as ref
from benchmarks._timing import Case, Group


def group(many: int = 1000) -> Group:
    """Returns the cases. Each reads what a step has just computed: an array remembers its copy on the host."""
    variables = f"{many} Variables, jax.device_get(state)"
    return Group(
        "readings",
        "to the host after a step has ended",
        variables,
        [
            Case(name=variables, make=lambda: jax.device_get, fresh=_states(many)),
            Case(
                name=f"{many} Variables, jax.device_get(list)",
                make=lambda: lambda state: jax.device_get(jax.tree.leaves(state)),
                fresh=_states(many),
            ),
            Case(
                name=f"{many} counters, step.collect().result()",
                make=lambda: lambda step: step.collect().result(),
                fresh=_steps(many),
                limit=0.5,
            ),
            Case(
                name=f"{many} counters, step.collect()",
                make=lambda: lambda step: step.collect(),
                fresh=_steps(many),
            ),
            Case(
                name=f"{many} counters, Reading.result(), ready",
                make=lambda: lambda reading: reading.result(),
                fresh=_readings(many),
            ),
        ],
        one_call=True,
    )


def _states(number: int) -> Callable[[], nnx.State]:
    """Returns what counts once more, and returns the state of the Variables, computed."""
    graphdef, state = nnx.split(ref.Variables(number))
    increments = ref.batch(number)[-1]

    @jax.jit
    def step(state: Any, v: jax.Array) -> Any:
        module = nnx.merge(graphdef, state)
        module(v, v)
        return nnx.state(module)

    def fresh() -> nnx.State:
        nonlocal state
        state = jax.block_until_ready(step(state, increments))
        return state

    return fresh


def _steps(number: int) -> Callable[[], tallax.CompiledStep]:
    """Returns what counts once more, and returns the step, which has ended."""
    step, increments = tallax.compile_step(_count, ref.Counters(number)), ref.batch(number)[-1]

    def fresh() -> tallax.CompiledStep:
        jax.block_until_ready(step(increments))
        return step

    return fresh


def _readings(number: int) -> Callable[[], tallax.Reading]:
    steps = _steps(number)

    def fresh() -> tallax.Reading:
        reading = steps().collect()
        while not reading.done():
            pass
        return reading

    return fresh


def _count(counters: ref.Counters, v: jax.Array) -> jax.Array:
    counters(v, v)
    return v
