# SPDX-License-Identifier: Apache-2.0
"""Exact, saturating 64-bit counts without 64-bit arrays.

JAX computes in 32 bits unless x64 is enabled for the whole program, so a count is kept as two uint32 *limbs* on the
last axis: `value = low + high * 2**32`. Everything here is exact up to 2**64 - 1, then saturates; nothing wraps.

There are two halves. On the host the limbs are joined, and arithmetic uses uint64 of NumPy or integers of Python. On
the device carries are found by comparison: in unsigned arithmetic `a + b < b` if and only if the sum wrapped (Knuth,
The Art of Computer Programming, vol. 2, 4.3.1, algorithm A, in radix 2**32).

Sums over many entries, or over replicas, cannot propagate carries in between. So each number is first split into digits
so narrow that no sum of digits can wrap. The digits are summed, and the carries are propagated once at the end.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from tallax._arrays import unsplit

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float32, Int, Int32, Shaped, UInt32

    Limbs = UInt32[Array, "*shape 2"]
    # The low words and the high words of counts. Many sums in a row keep them apart: XLA compiles a kernel for each
    # time that they are stacked.
    Columns = tuple[Array, Array]

MAX = 2**64 - 1
INT32_MAX = 2**31 - 1
WORD = 2**32 - 1
_DTYPE = np.dtype(np.uint32)  # a dtype is compared with it in a third of the time that `np.uint32` takes


# --- on the host: NumPy and Python integers ---------------------------------------------------------------------------


def is_limbs(value: Any) -> bool:
    """Returns whether a value can be limbs by its dtype. `has_limb_axis` also checks the shape."""
    return isinstance(value, np.ndarray | jax.Array) and value.dtype == _DTYPE


def has_limb_axis(value: Any) -> bool:
    """Returns whether a value is limbs: uint32, with a last axis of two."""
    return is_limbs(value) and value.ndim > 0 and value.shape[-1] == 2


def from_int(value: int) -> np.ndarray:
    """Returns the limbs, uint32[2], of a Python integer in [0, 2**64 - 1]."""
    return np.array((value & WORD, value >> 32), np.uint32)


def to_int(limbs: np.ndarray) -> int:
    """Returns the Python integer of limbs uint32[2]."""
    low, high = limbs.tolist()
    return low + (high << 32)


def full(shape: tuple[int, ...], value: int) -> np.ndarray:
    """Returns the limbs, uint32[*shape, 2], of counts that are all `value`."""
    return from_uint64(np.full(shape, value, np.uint64))


def from_uint64(values: np.ndarray) -> np.ndarray:
    """Returns the limbs, uint32[*shape, 2], of uint64[*shape]."""
    return np.array(values, np.uint64, order="C")[..., None].view(np.uint32)  # every platform of JAX is little-endian


def to_uint64(limbs: np.ndarray) -> np.ndarray:
    """Returns uint64[*shape] of the limbs uint32[*shape, 2], as a view if the limbs are contiguous."""
    return np.asarray(limbs, order="C").view(np.uint64)[..., 0]


def to_int32_on_host(limbs: np.ndarray) -> np.ndarray | np.int32:
    """Returns int32[*shape], saturated at 2**31 - 1, like `to_int32` on the device."""
    if limbs.ndim == 1:  # a scalar count: Python reads it in a third of NumPy's time
        return np.int32(min(to_int(limbs), INT32_MAX))
    return np.minimum(to_uint64(limbs), np.uint64(INT32_MAX)).astype(np.int32)


def add_uint64(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Returns the sum of two uint64 arrays, saturated at 2**64 - 1."""
    total = left + right
    return np.where(total < right, np.uint64(MAX), total)


