# SPDX-License-Identifier: Apache-2.0
"""Group `real-loops`: what people do around a compiled step, beside `nnx.jit` and what one would write by hand."""

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

WIDTH, BATCH = 16, 8
GAN = "GAN of 16 layers a network, nnx.jit"


class Network(nnx.Module):
    """Small layers, so that the time is that of the host, and some counters."""

    def __init__(self, layers: int, counters: int = 1):
        rngs = nnx.Rngs(0)
        self.layers = nnx.List([nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(layers)])
        self.counters = nnx.List([tallax.Counter() for _ in range(counters)])

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers:
            x = nnx.tanh(layer(x))
        return x


def group(gan_layers: int = 16, few: tuple[int, int] = (4, 5), many: tuple[int, int] = (37, 3)) -> Group:
    """Returns the cases: each round is one call, because a step after `sync()` cannot be repeated without it.

    Args:
        gan_layers: the number of layers of each network of the GAN.
        few: the numbers of layers and of counters of a small model: 31 Variables with its optimizer.
        many: those of a larger one: 227 Variables.
    """
    return Group(
        "real-loops",
        "a pair of GAN steps; the first step after sync()",
        GAN,
        [
            Case(name=GAN, make=lambda: _gan(gan_layers, compiled=False), **WAIT),
            Case(name="the same, compile_step", make=lambda: _gan(gan_layers, compiled=True), limit=0.5, **WAIT),
            *_after_sync(*few),
            *_after_sync(*many),
        ],
        one_call=True,
    )


WAIT: dict[str, Any] = {"wait": jax.block_until_ready}


def adam(model: Network) -> nnx.Optimizer[Network]:
    """Returns the optimizer of a network."""
    return nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)


def train(model: Network, optimizer: nnx.Optimizer[Network], x: jax.Array) -> jax.Array:
    """One step, which counts."""
    loss, grads = tallax.value_and_grad(lambda model: (model(x) ** 2).mean())(model)
    ref.update(optimizer, model, grads)
    for counter in model.counters:
        counter += 1
    return loss


def _d_step(g: Network, d: Network, d_opt: nnx.Optimizer[Network], x: jax.Array) -> jax.Array:
    fake = g(x)
    loss, grads = tallax.value_and_grad(lambda d: (d(x) ** 2).mean() - (d(fake) ** 2).mean())(d)
    ref.update(d_opt, d, grads)
    d.counters[0] += 1
    return loss


def _g_step(g: Network, d: Network, g_opt: nnx.Optimizer[Network], x: jax.Array) -> jax.Array:
    loss, grads = tallax.value_and_grad(lambda g, d: (d(g(x)) ** 2).mean())(g, d)
    ref.update(g_opt, g, grads)
    g.counters[0] += 1
    return loss


def _gan(layers: int, *, compiled: bool) -> Callable[[], Any]:
    g, d, x = Network(layers), Network(layers), jnp.ones((BATCH, WIDTH))
    g_opt, d_opt = adam(g), adam(d)
    if compiled:
        train_d, train_g = tallax.compile_step(_d_step, g, d, d_opt), tallax.compile_step(_g_step, g, d, g_opt)
        return lambda: (train_d(x), train_g(x))
    jit_d, jit_g = nnx.jit(_d_step), nnx.jit(_g_step)
    return lambda: (jit_d(g, d, d_opt, x), jit_g(g, d, g_opt, x))


def _after_sync(layers: int, counters: int) -> list[Case]:
    model, plain, x = Network(layers, counters), Network(layers, counters), jnp.ones((BATCH, WIDTH))
    optimizer, other = adam(model), adam(plain)
    number = sum(isinstance(node, nnx.Variable) for _, node in nnx.iter_graph((model, optimizer)))
    step, jitted = tallax.compile_step(train, model, optimizer), nnx.jit(train)
    for _ in range(2):  # the second take-over compiles the program that copies the values
        step(x)
        step.sync()
    floor = f"{number} Variables, nnx.jit"
    return [
        Case(name=floor, make=lambda: lambda: jitted(plain, other, x), reference=floor, **WAIT),
        Case(
            name=f"{number} Variables, first step after sync()",
            make=lambda: lambda _: step(x),
            fresh=step.sync,
            reference=floor,
            limit=1.0,
            **WAIT,
        ),
        Case(
            name=f"{number} Variables, a step and sync()",
            make=lambda: lambda: (step.sync(), step(x))[1],
            reference=floor,
            **WAIT,
        ),
    ]
