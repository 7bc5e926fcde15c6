# SPDX-License-Identifier: Apache-2.0
"""`Counter`: exact counts, eager on the host and traced on the device."""

from __future__ import annotations

from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np

from tallax import _uint64
from tallax._arrays import is_traced, to_device
from tallax._errors import InvalidTypeError, InvalidValueError, ReplicasError, TracedReadError, describe
from tallax._mesh_axes import AxisName, on_first, varying_axes
from tallax.variables._count_inputs import (
    amount_of,
    as_shape,
    check_broadcasts,
    host_counts,
    is_comparable,
    limbs_of,
    refuse_negative,
    wrong_shape,
)
from tallax.variables._count_storage import READS, CountStorage, is_kept_by_flax, refuse_cast

# Compiled once, for eager use.
_assign_on_device = jax.jit(_uint64.assign)
_int32_on_device = jax.jit(_uint64.to_int32)
_total = jax.jit(_uint64.total, static_argnums=1, inline=True)
_divisible = jax.jit(_uint64.divisible, static_argnums=1, inline=True)

_uint32 = np.dtype(np.uint32)


class Counter(CountStorage):  # noqa: PLW1641 - unhashable, as in Flax
    """An exact count, or an array of counts: exact up to 2**64 - 1 without x64, then saturated.

    `counter += n` counts, also under transformations. `int(counter)` is the exact count on the host.
    `np.asarray(counter)` is `uint64[*shape]`. `counter[...]`, `counter.value` and `counter.get_value()` return
    `int32[*shape]`, saturated at 2**31 - 1, for schedules and comparisons; assigning any of these three sets the count.
    `==` and `!=` return `bool[*shape]`. They compare exact counts with another Counter, a Python integer or NumPy
    integers, and int32 values with anything else. `nnx.to_pure_dict` and `nnx.bridge` get the exact words, because they
    write them back later.

    | field | shape | dtype | reset value | reduction |
    |---|---|---|---|---|
    | value | `(*shape, 2)`: low and high word; leading axes may be added by vmap or scan | uint32 | 0 | `reduce` |

    Args:
        start: The first count, an integer in [0, 2**64 - 1].
        shape: The shape of the counts, for example the number of experts. Each count starts at `start`.
        persistent: Whether checkpoints save the counter.
        reduce: The reduction over replicas. Use "replicated" for events that all replicas count together, such as
            steps. Inside `shard_map`, an increment that is the same everywhere then counts once, without
            `axis_name=()`.
        **metadata: Further metadata of the `nnx.Variable`.

    Raises:
        InvalidTypeError: A count or increment is not an integer.
        InvalidValueError: A count or increment is negative, or does not broadcast to the counter's shape. `start` is
            beyond 2**64 - 1, or `shape` is not a valid shape.
        TraceError: A write comes from a trace that the counter does not belong to.
        TracedReadError: `int(counter)` or `np.asarray(counter)` was called inside a trace.

    Under transforms: a negative traced increment adds nothing, because its value is unknown when the step is traced.
    Inside `shard_map` an increment is summed over the axes it varies on (see `increment`).

    Example:
        >>> import tallax
        >>> seen = tallax.Counter(2**40)
        >>> seen += 5
        >>> int(seen)
        1099511627781
    """

    _compared_by = "int(counter) > n on the host; counter.value > n, or counter.every(n), in a compiled function"
    _written_by = "self.{name} += 1, self.{name}.set(n)"

    def __init__(
        self,
        start: int = 0,
        *,
        shape: int | tuple[int, ...] = (),
        persistent: bool = True,
        reduce: Literal["sum", "replicated"] = "sum",
        **metadata: Any,
    ):
        if _uint64.has_limb_axis(start) and is_kept_by_flax():  # nnx.bridge creates a Variable from words
            super().__init__(start, persistent=persistent, reduce=reduce, metadata=metadata)
            return
        shape = as_shape(shape, item="Counter")
        first = host_counts(start, item="Counter", limit=_uint64.MAX)
        if first.ndim:
            raise InvalidValueError(
                "Counter",
                "start must be a scalar.",
                got=describe(start),
                fix="Counter(shape=x.shape), then counter.set(x)",
            )
        if reduce not in ("sum", "replicated"):
            raise InvalidValueError(
                "Counter",
                'reduce must be "sum" or "replicated" for a Counter.',
                got=f"reduce={reduce!r}",
                fix='omit reduce; or reduce="replicated" to count steps that all replicas take together',
            )
        limbs = _uint64.from_uint64(np.broadcast_to(first, shape))
        super().__init__(limbs, persistent=persistent, reduce=reduce, metadata=metadata)

    # --- counting ---------------------------------------------------------------------------------------------------

    def increment(self, by: Any = 1, *, like: Any = None, axis_name: AxisName | None = None) -> None:
        """Adds `by` exactly; the count saturates at 2**64 - 1.

        Args:
            by: A Python integer of any size, an array of booleans or integers that broadcasts to the counter's shape,
                or another Counter. Outside a trace, the call waits for a signed `jax.Array`, because a negative entry
                must raise. It does not wait for unsigned integers or a mask.
            like: Inside `shard_map`, the array that `by` was computed from, if `by` does not vary on the axes of the
                batch: `by` is summed over the mesh axes that either of them varies on.
            axis_name: The mapped axis or axes to sum `by` over. It is required under `vmap`, `pmap` and
                `shard_map(check_vma=False)`. `()` means that `by` is the same everywhere and counts once.

        Raises:
            InvalidTypeError: `by` is not an integer.
            InvalidValueError: `by` is negative, or does not broadcast to the counter's shape.
            ReplicasError: Inside `shard_map`, if the axes to sum over cannot be inferred.
            TraceError: The counter does not belong to the current trace.
        """
        if type(by) is int and by >= 0 and not axis_name and self._advance(by) is not None:
            return
        if type(by) is not int:
            check_broadcasts(by, self.shape, item=self)
        if isinstance(by, Counter):
            self._add(by._words(), like, axis_name)
        elif not self._add_word(by, (), None, like, axis_name):
            self._add(limbs_of(by, item=self, limit=None), like, axis_name)

    def count(self, events: Any, *, like: Any = None, axis_name: AxisName | None = None) -> None:
        """Adds the number of true entries of a mask, or the sum of the entries of an integer array, exactly.

        Args:
            events: An array of booleans or integers whose last axes are the counter's shape; the axes before them are
                summed over. At most 2**31 entries are summed into one count.
            like: Inside `shard_map`, the array that `events` was computed from, if `events` does not vary on the axes
                of the batch: the count is summed over the mesh axes that either of them varies on.
            axis_name: The mapped axis or axes to sum over. It is required under `vmap`, `pmap` and
                `shard_map(check_vma=False)`. `()` means that `events` is the same everywhere and counts once.

        Raises:
            InvalidTypeError: `events` is not an array of booleans or integers.
            InvalidValueError: An entry is negative, or the last axes are not the counter's shape.
            ReplicasError: Inside `shard_map`, if the axes to sum over cannot be inferred.
            TraceError: The counter does not belong to the current trace.

        Example:
            >>> import jax.numpy as jnp, tallax
            >>> fired = tallax.Counter(shape=3)
            >>> fired.count(jnp.array([[True, False, True], [True, False, False]]))
            >>> fired[...]
            Array([2, 0, 1], dtype=int32)
        """
        amount = amount_of(events, item=self)
        leading = amount.ndim - len(self.shape)
        if leading < 0 or amount.shape[leading:] != self.shape:
            raise wrong_shape(events, self.shape, item=self, ending=True)
        axes = tuple(range(leading))
        if isinstance(amount, np.ndarray):
            self.increment(_uint64.sum_uint64(amount, axes), like=like, axis_name=axis_name)
        elif not self._add_word(amount, axes, None, like, axis_name):
            self._add(_total(amount, axes), like, axis_name)

    def __iadd__(self, by: Any) -> Self:
        self.increment(by)
        return self

    def every(self, n: int) -> jax.Array | np.ndarray | np.bool_:
        """Returns whether each count is a multiple of `n`, exactly, also past 2**32. 0 is a multiple.

        Args:
            n: A Python integer in [1, 2**31 - 1].

        Returns:
            bool[*shape]. While the counter is on the host, it is computed with NumPy, so `if counter.every(100):` costs
            nothing on the device in an eager loop. Otherwise it is a `jax.Array`.

        Raises:
            InvalidValueError: `n` is out of range.
        """
        if not isinstance(n, int) or not 1 <= n <= _uint64.INT32_MAX:
            raise InvalidValueError(
                self,
                "every(n) requires a Python integer in [1, 2**31 - 1].",
                got=describe(n),
                fix="counter.every(100)",
            )
        raw = self._words()
        if isinstance(raw, np.ndarray):
            return _uint64.to_uint64(raw) % np.uint64(n) == 0
        return _divisible(raw, n)

    # --- reading ----------------------------------------------------------------------------------------------------

    def get_value(self, *, index: Any = ...) -> jax.Array:
        """Returns int32[*shape], saturated at 2**31 - 1, or the part at `index`. Does not wait for the device."""
        raw = self._stored()
        if not _uint64.is_limbs(
            raw
        ):  # counts, a shape, a sharding, or any other object that a tree.map over the state has put here
            return raw
        if index is ... and is_kept_by_flax():  # nnx.to_pure_dict, nnx.bridge
            return raw
        if isinstance(raw, np.ndarray):
            value = to_device(_uint64.to_int32_on_host(raw))
        else:
            value = (_uint64.to_int32 if is_traced(raw) else _int32_on_device)(raw)
        return value if index is ... else value[index]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        del copy  # always a new array
        raw = self._words()
        if is_traced(raw):
            raise TracedReadError(
                self,
                "a Counter has no exact host value inside a trace.",
                got=describe(self.get_value()),
                fix="counter.value for arithmetic, counter.every(n) for a condition; int(counter) outside jit",
            )
        return np.array(_uint64.to_uint64(np.asarray(raw)), dtype)

    def __int__(self) -> int:
        counts = self.__array__()
        if counts.ndim:
            raise InvalidTypeError(
                self,
                "int() requires a scalar Counter.",
                got=f"a Counter of shape {counts.shape}",
                fix="np.asarray(counter), which is exact; or int(np.asarray(counter).sum())",
            )
        return int(counts)

    __index__ = __int__

    # Flax's own `__eq__` would compare int32 values, in which all counts from 2**31 - 1 on are equal.
    def __eq__(self, other: object) -> Any:
        if not is_comparable(other):
            raise InvalidTypeError(
                self,
                "a Counter can only be compared with numbers and arrays.",
                got=describe(other),
                fix="counter == n; counter == np.asarray(numbers) to compare each count",
            )
        words = self._words()
        if not _uint64.is_limbs(words):
            return super().__eq__(other)
        if isinstance(other, Counter):
            theirs = other._words()
        elif isinstance(other, int | np.integer):
            if not 0 <= other <= _uint64.MAX:
                return np.zeros(self.shape, np.bool_)[()]
            theirs = np.broadcast_to(_uint64.from_int(int(other)), words.shape)
        elif isinstance(other, np.ndarray) and other.dtype.kind in "iu" and (other >= 0).all():
            theirs = _uint64.from_uint64(other)
        else:
            return super().__eq__(other)
        return _uint64.equal(words, theirs)

    def __ne__(self, other: object) -> Any:
        equal = self == other
        return not equal if isinstance(equal, bool) else ~equal

    def __float__(self) -> float:
        return float(int(self))

    def __bool__(self) -> bool:
        return bool(int(self))

    def __format__(self, spec: str) -> str:
        return format(int(self), spec) if spec else str(self)

    # --- setting ----------------------------------------------------------------------------------------------------

    def set(self, n: Any) -> None:
        """Sets the counts to `n`, an integer or an array of integers that broadcasts to the counter's shape.

        Raises:
            InvalidTypeError: `n` is not an integer.
            InvalidValueError: `n` is negative or beyond 2**64 - 1, or does not broadcast to the counter's shape.
            TraceError: The counter does not belong to the current trace.
        """
        check_broadcasts(n, self.shape, item=self)
        limbs = n._words() if isinstance(n, Counter) else limbs_of(n, item=self)
        if getattr(self.get_raw_value(), "dtype", _uint32) not in (_uint32, *READS):
            refuse_cast(self, self, _uint32)
        broadcast = np.broadcast_to if isinstance(limbs, np.ndarray) else jnp.broadcast_to
        limbs = broadcast(limbs, (*self.shape, 2))
        if self._per_replica:  # replicas will be summed, so if all set the same count, only the first replica stores it
            self._refuse_per_replica()
            limbs = on_first(
                jnp.asarray(limbs), tuple(axis for axis in self._replica_axes if axis not in varying_axes(limbs))
            )
        self._store(limbs)

    def reset(self) -> None:
        """Sets the counts to zero."""
        self.set(0)

    def set_value(self, value: Any, *, index: Any = ...) -> None:
        """Sets the counts, or those at `index`, to `value`.

        It accepts the same values as `set`. In addition, `counter.value += n`, which reads int32 and writes it back,
        stays exact if the read is saturated or the sum wraps, because the increment can be recovered from the sum.
        """
        raw = self._words()
        wraps = isinstance(value, jax.Array) and value.dtype == jnp.int32
        if not wraps and index is ...:
            if not self._place_abstract(value):
                self.set(value)
            return
        if self._per_replica:
            raise ReplicasError(
                self,
                "with per-replica state, a write cannot be recognised as an increment of a value read before.",
                got=f"a write of {describe(value)}",
                fix="counter.increment(n) or counter.count(events) to add; counter.set(n) to overwrite",
            )
        if index is ...:
            check_broadcasts(value, self.shape, item=self)
            old = raw
        else:
            # The axis of the limbs stays whole, even if an Ellipsis in the index would have reached it.
            index = (*(index if isinstance(index, tuple) else (index,)), slice(None))
            old = jnp.asarray(raw)[index]
        if not wraps:
            written = limbs_of(value, item=self)
        elif is_traced(old, value):
            written = _uint64.assign(jnp.asarray(old), value)
        else:
            refuse_negative(np.asarray(value), np.asarray(old), item=self)
            written = _assign_on_device(old, value)
        self._store(written if index is ... else jnp.asarray(raw).at[index].set(written))

    def __isub__(self, other: Any) -> Self:
        raise InvalidTypeError(
            self, "a Counter only counts up.", got=f"-= {describe(other)}", fix="counter.set(n) or counter.reset()"
        )

    def __imul__(self, other: Any) -> Self:
        raise InvalidTypeError(
            self, "a Counter only counts up.", got=f"*= {describe(other)}", fix="counter.set(n), or a tallax.Buffer"
        )

    def __itruediv__(self, other: Any) -> Self:
        return self.__imul__(other)

    def __ifloordiv__(self, other: Any) -> Self:
        return self.__imul__(other)
