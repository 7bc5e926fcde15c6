# SPDX-License-Identifier: Apache-2.0
"""Exact 64-bit counts inside a float32 array: four 16-bit digits each, lowest first.

A statistic whose numbers are floats keeps its counts beside them, in the one array that its Variable holds. A float32
holds every integer up to 2**24 exactly, so a 16-bit digit survives every copy, checkpoint and transformation.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

WIDTH = 4
_DIGIT = 0xFFFF


def from_limbs(limbs: jax.Array) -> jax.Array:
    """Returns float32[*shape, 4], the digits of the limbs uint32[*shape, 2]."""
    low, high = limbs[..., 0], limbs[..., 1]
    return jnp.stack([low & _DIGIT, low >> 16, high & _DIGIT, high >> 16], -1).astype(jnp.float32)


def to_limbs(digits: jax.Array) -> jax.Array:
    """Returns the limbs, uint32[*shape, 2], of digits float32[*shape, 4]."""
    digits = digits.astype(jnp.uint32)
    return jnp.stack([digits[..., 0] | digits[..., 1] << 16, digits[..., 2] | digits[..., 3] << 16], -1)


def to_uint64(digits: np.ndarray) -> np.ndarray:
    """Returns uint64[*shape] of digits float32[*shape, 4], on the host."""
    return np.ascontiguousarray(digits).astype(np.uint16).view(np.uint64)[..., 0]  # JAX's platforms are little-endian
