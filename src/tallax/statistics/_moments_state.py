# SPDX-License-Identifier: Apache-2.0
"""The state of `Moments`: its parts, the state of one batch, and the union of two states."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from tallax import _uint64
from tallax.statistics._two_floats import Pair, add, add_float, exact_sum, product

FIELDS = 1 + 8  # the unit and four pairs


class State(NamedTuple):
    """The parts of the state, without the number of nonfinite entries."""

    seen: jax.Array  # limbs
    unit: jax.Array
    mean: Pair
    m2: Pair
    m3: Pair
    m4: Pair


def unpack(seen: jax.Array, moments: jax.Array) -> State:
    moments = jax.lax.stop_gradient(jnp.asarray(moments))
    pairs = [(moments[..., k], moments[..., k + 1]) for k in (1, 3, 5, 7)]
    return State(jnp.asarray(seen), moments[..., 0], *pairs)


def pack(state: State) -> jax.Array:
    """Returns the floats of a state, float32[*shape, 9]."""
    return jnp.stack([state.unit, *state.mean, *state.m2, *state.m3, *state.m4], -1)


def of_batch(count: jax.Array, unit: jax.Array, pivot: jax.Array, sums: jax.Array) -> State:
    """Returns the state of a batch from its power sums about the pivot."""
    s1, s2, s3, s4 = sums
    shift = s1 / jnp.maximum(_uint64.to_float32(count), 1.0)  # the distance from the pivot to the mean
    moment = product(shift, s1)
    m2 = s2 - moment
    m3 = s3 - product(shift, product(3.0, s2) - 2.0 * moment)
    m4 = s4 - product(shift, 4.0 * s3 - product(shift, product(6.0, s2) - product(3.0, moment)))
    zero = jnp.zeros_like(m2)
    return State(count, unit, exact_sum(pivot, shift), (m2, zero), (m3, zero), (m4, zero))


def union(a: State, b: State) -> State:
    """Returns the union of two states by Pebay's equations, with fractions of the count.

    The added state is rounded to float32 once. The other state keeps its low parts.
    """
    unit = jnp.maximum(a.unit, b.unit)
    a_mean, a_m2, a_m3, a_m4 = _in_unit(a, unit)
    b_mean, b_m2, b_m3, b_m4 = _in_unit(b, unit)
    count = _uint64.add(a.seen, b.seen)
    n_a, n_b, n = (_uint64.to_float32(c) for c in (a.seen, b.seen, count))
    of_a, of_b = n_a / jnp.maximum(n, 1.0), n_b / jnp.maximum(n, 1.0)

    d = add(b_mean, (-a_mean[0], -a_mean[1]))[0]
    between = product(d * d, n_a * of_b)
    m3 = product(between * d, of_a - of_b)
    m3 = m3 + product(3.0 * d, product(of_a, b_m2[0]) - product(of_b, a_m2[0]))
    m4 = product(between * d * d, 1.0 - product(3.0 * of_a, of_b))
    m4 = m4 + product(6.0 * d * d, product(of_a * of_a, b_m2[0]) + product(of_b * of_b, a_m2[0]))
    m4 = m4 + product(4.0 * d, product(of_a, b_m3[0]) - product(of_b, a_m3[0]))
    both = (
        unit,
        add_float(a_mean, product(d, of_b)),
        add_float(add(a_m2, b_m2), between),
        add_float(add(a_m3, b_m3), m3),
        add_float(add(a_m4, b_m4), m4),
    )

    # An empty state changes no bit.
    no_a, no_b = _uint64.is_zero(a.seen), _uint64.is_zero(b.seen)
    floats = jax.tree.map(lambda x, y, z: jnp.where(no_b, x, jnp.where(no_a, y, z)), a[1:], b[1:], both)
    return State(count, *floats)


def _in_unit(state: State, unit: jax.Array) -> tuple[Pair, ...]:
    """Returns the mean and M2 to M4 in a larger unit. Terms that underflow are negligible."""
    ratio = state.unit / jnp.where(unit > 0, unit, 1.0)
    moments = []
    for power, moment in enumerate((state.mean, state.m2, state.m3, state.m4), start=1):
        for _ in range(power):
            moment = moment[0] * ratio, moment[1] * ratio
        moments.append(moment)
    return tuple(moments)
