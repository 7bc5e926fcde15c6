# SPDX-License-Identifier: Apache-2.0
"""`Summary`: the size of a tensor's values, in few numbers, for hundreds of tensors at once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from tallax import _uint64
from tallax._arrays import is_traced
from tallax._mesh_axes import AxisName, axes_of_equal, axes_to_combine, on_first
from tallax.statistics import Statistic
from tallax.statistics._statistic import exact_or_traced, unboxed
from tallax.variables import Buffer, Counter
from tallax.watching._reduction import (
    AT,
    COUNTS,
    HIGH,
    LARGEST,
    LOW,
    NONFINITE_AT,
    WORDS,
    Layout,
    Parts,
    When,
    folded,
    framed,
    in_auto_axes,
    merged,
    observed,
    parts_of,
)

_merged = jax.jit(merged, inline=True)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class SummaryResult:
    """The numbers of a `Summary`; arrays with one entry per layer if the module is a stack.

    Counts are exact outside a trace; int32, saturated, inside one. No field is NaN. A tensor with an entry that is NaN
    or infinite is counted in `nonfinite` and left out of all other numbers.

    Attributes:
        size: the number of entries that were looked at.
        mean: the mean of the entries; 0.0 if there were none.
        rms: the root of their mean square; 0.0 if there were none, infinite if their squares overflow.
        largest: the largest magnitude; 0.0 if there were none.
        largest_at: the update at which `largest` came; 0 if nothing was looked at.
        zeros: the number of entries that were 0.0, -0.0 or subnormal.
        nonfinite: the number of tensors with an entry that was NaN or infinite.
        nonfinite_at: the update of the first such tensor; 0 if there was none.
        updates: the number of updates, including those that were skipped because of `every`.
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
    | updates | () | an exact `Counter` | 0 | replicated |
    | words | (15,), or (rows, 15): counts, the largest magnitude, sums | uint32 | 0 | merged |

    Args:
        every: the tensors are looked at in every n-th update.
        window: the numbers start again after this many updates; None if they are those of all updates.
        rows: the number of rows of the state, on a mesh; None for a state without an axis of rows.
        axis: the axis of the tensors that is split over the rows; None if all of a tensor is in the first row.
        spec: the placement of the Param whose tensors these are, on a mesh; None for other tensors.
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
        axis: int | None = 0,
        spec: jax.P | None = None,
        axis_name: AxisName | None = None,
        persistent: bool = True,
    ):
        super().__init__(axis_name=axis_name)
        self.every, self.window = every, window
        self.rows, self.axis, self.spec = rows, axis, spec
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
        how = axes_to_combine(*leaves, where, state=self.words, axis_name=self.axis_name, alike=True)
        when = self._when()
        if not is_traced(when.due) and when.due is not None:
            if not when.due:
                return
            when = when._replace(due=None)
        leaves = [jax.lax.stop_gradient(jnp.asarray(leaf)) for leaf in leaves]
        before = self.words._stored()
        after = observed(before, when, leaves, where, Layout(self.rows, self.axis, how.over))
        self.words.set_value(on_first(after, how.once, otherwise=0) if how.once else after)

    def add_to_frame(self, frame: jax.Array, leaves: Sequence[Any]) -> jax.Array:
        """Returns the numbers of a step after some more tensors; `update_together` adds them to the state."""
        how = axes_to_combine(*leaves, state=self.words, axis_name=self.axis_name, alike=True)
        leaves = [jax.lax.stop_gradient(jnp.asarray(leaf)) for leaf in leaves]
        due = None if self.every == 1 else jnp.asarray(self.due())
        after = framed(frame, due, leaves, Layout(self.rows, self.axis, how.over))
        return on_first(after, how.once, otherwise=frame)

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
        self.updates._add_combined(on_first(other.updates._words(), once))
        self._join(other, 0)

    def _join(self, replica: Summary, number: Any) -> None:
        del number  # the replicas took the same updates
        self.words.set_value(_merged(self.words._stored(), replica.words._stored()))

    def _configuration(self) -> dict[str, Any]:
        own: dict[str, Any] = {"every": self.every, "window": self.window, "rows": self.rows}
        return {name: value for name, value in own.items() if value not in (None, 1)}


