# SPDX-License-Identifier: Apache-2.0
"""The claims of the exercise on a masked rate."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tallax.learning._claims import Claims, Wrong, after_weight_decay, close, expect, number

CLAIMS = Claims()
NAMES = ("FiringRate",)


def _batch(*rows: tuple[float, float], real: int | None = None) -> tuple[jax.Array, jax.Array]:
    """Returns scores and a mask, which is True for the first `real` rows; for all if it is omitted."""
    real = len(rows) if real is None else real
    return jnp.array(rows), jnp.arange(len(rows)) < real


def _rate(solution: ModuleType, *batches: tuple[jax.Array, jax.Array]) -> Any:
    measured = solution.FiringRate(2)
    for scores, mask in batches:
        measured.update(scores, mask)
    return measured.rate()


@CLAIMS("the rate of a batch without padding is right")
def _one_batch(solution: ModuleType) -> None:
    got = _rate(solution, _batch((1, -1), (2, 3), (-1, -2), (0, -1)))
    expect(got, [0.5, 0.25], "zero_fires" if close(got, [0.75, 0.25]) else "output")


@CLAIMS("every example has the same weight, whatever the size of its batch")
def _different_sizes(solution: ModuleType) -> None:
    got = _rate(solution, _batch((1, -1), (1, -1), (1, -1)), _batch((-1, 1)))
    if close(got, [0.0, 1.0]):
        raise Wrong("last_batch", got, [0.75, 0.25])
    expect(got, [0.75, 0.25], "mean_of_means")


@CLAIMS("padding does not count")
def _padding(solution: ModuleType) -> None:
    # Padding with negative scores shows how many examples are seen, padding with positive ones whether it fires.
    expect(_rate(solution, _batch((1, -1), (1, 1), (-1, -1), (-1, -1), real=2)), [1.0, 0.5], "padding_is_seen")
    expect(_rate(solution, _batch((-1, -1), (1, -1), (1, 1), (1, 1), real=2)), [0.5, 0.0], "padding_fires")
    nan = float("nan")
    expect(_rate(solution, _batch((1, -1), (nan, nan), real=1)), [1.0, 0.0], "nan_scores")


@CLAIMS("without an example the rate is 0, and an empty batch changes nothing")
def _empty(solution: ModuleType) -> None:
    expect(_rate(solution), [0.0, 0.0], "before_the_first")
    got = _rate(solution, _batch((1, -1), (1, 1)), _batch((1, 1), (1, 1), real=0))
    expect(got, [1.0, 0.5], "empty_batch")


@CLAIMS("compiled updates count")
def _compiled(solution: ModuleType) -> None:
    measured = solution.FiringRate(2)

    def step(measured: Any, scores: jax.Array, mask: jax.Array) -> Any:
        measured.update(scores, mask)
        return jnp.zeros(())

    compiled = nnx.jit(step)
    try:
        compiled(measured, *_batch((1, -1), (1, -1)))
        compiled(measured, *_batch((-1, 1), (-1, -1)))
    except Exception as error:  # tracers cannot be converted to numbers, or leak into attributes
        raise Wrong("lost_when_compiled", f"a compiled update raises {type(error).__name__}", [0.5, 0.25]) from error
    expect(measured.rate(), [0.5, 0.25], "lost_when_compiled")


@CLAIMS("an optimizer does not change the counts")
def _is_not_trained(solution: ModuleType) -> None:
    measured = solution.FiringRate(2)
    measured.update(*_batch((1, -1), (1, 1)))
    before, after = after_weight_decay(measured)
    for path, leaf in before.items():
        if leaf.variable is not None and issubclass(leaf.variable, nnx.Param):
            raise Wrong("param", f"{path} is {after[path].describe()}", f"{path} is {leaf.describe()}")


@CLAIMS("3000 examples are counted exactly")
def _far(solution: ModuleType) -> None:
    measured = solution.FiringRate(2)
    scores, mask = jnp.array([[1.0, -1.0]] * 100), jnp.ones(100, bool)
    step = nnx.jit(lambda measured, scores: measured.update(scores, mask))
    for k in range(30):
        step(measured, scores if k % 3 else -scores)
    due = np.array([2 / 3, 1 / 3], np.float32)
    if not np.allclose(number(measured.rate()), due, rtol=1e-3):
        raise Wrong("narrow", measured.rate(), due)
