# SPDX-License-Identifier: Apache-2.0
"""The claims of the exercise on counting in evaluation."""

from __future__ import annotations

import contextlib
from types import ModuleType

import jax.numpy as jnp
import numpy as np
from flax import nnx

from tallax.learning._claims import Claim, Wrong, close, expect, number

NAMES = ("Model", "train_step", "evaluate")
_X = ((0.0, 2.0), (1.0, -1.0), (3.0, 0.5))


def _loss(solution: ModuleType) -> None:
    model, x = solution.Model(nnx.Rngs(0)), jnp.array(_X)
    due = np.mean((np.asarray(nnx.clone(model.layer)(x)) - 0.5) ** 2)
    expect(solution.evaluate(model, x), due, "loss")
    expect(solution.train_step(model, x), due, "loss")


def _training_counts(solution: ModuleType) -> None:
    model, x = solution.Model(nnx.Rngs(0)), jnp.array(_X)
    for _ in range(2):
        solution.train_step(model, x)
    seen = int(number(model.seen))
    if seen != 6:
        mistake = "counts_batches" if seen == 2 else "never_counts"
        raise Wrong(mistake, f"seen is {seen} after 2 steps of 3 examples", "6")
    expect(model.mean, (0.19 * np.mean(_X, 0)).astype(np.float32), "mean_frozen")


def _evaluation_does_not(solution: ModuleType) -> None:
    model, x = solution.Model(nnx.Rngs(0)), jnp.array(_X)
    solution.train_step(model, x)
    mean = np.array(number(model.mean))
    for _ in range(2):
        solution.evaluate(model, 2 * x + 1)
    if int(number(model.seen)) != 3:
        raise Wrong("counted", f"seen is {int(number(model.seen))} after 3 examples of training", "3")
    if not close(number(model.mean), mean):
        raise Wrong("mean_moves", model.mean, mean)


def _training_continues(solution: ModuleType) -> None:
    model, x = solution.Model(nnx.Rngs(0)), jnp.array(_X)
    solution.train_step(model, x)
    solution.evaluate(model, x)
    solution.train_step(model, x)
    if int(number(model.seen)) != 6:
        got = f"seen is {int(number(model.seen))} after a step, an evaluation and a step of 3 examples"
        raise Wrong("stays_in_eval", got, "6")


def _training_continues_after_an_error(solution: ModuleType) -> None:
    model, x = solution.Model(nnx.Rngs(0)), jnp.array(_X)
    with contextlib.suppress(Exception):
        solution.evaluate(model, jnp.ones((3, 7)))  # a batch of another shape
    solution.train_step(model, x)
    if int(number(model.seen)) != 3:
        got = f"seen is {int(number(model.seen))} after a failed evaluation and a step of 3 examples"
        raise Wrong("stays_after_an_error", got, "3")


CLAIMS: tuple[Claim, ...] = (
    ("the losses are right", _loss),
    ("training counts", _training_counts),
    ("evaluation changes no state", _evaluation_does_not),
    ("after an evaluation, training counts", _training_continues),
    ("after an evaluation that raises, training counts", _training_continues_after_an_error),
)
