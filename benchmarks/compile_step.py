# SPDX-License-Identifier: Apache-2.0
"""Group `compile-step`: what `tallax.compile_step` adds to a step, and what many counters add to that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from benchmarks import _reference_step as ref
from benchmarks._timing import Case, Group

HAND = "split once, jax.jit, donated"
NONE = "compile_step, no counters"


def group(few: int = 100, many: int = 1000) -> Group:
    """Returns the cases; every call waits for its step."""
    return Group(
        "compile-step",
        "a step of a 64-256-10 MLP with Adam, batch 128, and counters in it",
        NONE,
        [
            Case(name=HAND, make=lambda: ref.by_hand(ref.objects(), ref.batch())),
            Case(
                name=NONE,
                make=lambda: ref.by_compile_step(ref.objects(), ref.batch()),
                reference=HAND,
                limit=1.15,
            ),
            Case(
                name=f"{many} modules, step += 1",
                make=lambda: ref.by_compile_step(ref.objects(lambda: ref.StepCounts(many)), ref.batch()),
                limit=1.05,
            ),
            Case(name=f"{few} counters", make=lambda: _counters(few), limit=1.10),
            Case(name=f"{many} counters", make=lambda: _counters(many), limit=1.25),
            Case(name=f"{many} counters, int32 increments", make=lambda: _counters(many, jnp.int32)),
        ],
    )


def _counters(number: int, dtype: Any = jnp.uint32) -> Callable[[], Any]:
    return ref.by_compile_step(ref.objects(lambda: ref.Counters(number)), ref.batch(number, dtype))
