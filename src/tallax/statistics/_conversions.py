# SPDX-License-Identifier: Apache-2.0
"""Converts values from the host to 32 bits without wrapping.

Without x64, JAX truncates a 64-bit integer to its low 32 bits, so that 3,000,000,000 becomes a negative number. Here,
if one integer of an array does not fit, the array becomes float32, in which statistics compute anyway.
"""

from __future__ import annotations

import numbers
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tallax import _uint64
from tallax._arrays import is_traced
from tallax.variables import Counter

# The conversion of a float64 beyond float32: to infinity, to the largest float32, or to 0 or 1 if only zero matters.
Rounding: TypeAlias = Literal["infinite", "largest", "nonzero"]
_LARGEST, _LEAST = np.finfo(np.float32).max, np.finfo(np.float32).tiny


def as_real_array(x: Any, rounding: Rounding = "infinite") -> jax.Array | None:
    """Returns booleans, integers or floats as a JAX array, rounded if JAX accepts only 32 bits.

    Args:
        x: An array, a Variable, a number, or nested lists of numbers.
        rounding: The conversion of numbers that float32 cannot represent.

    Returns:
        The array, or None if `x` is none of these.
    """
    if isinstance(x, nnx.Variable):
        x = _value_of(x)
    if not isinstance(x, jax.Array):
        if any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(x)):
            x = _stacked(x)
        else:
            x = _from_host(x, rounding)
    return x if isinstance(x, jax.Array) and _is_real(x.dtype) else None


def as_number(value: Any) -> float | None:
    """Returns an argument as a float, or None if it is not a number, for example a bool or text."""
    if isinstance(value, np.ndarray | jax.Array) and value.ndim == 0 and not is_traced(value):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def _is_real(dtype: Any) -> bool:
    number = jnp.issubdtype(dtype, jnp.number) and not jnp.issubdtype(dtype, jnp.complexfloating)
    return bool(number or dtype == jnp.bool_)


def _value_of(variable: nnx.Variable[Any]) -> Any:
    if not isinstance(variable, Counter):
        return variable.get_value()
    words = variable._words()  # `get_value` would saturate
    return _uint64.to_float32(words) if is_traced(words) else _uint64.to_uint64(np.asarray(words))


def _stacked(x: Any) -> Any:
    """Returns lists of JAX arrays as one array, or None."""
    try:
        return jnp.asarray(x)
    except (TypeError, ValueError, OverflowError):
        return None


def _from_host(x: Any, rounding: Rounding) -> Any:
    try:
        array = np.asarray(x)
        if array.dtype == object and all(type(entry) is int for entry in array.flat):
            array = array.astype(np.float64)  # integers beyond 64 bits
    except (TypeError, ValueError, OverflowError):
        return None
    if not _is_real(array.dtype):
        return None
    if jnp.issubdtype(array.dtype, jnp.floating):
        wide = array.dtype.itemsize > np.dtype(jax.dtypes.canonicalize_dtype(np.float64)).itemsize
        array = _narrowed(array, rounding) if wide else array
    elif jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
        narrow = array.astype(jax.dtypes.canonicalize_dtype(array.dtype))
        array = narrow if np.array_equal(narrow, array) else array.astype(np.float32)
    return jnp.asarray(array)


def _narrowed(array: np.ndarray, rounding: Rounding) -> np.ndarray:
    if rounding == "largest":
        array = np.where(np.isinf(array), array, np.clip(array, -_LARGEST, _LARGEST))
    with np.errstate(over="ignore", under="ignore"):
        narrow = array.astype(np.float32)
    if rounding == "nonzero":  # also if rounding gives zero, or a subnormal number, which XLA flushes
        narrow = np.where((np.abs(narrow) < _LEAST) & (array != 0), np.float32(1), narrow)
    return narrow
