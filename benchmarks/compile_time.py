# SPDX-License-Identifier: Apache-2.0
"""Group `compile-time`: the first call of a step, which traces and compiles it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from benchmarks import _reference_step as ref
from benchmarks import mixed_state
from benchmarks._timing import Case, Group

NONE = "no counters"


def group(many: int = 1000) -> Group:
    """Returns the cases, of up to a minute each. JAX's persistent cache has to be off, as it is unless asked for."""
    floor = f"{many} mixed increments, not kept"
    return Group(
        "compile-time",
        "the first call of a compiled step, of a 64-256-10 MLP with Adam, batch 128",
        NONE,
        [
            _first_call(NONE, _counters, 0),
            _first_call(f"{many} counters", _counters, many, limit=4.0),
            _first_call(f"{many} counters, int32 increments", lambda number: _counters(number, jnp.int32), many),
            _first_call(f"{many} Variables, nnx.jit", _variables, many),
            _first_call(floor, mixed_state.not_kept, many, reference=floor),
            _first_call(f"{many} counters and statistics", mixed_state.kept, many, reference=floor, limit=1.4),
        ],
        one_call=True,
        warm_up=False,
        rounds_in_one=75,
    )


def _first_call(name: str, prepare: Callable[[int], Callable[[], Any]], number: int, **options: Any) -> Case:
    """Returns a case whose every call is the first one of a new step, of new objects: no cache of programs knows it."""

    def make() -> Callable[[Callable[[], Any]], Any]:
        prepare(min(number, 3))()  # what is the same for every step, such as traces of optax's functions, is cached
        return lambda first: first()

    return Case(name=name, make=make, fresh=lambda: prepare(number), **options)


def _counters(number: int, dtype: Any = jnp.uint32) -> Callable[[], Any]:
    return ref.by_compile_step(ref.objects(lambda: ref.Counters(number)), ref.batch(number, dtype))


def _variables(number: int) -> Callable[[], Any]:
    things, batch = ref.objects(lambda: ref.Variables(number)), ref.batch(number)
    return ref.by_nnx_jit(things, batch, ref.new_train_step())
