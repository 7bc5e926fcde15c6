# SPDX-License-Identifier: Apache-2.0
"""Gradients of activations: an identity whose backward rule sees the gradient.

`tap(x, token, due, ...)` returns `x`. Its backward rule returns the gradient of `x` unchanged, and the lanes of this
gradient as the cotangent of the token. JAX adds up the cotangents of all uses of a token, under `scan`, `remat`, `vmap`
and `cond` alike, and `tallax.value_and_grad` reads the sum. Nothing is perturbed, and no gradient is kept.

A cotangent can only be added to. So the lanes of `_lanes`, which all add up but the largest magnitude, are followed
by 64 lanes, one for each power of two from 2**-44 to 2**19: the number of uses whose largest magnitude has that size.
After a single use the largest magnitude is exact. After several it is only their sum, and the highest of these lanes
that is in use bounds it within a factor of two. If it is known that a token is used once (`Uses`), its cotangent stays
zero, and the backward rule passes the gradient to a `Collector`, which compiles no kernel but the library's reductions.
An inner `jit` that was traced before is not seen again, so a site that was ever used within a transformation keeps the
64 lanes.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tallax._mesh_axes import marked, on_first, varying_axes
from tallax.watching._lanes import DUE, LANES, clean_lanes_of
from tallax.watching._many_tensors import Collector
from tallax.watching._reduction import Layout, in_auto_axes

_LOWEST, _POWERS = -44, 64
TOKEN = LANES + _POWERS


@jax.tree_util.register_static
class Uses:
    """The uses of one token.

    Attributes:
        owner: The owner of the token.
        collector: Takes the gradient if the only use is direct; it is not in the cotangent then.
        count: The number of taps that were traced.
        is_direct: Whether all are outside of any transformation.
    """

    def __init__(self, owner: Any, collector: Collector | None, *, is_direct: bool = True):
        self.owner, self.collector, self.count, self.is_direct = owner, collector, 0, is_direct


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def tap(x: jax.Array, token: jax.Array, due: jax.Array | None, layout: Layout, uses: Uses) -> jax.Array:
    """Returns `x`.

    Args:
        x: An array of floats.
        token: float32[*rows, TOKEN].
        due: Whether the backward rule looks at the gradient; None if it always does; the token if its lane `DUE` is 1
            in a step that is due.
        layout: The rows of the token.
        uses: The uses of the token; the backward rule runs after all of them were traced.
    """
    del token, due, layout, uses
    return x


def _forward(x: jax.Array, token: jax.Array, due: Any, layout: Layout, uses: Uses) -> tuple[jax.Array, Any]:
    del layout, uses
    return x, (token, due)  # both are inputs, so XLA keeps no memory for them, and `scan` stacks neither


def _backward(layout: Layout, uses: Uses, residuals: Any, gradient: jax.Array) -> tuple[Any, ...]:
    token, due = residuals
    if due is not None and due.ndim:
        due = due[DUE] > 0  # read only here, since `scan` would stack a boolean that the forward pass computes
    over = tuple(sorted(varying_axes(gradient) - varying_axes(token), key=str))
    shape, varying = token.shape, tuple(varying_axes(token))
    once = tuple(sorted(set(layout.kept) - varying_axes(gradient), key=str))

    if uses.collector is not None and uses.is_direct and uses.count == 1 and not over and not once:
        # This rule runs in the trace of the caller of the backward pass, which reads the numbers right after it. As a
        # cotangent they would need 64 lanes more, of which XLA makes hundreds of constants.
        uses.collector.add(uses.owner, gradient, layout._replace(kept=()), token)
        return gradient, jnp.zeros_like(token), None

    def lanes(gradient: jax.Array) -> jax.Array:
        return marked(on_first(_with_powers(gradient, layout._replace(over=over)), once), varying)

    if due is None:
        return gradient, in_auto_axes(lanes, token)(gradient), None

    def lanes_if_due(due: jax.Array, gradient: jax.Array) -> jax.Array:
        return jax.lax.cond(due, lanes, lambda _: marked(jnp.zeros(shape, jnp.float32), varying), gradient)

    return gradient, in_auto_axes(lanes_if_due, token)(due, gradient), None


tap.defvjp(_forward, _backward)


def _with_powers(gradient: jax.Array, layout: Layout) -> jax.Array:
    lanes = clean_lanes_of(gradient, None, layout)
    largest = lanes[..., 3:4]
    power = jnp.clip(_exponent(largest) - _LOWEST, 0, _POWERS - 1)
    one_hot = (power == np.arange(_POWERS)) & (largest > 0)
    return jnp.concatenate([lanes, one_hot.astype(jnp.float32)], -1)


def _exponent(x: jax.Array) -> jax.Array:
    """Returns the exponent of a float32, -127 for 0 and subnormal numbers."""
    return ((jax.lax.bitcast_convert_type(x, jnp.uint32) >> 23) & 0xFF).astype(jnp.int32) - 127


def lanes_of_tokens(tokens: jax.Array) -> jax.Array:
    """Returns the lanes that the cotangents of tokens stand for; their largest magnitude may be a bound.

    Args:
        tokens: float32[tokens, *rows, TOKEN], the cotangents.
    """
    highest = _POWERS - 1 - jnp.argmax(tokens[..., : LANES - 1 : -1] > 0, -1)
    bound = jnp.where(highest == _POWERS - 1, jnp.inf, jnp.exp2((highest + _LOWEST + 1).astype(jnp.float32)))
    largest = tokens[..., 3]  # the sum over all uses
    largest = jnp.where(tokens[..., 0] > 1, jnp.minimum(largest, bound), largest)
    return jnp.concatenate([tokens[..., :3], largest[..., None], tokens[..., 4:LANES]], -1)
