# SPDX-License-Identifier: Apache-2.0
"""Encodes arrays, random keys, numbers and names for a checkpoint, and decodes them; computes checksums."""

from __future__ import annotations

import functools
import math
import urllib.parse
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tallax._arrays import is_committed, is_in_host_memory, placed, unsplit
from tallax._walk import key_name

RESERVED = "tallax"  # the name of the manifest in a checkpoint
KEY = "key:"
PYTHON = {"bool": bool, "int": int, "float": float, "complex": complex}
_WIDENED = {"uint2": "uint8", "uint4": "uint8"}  # dtypes that Orbax does not support, and their storage dtypes


def dtype_of(leaf: Any) -> str:
    """Returns the dtype of a leaf in a manifest. For a random key this is its implementation, for a number its type."""
    if isinstance(leaf, bool | int | float | complex) and not isinstance(leaf, np.generic):
        return type(leaf).__name__
    if is_key(leaf):
        return f"{KEY}{_key_impl(leaf)}"
    return str(np.dtype(leaf.dtype))


def is_key(leaf: Any) -> bool:
    """Returns whether a leaf is an array of typed random keys, possibly abstract."""
    return isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _key_impl(leaf: Any) -> str:
    names: list[Any] = []
    if isinstance(leaf, jax.Array):
        return str(jax.random.key_impl(leaf))
    jax.eval_shape(lambda keys: names.append(jax.random.key_impl(keys)), leaf)
    return str(names[0])


def is_abstract(leaf: Any) -> bool:
    """Returns whether a leaf has a shape and a dtype but no value, as in a model of `nnx.eval_shape`."""
    return isinstance(leaf, jax.ShapeDtypeStruct)


def is_placed(leaf: Any) -> bool:
    """Returns whether a leaf, possibly abstract, belongs on particular devices."""
    return is_committed(leaf) or (is_abstract(leaf) and leaf.sharding is not None)


def is_writable(dtype: str) -> bool:
    """Returns whether Orbax can write arrays of this dtype, unchanged or as converted by `stored`."""
    if dtype.startswith(KEY) or dtype in PYTHON:
        return True
    kind = np.dtype(_WIDENED.get(dtype, dtype))  # NumPy knows JAX's dtypes, but also text, dates and long numbers
    is_number = jnp.issubdtype(kind, jnp.number) or kind == np.bool_
    return bool(is_number) and kind.itemsize <= (16 if kind.kind == "c" else 8)


def stored(leaf: Any) -> Any:
    """Returns a leaf as the array that is written: a `jax.Array` stays one, and anything else becomes a NumPy array.

    Raises:
        OverflowError: The leaf is a Python integer beyond 64 bits.
    """
    if is_key(leaf):
        return jax.random.key_data(leaf)
    if isinstance(leaf, jax.Array | np.ndarray):
        wide = _WIDENED.get(str(leaf.dtype))
        return leaf if wide is None else leaf.astype(wide)
    return np.asarray(leaf, np.int64) if type(leaf) is int else np.asarray(leaf)


def in_place_of(leaf: Any, array: Any, dtype: str, *, on_host: bool = False) -> Any:
    """Returns a stored array in the form and on the devices of an object's value, the inverse of `stored`.

    With `on_host`, an abstract leaf without a sharding becomes a NumPy array, as in a new counter.
    """
    if dtype in PYTHON and not isinstance(leaf, jax.Array | np.ndarray | np.generic):
        return PYTHON[dtype](np.asarray(array).item())
    if dtype in _WIDENED:
        array = array.astype(stored_dtype(dtype, widened=False))
    if isinstance(leaf, np.ndarray | np.generic) or (on_host and is_abstract(leaf) and not is_placed(leaf)):
        host = np.array(array)
        return host[()] if isinstance(leaf, np.generic) else host
    if dtype.startswith(KEY):
        words = array if isinstance(array, jax.Array) else jnp.asarray(array)
        keys = jax.random.wrap_key_data(words, impl=dtype.removeprefix(KEY))
        return placed(keys, leaf.sharding) if is_placed(leaf) else keys
    if not is_placed(leaf):
        return _weak(np.asarray(array)) if leaf.weak_type else jnp.asarray(np.asarray(array))
    if leaf.weak_type and leaf.sharding.is_fully_addressable:
        return placed(_weak(np.asarray(array)), leaf.sharding)
    if isinstance(array, jax.Array) and array.sharding == leaf.sharding:
        return array
    is_spread_out = isinstance(array, jax.Array) and array.is_fully_addressable > leaf.sharding.is_fully_addressable
    return placed(np.asarray(array) if is_spread_out else array, leaf.sharding)


