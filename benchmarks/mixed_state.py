# SPDX-License-Identifier: Apache-2.0
"""Group `mixed-state`: keeping many counters and statistics, beside computing the same and keeping nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import tallax
from benchmarks import _reference_step as ref
from benchmarks._timing import Case, Group

LOW, HIGH, BINS = -3.0, 3.0, 8


def group(few: int = 100, many: int = 1000) -> Group:
    """Returns the cases. A thousand of them take a minute to compile, with and without keeping them."""
    return Group(
        "mixed-state",
        "counters, rates and histograms in as many modules of a 64-256-10 MLP with Adam, batch 128",
        f"{few} increments, not kept",
        [*_cases(few, 1.10), *_cases(many, 1.15)],
    )


def _cases(number: int, limit: float) -> list[Case]:
    floor = f"{number} increments, not kept"
    return [
        Case(name=floor, make=lambda: not_kept(number), reference=floor),
        Case(
            name=f"{number} counters and statistics, compile_step",
            make=lambda: kept(number),
            reference=floor,
            limit=limit,
        ),
    ]


def kept(number: int) -> Callable[[], Any]:
    """Returns a call of the step with the counters and statistics."""
    return ref.by_compile_step(ref.objects(lambda: _State(number)), ref.batch())


def not_kept(number: int) -> Callable[[], Any]:
    """Returns a call of the step that computes what they would add, and returns it in one array."""

    def step(model: ref.Network, optimizer: nnx.Optimizer, x: jax.Array, y: jax.Array, v: jax.Array) -> Any:
        def loss_fn(model: ref.Network) -> Any:
            hidden = nnx.relu(model.hidden(x))
            increments = jnp.concatenate([_increment(k, jax.lax.stop_gradient(hidden)) for k in range(number)])
            return optax.softmax_cross_entropy_with_integer_labels(model.logits(hidden), y).mean(), increments

        result, grads = tallax.value_and_grad(loss_fn, has_aux=True)(model)
        ref.update(optimizer, model, grads)
        return result

    return ref.by_hand(ref.objects(), ref.batch(), step)


def _column(hidden: jax.Array, k: int) -> tuple[jax.Array, float]:
    """The column that a numbered statistic sees, and a threshold: different for each, so that XLA can share nothing."""
    return hidden[:, k % ref.WIDTH], k / 1e4


class _State(nnx.Module):
    def __init__(self, number: int):
        self.modules = nnx.List([_MODULES[k % 3](k) for k in range(number)])

    def __call__(self, hidden: jax.Array, v: jax.Array) -> None:
        for module in self.modules:
            module(hidden)


class _Counts(nnx.Module):
    def __init__(self, k: int):
        self.k, self.above = k, tallax.Counter()

    def __call__(self, hidden: jax.Array) -> None:
        x, threshold = _column(hidden, self.k)
        self.above.count(x > threshold)


class _Rates(nnx.Module):
    def __init__(self, k: int):
        self.k, self.above = k, tallax.statistics.Rate()

    def __call__(self, hidden: jax.Array) -> None:
        x, threshold = _column(hidden, self.k)
        self.above.update(x > threshold)


class _Bins(nnx.Module):
    def __init__(self, k: int):
        self.k, self.values = k, tallax.statistics.Histogram(LOW, HIGH, BINS)

    def __call__(self, hidden: jax.Array) -> None:
        x, threshold = _column(hidden, self.k)
        self.values.update(x + threshold)


_MODULES = (_Counts, _Rates, _Bins)


def _increment(k: int, hidden: jax.Array) -> jax.Array:
    """The increment of a numbered statistic, written by hand, without the measured functions of tallax."""
    x, threshold = _column(hidden, k)
    if _MODULES[k % 3] is _Bins:
        place = jnp.floor((x + threshold - LOW) * (BINS / (HIGH - LOW))).astype(jnp.int32)
        place = jnp.clip(place, -1, BINS) + 1  # with one bin below, and one above
        return jnp.zeros(BINS + 2, jnp.uint32).at[place].add(jnp.uint32(1))
    fired = (x > threshold).sum(dtype=jnp.uint32).reshape(1)
    return fired if _MODULES[k % 3] is _Counts else jnp.concatenate([fired, jnp.full(1, x.size, jnp.uint32)])
