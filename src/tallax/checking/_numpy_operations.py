# SPDX-License-Identifier: Apache-2.0
"""Evaluates single operations of a jaxpr in NumPy, if the result has the bits that XLA computes.

XLA compiles a program for each operation and shape, which takes 20 to 40 ms, and JAX takes 50 microseconds to run it.
NumPy takes five. Most operations of a trace move data, count, compare or add, and their results are exact, so both
agree. The others are left to XLA: sums and products of many floats, whose order is XLA's, functions such as `exp`, and
results that XLA treats in its own way: NaN, and floats so small that XLA flushes them to zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


class LeftToXla(Exception):  # noqa: N818 - no fault
    """The result might differ from that of XLA."""


def in_numpy(eqn: Any, arguments: Sequence[Any]) -> Any:
    """Returns the result of an equation with one result, as a NumPy array.

    Raises:
        LeftToXla: The result might differ from that of XLA.
    """
    operation = OPERATIONS.get(eqn.primitive.name)
    kinds = [var.aval for var in (*eqn.invars, *eqn.outvars)]
    if operation is None or not all(isinstance(getattr(kind, "dtype", None), np.dtype) for kind in kinds):
        raise LeftToXla
    with np.errstate(all="ignore"):
        arrays = [np.asarray(x, kind.dtype) for x, kind in zip(arguments, kinds, strict=False)]
        return operation(eqn.params, *arrays)


# --- arithmetic -------------------------------------------------------------------------------------------------------

_SINGLE = (np.dtype(np.float32), np.dtype(np.float64))


def _is_integer(x: np.ndarray) -> bool:
    return x.dtype.kind in "iu"


def _require_order(*arrays: np.ndarray) -> None:
    """Raises `LeftToXla` if there may be a NaN, or a negative zero, which XLA orders below zero."""
    for x in arrays:
        if x.dtype.kind not in "biu" and (np.any(np.isnan(x)) or np.any(np.signbit(x) & (x == 0))):
            raise LeftToXla


def _ordered(function: Callable[..., Any]) -> Callable[..., Any]:
    def operation(params: Any, *arrays: np.ndarray) -> Any:
        _require_order(*arrays)
        return function(*arrays)

    return operation


def _arithmetic(function: Callable[..., Any]) -> Callable[..., Any]:
    def operation(params: Any, *arrays: np.ndarray) -> Any:
        if params.get("out_dtype") is not None:
            raise LeftToXla
        return _exact(function(*arrays))

    return operation


def _exact(result: Any) -> Any:
    if _is_integer(result):
        return result
    if result.dtype not in _SINGLE:
        raise LeftToXla
    size = np.abs(result)
    tiny = np.finfo(result.dtype).smallest_normal
    if not np.all((size >= tiny) | (size == 0)):  # False for NaN as well
        raise LeftToXla
    return result


def _divided(params: Any, x: np.ndarray, y: np.ndarray) -> Any:
    if _is_integer(x):  # XLA has its own results for division by zero
        raise LeftToXla
    return _exact(np.divide(x, y))


def _to_the_power(params: Any, x: np.ndarray) -> Any:
    if params["y"] != 2:
        raise LeftToXla
    return _exact(x * x)


def _shifted(function: Callable[..., Any]) -> Callable[..., Any]:
    def operation(params: Any, x: np.ndarray, count: np.ndarray) -> Any:
        if x.dtype.kind != "u" or np.any(count >= 8 * x.dtype.itemsize):
            raise LeftToXla
        return function(x, count)

    return operation


def _converted(params: Any, x: np.ndarray) -> Any:
    dtype = np.dtype(params["new_dtype"])
    if params.get("sharding") is not None or (x.dtype.kind not in "biu" and dtype.kind != "f"):
        raise LeftToXla  # from float to integer, XLA saturates
    result = x.astype(dtype)
    return result if dtype.kind in "biu" else _exact(result)


# --- comparisons and choices ------------------------------------------------------------------------------------------


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda params, *arrays: function(*arrays)


def _selected(params: Any, which: np.ndarray, *cases: np.ndarray) -> Any:
    if which.dtype.kind != "b" or len(cases) != 2:
        raise LeftToXla
    return np.where(which, cases[1], cases[0])


def _reduced(function: Any, kinds: str) -> Callable[..., Any]:
    def operation(params: Any, x: np.ndarray) -> Any:
        if x.dtype.kind not in kinds:
            raise LeftToXla
        _require_order(x)
        return function.reduce(x, axis=tuple(params["axes"]), dtype=x.dtype)

    return operation


def _position(function: Callable[..., Any]) -> Callable[..., Any]:
    def operation(params: Any, x: np.ndarray) -> Any:
        (axis,) = params["axes"]
        _require_order(x)
        return function(x, axis=axis).astype(params["index_dtype"])

    return operation


# --- movement ---------------------------------------------------------------------------------------------------------


def _broadcast(params: Any, x: np.ndarray) -> Any:
    shape = [1] * len(params["shape"])
    for axis, size in zip(params["broadcast_dimensions"], x.shape, strict=True):
        shape[axis] = size
    return np.broadcast_to(x.reshape(shape), params["shape"])


def _reshaped(params: Any, x: np.ndarray) -> Any:
    if params["dimensions"] is not None:
        raise LeftToXla
    return x.reshape(params["new_sizes"])


def _sliced(params: Any, x: np.ndarray) -> Any:
    strides = params["strides"] or (1,) * x.ndim
    return x[tuple(map(slice, params["start_indices"], params["limit_indices"], strides))]


def _window(x: np.ndarray, sizes: Sequence[int], starts: Sequence[np.ndarray]) -> tuple[slice, ...]:
    """Returns the part of `x` that starts there, moved inside if it would reach beyond."""
    first = [max(0, min(int(start), of - size)) for start, size, of in zip(starts, sizes, x.shape, strict=True)]
    return tuple(slice(start, start + size) for start, size in zip(first, sizes, strict=True))


def _dynamically_sliced(params: Any, x: np.ndarray, *starts: np.ndarray) -> Any:
    return x[_window(x, params["slice_sizes"], starts)]


def _dynamically_updated(params: Any, x: np.ndarray, update: np.ndarray, *starts: np.ndarray) -> Any:
    result = x.copy()
    result[_window(x, update.shape, starts)] = update
    return result


def _numbered(params: Any) -> Any:
    shape, axis = params["shape"], params["dimension"]
    row = np.arange(shape[axis]).astype(params["dtype"])
    return np.broadcast_to(row.reshape([-1 if k == axis else 1 for k in range(len(shape))]), shape)


def _same_bits(params: Any, x: np.ndarray) -> Any:
    if np.dtype(params["new_dtype"]).itemsize != x.dtype.itemsize:
        raise LeftToXla
    return np.ascontiguousarray(x).reshape(x.shape).view(params["new_dtype"])


OPERATIONS: dict[str, Callable[..., Any]] = {
    "add": _arithmetic(np.add),
    "add_any": _arithmetic(np.add),
    "sub": _arithmetic(np.subtract),
    "mul": _arithmetic(np.multiply),
    "neg": _arithmetic(np.negative),
    "max": _ordered(np.maximum),
    "min": _ordered(np.minimum),
    "clamp": _ordered(lambda low, x, high: np.minimum(np.maximum(x, low), high)),
    "square": _arithmetic(np.square),
    "integer_pow": _to_the_power,
    "div": _divided,
    "shift_right_logical": _shifted(np.right_shift),
    "shift_left": _shifted(np.left_shift),
    "convert_element_type": _converted,
    "eq": _plain(np.equal),
    "ne": _plain(np.not_equal),
    "lt": _plain(np.less),
    "le": _plain(np.less_equal),
    "gt": _plain(np.greater),
    "ge": _plain(np.greater_equal),
    "and": _plain(np.bitwise_and),
    "or": _plain(np.bitwise_or),
    "xor": _plain(np.bitwise_xor),
    "not": _plain(np.invert),
    "is_finite": _plain(np.isfinite),
    "stop_gradient": _plain(lambda x: x),
    "copy": _plain(lambda x: x),
    "select_n": _selected,
    "reduce_sum": _reduced(np.add, "iu"),
    "reduce_max": _reduced(np.maximum, "iuf"),
    "reduce_min": _reduced(np.minimum, "iuf"),
    "reduce_and": _reduced(np.logical_and, "b"),
    "reduce_or": _reduced(np.logical_or, "b"),
    "argmin": _position(np.argmin),
    "argmax": _position(np.argmax),
    "broadcast_in_dim": _broadcast,
    "reshape": _reshaped,
    "squeeze": lambda params, x: np.squeeze(x, tuple(params["dimensions"])),
    "transpose": lambda params, x: np.transpose(x, params["permutation"]),
    "concatenate": lambda params, *arrays: np.concatenate(arrays, params["dimension"]),
    "stack": lambda params, *arrays: np.stack(arrays, params["axis"]),
    "slice": _sliced,
    "dynamic_slice": _dynamically_sliced,
    "dynamic_update_slice": _dynamically_updated,
    "iota": _numbered,
    "bitcast_convert_type": _same_bits,
}