def _weak(host: np.ndarray) -> jax.Array:
    """Returns an array with the same bits and a weak type, so that it does not widen other arrays in a product."""
    weak = jnp.asarray(host.item() if host.ndim == 0 else host.dtype.type(0).item())
    if weak.dtype != host.dtype:  # x64 was changed since the array was saved
        return jnp.asarray(host)
    return weak if host.ndim == 0 else jnp.broadcast_to(weak, host.shape).at[...].set(host)


def stored_dtype(dtype: str, *, widened: bool = True) -> np.dtype[Any]:
    """Returns the dtype in which a leaf is written, given the result of `dtype_of`.

    With `widened`, a dtype that Orbax does not support is replaced by the stored dtype.

    Raises:
        TypeError: The dtype is unknown.
    """
    if dtype.startswith(KEY):
        return np.dtype(np.uint32)
    if dtype in PYTHON:
        return np.dtype({"bool": np.bool_, "int": np.int64, "float": np.float64, "complex": np.complex128}[dtype])
    return jnp.dtype(_WIDENED.get(dtype, dtype) if widened else dtype)


def needs_numpy(dtype: Any) -> bool:
    """Returns whether JAX would cast this dtype: 64 bits without x64."""
    if jnp.issubdtype(dtype, jax.dtypes.extended):  # random keys
        return False
    return jax.dtypes.canonicalize_dtype(dtype) != dtype


def size_of(shape: Sequence[int], dtype: str) -> int:
    """Returns the number of bytes that are written."""
    return math.prod(shape) * stored_dtype(dtype).itemsize


def sums_of(arrays: Sequence[Any]) -> list[int]:
    """Returns the sum of each array's words modulo 2**32, a checksum of the written values.

    It does not depend on the devices. It is as fast as reading the memory, on the host and on a device.
    """
    sums: list[Any] = []
    for array in arrays:
        is_elsewhere = isinstance(array, jax.Array) and not (array.is_fully_addressable and is_in_host_memory(array))
        sums.append(_sum_of(array) if is_elsewhere else _sum_on_host(np.asarray(array)))
    return [int(np.asarray(total)) for total in sums]  # waits only after all sums are under way


def _sum_on_host(array: np.ndarray) -> int:
    flat = np.ascontiguousarray(array.astype(np.int8) if _is_narrow(array.dtype) else array).reshape(-1)
    if flat.dtype.itemsize == 1:
        return int(flat.view(np.uint8).sum(dtype=np.uint32))
    width = 2 if flat.dtype.itemsize == 2 else 4
    return int(flat.view(f"uint{8 * width}").sum(dtype=np.uint32))


@jax.jit
def _sum_of(array: jax.Array) -> jax.Array:
    if array.dtype == jnp.bool_ or _is_narrow(array.dtype):
        array = array.astype(jnp.int8)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        return _sum_of(array.real) + _sum_of(array.imag)
    width = min(array.dtype.itemsize, 4)
    words = jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{8 * width}"))
    return unsplit(words.astype(jnp.uint32).sum(dtype=jnp.uint32))


def _is_narrow(dtype: Any) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.integer)) and jnp.iinfo(dtype).bits < 8


def joined(parts: Sequence[Any], *, quoted: int = 0) -> str:
    """Returns a path, also one of JAX's, as one name. Slashes, dots and unprintable characters in it are quoted.

    The first `quoted` parts are already quoted.
    """
    names = [part if part.__class__ is str else key_name(part) for part in parts]
    return "/".join([*names[:quoted], *map(_quoted, names[quoted:])])


@functools.lru_cache(maxsize=4096)
def _quoted(part: str) -> str:
    # Orbax joins the keys of a tree by dots, so {"a.b": x} and {"a": {"b": x}} would collide.
    return urllib.parse.quote(part, safe=" ").replace(".", "%2E") or "%"
