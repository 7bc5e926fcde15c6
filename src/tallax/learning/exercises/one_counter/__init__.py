# SPDX-License-Identifier: Apache-2.0
"""The claims of the exercise on one counter that drives three values."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tallax.checking._source_lines import line_of_error
from tallax.learning._claims import Claims, Wrong, close, expect_count, number, require_untrained
from tallax.variables import Counter

CLAIMS = Claims()
NAMES = ("Controls",)
_ENDS = {"temperature": (5.0, 1.0), "learning_rate": (0.1, 0.0), "clip": (10.0, 1.0)}


def _due(name: str, step: int) -> float:
    first, last = _ENDS[name]
    return first + (last - first) * min(step, 100) / 100


def _values(controls: Any) -> dict[str, np.ndarray]:
    return {name: number(getattr(controls, name)()) for name in _ENDS}


def _wrong(mistake: str, name: str, step: int, got: Any) -> Wrong:
    return Wrong(mistake, f"{name} at step {step} is {float(got):.4g}", f"{_due(name, step):.4g}")


@CLAIMS("the three values are on their lines")
def _follows_the_line(solution: ModuleType) -> None:
    controls = solution.Controls()
    before = number(controls.step).item()
    _values(controls)
    expect_count(controls, "step", before, "after the values were read", "advances_when_read")
    path = {}
    for step in range(101):
        if step in (0, 25, 50, 99, 100):
            path[step] = _values(controls)
        controls.advance()
    for name in _ENDS:
        got = {step: float(values[name]) for step, values in path.items()}
        due = {step: _due(name, step) for step in path}
        wrong = [step for step in path if not np.isclose(got[step], due[step], rtol=1e-4, atol=1e-6)]
        if not wrong:
            continue
        mistake = "wrong_line"
        if all(np.isclose(got[step], _due(name, step + 1), rtol=1e-4) for step in (0, 25, 50)) or all(
            np.isclose(got[step], _due(name, step - 1), rtol=1e-4) for step in (25, 50, 99)
        ):
            mistake = "off_by_one"
        elif got[0] == got[50] == got[99] != got[100]:
            mistake = "integer_division"
        elif wrong == [100] and np.isclose(got[100], got[0], rtol=1e-4):
            mistake = "starts_again"
        raise _wrong(mistake, name, wrong[0], got[wrong[0]])


@CLAIMS("after 100 steps the values stay")
def _stays(solution: ModuleType) -> None:
    controls = solution.Controls()
    for _ in range(150):
        controls.advance()
    for name, got in _values(controls).items():
        if not np.isclose(got, _due(name, 150), rtol=1e-4, atol=1e-6):
            is_again = np.isclose(got, _due(name, 150 % 101), rtol=1e-4)
            raise _wrong("starts_again" if is_again else "extrapolates", name, 150, got)


@CLAIMS("an optimizer does not change the counter")
def _is_not_trained(solution: ModuleType) -> None:
    controls = solution.Controls()
    controls.advance()
    require_untrained(controls, "step", "param")


@CLAIMS("in a compiled step, the values follow the counter")
def _follows_when_compiled(solution: ModuleType) -> None:
    controls = solution.Controls()
    traces = 0

    def step(controls: Any) -> dict[str, Any]:
        nonlocal traces
        traces += 1
        values = {name: jnp.asarray(getattr(controls, name)()) for name in _ENDS}
        controls.advance()
        return values

    compiled = nnx.jit(step)
    try:
        results = [compiled(controls) for _ in range(10)]
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
        got = f"a compiled step raises {type(error).__name__}"
        raise Wrong("host_read", got, "values that stay on the device", line_of_error(error)) from error
    expect_count(controls, "step", 10, "after 10 compiled steps", "not_advancing")
    for name in _ENDS:
        if not close(results[9][name], np.float32(_due(name, 9))):
            raise _wrong("python_counter", name, 9, results[9][name])
    if traces > 2:
        raise Wrong("python_counter", f"10 steps are compiled {traces} times", "1 time")


@CLAIMS("if step is restored to 50, all values follow")
def _follows_a_restored_count(solution: ModuleType) -> None:
    controls = solution.Controls()
    if isinstance(controls.step, Counter):
        controls.step.set(50)
    else:
        controls.step.set_value(jnp.asarray(50, controls.step.get_value().dtype))
    for name, got in _values(controls).items():
        if not np.isclose(got, _due(name, 50), rtol=1e-4):
            raise _wrong(_mistake_of(controls, name), name, 50, got)


def _mistake_of(controls: Any, name: str) -> str:
    """Returns whether a value that does not follow `step` is itself state, or follows another count."""
    state = [np.asarray(leaf.get_value()) for _, leaf in nnx.iter_graph(controls) if isinstance(leaf, nnx.Variable)]
    value = number(getattr(controls, name)())
    return "accumulates" if any(leaf.shape == value.shape and close(leaf, value) for leaf in state) else "own_count"
