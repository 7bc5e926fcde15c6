# SPDX-License-Identifier: Apache-2.0
"""The claims of the exercise on counting in evaluation."""

from __future__ import annotations

import contextlib
from types import ModuleType

import jax.numpy as jnp
import numpy as np
from flax import nnx

from tallax.learning._claims import Claims, Wrong, close, expect, expect_count, number

CLAIMS = Claims()
NAMES = ("Model", "train_step", "evaluate")
_X = ((0.0, 2.0), (1.0, -1.0), (3.0, 0.5))


@CLAIMS("the losses are right")
def _loss(solution: ModuleType) -> None:
    model, x = solution.Model(nnx.Rngs(0)), jnp.array(_X)
    due = np.mean((np.asarray(nnx.clone(model.layer)(x)) - 0.5) ** 2)
    expect(solution.evaluate(model, x), due, "loss")
    expect(solution.train_step(model, x), due, "loss")


@CLAIMS("training counts")
def _training_counts(solution: ModuleType) -> None:
    model, x = solution.Model(nnx.Rngs(0)), jnp.array(_X)
    for _ in range(2):
        solution.train_step(model, x)
    when = "after 2 steps of 3 examples"
    expect_count(model, "seen", 6, when, lambda seen: "counts_batches" if seen == 2 else "never_counts")
    expect(model.mean, (0.19 * np.mean(_X, 0)).astype(np.float32), "mean_frozen")


@CLAIMS("evaluation changes no state")
def _evaluation_does_not(solution: ModuleType) -> None:
    model, x = solution.Model(nnx.Rngs(0)), jnp.array(_X)
    solution.train_step(model, x)
    mean = np.array(number(model.mean))
    for _ in range(2):
        solution.evaluate(model, 2 * x + 1)
    expect_count(model, "seen", 3, "after 3 examples of training", "counted")
    if not close(number(model.mean), mean):
        raise Wrong("mean_moves", model.mean, mean)


@CLAIMS("after an evaluation, training counts")
def _training_continues(solution: ModuleType) -> None:
    model, x = solution.Model(nnx.Rngs(0)), jnp.array(_X)
    solution.train_step(model, x)
    solution.evaluate(model, x)
    solution.train_step(model, x)
    expect_count(model, "seen", 6, "after a step, an evaluation and a step of 3 examples", "stays_in_eval")


@CLAIMS("after an evaluation that raises, training counts")
def _training_continues_after_an_error(solution: ModuleType) -> None:
    model, x = solution.Model(nnx.Rngs(0)), jnp.array(_X)
    with contextlib.suppress(Exception):
        solution.evaluate(model, jnp.ones((3, 7)))  # a batch of another shape
    solution.train_step(model, x)
    expect_count(model, "seen", 3, "after a failed evaluation and a step of 3 examples", "stays_after_an_error")
