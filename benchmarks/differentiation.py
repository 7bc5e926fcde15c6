# SPDX-License-Identifier: Apache-2.0
"""Group `differentiation`: a training step by `tallax.value_and_grad`, beside the same step by Flax's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import tallax
from benchmarks._timing import Case, Group

FLAX = "nnx.value_and_grad, nnx.jit"
FLAX_TRACE = "nnx.value_and_grad, traced"


def group() -> Group:
    """Returns the cases. Flax's own needs graph mode, since the model counts; a trace is without XLA's compilation."""
    return Group(
        "differentiation",
        "a step of a 64-256-10 MLP with Adam and a counter, batch 128",
        FLAX,
        [
            Case(name=FLAX, make=lambda: _step(nnx.value_and_grad), wait=jax.block_until_ready),
            Case(
                name="tallax.value_and_grad, nnx.jit",
                make=lambda: _step(tallax.value_and_grad),
                wait=jax.block_until_ready,
                limit=1.10,
            ),
            Case(
                name="tallax.value_and_grad, nnx.jit, tree mode",
                make=lambda: _step(tallax.value_and_grad, graph=False),
                wait=jax.block_until_ready,
            ),
            Case(name=FLAX_TRACE, make=lambda: _trace(nnx.value_and_grad), reference=FLAX_TRACE),
            Case(
                name="tallax.value_and_grad, traced",
                make=lambda: _trace(tallax.value_and_grad),
                reference=FLAX_TRACE,
                limit=1.10,
            ),
        ],
    )


class _Network(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(64, 256, rngs=rngs)
        self.logits = nnx.Linear(256, 10, rngs=rngs)
        self.step = tallax.Counter()

    def __call__(self, x: jax.Array) -> jax.Array:
        self.step += 1
        return self.logits(nnx.relu(self.hidden(x)))


def _train_step(value_and_grad: Callable[..., Any]) -> Callable[..., Any]:
    def loss_fn(model: _Network, x: jax.Array, y: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

    def step(model: _Network, optimizer: nnx.Optimizer, x: jax.Array, y: jax.Array) -> jax.Array:
        loss, grads = value_and_grad(loss_fn)(model, x, y)
        with jax.numpy_dtype_promotion("standard"):  # optax itself mixes dtypes, and the tests are strict
            optimizer.update(model, grads)
        return loss

    return step


def _arguments() -> tuple[Any, ...]:
    model = _Network(nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (128, 64))
    return model, nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param), x, jnp.arange(128) % 10


def _step(value_and_grad: Callable[..., Any], **options: Any) -> Callable[[], Any]:
    arguments, step = _arguments(), nnx.jit(_train_step(value_and_grad), **options)
    return lambda: step(*arguments)


def _trace(value_and_grad: Callable[..., Any]) -> Callable[[], Any]:
    arguments = _arguments()
    return lambda: nnx.eval_shape(_train_step(value_and_grad), *arguments)  # a new function, so no cache knows it
