# SPDX-License-Identifier: Apache-2.0
"""Checks of increments and counts, and their conversion to uint64 if the value is known on the host."""

from __future__ import annotations

import contextlib
import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tallax import _uint64
from tallax._arrays import is_ready, is_traced, unsplit
from tallax._errors import InvalidTypeError, InvalidValueError, describe

_MOST = 2**31 - 1  # entries of an array of counts
_widen = jax.jit(_uint64.widen, inline=True)


def amount_of(value: Any, *, item: object, limit: int | None = None) -> Any:
    """Returns an increment or count as uint64 on the host, or unchanged as an integer array that cannot be read here.

    An array cannot be read here if it is traced or spread over processes. It is also left unread if it is still being
    computed and cannot be negative.
    """
    if isinstance(value, nnx.Variable):
        value = value.get_value()
    if isinstance(value, jax.Array):
        check_integer(value, item=item)
        signed = jnp.issubdtype(value.dtype, jnp.signedinteger)
        if is_traced(value) or not value.is_fully_addressable or not (signed or is_ready(value)):
            return value
    return host_counts(value, item=item, limit=limit)


def limbs_of(value: Any, *, item: object, limit: int | None = _uint64.MAX) -> Any:
    """Returns the limbs of an increment or count. A number beyond `limit` raises, or saturates if `limit` is None."""
    amount = amount_of(value, item=item, limit=limit)
    return _uint64.from_uint64(amount) if isinstance(amount, np.ndarray) else _widen(amount)


def word_of(amount: Any, axes: tuple[int, ...], limit: int | None) -> tuple[Any, int] | None:
    """Returns the sum of an amount over `axes` as uint32, and its upper bound, or None if 32 bits may not suffice.

    `limit` bounds each entry more tightly than the maximum of its dtype.
    """
    if isinstance(amount, np.ndarray):
        most = int(amount.max(initial=0))
        return (amount.astype(np.uint32)[()], most) if most <= _uint64.WORD else None
    most = 1 if amount.dtype == np.bool_ else int(jnp.iinfo(amount.dtype).max)
    most = most if limit is None else min(most, limit)
    most *= math.prod(amount.shape[axis] for axis in axes)
    return (_sum(amount, axes), most) if most <= _uint64.WORD else None


def _sum(amount: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    values = _uint64.unsigned(amount).astype(jnp.uint32)
    return unsplit(values.sum(axes, dtype=jnp.uint32) if axes else values)


def check_broadcasts(value: Any, shape: tuple[int, ...], *, item: object) -> None:
    """Raises if an array does not broadcast to a counter's shape."""
    came = getattr(value, "shape", ())
    fits = zip(reversed(came), reversed(shape), strict=False)
    if len(came) > len(shape) or not all(size in (1, own) for size, own in fits):
        raise wrong_shape(value, shape, item=item)


def as_shape(shape: int | tuple[int, ...], *, item: object) -> tuple[int, ...]:
    """Returns a shape as a tuple. It may be given as one number.

    Raises:
        InvalidValueError: An entry is not a non-negative integer, or the shape has more than 2**31 - 1 entries.
    """
    with contextlib.suppress(TypeError):
        given = (shape,) if isinstance(shape, int | np.integer) else tuple(shape)
        sizes = tuple(map(operator.index, given))
        if all(size >= 0 for size in sizes) and math.prod(sizes) <= _MOST and bool not in map(type, given):
            return sizes
    raise InvalidValueError(
        item,
        "a shape must be a non-negative integer or a tuple of them.",
        got=f"shape={shape!r}",
        fix="shape=8, shape=(2, 8)",
    )


def wrong_shape(value: Any, shape: tuple[int, ...], *, item: object, ending: bool = False) -> InvalidValueError:
    """Returns the error for an array that does not broadcast to a counter's shape, or does not end in it."""
    expected = f"(..., {', '.join(map(str, shape))})" if ending and shape else str(shape)
    return InvalidValueError(
        item,
        f"a Counter of shape {shape} requires an array that {'ends in' if ending else 'broadcasts to'} its shape.",
        got=describe(value),
        expected=f"shape {expected}",
        fix="counter.count(events), which sums over the leading axes; or Counter(shape=...)",
    )


def refuse_negative(value: np.ndarray, old: np.ndarray, *, item: object) -> None:
    """Raises for a negative int32, unless it is a wrapped sum of the int32 value of `old` and an increment."""
    if np.any((value < 0) & ~_uint64.is_wrapped_sum(value, old)):
        raise negative(value, item=item)


def host_counts(value: Any, *, item: object, limit: int | None = None) -> np.ndarray:
    """Returns non-negative integers as uint64. A Python integer beyond 64 bits saturates, or raises above `limit`."""
    if isinstance(value, int):  # a large Python integer would become an object array in NumPy
        if value < 0:
            raise negative(value, item=item)
        if limit is not None and value > limit:
            raise InvalidValueError(
                item, "the largest count is 2**64 - 1.", got=describe(value), fix="a smaller number"
            )
        return np.array(min(value, _uint64.MAX), np.uint64)
    check_integer(value, item=item)
    array = np.asarray(value)
    if array.dtype != np.bool_ and not jnp.issubdtype(array.dtype, jnp.unsignedinteger) and np.any(array < 0):
        raise negative(array, item=item)
    return array.astype(np.uint64)


def check_integer(value: Any, *, item: object) -> None:
    """Raises if `value` is not an array of booleans or integers."""
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        if jnp.issubdtype(value.dtype, jnp.integer) or value.dtype == np.bool_:
            return
    raise InvalidTypeError(
        item,
        "a Counter takes non-negative integers.",
        got=describe(value),
        fix="self.step += 1, or count a condition with self.step.count(mask)",
    )


def negative(value: Any, *, item: object) -> InvalidValueError:
    return InvalidValueError(
        item,
        "a Counter takes non-negative integers.",
        got=describe(value),
        fix="counter.set(n) or counter.reset() to go back; a tallax.Buffer for a number that goes up and down",
    )


def is_comparable(value: Any) -> bool:
    """Returns whether a value can be compared: numbers, and values that are neither arrays nor collections."""
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return bool(jnp.issubdtype(value.dtype, jnp.number) or value.dtype == np.bool_)
    return not isinstance(value, list | tuple | set | frozenset | dict)
