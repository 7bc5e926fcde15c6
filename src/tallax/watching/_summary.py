# SPDX-License-Identifier: Apache-2.0
"""`Summary`: the size of a tensor's values, in few numbers, for hundreds of tensors at once."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from tallax import _uint64
from tallax._arrays import is_traced
from tallax._mesh_axes import AxisName, axes_to_combine, marked, on_first
from tallax.statistics import Statistic
from tallax.statistics._statistic import exact_or_traced, unboxed
from tallax.variables import Buffer, Counter
from tallax.watching._lanes import DUE, LANES
from tallax.watching._reduction import Layout, zeros_on_rows
from tallax.watching._summary_words import (
    AT,
    COUNTS,
    HIGH,
    LARGEST,
    LOW,
    NONFINITE_AT,
    UPDATES,
    WORDS,
    added,
    begun,
    merged,
    observed,
)

_begun = jax.jit(begun, static_argnums=1, inline=True)
_merged = jax.jit(merged, static_argnames="is_replica", inline=True)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class SummaryResult:
    """The numbers of a `Summary`; arrays with one entry per layer if the module is a stack.

    Counts are exact outside a trace; int32, saturated, inside one. No field is NaN. A tensor with an entry that is NaN
    or infinite is counted in `nonfinite` and left out of all other numbers.

    Attributes:
        size: The number of entries that were looked at.
        mean: The mean of the entries; 0.0 if there were none.
        rms: The root of their mean square; 0.0 if there were none, infinite if their squares overflow.
        largest: The largest magnitude; 0.0 if there were none.
        largest_at: The update at which `largest` came; 0 if nothing was looked at.
        zeros: The number of entries that were 0.0, -0.0 or subnormal.
        nonfinite: The number of tensors with an entry that was NaN or infinite.
        nonfinite_at: The update of the first such tensor; 0 if there was none.
        updates: The number of updates, including those that were skipped because of `every`.
    """

    size: Any
    mean: Any
    rms: Any
    largest: Any
    largest_at: Any
    zeros: Any
    nonfinite: Any
    nonfinite_at: Any
    updates: Any


class Summary(Statistic):
    """Size, mean, RMS, largest magnitude and the update at which it came, zeros, and tensors that are not finite.

    | field | shape | dtype | reset value | reduction |
    |---|---|---|---|---|
    | words | (17,), or (rows, 17): counts, the largest magnitude, sums, updates | uint32 | 0 | merged |
    | updates | (), only with rows: the number of updates, on every device | an exact `Counter` | 0 | replicated |

    Args:
        every: The tensors are looked at in every n-th update.
        window: The numbers start again after this many updates; None if they are those of all updates.
        rows: The number of rows of the state, on a mesh; None for a state without an axis of rows.
        axis: The axis of the tensors that is split over the rows; None if all of a tensor is in the first row.
        spec: The placement of the Param whose tensors these are, on a mesh; None for other tensors.
        axis_name: The mapped axes over which each update is combined, as in the other statistics.
        persistent: Whether checkpoints save the state.
    """

    _dtypes: ClassVar[Mapping[str, Any]] = {"words": np.dtype(np.uint32)}

    def __init__(
        self,
        *,
        every: int = 1,
        window: int | None = None,
        rows: int | None = None,
        axis: int | None = 0,
        spec: jax.P | None = None,
        axis_name: AxisName | None = None,
        persistent: bool = True,
    ):
        super().__init__(axis_name=axis_name)
        self.every, self.window = every, window
        self.rows, self.axis, self.spec = rows, axis, spec
        self.words: Buffer = Buffer(self._initial_words(), persistent=persistent)
        if rows is not None:
            self.updates: Counter = Counter(persistent=persistent, reduce="replicated")

    def _initial_words(self) -> np.ndarray:
        return np.zeros((WORDS,) if self.rows is None else (self.rows, WORDS), np.uint32)

    @property
    def stack(self) -> tuple[int, ...]:
        """The shape of the stack of modules whose state this is; `()` inside a scan, and for a module on its own."""
        return self.words.get_raw_value().shape[: -1 if self.rows is None else -2]

    def start_at(self, updates: int) -> None:
        """Sets the number of updates so far."""
        words = self._initial_words()
        words[..., UPDATES] = _uint64.from_int(updates)
        self.words.set_value(words)
        if self.rows is not None:
            self.updates.set(updates)

    def due(self) -> Any:
        """Returns whether the next update looks at the tensors: None if every one does, or a boolean.

        The summaries of a watch are updated together, so one of them stands for all: a division for each would be
        compiled for each.
        """
        if self.every == 1:
            return None
        if self.rows is not None:  # the rows of the words are split over the devices, so to read one is a collective
            return self.updates.every(self.every).reshape(-1)[0]
        updates = self.words._stored().reshape(-1, WORDS)[:1, UPDATES]  # the same in a whole stack
        if isinstance(updates, np.ndarray):
            return _uint64.to_int(updates[0]) % self.every == 0
        return _uint64.divisible(updates, self.every)[0]

    def count(self) -> None:
        """Counts an update on all devices of a mesh; `begun` counts it in the words."""
        if self.rows is not None:
            self.updates.increment(1, axis_name=())

    def _accumulate(self, x: jax.Array, where: jax.Array | None) -> None:
        self.observe([x], where)

    def observe(self, leaves: Sequence[Any], where: Any = None) -> None:
        """Takes one update with several tensors, whose entries are counted together."""
        how = axes_to_combine(*leaves, where, state=self.words, axis_name=self.axis_name, alike=True)
        before, due = self.words._stored(), self.due()
        self.count()
        if due is not None and not is_traced(due):
            if not due:
                self.words.set_value(_begun(before, self.window))
                return
            due = None
        leaves = [jax.lax.stop_gradient(jnp.asarray(leaf)) for leaf in leaves]
        after = observed(before, due, leaves, where, Layout(self.rows, self.axis, how.over), self.window)
        self.words.set_value(on_first(after, how.once, otherwise=_begun(before, self.window)) if how.once else after)

    def no_step(self, due: Any) -> jax.Array:
        """Returns the lanes of a step that has looked at nothing yet, and that is due or not."""
        words = self.words.get_raw_value()
        zeros = zeros_on_rows((*words.shape[:-1], LANES), jnp.float32, words)
        return self.with_due(marked(zeros, self.words._replica_axes), due)

    def with_due(self, lanes: jax.Array, due: Any) -> jax.Array:
        """Returns the lanes of a step or a token with the information whether the step is due."""
        if due is None or not self.has_due_lane:
            return lanes
        place = np.broadcast_to(np.arange(lanes.shape[-1]), lanes.shape)
        return lanes + jnp.where(place == DUE, jnp.asarray(due, jnp.float32), 0.0)

    @property
    def has_due_lane(self) -> bool:
        """True if the lanes of a step or a token say whether it is due. On a mesh, every device counts the updates."""
        return self.every > 1 and self.rows is None

    def due_in(self, step: jax.Array) -> Any:
        """Returns whether the update is due, as the lanes of a step or a token within a transformation have it.

        To read it from the words there would take a slice of them for each summary.
        """
        return step[..., DUE] > 0 if self.has_due_lane else self.due()

    def add_to_step(self, step: jax.Array, due: Any, leaves: Sequence[Any]) -> jax.Array:
        """Returns the lanes of a step after some more tensors; `update_together` adds them to the state.

        Args:
            step: The lanes so far.
            due: Whether the update is due.
            leaves: The tensors.
        """
        if due is not None and not is_traced(due):
            if not due:
                return step
            due = None
        how = axes_to_combine(*leaves, state=self.words, axis_name=self.axis_name, alike=True)
        leaves = [jax.lax.stop_gradient(jnp.asarray(leaf)) for leaf in leaves]
        after = added(step, due, leaves, Layout(self.rows, self.axis, how.over))
        return on_first(after, how.once, otherwise=step)

    def is_direct(self, step: jax.Array, leaf: Any) -> bool:
        """Returns whether a tensor may be reduced with those of other sites, instead of by `add_to_step`.

        Args:
            step: The lanes of the step.
            leaf: The tensor.
        """
        how = axes_to_combine(leaf, state=self.words, axis_name=self.axis_name, alike=True)
        # A tensor of another trace, as inside `vmap`, may stand for many.
        return not how.over and not how.once and type(jax.lax.stop_gradient(jnp.asarray(leaf))) is type(step)

    def reset(self) -> None:
        """Forgets everything that was fed."""
        self.refuse_casts()
        if self.rows is not None:
            self.updates.reset()
        self.words[...] = np.zeros(self.words.shape, np.uint32)

    def compute(self) -> SummaryResult:
        """Returns the numbers so far."""
        return self.read(self.state_here())

    def read(self, state: Mapping[str, Any]) -> SummaryResult:
        """Returns the record of a state; see `Statistic.read`."""
        words = state["words"] if self.rows is not None else state["words"][..., None, :]
        updates: Any = exact_or_traced(words[..., UPDATES]).max(-1)
        traced = isinstance(words, jax.Array)
        xp: Any = jnp if traced else np
        counts = words[..., COUNTS].reshape(*words.shape[:-1], 3, 2)
        if traced:
            counts = _uint64.to_int32(functools.reduce(_uint64.add, jnp.moveaxis(counts, -3, 0)))
            floats = jax.lax.bitcast_convert_type(words, jnp.float32)
        else:
            each = _uint64.to_uint64(counts)
            counts = each.sum(-2, dtype=np.uint64)
            counts[..., 2] = each[..., 2].max(-1)  # each row of a tensor may have seen that it is not finite
            floats = np.ascontiguousarray(words).view(np.float32).astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            sums, largest = (floats[..., HIGH] + floats[..., LOW]).sum(-2), floats[..., LARGEST]
        size, zeros, nonfinite = (counts[..., k] for k in range(3))
        entries = xp.maximum(size, size.dtype.type(1)).astype(floats.dtype)
        row = largest.argmax(-1)[..., None]
        when: Any = exact_or_traced(words[..., AT])
        at = xp.take_along_axis(when, row, -1)[..., 0]
        fails = exact_or_traced(words[..., NONFINITE_AT])
        fails = xp.where(fails == 0, fails.max(-1)[..., None], fails).min(-1)
        mean, square = sums[..., 0] / entries, sums[..., 1] / entries
        mean = xp.where(xp.isnan(mean), 0.0, mean)
        # The compensation of an infinite sum is NaN.
        rms = xp.where(xp.isnan(square), xp.inf, xp.sqrt(xp.maximum(square, 0)))
        largest = largest.max(-1)
        return SummaryResult(*unboxed(size, mean, rms, largest, at, zeros, nonfinite, fails, updates))

    def _merge(self, other: Summary, once: tuple[Hashable, ...] = ()) -> None:
        if self.rows is not None:
            self.updates._add_combined(on_first(other.updates._words(), once))
        words = on_first(other.words._stored(), once)
        self.words.set_value(_merged(self.words._stored(), words, is_replica=False))

    def _join(self, replica: Summary, number: Any) -> None:
        del number
        self.words.set_value(_merged(self.words._stored(), replica.words._stored(), is_replica=True))

    def _configuration(self) -> dict[str, Any]:
        own: dict[str, Any] = {"every": self.every, "window": self.window, "rows": self.rows}
        return {name: value for name, value in own.items() if value not in (None, 1)}


def is_idle(result: Any) -> bool:
    """Returns whether a summary has looked at nothing."""
    return isinstance(result, SummaryResult) and not np.any(result.size) and not np.any(result.nonfinite)
