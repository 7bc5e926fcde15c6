# SPDX-License-Identifier: Apache-2.0
"""`Buffer`: an array that changes during training and is not trained."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tallax._arrays import is_traced, to_device
from tallax._errors import InvalidTypeError, InvalidValueError, describe
from tallax.variables._base import StateVariable
from tallax.variables._metadata import Reduce
from tallax.variables._traced_state import without_gradient


class Buffer(StateVariable):
    """An array that changes during training and is never trained: a running statistic, a routing bias, a mask.

    Reads and writes are those of any `nnx.Variable` (`buffer[...]`, `buffer[i] = x`, `get_value()`, `set_value(x)`),
    and `buffer += x` and its kin write in place. A write keeps shape, dtype and weak type. Python scalars and weakly
    typed arrays follow the buffer's dtype, as in JAX's promotion; a Python scalar fills the whole buffer.

    | field | shape | dtype | reset value | reduction |
    |---|---|---|---|---|
    | value | that of `value` | that of `value`, strongly typed | - | `reduce` |

    Args:
        value: An array, or any object that `numpy.array` converts to one. As in JAX, 64-bit numbers become 32-bit
            unless x64 is enabled. An integer that does not fit raises.
        persistent: Whether checkpoints save the buffer.
        reduce: The reduction over replicas.
        **metadata: Further metadata of the `nnx.Variable`, such as `out_sharding`.

    Raises:
        InvalidTypeError: `value` or a written value is not an array, or a write would change the dtype.
        InvalidValueError: A write would change the shape, or `reduce` is unknown.
        TraceError: A write comes from a trace that the buffer does not belong to.

    Under transforms: gradients stop at every read and every write.

    Example:
        >>> import jax.numpy as jnp, tallax
        >>> bias = tallax.Buffer(jnp.zeros(4))
        >>> bias += 0.5
        >>> bias[0] = 2.0
        >>> bias[...]
        Array([2. , 0.5, 0.5, 0.5], dtype=float32)
    """

    _compared_by = "buffer[...] > x"
    _written_by = "self.{name}[...] = x"

    def __init__(self, value: Any, *, persistent: bool = True, reduce: Reduce = "replicated", **metadata: Any):
        super().__init__(_strong(value), persistent=persistent, reduce=reduce, metadata=metadata)

    def get_value(self, *, index: Any = ...) -> jax.Array:
        """Returns the array, or the part of it at `index`. No gradient flows through it."""
        raw = self._stored()
        if isinstance(raw, np.ndarray):
            raw = to_device(raw)
        return raw if index is ... else raw[index]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = np.asarray(self._stored(), dtype)
        return array if copy is False else array.copy()

    def __bool__(self) -> bool:
        return bool(self.get_value())  # Flax's own `__bool__` uses the length

    def set_value(self, value: Any, *, index: Any = ...) -> None:
        """Overwrites the array, or the part of it at `index`, with `value`, which is broadcast."""
        raw = self._stored()
        if index is ... and self._place_abstract(value):
            return
        if index is not ...:
            self._store(jnp.asarray(raw).at[index].set(self._fitting(value, raw, shape=None)))
        else:
            self._store(self._fitting(value, raw, shape=raw.shape))

    def _fitting(self, value: Any, raw: Any, shape: tuple[int, ...] | None) -> Any:
        """Returns `value` as a strongly typed array of the buffer's dtype, and of `shape` if it is given."""
        if isinstance(value, nnx.Variable):
            value = value.get_value()
        scalar = isinstance(value, bool | int | float | complex)
        weak = scalar or _is_weak(value)
        if not scalar and not isinstance(value, jax.Array | np.ndarray | np.generic):
            raise InvalidTypeError(
                self,
                "only arrays and numbers can be written to a Buffer.",
                got=describe(value),
                expected=describe(raw).partition(" (")[0],
                fix="buffer[...] = jnp.asarray(x, buffer.dtype)",
            )
        if not (_dtype_of(value) == raw.dtype or (weak and _rank(value) <= _rank(raw))):
            raise InvalidTypeError(
                self,
                "a write must not change the dtype of a Buffer.",
                got=describe(value),
                expected=str(raw.dtype),
                fix=f"cast the value explicitly: buffer[...] = x.astype({str(raw.dtype)!r})",
            )
        if shape is not None and not scalar and value.shape != shape:
            raise InvalidValueError(
                self,
                "a write must not change the shape of a Buffer.",
                got=describe(value),
                expected=describe(raw).partition(" (")[0],
                fix="buffer[...] = jnp.broadcast_to(x, buffer.shape), or buffer[index] = x to write a part",
            )
        if isinstance(value, jax.Array):
            value = jax.lax.convert_element_type(value, raw.dtype) if weak else value
            return without_gradient(value) if is_traced(value) else value
        array = _narrowed(np.asarray(value), raw.dtype, item=self)
        return np.broadcast_to(array, shape).copy() if shape is not None else array.copy()


