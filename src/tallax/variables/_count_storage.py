# SPDX-License-Identifier: Apache-2.0
"""The private half of `Counter`: exact words, wherever they are, and additions to them.

A count is in one of four places, and an addition stays in the place where the count is:

| the count is | raw value | an addition |
|---|---|---|
| on the host | `np.ndarray` | Python or NumPy integers, in about 3 us (`_advance`) |
| on the device | `jax.Array` | one dispatch, which does not wait (`_add_on_device`) |
| in a trace | a tracer | two words and a carry (`_uint64.add`) |
| in a compiled step | `TwoPartCount` | one word, without a carry (`_add_word`), if 32 bits hold the step's whole sum |
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tallax import _uint64
from tallax._arrays import is_traced, on_host
from tallax._errors import InvalidTypeError, InvalidValueError, describe
from tallax._mesh_axes import AxisName, Combination, axes_to_combine, count_over, on_first, replica_count, sum_over
from tallax.variables._base import StateVariable
from tallax.variables._count_inputs import amount_of, host_counts, limbs_of, word_of
from tallax.variables._placeholder import Placeholder
from tallax.variables._traced_state import TwoPartCount

READS = (np.dtype(np.int32), np.dtype(np.int64), np.dtype(np.uint64))  # the dtypes in which other libraries save counts

_add_on_device = jax.jit(lambda raw, by: _uint64.add(raw, jnp.broadcast_to(by, raw.shape)))  # compiled once
_array, _ndarray, _uint32, _int32 = np.array, np.ndarray, np.dtype(np.uint32), np.int32  # bound once, for `_advance`
_variable = nnx.Variable


class CountStorage(StateVariable):
    """Counts as words: exact reads, additions and display. `Counter` adds the public methods."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the counts."""
        layout = self._per_replica
        if layout is not None:
            return layout.shape[:-1]
        raw = self.get_raw_value()
        return tuple(raw.shape[:-1] if raw.dtype == _uint32 else raw.shape)

    def _words(self) -> Any:
        """Returns the exact counts as two words each, uint32[*shape, 2]: on the host, on the device, or traced.

        Also if `nnx.update` has put int32 counts in their place, as `get_value()` gives them to
        `nnx.to_pure_dict(state, lambda variable: variable.get_value())`.

        Raises:
            InvalidTypeError: The words were cast.
            InvalidValueError: An int32 count is saturated, so the exact count is lost.
        """
        raw = self._stored()
        if _uint64.is_limbs(raw) or not isinstance(raw, jax.Array | np.ndarray):
            return raw
        if raw.dtype not in READS:
            refuse_cast(self, self, _uint32)
        if is_traced(raw):
            return _uint64.widen(jnp.asarray(raw))
        counts = np.asarray(raw)
        if counts.dtype == np.int32 and np.any(counts == _uint64.INT32_MAX):
            raise InvalidValueError(
                self,
                "was restored from a saturated int32 value, so the exact count is lost.",
                got=describe(counts),
                fix="save nnx.as_pure(nnx.state(model)), which has the exact count; or counter.set(n)",
            )
        return _uint64.from_uint64(host_counts(counts, item=self))

    _exact = _words

    def _peek(self) -> jax.Array | np.ndarray | np.int32:
        """Like `get_value()`, but from NumPy while the counter is on the host, without a dispatch."""
        raw = self.get_raw_value()
        if type(raw) is not _ndarray or raw.dtype != _uint32:
            return self.get_value()
        return _uint64.to_int32_on_host(raw)

    # --- adding ---------------------------------------------------------------------------------------------------

    def _advance(self, by: int) -> int | None:
        """Adds to a scalar count on the host, in 3 us, and returns the new count. Elsewhere, only returns None."""
        raw = self.get_raw_value()
        if type(raw) is not _ndarray:
            raw = on_host(raw)
        if raw is None or raw.ndim != 1 or raw.dtype != _uint32:
            return None
        # The hot path of eager counts, so `to_int`, `from_int` and `self.set_raw_value` are written out: 0.3 of 3.1 us.
        low, high = raw.tolist()
        count = low + (high << 32) + by
        if count > _uint64.MAX:
            count = _uint64.MAX
        try:
            _variable.set_raw_value(self, _array((count & _uint64.WORD, count >> 32), _uint32))
        except flax.errors.TraceContextError:
            raise self._of_another_trace() from None
        return count

    def _advance_by_one(self) -> jax.Array | np.ndarray | np.int32:
        """Adds 1 to a scalar count, once for all replicas, and returns the count like `_peek`."""
        count = self._advance(1)
        if count is None:
            if not self._add_word(1, (), None, None, ()):
                self._add(_uint64.from_int(1), None, ())
            return self._peek()
        return _int32(count if count < _uint64.INT32_MAX else _uint64.INT32_MAX)

    def _add(self, increment: Any, like: Any, axis_name: AxisName | None) -> None:
        """Adds limbs that broadcast to the counter's, combined over replicas."""
        self._refuse_per_replica()
        replicas = self._combination(increment, like, axis_name)
        self._add_combined(on_first(count_over(increment, replicas.over), replicas.once))

    def _add_combined(self, increment: Any) -> None:
        """Adds limbs that broadcast to the counter's: on the host if both are there, otherwise on the device."""
        raw = self._words()
        here, by = on_host(raw), on_host(increment)
        if here is not None and by is not None:
            total = _uint64.add_uint64(_uint64.to_uint64(here), _uint64.to_uint64(by))
            self._store(_uint64.from_uint64(total), here=True)
        elif is_traced(raw, increment):
            self._store(_uint64.add(jnp.asarray(raw), jnp.broadcast_to(jnp.asarray(increment), raw.shape)))
        else:
            self._store(_add_on_device(raw, increment))

    def _add_word(
        self, by: Any, axes: tuple[int, ...], most: int | None, like: Any, axis_name: AxisName | None
    ) -> bool:
        """Adds the sum of `by` over `axes` to the word that a compiled step adds. Returns False if it cannot do so."""
        raw = self.get_raw_value()
        if not isinstance(raw, TwoPartCount):
            return False
        if type(by) is int and 0 <= by <= _uint64.WORD:
            word = np.uint32(by), by
        else:
            word = word_of(amount_of(by, item=self), axes, most)
        if word is None:
            return False
        values, most = word
        replicas = self._combination(values, like, axis_name)
        most *= replica_count(replicas.over)
        if most > _uint64.WORD:
            return False
        self.set_raw_value(raw.plus(sum_over(values, replicas.over), most))
        return True

    def _combination(self, increment: Any, like: Any, axis_name: AxisName | None) -> Combination:
        alike = self.get_metadata("reduce") == "replicated"
        return axes_to_combine(increment, state=self, like=like, axis_name=axis_name, alike=alike)

    def _tally(self, counts: jax.Array, most: int, axis_name: AxisName | None) -> None:
        """Adds the counts of a statistic, each at most `most`."""
        if not self._add_word(counts, (), most, None, axis_name):
            self._add(limbs_of(counts, item=self, limit=None), None, axis_name)

    def _add_known(self, total: Any, increment: Any, most: int) -> None:
        """Stores counts of a statistic that are already combined over replicas and added to the old counts.

        If the increment, with entries of at most `most`, fits into a word, a compiled step uses it instead of the
        total, so that all packed counts are added to at once.
        """
        raw = self.get_raw_value()
        if isinstance(raw, TwoPartCount) and most <= _uint64.WORD:
            self.set_raw_value(raw.plus(increment[..., 0], most))
        else:
            self._store(total)

    # --- showing --------------------------------------------------------------------------------------------------

    def __nnx_repr__(self) -> Iterator[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        raw = self.get_raw_value()
        part: Any
        for part in super().__nnx_repr__():
            if getattr(part, "key", None) == "value":
                is_here = _uint64.is_limbs(raw) and not is_traced(raw)
                if isinstance(raw, Placeholder):
                    is_here = raw.is_readable_by(self)
                value: Any = part.value
                is_array = isinstance(value, jax.Array | np.ndarray | Placeholder)
                if is_here and not self._per_replica:
                    part = type(part)("value", np.asarray(self) if self.shape else int(self))
                elif not is_array and getattr(value, "dtype", None) == np.uint32:
                    # Within a module Flax prints shapes instead of arrays. For a Counter this is the shape of the
                    # counts, not of the words.
                    part = type(part)("value", type(value)(value.shape[:-1], np.dtype(np.uint64)))
            yield part

    def _shown(self) -> Any:
        """Returns the exact count or array of counts, or None if it cannot be read here."""
        raw = super()._shown()
        if raw is None or not _uint64.is_limbs(raw):
            return raw
        return np.asarray(self) if self.shape else int(self)


def refuse_cast(owner: object, variable: StateVariable, dtype: Any) -> None:
    """Raises if the state was cast, as by `jax.tree.map(lambda x: x.astype(...), nnx.state(model))`.

    It reads only the dtype, so it costs the same inside a trace, and while a compiled step owns the array.

    Raises:
        InvalidTypeError: The array was cast.
    """
    raw = variable.get_raw_value()
    found = getattr(raw, "dtype", dtype)  # a tree.map may have put a shape or a sharding here
    if found != dtype:
        raise InvalidTypeError(
            owner,
            f"its state must be {np.dtype(dtype)}, but was cast, so its values are no longer right.",
            got=f"{found}[{','.join(map(str, raw.shape))}]",
            fix="cast only the parameters: nnx.state(model, nnx.Param); to recover the state, restore a "
            "checkpoint into a new model",
        )


# `nnx.to_pure_dict` and `nnx.bridge` call the same `get_value()` as users who compute with the value, and later write
# the result back unchanged. A count of 2**31 or more would not survive that, because `get_value()` returns an int32. So
# they get the exact words.
_KEEPERS = ("flax.nnx.statelib", "flax.nnx.bridge.")
_WITHIN = "flax.nnx.variablelib"  # the operators and the constructor of a Variable call through this module


def is_kept_by_flax() -> bool:
    """Returns whether the caller's caller is one of the modules of Flax that store values and write them back."""
    frame = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__") == _WITHIN:
        frame = frame.f_back
    return frame is not None and str(frame.f_globals.get("__name__")).startswith(_KEEPERS)
