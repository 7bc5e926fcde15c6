# SPDX-License-Identifier: Apache-2.0
"""Group `eager`: counting outside `jit`, one step at a time, as a training loop does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import tallax
from benchmarks._timing import Case, Group

SEED = "seed, step[...] += 1"
SEED_VALUE = "seed, step.value += 1"
TORCH = "PyTorch, step += 1"


def group() -> Group:
    """Returns the cases; the reference is the class this project grew from, written for a plain `nnx.Variable`."""
    return Group(
        "eager",
        "one count outside jit; the seed is a plain nnx.Variable, PyTorch's a module's buffer",
        SEED,
        [*_references(), *_increments(), *_reads()],
    )


def _references() -> list[Case]:
    return [
        Case(name=SEED, make=lambda: _Seed(nnx.Rngs(0)), wait=jax.block_until_ready),
        Case(name=SEED_VALUE, make=lambda: _SeedValue(nnx.Rngs(0)), wait=jax.block_until_ready),
        Case(name=TORCH, make=_torch_count, needs="torch"),
    ]


def _increments() -> list[Case]:
    against_torch = {"reference": TORCH, "versus": {SEED: None}}
    return [
        Case(name="StepCounter()", make=lambda: tallax.StepCounter(nnx.Rngs(0)), versus={SEED_VALUE: None}, limit=0.10),
        Case(name="Counter.increment()", make=lambda: tallax.Counter().increment, limit=1.0, **against_torch),
        Case(name="step += 1, tallax.Module", make=lambda: _InTallaxModule().count, **against_torch),
        Case(name="step += 1, nnx.Module", make=lambda: _InNnxModule().count, **against_torch),
        Case(name="Counter(shape=8).increment()", make=lambda: tallax.Counter(shape=8).increment, **against_torch),
        Case(
            name="Counter.increment() after jit",
            make=lambda: tallax.Counter.increment,
            fresh=_counter_from_a_step,
            **against_torch,
        ),
    ]


def _reads() -> list[Case]:
    return [
        Case(name="Counter.value", make=_read_value, wait=jax.block_until_ready),
        Case(name="int(Counter)", make=_read_int),
    ]


class _Seed(nnx.Module):
    """The class that the project grew from, in the spelling that Flax asks for today."""

    def __init__(self, rngs: nnx.Rngs):
        rngs.params()
        self.step = nnx.Variable(jnp.zeros((), jnp.int32))

    def __call__(self) -> jax.Array:
        self.step[...] += 1
        return self.step[...]


class _SeedValue(_Seed):
    """The same as it was written first; Flax warns of it, which the harness silences."""

    def __call__(self) -> jax.Array:
        self.step.value += 1  # noqa: TLX006 (the spelling that is measured)
        return self.step.value  # noqa: TLX006


class _InTallaxModule(tallax.Module):
    def __init__(self):
        self.step = tallax.Counter()

    def count(self) -> None:
        self.step += 1


class _InNnxModule(nnx.Module):
    def __init__(self):
        self.step = tallax.Counter()

    def count(self) -> None:
        self.step += 1


def _torch_count() -> Callable[[], None]:
    import torch

    class Counting(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("step", torch.tensor(0))

        def count(self) -> None:  # not `forward`: going through `__call__` would only slow the reference down
            self.step += 1

    return Counting().count


@nnx.jit
def _count_in_jit(counter: tallax.Counter) -> None:
    counter.increment()


def _counter_from_a_step() -> tallax.Counter:
    """Returns a counter that holds what a compiled step returned, never read before, and already computed."""
    counter = tallax.Counter()
    _count_in_jit(counter)
    jax.block_until_ready(counter.get_raw_value())
    return counter


def _read_value() -> Callable[[], Any]:
    counter = tallax.Counter(7)
    return lambda: counter.value


def _read_int() -> Callable[[], int]:
    counter = tallax.Counter(7)
    return lambda: int(counter)