def _in_place(operation: Callable[[Any, Any], Any]) -> Callable[[Buffer, Any], Buffer]:
    def write(self: Buffer, other: Any) -> Buffer:
        self.set_value(operation(self.get_value(), _operand(other, self)))
        return self

    return write


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_", "xor"):
    setattr(Buffer, f"__i{_name.rstrip('_')}__", _in_place(getattr(operator, _name)))


def _operand(value: Any, buffer: Buffer) -> Any:
    """Returns the right operand of an in-place operator. Raises for an integer that JAX would truncate to 32 bits."""
    is_float = jnp.issubdtype(buffer.dtype, jnp.inexact)
    if type(value) is int:
        if is_float:
            return value if abs(value) < 2**31 else float(value)
        widest = np.iinfo(jax.dtypes.canonicalize_dtype(np.int64))
        if not widest.min <= value <= widest.max:
            raise _does_not_fit(value, widest.dtype, item=buffer)
    elif isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "iu":
        dtype = jax.dtypes.canonicalize_dtype(value.dtype)
        if is_float and not np.array_equal(np.asarray(value).astype(dtype), value):
            return np.asarray(value).astype(buffer.dtype)
        return _narrowed(np.asarray(value), dtype, item=buffer)
    return value


def _strong(value: Any) -> Any:
    """Returns `value` as a strongly typed array. It stays on the host unless it is already a `jax.Array`."""
    if isinstance(value, nnx.Variable):
        value = value.get_value()
    if isinstance(value, jax.Array):
        value = jax.lax.convert_element_type(value, value.dtype) if _is_weak(value) else value
        return jax.lax.stop_gradient(value) if is_traced(value) else value
    try:
        array = np.array(value)
    except ValueError:  # ragged lists
        array = None
    if array is None or not (jnp.issubdtype(array.dtype, jnp.number) or array.dtype == np.bool_):
        raise InvalidTypeError(
            "Buffer",
            "a Buffer requires one array.",
            got=describe(value),
            fix="jnp.asarray(x), or one Buffer for each array",
        )
    return _narrowed(array, jax.dtypes.canonicalize_dtype(array.dtype), item="Buffer")


def _is_weak(value: Any) -> bool:
    return isinstance(value, jax.Array) and getattr(value, "weak_type", False)  # arrays of keys have no weak type


def _rank(value: Any) -> int:
    """Returns the rank of a dtype in bool < int < float < complex. A weak type follows dtypes of at least its rank."""
    dtype = getattr(value, "dtype", None) or np.dtype(type(value))
    kinds = (jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating)
    return next((rank for rank, kind in enumerate(kinds) if jnp.issubdtype(dtype, kind)), -1)


def _dtype_of(value: Any) -> Any:
    """Returns the dtype that `value` has on the device, or None for a Python scalar."""
    if isinstance(value, np.ndarray | np.generic):
        return jax.dtypes.canonicalize_dtype(value.dtype)
    return getattr(value, "dtype", None)


def _narrowed(array: np.ndarray, dtype: Any, *, item: object) -> np.ndarray:
    """Returns `array` in `dtype`. Raises if an integer does not fit."""
    narrow = array.astype(dtype)
    if array.dtype.kind in "iu" and narrow.dtype.kind in "iu" and not np.array_equal(narrow, array):
        raise _does_not_fit(array, narrow.dtype, item=item)
    return narrow


def _does_not_fit(value: Any, dtype: Any, *, item: object) -> InvalidValueError:
    return InvalidValueError(
        item,
        f"the integer does not fit into {dtype}.",
        got=describe(value),
        fix="tallax.Counter for counts beyond 32 bits, or a float dtype",
    )
