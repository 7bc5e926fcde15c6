# SPDX-License-Identifier: Apache-2.0
"""Gradients of activations: an identity whose backward rule reports the numbers of the gradient as a cotangent.

`tap(x, token, due)` returns `x`. Its backward rule returns the gradient of `x` unchanged, and the numbers of this
gradient as the cotangent of the token. JAX adds up the cotangents of all uses of a token, under `scan`, `remat`, `vmap`
and `cond` alike, and `tallax.value_and_grad` reads the sum. Nothing is perturbed, and no gradient is kept.

A cotangent can only be added to, which decides its lanes:

    0       the number of uses
    1-3     sum, sum of squares, largest magnitude
    4-12    size, zeros, nonfinite: digits of 12, 20 and 20 bits each, so that 4,096 uses in one step add up exactly
    13-76   a lane for each power of two from 2**-44 to 2**19: the number of uses whose largest magnitude has that size

After a single use lane 3 is the largest magnitude. After several it is only their sum, and the highest lane that is in
use bounds the largest magnitude within a factor of two.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from tallax import _uint64
from tallax._mesh_axes import marked, varying_axes
from tallax.watching._reduction import Layout, Parts, in_auto_axes, parts_of

_DIGIT = 12
_LOWEST, _POWERS = -44, 64
_FIRST_POWER = 13
LANES = _FIRST_POWER + _POWERS


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def tap(x: jax.Array, token: jax.Array, due: jax.Array | None, layout: Layout) -> jax.Array:
    """Returns `x`.

    Args:
        x: an array of floats.
        token: float32[*rows, LANES].
        due: whether the backward rule looks at the gradient; None if it always does.
        layout: the rows of the token.
    """
    del token, due, layout
    return x


def _forward(x: jax.Array, token: jax.Array, due: Any, layout: Layout) -> tuple[jax.Array, Any]:
    del layout
    return x, (token, due)  # the token for its type alone; nothing reads its value, so XLA keeps no memory for it


def _backward(layout: Layout, residuals: Any, gradient: jax.Array) -> tuple[Any, ...]:
    token, due = residuals
    over = tuple(sorted(varying_axes(gradient) - varying_axes(token), key=str))
    shape = token.shape

    def numbers(gradient: jax.Array) -> jax.Array:
        return _lanes(parts_of(gradient, None, layout._replace(over=over)))

    if due is None:
        return gradient, marked(in_auto_axes(numbers, token)(gradient), tuple(varying_axes(token))), None

    def numbers_if_due(due: jax.Array, gradient: jax.Array) -> jax.Array:
        return jax.lax.cond(due, numbers, lambda _: jnp.zeros(shape, jnp.float32), gradient)

    return gradient, in_auto_axes(numbers_if_due, token)(due, gradient), None


tap.defvjp(_forward, _backward)


def _lanes(parts: Parts) -> jax.Array:
    low, high = parts.counts[..., 0], parts.counts[..., 1]
    digits = jnp.stack([low & (2**_DIGIT - 1), low >> _DIGIT, high], -1).reshape(*low.shape[:-1], 9)
    power = jnp.clip(_exponent(parts.largest) - _LOWEST, 0, _POWERS - 1)
    one_hot = jax.nn.one_hot(power, _POWERS, dtype=jnp.bool_) & (parts.largest > 0)[..., None]
    return jnp.concatenate(
        [
            jnp.ones_like(parts.largest)[..., None],
            parts.sums,
            parts.largest[..., None],
            digits.astype(jnp.float32),
            one_hot.astype(jnp.float32),
        ],
        -1,
    )


def _exponent(x: jax.Array) -> jax.Array:
    """Returns the exponent of a float32, -127 for 0 and subnormal numbers."""
    return ((jax.lax.bitcast_convert_type(x, jnp.uint32) >> 23) & 0xFF).astype(jnp.int32) - 127


def parts_of_lanes(lanes: jax.Array) -> Parts:
    """Returns the numbers that the cotangent of a token stands for."""
    digits = lanes[..., 4:_FIRST_POWER].astype(jnp.uint32).reshape(*lanes.shape[:-1], 3, 3)
    low, middle, high = (digits[..., k] for k in range(3))
    counts = _uint64.add(_uint64.pair(low), _uint64.pair(middle << _DIGIT, (middle >> (32 - _DIGIT)) + high))
    used = lanes[..., _FIRST_POWER:] > 0
    highest = _POWERS - 1 - jnp.argmax(used[..., ::-1], -1)
    bound = jnp.where(highest == _POWERS - 1, jnp.inf, jnp.exp2((highest + _LOWEST + 1).astype(jnp.float32)))
    largest = jnp.where(lanes[..., 0] > 1, jnp.minimum(lanes[..., 3], bound), lanes[..., 3])
    return Parts(lanes[..., 1:3], largest, counts)
