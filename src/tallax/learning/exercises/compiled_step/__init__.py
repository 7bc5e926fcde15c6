# SPDX-License-Identifier: Apache-2.0
"""The claims of the exercise on the update that `jax.jit` lost."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tallax._arrays import is_traced
from tallax.learning._claims import Claims, Wrong, close, expect, expect_count, number

CLAIMS = Claims()
NAMES = ("Model", "run")


def _batches(count: int, start: int = 0) -> list[jax.Array]:
    return [jnp.full((4, 2), float(k)) + jnp.array([0.0, 1.0]) for k in range(start, start + count)]


def _mean(batches: list[jax.Array]) -> np.ndarray:
    mean = np.zeros(2)
    for x in batches:
        mean = 0.9 * mean + 0.1 * np.asarray(x).mean(0)
    return mean.astype(np.float32)


@CLAIMS("the losses are those of plain calls of the model that is passed")
def _losses(solution: ModuleType) -> None:
    model = solution.Model(nnx.Rngs(0))
    layer, batches = nnx.clone(model.layer), _batches(3)
    due = [np.mean((np.asarray(layer(x)) - 0.5) ** 2) for x in batches]
    expect(solution.run(model, batches), np.array(due, np.float32), "losses")
    before, mean = int(number(model.calls)), np.array(number(model.mean))
    solution.run(solution.Model(nnx.Rngs(1)), batches)
    if int(number(model.calls)) != before or not close(number(model.mean), mean):
        got = f"calls of the first model is {int(number(model.calls))} after a run of a second one"
        raise Wrong("closure", got, str(before))


@CLAIMS("after run, the state is that of plain calls")
def _state(solution: ModuleType) -> None:
    model, batches = solution.Model(nnx.Rngs(0)), _batches(5)
    solution.run(model, batches)
    expect_count(model, "calls", 5, "after 5 batches", lambda calls: "runs_twice" if calls > 5 else "lost")
    expect(model.mean, _mean(batches), "mean_lost")


@CLAIMS("a second run continues from the first")
def _second_run(solution: ModuleType) -> None:
    model = solution.Model(nnx.Rngs(0))
    solution.run(model, _batches(3))
    solution.run(model, _batches(2))
    expect_count(model, "calls", 5, "after 3 and 2 batches", "frozen")


@CLAIMS("the model alone decides how much it counts")
def _model_decides(solution: ModuleType) -> None:
    class CountsTwice(solution.Model):  # pyright: ignore[reportUntypedBaseClass]
        def __call__(self, x: Any) -> Any:
            self.calls[...] += 1
            return super().__call__(x)

    model = CountsTwice(nnx.Rngs(0))
    solution.run(model, _batches(3))
    expect_count(model, "calls", 6, "if a model counts each call twice, after 3 batches", "by_hand")


@CLAIMS("the function is compiled, once")
def _compiled_once(solution: ModuleType) -> None:
    executions: list[bool] = []

    class Watched(solution.Model):  # pyright: ignore[reportUntypedBaseClass]
        def __call__(self, x: Any) -> Any:
            executions.append(is_traced(x))
            return super().__call__(x)

    model, batches = Watched(nnx.Rngs(0)), _batches(8)
    solution.run(model, batches)
    if not any(executions):
        raise Wrong("uncompiled", f"Python runs the model {len(executions)} times for 8 batches", "1 time")
    # Flax and tallax may trace a function twice; what matters is that it is not traced for each batch.
    if len(executions) > 4:
        raise Wrong("recompiled", f"traced {len(executions)} times for 8 batches", "1 time")
    if not close(model.mean[...], _mean(batches)):
        raise Wrong("mean_lost", model.mean, _mean(batches))
