# SPDX-License-Identifier: Apache-2.0
"""What may change its form: counters of other libraries and older models, numbers that a compiled step made arrays."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from tallax import _uint64
from tallax.checkpoints._manifest import Entry
from tallax.checkpoints._serialize import KEY, PYTHON, stored_dtype

_SORTS = (jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating)


class NoCountError(ValueError):
    """A value is no count, or not the same in another form; the text says why."""


def converts(saved: Entry, wanted: Entry) -> bool:
    """Returns whether an array may become a `Counter`, as far as shape and dtype tell."""
    if saved.dtype == "uint32" and saved.shape == wanted.shape:
        return not saved.kind  # the words of a Counter, saved by Orbax alone
    if saved.dtype not in PYTHON and not _is_number(saved.dtype):
        return False
    return saved.shape == wanted.shape[:-1] and saved.dtype not in ("bool", "complex")


def is_same_number(saved: Entry, wanted: Entry) -> bool:
    """Returns whether one is a number of Python's and the other an array of one, of the same sort.

    `nnx.jit` gives an array where a Variable held a number, so a model that was trained and a new one differ so.
    """
    if saved.shape or wanted.shape or (saved.dtype in PYTHON) == (wanted.dtype in PYTHON):
        return False
    return any(_is_a(sort, saved) and _is_a(sort, wanted) for sort in _SORTS)


def same_number(name: str, saved: Entry, wanted: Entry, array: np.ndarray) -> tuple[np.ndarray, str]:
    """Returns a number in the form that is wanted, and how it was converted.

    Raises:
        NoCountError: it would not be the same.
    """
    with np.errstate(over="ignore"):
        converted = array.astype(stored_dtype(wanted.dtype))
    if not np.array_equal(converted.astype(array.dtype), array, equal_nan=array.dtype.kind in "fc"):
        raise NoCountError(f"{saved.dtype} with {array.item()}, which {converted.dtype} does not have")
    return converted, f"{name}: {saved.dtype} -> {wanted.dtype}, the same number"


def counted(name: str, saved: Entry, array: np.ndarray) -> tuple[np.ndarray, str | None, str | None]:
    """Returns the words of a count, how it was converted, and a warning where the old form may have lost something.

    Raises:
        NoCountError: an entry is negative, or not whole.
    """
    if saved.shape == (*array.shape[:-1], 2) and saved.dtype == "uint32" and not saved.kind:
        return array, None, None
    return exact_counts(name, saved.dtype, array)


def exact_counts(name: str, dtype: str, array: np.ndarray) -> tuple[np.ndarray, str | None, str | None]:
    """As `counted`, of an array that is no Counter's."""
    values = array.astype(np.float64) if jnp.issubdtype(array.dtype, jnp.floating) else array
    if np.any(values < 0):
        why = "below 0: it wrapped around" if array.dtype.kind == "i" else "below 0"
        raise NoCountError(f"{dtype} with {values.min()}, which is {why}")
    if values.dtype == np.float64 and not np.array_equal(values, np.floor(values)):
        raise NoCountError(f"{dtype} with {values[values != np.floor(values)].flat[0]}, which is no whole number")
    if values.dtype == np.float64 and np.any(values >= 2.0**64):
        raise NoCountError(f"{dtype} with {values.max()}, which is beyond 64 bits")
    limit, why = _limit(array.dtype)
    warning = None
    if array.size and values.max() >= limit:
        warning = f"{name}: was {dtype} at {int(values.max())}, and {why}: the true count may be larger"
    return _uint64.from_uint64(values.astype(np.uint64)), f"{name}: {dtype} -> exact count", warning


def _limit(dtype: np.dtype) -> tuple[float, str]:
    if jnp.issubdtype(dtype, jnp.floating):
        bits = jnp.finfo(dtype).nmant + 1
        return 2**bits, f"{dtype} adds nothing to 2**{bits}"
    most = int(np.iinfo(dtype).max)
    return most, f"{dtype} ends there"


def _is_a(sort: Any, entry: Entry) -> bool:
    return not entry.dtype.startswith(KEY) and bool(jnp.issubdtype(stored_dtype(entry.dtype), sort))


def _is_number(dtype: str) -> bool:
    """Returns whether a dtype is one of real numbers, which a count may be in."""
    kind = stored_dtype(dtype)
    is_real = jnp.issubdtype(kind, jnp.number) and not jnp.issubdtype(kind, jnp.complexfloating)
    return bool(is_real) and not dtype.startswith(KEY)
