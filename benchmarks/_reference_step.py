# SPDX-License-Identifier: Apache-2.0
"""The step that state is added to: a 64-256-10 MLP, Adam, batch 128, about 0.3 ms. And the ways to run it.

It is this small on purpose. What a framework does at every call, and what a thousand buffers cost, stands out beside
0.3 ms and would be lost in the noise of a larger step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import tallax

FEATURES, WIDTH, CLASSES, BATCH = 64, 256, 10, 128
Keep = Callable[[], nnx.Module]  # makes what is fed with the hidden values and a vector of increments


class Network(nnx.Module):
    """The MLP, with a module in it that keeps state."""

    def __init__(self, keep: nnx.Module, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(FEATURES, WIDTH, rngs=rngs)
        self.logits = nnx.Linear(WIDTH, CLASSES, rngs=rngs)
        self.keep = keep

    def __call__(self, x: jax.Array, v: jax.Array) -> jax.Array:
        hidden = nnx.relu(self.hidden(x))
        self.keep(hidden, v)
        return self.logits(hidden)


class Nothing(nnx.Module):
    """Keeps nothing."""

    def __call__(self, hidden: jax.Array, v: jax.Array) -> None:
        pass


class Counters(nnx.Module):
    """Adds a slice of the vector to each of many counters, so that only the keeping costs."""

    def __init__(self, number: int):
        self.counts = nnx.List([tallax.Counter() for _ in range(number)])

    def __call__(self, hidden: jax.Array, v: jax.Array) -> None:
        for k, count in enumerate(self.counts):
            count.increment(v[k])


class Variables(nnx.Module):
    """The same with plain Variables, which wrap around at 2**32."""

    def __init__(self, number: int):
        self.counts = nnx.List([nnx.Variable(jnp.zeros((), jnp.uint32)) for _ in range(number)])

    def __call__(self, hidden: jax.Array, v: jax.Array) -> None:
        for k, count in enumerate(self.counts):
            count[...] += v[k]


class StepCounts(nnx.Module):
    """Many modules that each count their calls."""

    def __init__(self, number: int):
        self.modules = nnx.List([_StepCount() for _ in range(number)])

    def __call__(self, hidden: jax.Array, v: jax.Array) -> None:
        for module in self.modules:
            module()


class _StepCount(tallax.Module):
    def __init__(self):
        self.step = tallax.Counter()

    def __call__(self) -> None:
        self.step += 1


def train_step(model: Any, optimizer: nnx.Optimizer, x: jax.Array, y: jax.Array, v: jax.Array) -> jax.Array:
    """Updates the model and returns the loss."""

    def loss_fn(model: Any) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(x, v), y).mean()

    loss, grads = tallax.value_and_grad(loss_fn)(model)
    update(optimizer, model, grads)
    return loss


def new_train_step() -> Callable[..., jax.Array]:
    """Returns the step as a function of its own, that no cache of `nnx.jit` knows."""
    return functools.partial(train_step)


def update(optimizer: nnx.Optimizer, model: Any, grads: Any) -> None:
    """Applies gradients; optax itself mixes dtypes, and the tests are strict."""
    with jax.numpy_dtype_promotion("standard"):
        optimizer.update(model, grads)


def objects(keep: Keep = Nothing) -> tuple[Network, nnx.Optimizer]:
    """Returns a new model and its optimizer."""
    model = Network(keep(), nnx.Rngs(0))
    return model, nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)


def batch(increments: int = 1, dtype: Any = jnp.uint32) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns images, labels, and a vector of increments."""
    x = jax.random.normal(jax.random.key(1), (BATCH, FEATURES))
    return x, jnp.arange(BATCH) % CLASSES, jnp.ones(max(increments, 1), dtype)


# Each of these returns a call that waits for its step: else the time at the host would hide behind that of the device.


def by_compile_step(things: tuple[Any, ...], batch: tuple[Any, ...], step: Any = train_step) -> Callable[[], Any]:
    """By `tallax.compile_step`."""
    compiled = tallax.compile_step(step, *things)
    return lambda: jax.block_until_ready(compiled(*batch))


def by_hand(things: tuple[Any, ...], batch: tuple[Any, ...], step: Any = train_step) -> Callable[[], Any]:
    """By `jax.jit`, the state split off once, donated, and carried along."""
    graphdef, state = nnx.split(things)

    @functools.partial(jax.jit, donate_argnums=0)
    def compiled(state: Any, *batch: Any) -> Any:
        merged = nnx.merge(graphdef, state)
        result = step(*merged, *batch)
        return nnx.state(merged), result

    def run() -> Any:
        nonlocal state
        state, result = compiled(state, *batch)
        return jax.block_until_ready(result)

    return run


def by_nnx_jit(things: tuple[Any, ...], batch: tuple[Any, ...], step: Any = train_step) -> Callable[[], Any]:
    """By `nnx.jit`, as most users write it."""
    compiled = nnx.jit(step)
    return lambda: jax.block_until_ready(compiled(*things, *batch))


def by_jit_partial(things: tuple[Any, ...], batch: tuple[Any, ...], step: Any = train_step) -> Callable[[], Any]:
    """By `nnx.jit_partial`, which flattens the objects once; in tree mode, which it is made for."""
    compiled = nnx.jit_partial(step, *things, graph=False)
    return lambda: jax.block_until_ready(compiled(*batch))
