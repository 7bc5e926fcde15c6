# SPDX-License-Identifier: Apache-2.0
"""`Summary`: the size of a tensor's values, in few numbers, for hundreds of tensors at once."""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from tallax import _uint64
from tallax._arrays import is_traced
from tallax._mesh_axes import AxisName, axes_to_combine, on_first
from tallax.statistics import Statistic
from tallax.statistics._statistic import exact_or_traced, unboxed
from tallax.variables import Buffer, Counter
from tallax.watching._reduction import AT, COUNTS, HIGH, LARGEST, LOW, WORDS, Layout, Parts, When, folded, merged, observed, parts_of

_merged = jax.jit(merged, inline=True)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class SummaryResult:
    """The numbers of a `Summary`; arrays with one entry per layer if the module is a stack.

    Counts are exact outside a trace; int32, saturated, inside one. No field is NaN.

    Attributes:
        size: the number of entries that were looked at.
        mean: the mean of the finite entries; 0.0 if there were none.
        rms: the root of their mean square; 0.0 if there were none.
        largest: their largest magnitude; 0.0 if there were none.
        largest_at: the update at which `largest` came; 0 if nothing was looked at.
        zeros: the number of entries that were 0.0 or -0.0.
        nonfinite: the number of entries that were NaN or infinite.
        updates: the number of updates, including those that were skipped because of `every`.
    """

    size: Any
    mean: Any
    rms: Any
    largest: Any
    largest_at: Any
    zeros: Any
    nonfinite: Any
    updates: Any


