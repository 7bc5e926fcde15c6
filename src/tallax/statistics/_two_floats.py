# SPDX-License-Identifier: Apache-2.0
"""Running sums of float32 without loss: pairs `high + low` of a rounded sum and its rounding error.

XLA keeps the order of floating-point additions, so the compensation is not simplified away. But its compilers may fuse
`a * b + c` into one rounding, and do so differently in different programs. `product` prevents that, so that every
program computes the same bits.

References:
    Knuth, The Art of Computer Programming, vol. 2, 4.2.2, theorem B (two-sum).
    Dekker, A floating-point technique for extending the available precision, Numerische Mathematik 18, 1971 (`add2`).
"""

from __future__ import annotations

from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

Pair: TypeAlias = tuple[jax.Array, jax.Array]
_LARGEST = np.finfo(np.float32).max


def exact_sum(a: jax.Array, b: jax.Array) -> Pair:
    """Returns a + b exactly, for any two floats."""
    total = a + b
    other = total - a
    return total, (a - (total - other)) + (b - other)


def add(a: Pair, b: Pair) -> Pair:
    """Returns a + b to about 45 bits."""
    high, low = exact_sum(a[0], b[0])
    low = low + (a[1] + b[1])
    total = high + low
    return total, low - (total - high)


def add_float(a: Pair, b: jax.Array) -> Pair:
    """Returns a + b to about 45 bits."""
    return add(a, (b, jnp.zeros_like(b)))


def product(a: jax.Array | float, b: jax.Array) -> jax.Array:
    """Returns a * b rounded to float32. The comparison prevents a fusion with a later addition."""
    return jnp.minimum(a * b, _LARGEST)