def sum_uint64(values: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """Returns the sum of uint64 values over `axes`, saturated at 2**64 - 1."""
    if not axes:
        return values
    low = np.sum(values & np.uint64(WORD), axis=tuple(axes), dtype=np.uint64)  # exact below 2**32 entries
    high = np.sum(values >> np.uint64(32), axis=tuple(axes), dtype=np.uint64) + (low >> np.uint64(32))
    total = (high << np.uint64(32)) | (low & np.uint64(WORD))
    return np.where(high > np.uint64(WORD), np.uint64(MAX), total)


# --- on the device: traced arrays -------------------------------------------------------------------------------------


def pair(low: Shaped[Array, "*shape"], high: Shaped[Array, "*shape"] | int = 0) -> Limbs:
    """Returns limbs from their two words, cast to uint32."""
    low = unsplit(jnp.asarray(low).astype(jnp.uint32))
    high = jnp.broadcast_to(unsplit(jnp.asarray(high).astype(jnp.uint32)), low.shape)
    return jnp.stack([low, high], -1)


def widen(values: Shaped[Array, "*shape"]) -> Limbs:
    """Returns the limbs of an array of booleans or integers of any width; a negative entry becomes 0."""
    values = unsigned(values)
    if values.dtype.itemsize == 8:  # only if the program has enabled x64
        return pair(values & WORD, values >> 32)
    return pair(values)


def add(left: Limbs, right: Limbs) -> Limbs:
    """Returns the sum of two counts, saturated at 2**64 - 1."""
    return jnp.stack(add_columns((left[..., 0], left[..., 1]), (right[..., 0], right[..., 1])), -1)


def add_columns(left: Columns, right: Columns) -> Columns:
    """Returns the sum of two counts, saturated at 2**64 - 1."""
    low, high = left[0] + right[0], left[1] + right[1]
    carry = (low < right[0]).astype(jnp.uint32)
    carried = high + carry
    overflow = (high < right[1]) | (carried < carry)
    return jnp.where(overflow, jnp.uint32(WORD), low), jnp.where(overflow, jnp.uint32(WORD), carried)


def subtract_columns(left: Columns, right: Columns) -> Columns:
    """Returns the difference of two counts, of which the first is not smaller."""
    return left[0] - right[0], left[1] - right[1] - (left[0] < right[0]).astype(jnp.uint32)


def add_transposed(packed: UInt32[Array, "2 n"], words: UInt32[Array, " n"]) -> UInt32[Array, "2 n"]:
    """Returns the saturated sums of counts and one word each, for counts whose limbs are on the first axis.

    `tallax.compile_step` keeps all counts in one such array, so that low words are neighbours and one addition, one
    comparison and one carry serve all of them.
    """
    low, high = packed[0] + words, packed[1]
    carried = low < words
    full = carried & (high == np.uint32(WORD))
    high = high + carried.astype(jnp.uint32)
    return jnp.where(full, jnp.uint32(WORD), jnp.stack([low, high]))


def equal(left: Any, right: Any) -> Any:
    """Returns whether two counts are equal, computed with NumPy or JAX, depending on the arrays."""
    return (left == right).all(-1)


def is_zero(limbs: Any) -> Any:
    """Returns whether each count is 0, computed with NumPy or JAX, depending on the array."""
    return (limbs == 0).all(-1)


def less(left: Limbs, right: Limbs) -> Bool[Array, "*shape"]:
    """Returns whether each count is smaller than the other count."""
    low, high, other_low, other_high = left[..., 0], left[..., 1], right[..., 0], right[..., 1]
    return (high < other_high) | ((high == other_high) & (low < other_low))


def to_int32(limbs: Limbs) -> Int32[Array, "*shape"]:
    """Returns the count, saturated at 2**31 - 1."""
    fits = (limbs[..., 1] == 0) & (limbs[..., 0] <= INT32_MAX)
    return jnp.where(fits, limbs[..., 0], jnp.uint32(INT32_MAX)).astype(jnp.int32)


def to_float32(limbs: Limbs) -> Float32[Array, "*shape"]:
    """Returns the count rounded to float32."""
    return limbs[..., 1].astype(jnp.float32) * jnp.float32(2**32) + limbs[..., 0].astype(jnp.float32)


def assign(limbs: Limbs, values: Int[Array, "*shape"]) -> Limbs:
    """Returns the limbs after `values` were written over a count that was read by `to_int32`.

    This is a plain assignment with one exception, which keeps `x = counter.value; counter.value = x + n` exact: if
    int32 arithmetic has wrapped `x + n` to a negative number, `n` is recovered and added to the true count. Any other
    negative number leaves the count unchanged.
    """
    values = jnp.broadcast_to(jnp.asarray(values), limbs.shape[:-1])
    written = widen(values)
    negative = values < 0
    if values.dtype != jnp.int32:
        return jnp.where(negative[..., None], limbs, written)
    read = to_int32(limbs)
    added = values.astype(jnp.uint32) - read.astype(jnp.uint32)
    added = jnp.where(negative & (added <= INT32_MAX), added, jnp.uint32(0))
    kept = negative | ((read == INT32_MAX) & (values == INT32_MAX))
    return jnp.where(kept[..., None], add(limbs, pair(added)), written)


def is_wrapped_sum(written: np.ndarray, limbs: np.ndarray) -> np.ndarray:
    """Returns whether each int32 is the wrapped sum of `to_int32` of the count and an int32 >= 0.

    `assign` treats such a sum as an addition. On the host, any other negative number can be refused.
    """
    # NumPy warns about scalars that wrap, but not about arrays.
    written, read = np.atleast_1d(written), np.atleast_1d(to_int32_on_host(limbs))
    return written.astype(np.uint32) - read.astype(np.uint32) <= INT32_MAX


def total(values: Shaped[Array, ...], axes: Sequence[int]) -> Limbs:
    """Returns the exact sum over `axes` of an array of booleans or integers; a negative entry adds nothing.

    With n summands, at most 2**31 of them, digits of `32 - ceil(log2 n)` bits cannot wrap a uint32 sum. Booleans and
    bytes usually need only one digit, so counting a mask is one plain reduction.
    """
    values = unsigned(values)
    axes = tuple(axes)
    if values.dtype.itemsize == 8:
        low, high = total((values & WORD).astype(jnp.uint32), axes), total((values >> 32).astype(jnp.uint32), axes)
        overflow = high[..., 1] > 0
        return add(
            low, jnp.where(overflow[..., None], jnp.uint32(WORD), pair(jnp.zeros_like(high[..., 0]), high[..., 0]))
        )
    summands = math.prod(values.shape[axis] for axis in axes)
    bits = 1 if values.dtype == jnp.bool_ else 8 * values.dtype.itemsize
    width = 32 - max(summands - 1, 0).bit_length()
    if width >= bits:
        return pair(values.sum(axes, dtype=jnp.uint32))
    values = values.astype(jnp.uint32)
    result = None
    for shift in range(0, bits, width):
        digit = ((values >> shift) & (2**width - 1)).sum(axes, dtype=jnp.uint32)
        part = pair(digit << shift, digit >> (32 - shift) if shift else 0)
        result = part if result is None else add(result, part)
    assert result is not None
    return result


def psum(limbs: Limbs, axis_names: Sequence[Hashable]) -> Limbs:
    """Returns the exact sum of every replica's limbs over mapped axes, in one collective.

    Each count is split into four 16-bit digits, so the sum is exact for up to 65,536 replicas.
    """
    low, high = limbs[..., 0], limbs[..., 1]
    digits = jnp.stack([low & 0xFFFF, low >> 16, high & 0xFFFF, high >> 16])
    d0, d1, d2, d3 = jax.lax.psum(digits, tuple(axis_names))
    d1 = d1 + (d0 >> 16)
    d2 = d2 + (d1 >> 16)
    d3 = d3 + (d2 >> 16)
    result = jnp.stack([(d0 & 0xFFFF) | (d1 << 16), (d2 & 0xFFFF) | (d3 << 16)], -1)
    return jnp.where((d3 >> 16 > 0)[..., None], jnp.uint32(WORD), result)


def divisible(limbs: Limbs, divisor: int) -> Bool[Array, "*shape"]:
    """Returns whether each count is a multiple of `divisor`, a Python integer in [1, 2**31 - 1].

    It is a long division from the most significant digit. The digits are so narrow that the remainder, shifted by one
    digit, still fits 32 bits. The axis of the limbs is dropped at the end: XLA moves a reshape past one operation in
    each round of its simplification, and every round goes through the whole program.
    """
    width = 32 - (divisor - 1).bit_length() if divisor > 1 else 16
    width = max(w for w in (1, 2, 4, 8, 16) if w <= width)
    remainder = jnp.zeros_like(limbs[..., :1])
    for word in (limbs[..., 1:], limbs[..., :1]):
        for shift in range(32 - width, -1, -width):
            digit = (word >> shift) & (2**width - 1)
            remainder = ((remainder << width) | digit) % jnp.uint32(divisor)
    return (remainder == 0)[..., 0]


def unsigned(values: Shaped[Array, ...]) -> Shaped[Array, ...]:
    """Returns booleans and unsigned integers unchanged, and signed integers clamped at 0 and made unsigned."""
    values = jnp.asarray(values)
    if jnp.issubdtype(values.dtype, jnp.signedinteger):
        unsigned = jnp.dtype(f"uint{8 * values.dtype.itemsize}")
        return jnp.maximum(values, 0).astype(unsigned)
    return values