class Summary(Statistic):
    """Size, mean, RMS, largest magnitude and the update at which it came, zeros, and entries that are not finite.

    | field | shape | dtype | reset value | reduction |
    |---|---|---|---|---|
    | updates | () | an exact `Counter` | 0 | replicated |
    | words | (13,), or (rows, 13): counts, the largest magnitude, sums | uint32 | 0 | merged |

    Args:
        every: the tensors are looked at in every n-th update.
        window: the numbers start again after this many updates; None if they are those of all updates.
        rows: the number of rows of the state, on a mesh; None for a state without an axis of rows.
        axis: the axis of the tensors that is split over the mesh.
        axis_name: the mapped axes over which each update is combined, as in the other statistics.
        persistent: whether checkpoints save the state.
    """

    _dtypes: ClassVar[Mapping[str, Any]] = {"words": np.dtype(np.uint32)}

    def __init__(
        self,
        *,
        every: int = 1,
        window: int | None = None,
        rows: int | None = None,
        axis: int = 0,
        axis_name: AxisName | None = None,
        persistent: bool = True,
    ):
        super().__init__(axis_name=axis_name)
        self.every, self.window = every, window
        self.rows, self.axis = rows, axis
        self.updates: Counter = Counter(persistent=persistent, reduce="replicated")
        self.words: Buffer = Buffer(self._initial_words(), persistent=persistent)

    def _initial_words(self) -> np.ndarray:
        return np.zeros((WORDS,) if self.rows is None else (self.rows, WORDS), np.uint32)

    def is_whole(self) -> bool:
        """Returns whether the state is that of one module, and not that of a whole stack of modules."""
        return self.words.get_raw_value().ndim == (1 if self.rows is None else 2)

    def due(self) -> Any:
        """Returns whether the next update looks at the tensors: None if every one does, or a boolean."""
        return None if self.every == 1 else self._next(self.every)

    def _next(self, n: int) -> Any:
        """Returns whether the number of updates so far is a multiple of `n`; one for a whole stack."""
        return self.updates.every(n).reshape(-1)[0]

    def _when(self) -> When:
        """Counts the update, and returns when it takes place."""
        due, restart = self.due(), None if self.window is None else self._next(self.window)
        self.updates.increment(1, axis_name=())
        return When(self.updates._words(), due, restart)

    def _accumulate(self, x: jax.Array, where: jax.Array | None) -> None:
        self.observe([x], where)

    def observe(self, leaves: Sequence[Any], where: Any = None) -> None:
        """Takes one update with several tensors, whose entries are counted together."""
        how = axes_to_combine(*leaves, where, state=self.updates, axis_name=self.axis_name, alike=True)
        when = self._when()
        if not is_traced(when.due) and when.due is not None:
            if not when.due:
                return
            when = when._replace(due=None)
        leaves = [jax.lax.stop_gradient(jnp.asarray(leaf)) for leaf in leaves]
        before = self.words._stored()
        after = observed(before, when, leaves, where, Layout(self.rows, self.axis, how.over))
        self.words.set_value(on_first(after, how.once, otherwise=0) if how.once else after)

    def observe_stack(self, x: Any) -> None:
        """Takes one update of a whole stack, with the entries of each module in the leading axes."""
        when, layout = self._when(), Layout(self.rows, self.axis)
        if not is_traced(when.due) and when.due is not None:
            if not when.due:
                return
            when = when._replace(due=None)
        words = self.words._stored()
        depth = words.ndim - (1 if self.rows is None else 2)

        def reduce(x: jax.Array) -> Parts:
            each = functools.partial(parts_of, where=None, layout=layout)
            for _ in range(depth):
                each = jax.vmap(each)
            return each(x)

        if when.due is None:
            self._fold(reduce(x), when)
            return
        # The gate is outside of `vmap`, which would make a `select` of it, and look at the tensors in every update.
        at = self._at(when)

        def after(words: Any, x: Any) -> jax.Array:
            if when.restart is not None:
                words = jnp.where(when.restart, jnp.uint32(0), words)
            return folded(words, reduce(x), at)

        self.words.set_value(jax.lax.cond(when.due, after, lambda words, _: words, jnp.asarray(words), jnp.asarray(x)))

    def absorb(self, parts: Parts) -> None:
        """Takes one update with numbers that were reduced elsewhere, for a whole stack if the state is one."""
        self._fold(parts, self._when())

    def _fold(self, parts: Parts, when: When) -> None:
        words = self.words._stored()
        if when.restart is not None:
            words = jnp.where(when.restart, jnp.uint32(0), words)
        self.words.set_value(_folded(words, parts, self._at(when)))

    def _at(self, when: When) -> Any:
        """Returns the number of the update, with the axes of the state's words."""
        return when.at if self.rows is None else jnp.asarray(when.at)[..., None, :]

    def reset(self) -> None:
        """Forgets everything that was fed."""
        self.refuse_casts()
        self.updates.reset()
        self.words[...] = np.zeros(self.words.shape, np.uint32)

    def compute(self) -> SummaryResult:
        """Returns the numbers so far."""
        return self.read(self.state_here())

    def read(self, state: Mapping[str, Any]) -> SummaryResult:
        """Returns the record of a state; see `Statistic.read`."""
        words = state["words"] if self.rows is not None else state["words"][..., None, :]
        updates = exact_or_traced(state["updates"])
        traced = isinstance(words, jax.Array)
        xp = jnp if traced else np
        counts = words[..., COUNTS].reshape(*words.shape[:-1], 3, 2)
        if traced:
            counts = _uint64.to_int32(functools.reduce(_uint64.add, jnp.moveaxis(counts, -3, 0)))
            floats = jax.lax.bitcast_convert_type(words[..., LARGEST:], jnp.float32)
        else:
            counts = _uint64.to_uint64(counts).sum(-2, dtype=np.uint64)
            floats = np.ascontiguousarray(words[..., LARGEST:]).view(np.float32).astype(np.float64)
        shift = LARGEST
        sums = floats[..., HIGH.start - shift : HIGH.stop - shift] + floats[..., LOW.start - shift :]
        sums, largest = sums.sum(-2), floats[..., 0]
        size, zeros, nonfinite = (counts[..., k] for k in range(3))
        finite = xp.maximum(size - nonfinite, 1).astype(floats.dtype)
        row = largest.argmax(-1)
        at = exact_or_traced(words[..., AT])
        at = xp.take_along_axis(at, row[..., None], -1)[..., 0]
        largest = largest.max(-1)
        mean, rms = sums[..., 0] / finite, xp.sqrt(xp.maximum(sums[..., 1], 0) / finite)
        return SummaryResult(*unboxed(size, mean, rms, largest, at, zeros, nonfinite, updates))

    def _merge(self, other: Summary, once: tuple[Hashable, ...] = ()) -> None:
        self.updates._add_combined(on_first(other.updates._words(), once))
        self._join(other, 0)

    def _join(self, replica: Summary, number: Any) -> None:
        del number  # the replicas took the same updates
        self.words.set_value(_merged(self.words._stored(), replica.words._stored()))

    def _configuration(self) -> dict[str, Any]:
        own: dict[str, Any] = {"every": self.every, "window": self.window, "rows": self.rows}
        return {name: value for name, value in own.items() if value not in (None, 1)}


_folded = jax.jit(folded, inline=True)


def is_idle(result: Any) -> bool:
    """Returns whether a summary has looked at nothing."""
    return isinstance(result, SummaryResult) and not math.prod(np.shape(result.size), start=1) * np.any(result.size)
