# SPDX-License-Identifier: Apache-2.0
"""The claims of the exercise on two devices of which one counts."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tallax.learning._claims import Claims, Wrong, expect, expect_count, number

CLAIMS = Claims()
NAMES = ("Counts", "train_step")


def _mesh(devices: int) -> jax.sharding.Mesh:
    return jax.sharding.Mesh(jax.devices()[:devices], ("data",))


def _batch(*first: float) -> jax.Array:
    return jnp.stack([jnp.array(first), jnp.ones(len(first))], axis=1)


# All that is positive is on the second device.
_X = (-1.0, -2.0, -3.0, -1.0, 1.0, 2.0, 3.0, -1.0)


@CLAIMS("the loss is the mean over all examples")
def _loss(solution: ModuleType) -> None:
    x = _batch(*_X)
    expect(solution.train_step(solution.Counts(), x, _mesh(2)), np.mean((np.asarray(x) - 0.5) ** 2), "loss")


def _counts_of(counts: Any) -> tuple[int, int]:
    return int(number(counts.seen)), int(number(counts.positive))


@CLAIMS("on two devices, each example counts once")
def _two_devices(solution: ModuleType) -> None:
    counts = solution.Counts()
    solution.train_step(counts, _batch(*_X), _mesh(2))
    seen, positive = _counts_of(counts)
    if seen != 8:
        mistake = "one_device" if seen else "lost"
        if seen > 8:
            mistake = "not_split"
        elif seen and positive not in (0, 3):  # 3 / 2, rounded
            mistake = "mean_of_counts"
        raise Wrong(mistake, f"seen is {seen} after 8 examples", "8")
    if positive != 3:
        mistake = "scaled" if positive == 6 or _scales(solution) else "positive_of_one"
        raise Wrong(mistake, f"positive is {positive} after 3 positive examples, all on the second device", "3")
    mirrored = solution.Counts()
    solution.train_step(mirrored, _batch(*reversed(_X)), _mesh(2))
    if _counts_of(mirrored) != (8, 3):
        got = f"positive is {_counts_of(mirrored)[1]} after 3 positive examples, all on the first device"
        raise Wrong("positive_of_one", got, "3")


def _scales(solution: ModuleType) -> bool:
    """Returns whether positive examples on the first device count twice."""
    counts = solution.Counts()
    solution.train_step(counts, _batch(*reversed(_X)), _mesh(2))
    return _counts_of(counts)[1] == 6


@CLAIMS("the total is right after several steps")
def _several_steps(solution: ModuleType) -> None:
    counts = solution.Counts()
    for _ in range(3):
        solution.train_step(counts, _batch(*_X), _mesh(2))
    expect_count(counts, "seen", 24, "after 3 steps", "sum_of_totals")
    expect_count(counts, "positive", 9, "after 3 steps", "sum_of_totals")


@CLAIMS("on one device, each example counts once")
def _one_device(solution: ModuleType) -> None:
    counts = solution.Counts()
    solution.train_step(counts, _batch(*_X), _mesh(1))
    expect_count(counts, "seen", 8, "on one device", "hard_coded")
    expect_count(counts, "positive", 3, "on one device", "hard_coded")
