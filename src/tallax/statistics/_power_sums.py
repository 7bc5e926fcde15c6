# SPDX-License-Identifier: Apache-2.0
"""Reductions of a batch to several numbers in one pass over memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from tallax.statistics._two_floats import product

_LANES = 64
_LARGE = 2**14  # entries; for fewer, the plain form is as fast

# For each result: the operation on two entries, the initial value, and the whole reduction.
Kind: TypeAlias = tuple[Callable[..., Any], Any, Callable[..., Any]]
COUNT: Kind = (jax.lax.add, np.uint32(0), lambda x, axes: x.sum(axes, dtype=jnp.uint32))
SUM: Kind = (jax.lax.add, np.float32(0), jnp.sum)
MAX: Kind = (jax.lax.max, np.float32(-np.inf), jnp.max)


def power_sums(
    x: jax.Array,
    where: jax.Array | None,
    axes: tuple[int, ...],
    pivot: jax.Array,
    unit: jax.Array,
    *,
    are_finite: bool = False,
) -> tuple[jax.Array, ...]:
    """Returns the number of finite entries, uint32, and the sums of d, d**2, d**3 and d**4, d = x / unit - pivot.

    `pivot` and `unit`, a power of two, have the shape of the axes that are not reduced. With `are_finite`, all entries
    are taken, and no number is returned. One nonfinite entry then makes the sums nonfinite.
    """
    shrink = 1 / unit

    def terms(x: jax.Array, where: jax.Array | None, times: Callable[..., jax.Array]) -> tuple[jax.Array, ...]:
        d = x * _aligned(shrink, x) - _aligned(pivot, x)
        count = ()
        if not are_finite:
            taken = _taken(x, where)
            d, count = jnp.where(taken, d, 0.0), (taken.astype(jnp.uint32),)
        square = times(d, d)
        return *count, d, square, times(square, d), times(square, square)

    kinds = (SUM, SUM, SUM, SUM)
    return _reduce(terms, kinds if are_finite else (COUNT, *kinds), x, where, axes)


def count_finite(x: jax.Array, where: jax.Array | None, axes: tuple[int, ...]) -> jax.Array:
    """Returns the number of finite entries, uint32."""
    return _taken(x, where).sum(axes, dtype=jnp.uint32)


def rough_sum_and_range(x: jax.Array, where: jax.Array | None, axes: tuple[int, ...]) -> tuple[jax.Array, ...]:
    """Returns the sum / 2**32, the largest negated entry and the largest entry of the finite entries."""

    def terms(x: jax.Array, where: jax.Array | None, times: Callable[..., jax.Array]) -> tuple[jax.Array, ...]:
        taken = _taken(x, where)
        small = jnp.where(taken, x * 2.0**-32, 0.0)  # no sum of fewer than 2**32 overflows
        return small, jnp.where(taken, -x, -jnp.inf), jnp.where(taken, x, -jnp.inf)

    return _reduce(terms, (SUM, MAX, MAX), x, where, axes)


def _taken(x: jax.Array, where: jax.Array | None) -> jax.Array:
    finite = jnp.isfinite(x)
    return finite if where is None else finite & where


def _aligned(value: jax.Array, x: jax.Array) -> jax.Array:
    """Returns `value` with new leading axes."""
    return jnp.expand_dims(value, tuple(range(x.ndim - value.ndim)))


def _reduce(
    terms: Callable[..., tuple[jax.Array, ...]],
    kinds: tuple[Kind, ...],
    x: jax.Array,
    where: jax.Array | None,
    axes: tuple[int, ...],
) -> tuple[jax.Array, ...]:
    """Returns every term reduced over the leading `axes`.

    XLA for CPU compiles such a reduction into one slow scalar loop, or into several loops that each write their term to
    memory first. If the reduction is split into blocks of a few rows, XLA unrolls the rows, vectorizes over the lanes,
    and computes all terms in one pass. Other platforms fuse the plain form, which also works if an explicit mesh splits
    `x`.
    """

    def plain(x: jax.Array, where: jax.Array | None) -> tuple[jax.Array, ...]:
        return tuple(whole(term, axes) for term, (_, _, whole) in zip(terms(x, where, product), kinds, strict=True))

    def combine(a: Any, b: Any) -> Any:
        return tuple(op(u, v) for (op, _, _), u, v in zip(kinds, a, b, strict=True))

    def blocked(x: jax.Array, where: jax.Array | None) -> tuple[jax.Array, ...]:
        rows = 16 if where is None else 8  # LLVM unrolls no more than this
        inside = entries // (rows * _LANES) * (rows * _LANES)
        flat = x.reshape(entries, *shape)
        mask = None if where is None else where.reshape(entries, *shape)
        head = flat[:inside].reshape(-1, rows, _LANES, *shape)
        head_mask = None if mask is None else mask[:inside].reshape(head.shape)
        starts = tuple(start for _, start, _ in kinds)
        parts = jax.lax.reduce(terms(head, head_mask, jnp.multiply), starts, combine, (1,))
        result = tuple(whole(part, (0, 1)) for part, (_, _, whole) in zip(parts, kinds, strict=True))
        if inside == entries:
            return result
        tail = terms(flat[inside:], None if mask is None else mask[inside:], product)
        return combine(result, tuple(whole(term, (0,)) for term, (_, _, whole) in zip(tail, kinds, strict=True)))

    entries, shape = math.prod(x.shape[axis] for axis in axes), x.shape[len(axes) :]
    if entries < _LARGE or any(jax.typeof(x).sharding.spec):
        return plain(x, where)
    return jax.lax.platform_dependent(x, where, cpu=blocked, default=plain)
