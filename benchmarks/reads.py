# SPDX-License-Identifier: Apache-2.0
"""Group `reads`: `step.read` of a norm between two steps, beside `jax.jit` of the norm of plain arrays."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import tallax
from benchmarks._timing import Case, Group
from benchmarks.real_loops import BATCH, WAIT, WIDTH, Network, adam, train


def group(few: int = 4, many: int = 37) -> Group:
    """Returns the cases: each round is one call, waited for, because a read comes between two steps.

    Args:
        few: the number of layers of a small model.
        many: that of a larger one.
    """
    return Group(
        "reads",
        "the norm of all parameters, of which a compiled step owns the state",
        f"norm of {2 * few} arrays, jax.jit",
        [*_norms(few, 5), *_norms(many, 3)],
        one_call=True,
    )


def _norm(model: Network, optimizer: nnx.Optimizer[Network]) -> jax.Array:
    return optax.tree.norm(nnx.as_pure(nnx.state(model, nnx.Param)))


def _norms(layers: int, counters: int) -> list[Case]:
    model, x = Network(layers, counters), jnp.ones((BATCH, WIDTH))
    step = tallax.compile_step(train, model, adam(model))
    arrays = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    plain = jax.jit(optax.tree.norm)
    step(x)
    floor = f"norm of {2 * layers} arrays, jax.jit"
    return [
        Case(name=floor, make=lambda: lambda: plain(arrays), reference=floor, **WAIT),
        Case(
            name=f"norm of {2 * layers} arrays, step.read",
            make=lambda: lambda: step.read(_norm),
            reference=floor,
            limit=1.3,
            **WAIT,
        ),
    ]
