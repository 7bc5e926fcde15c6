# SPDX-License-Identifier: Apache-2.0
"""The registries that the law tests cross: items, and the modes of compilation. A new one is a line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import tallax


class Model(nnx.Module):
    """A layer that is trained, and an item that is not."""

    def __init__(self, make_item: Callable[[], Any]):
        self.layer = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
        self.item = make_item()

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.layer(x)


@dataclass(frozen=True)
class Item:
    """How an item is made, what a step does with it, and what it then reads."""

    make: Callable[[], Any]
    touch: Callable[[Model, jax.Array], Any]
    read: Callable[[Any], Any]


def _increment(model: Model, x: jax.Array) -> None:
    model.item += 1


def _count(model: Model, x: jax.Array) -> None:
    model.item.count(x > 0)


def _add_mean(model: Model, x: jax.Array) -> None:
    model.item += x.mean(0)


def _fill(model: Model, x: jax.Array) -> None:
    model.item[...] = model.item[...] * 2.0 + 1.0


def cooling(count: Any) -> jax.Array:
    """A schedule that pickles, as optax's closures do not."""
    return 5.0 - 0.4 * jnp.asarray(count, jnp.float32)


ITEMS = {
    "counter": Item(tallax.Counter, _increment, int),
    "counter-vector": Item(lambda: tallax.Counter(shape=3), _count, np.asarray),
    "buffer": Item(lambda: tallax.Buffer(np.zeros(3)), _add_mean, lambda item: np.asarray(item[...])),
    "buffer-scalar": Item(lambda: tallax.Buffer(1.0), _fill, lambda item: float(item[...])),
    "step-counter": Item(
        lambda: tallax.StepCounter(nnx.Rngs(0)), lambda model, x: model.item(), lambda item: int(item.step)
    ),
    "scheduled": Item(
        lambda: tallax.Scheduled(cooling),
        lambda model, x: model.item(jnp.int32(4)),
        lambda item: float(item.value),
    ),
    "rate": Item(tallax.statistics.Rate, lambda model, x: model.item.update(x > 0), lambda item: item.compute().fired),
    "histogram": Item(
        lambda: tallax.statistics.Histogram(-2.0, 2.0, bins=7),
        lambda model, x: model.item.update(x, where=x < 1),
        lambda item: item.compute().counts,
    ),
    "log-histogram": Item(
        lambda: tallax.statistics.LogHistogram(0.5),
        lambda model, x: model.item.update(x, where=x < 1),
        lambda item: item.compute().buckets,
    ),
    "extrema": Item(
        lambda: tallax.statistics.Extrema(shape=3),
        lambda model, x: model.item.update(x, where=x < 1),
        lambda item: item.compute().max_at,
    ),
    "ema": Item(
        lambda: tallax.statistics.Ema(0.9, shape=3),
        lambda model, x: model.item.update(x, where=x < 1),
        lambda item: item.compute().value,
    ),
    "activity": Item(
        lambda: tallax.statistics.Activity(3, window=2),
        lambda model, x: model.item.update(x > 0.5, where=x < 1),
        lambda item: item.compute().rates,
    ),
    "moments": Item(
        lambda: tallax.statistics.Moments(shape=3),
        lambda model, x: model.item.update(x, where=x < 1),
        lambda item: item.compute().kurtosis,
    ),
}


def _split_merge(f: Callable[..., Any]) -> Callable[..., Any]:
    def call(model: Any, *args: Any) -> Any:
        graphdef, state = nnx.split(model)
        out, state = compiled(graphdef, state, *args)
        nnx.update(model, state)
        return out

    def pure(graphdef: Any, state: Any, *args: Any) -> Any:
        model = nnx.merge(graphdef, state)
        out = f(model, *args)
        return out, nnx.state(model)

    compiled = jax.jit(pure, static_argnums=0)
    return call


# Each compiles a function of a model, and leaves the model updated when it is called.
MODES: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "graph": nnx.jit,
    "graph-no-updates": lambda f: nnx.jit(f, graph=True, graph_updates=False),
    "tree": lambda f: nnx.jit(f, graph=False),
    "split-merge": _split_merge,
}


def leaves(node: Any) -> list[np.ndarray]:
    """Returns every array that a module or Variable holds, on the host."""
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.as_pure(nnx.state(nnx.Dict(node=node))))]


def assert_same_state(left: Any, right: Any) -> None:
    """Asserts that two modules or Variables are the same to the bit."""
    pairs = list(zip(leaves(left), leaves(right), strict=True))
    assert pairs
    for a, b in pairs:
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert a.tobytes() == b.tobytes(), (a, b)


def batch(seed: int = 0, size: int = 8) -> jax.Array:
    """Returns float32[size, 3] with both signs in every column."""
    x = np.random.default_rng(seed).normal(size=(size, 3)).astype(np.float32)
    assert (x > 0).any(0).all()
    assert (x < 0).any(0).all()
    return jnp.asarray(x)