def update_together(
    summaries: Sequence[Summary],
    values: Sequence[jax.Array],
    reduce: Callable[[Sequence[Summary], Sequence[jax.Array]], Parts],
    *,
    is_gated: bool = True,
) -> None:
    """Updates several summaries with one value each, whole stacks too.

    States of one shape are stacked and updated by the same operations. One by one, 204 parameters, gradients and
    updates of a transformer added 29,000 lines to the program that is compiled, and so they add 15,000.

    Args:
        summaries: the summaries.
        values: one array for each.
        reduce: returns the numbers of some summaries, stacked, from them and their values.
        is_gated: whether `every` applies; the first summary decides for all, as all were updated equally often.
    """
    if not summaries:
        return
    whens = [summary._when() for summary in summaries]
    groups: dict[Any, list[int]] = {}
    for k, summary in enumerate(summaries):
        groups.setdefault((summary.words.get_raw_value().shape, summary.rows, summary.window), []).append(k)

    def after(words: list[Any], values: list[Any], whens: list[When]) -> list[Any]:
        new: list[Any] = [None] * len(words)
        for members in groups.values():
            chosen = [summaries[k] for k in members]
            before = jnp.stack([words[k] for k in members])
            if chosen[0].window is not None:
                restarts = jnp.stack([jnp.asarray(whens[k].restart) for k in members])
                before = jnp.where(restarts.reshape(-1, *[1] * (before.ndim - 1)), jnp.uint32(0), before)
            at = jnp.stack([jnp.asarray(whens[k].at) for k in members])
            at = at if chosen[0].rows is None else at[..., None, :]
            stacked = folded(before, reduce(chosen, [values[k] for k in members]), at)
            for position, k in enumerate(members):
                once = axes_of_equal(values[k], summaries[k].words)
                new[k] = on_first(stacked[position], once, otherwise=before[position])
        return new

    def after_if_due(words: list[Any], values: list[Any], whens: list[When]) -> list[Any]:
        return jax.lax.cond(whens[0].due, after, lambda words, *_: words, words, values, whens)

    words, due = [jnp.asarray(summary.words._stored()) for summary in summaries], whens[0].due if is_gated else None
    if due is None or (not is_traced(due) and due):
        words = in_auto_axes(after, words)(words, list(values), whens)
    elif is_traced(due):
        words = in_auto_axes(after_if_due, words)(words, list(values), whens)
    else:
        return
    for summary, new in zip(summaries, words, strict=True):
        summary.words.set_value(new)


_SMALL = 2**14  # entries, of tensors that are copied into one before they are reduced


def parts_of_tensors(summaries: Sequence[Summary], values: Sequence[jax.Array]) -> Parts:
    """Returns the numbers of tensors, stacked: one for each summary, in which a stack has a row for each module.

    Small tensors of one shape, such as all biases, are copied into one array, which takes fewer operations to compile.

    Args:
        summaries: a summary for each tensor.
        values: the tensors.
    """
    groups: dict[Any, list[int]] = {}
    for k, (summary, value) in enumerate(zip(summaries, values, strict=True)):
        depth = summary.words.get_raw_value().ndim - (1 if summary.rows is None else 2)
        alone = k if value.size > _SMALL or summary.rows is not None else None
        layout = Layout(summary.rows, summary.axis)
        groups.setdefault((value.shape, value.dtype, depth, layout, alone), []).append(k)
    parts: list[Any] = [None] * len(values)
    for (_, _, depth, layout, alone), members in groups.items():
        reduce = _over(depth, functools.partial(parts_of, where=None, layout=layout))
        if alone is not None:
            parts[alone] = reduce(values[alone])
            continue
        reduced = jax.vmap(reduce)(jnp.stack([values[k] for k in members]))
        for n, k in enumerate(members):
            parts[k] = jax.tree.map(lambda part, n=n: part[n], reduced)
    return jax.tree.map(lambda *each: jnp.stack(each), *parts)


def _over(depth: int, reduce: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function mapped over leading axes."""
    for _ in range(depth):
        reduce = jax.vmap(reduce)
    return reduce


def is_idle(result: Any) -> bool:
    """Returns whether a summary has looked at nothing."""
    return isinstance(result, SummaryResult) and not np.any(result.size) and not np.any(result.nonfinite)
