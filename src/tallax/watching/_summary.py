# SPDX-License-Identifier: Apache-2.0
"""`Summary`: the size of a tensor's values, in few numbers, for hundreds of tensors at once."""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tallax import _uint64
from tallax._arrays import is_traced
from tallax._mesh_axes import AxisName, axes_of_equal, axes_to_combine, marked, on_first
from tallax.statistics import Statistic
from tallax.statistics._statistic import exact_or_traced, unboxed
from tallax.variables import Buffer, Counter, cut, join, stack
from tallax.watching._reduction import (
    AT,
    COUNTS,
    HIGH,
    LANES,
    LARGEST,
    LOW,
    NONFINITE_AT,
    UPDATES,
    WORDS,
    Layout,
    added,
    begun,
    folded,
    in_auto_axes,
    lanes_of,
    lanes_of_sizes,
    merged,
    numbers_of,
    observed,
    zeros_on_rows,
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
    | words | (17,), or (rows, 17): counts, the largest magnitude, sums, updates | uint32 | 0 | merged |
    | updates | (), only with rows: the number of updates, on every device | an exact `Counter` | 0 | replicated |

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
        """Returns whether the next update looks at the tensors: None if every one does, or a boolean."""
        if self.every == 1:
            return None
        if self.rows is not None:  # the rows of the words are split over the devices, so to read one is a collective
            return self.updates.every(self.every).reshape(-1)[0]
        updates = self.words._stored().reshape(-1, WORDS)[0, UPDATES]  # the same in a whole stack
        if isinstance(updates, np.ndarray):
            return _uint64.to_int(updates) % self.every == 0
        return _uint64.divisible(updates, self.every)

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

    def no_step(self) -> jax.Array:
        """Returns the lanes of a step that has looked at nothing yet."""
        words = self.words.get_raw_value()
        zeros = zeros_on_rows((*words.shape[:-1], LANES), jnp.float32, words)
        return marked(zeros, self.words._replica_axes)

    def add_to_step(self, step: jax.Array, due: Any, leaves: Sequence[Any], *, is_first: bool) -> jax.Array:
        """Returns the lanes of a step after some more tensors; `update_together` adds them to the state.

        Args:
            step: the lanes so far.
            due: whether the update is due; if the step is not due, its lanes must not be added to the state.
            leaves: the tensors.
            is_first: whether it is known that the step has looked at nothing yet.
        """
        if due is not None and not is_traced(due):
            if not due:
                return step
            due = None
        how = axes_to_combine(*leaves, state=self.words, axis_name=self.axis_name, alike=True)
        leaves = [jax.lax.stop_gradient(jnp.asarray(leaf)) for leaf in leaves]
        after = added(step, due, leaves, Layout(self.rows, self.axis, how.over), is_first=is_first)
        return on_first(after, how.once, otherwise=step)

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


def due_together(summaries: Sequence[Summary]) -> Any:
    """Returns whether an update of any of these summaries is due: None if they always are, or a boolean.

    The summaries of a watch are updated equally often, so they are due together. To share a single boolean saves a
    division for each of them, which XLA would compile one by one.
    """
    if summaries[0].every == 1:
        return None
    words = [summary.words._stored() for summary in summaries]
    if any(isinstance(each, np.ndarray) for each in words) or summaries[0].rows is not None:
        return functools.reduce(operator.or_, [summary.due() for summary in summaries])
    updates = _rows_of(words)[:, UPDATES]
    return _uint64.divisible(updates, summaries[0].every).any()


def _rows_of(words: Sequence[Any]) -> jax.Array:
    """Returns states of any stacks, and without rows, as uint32[n, 17]."""
    return join([jnp.asarray(each) for each in words]).reshape(-1, WORDS)


def update_together(
    summaries: Sequence[Summary],
    values: Sequence[Any],
    reduce: Callable[[Sequence[Summary], Sequence[Any]], jax.Array],
    *,
    is_reduced: bool = False,
) -> None:
    """Updates several summaries of one watch with one value each, whole stacks too; if the update is due.

    All states are updated by the same operations. One by one, 204 parameters, gradients and updates of a transformer
    added 29,000 lines to the program that is compiled.

    Args:
        summaries: the summaries.
        values: an array for each, or a tree of arrays.
        reduce: returns the lanes of some summaries from them and their values: float32[n, 13], one after the other,
            or float32[n, *stack, rows, 13] for summaries that have rows.
        is_reduced: whether the values are lanes already. They are then put together whether the update is due or not:
            each array that a branch takes needs a kernel of its own.
    """
    if not summaries:
        return
    groups: dict[Any, list[int]] = {}
    for k, summary in enumerate(summaries):
        # A table that is split over devices is not flattened, since that would move it between them.
        form = summary.words.get_raw_value().shape if summary.rows is not None else None
        groups.setdefault((form, summary.window), []).append(k)
    due = due_together(summaries)
    words = [summary.words._stored() for summary in summaries]
    for summary in summaries:
        summary.count()
    states = [
        (_rows_of if form is None else stack)([words[k] for k in members]) for (form, _), members in groups.items()
    ]
    states = [begun(state, window) for state, (_, window) in zip(states, groups, strict=True)]

    def lanes_of_groups(values: Sequence[Any]) -> list[Any]:
        return [reduce([summaries[k] for k in members], [values[k] for k in members]) for members in groups.values()]

    def after(states: list[Any], given: list[Any]) -> list[Any]:
        new, tables = [], given if is_reduced else lanes_of_groups(given)
        for state, table, members in zip(states, tables, groups.values(), strict=True):
            every = folded(state, table)
            once = [axes_of_equal(values[k], summaries[k].words) for k in members]
            if any(once):
                axes = [axes for k, axes in zip(members, once, strict=True) for _ in range(_rows(summaries[k]))]
                every = jnp.stack([on_first(every[k], each, otherwise=state[k]) for k, each in enumerate(axes)])
            new.append(every)
        return new

    def after_if_due(due: Any, states: list[Any], given: list[Any]) -> list[Any]:
        given = lanes_of_groups(given) if is_reduced else given
        if due is None:
            return after(states, given)
        return jax.lax.cond(due, after, lambda states, _: states, states, given)

    if due is None or is_traced(due) or due:
        due = due if is_traced(due) else None
        states = in_auto_axes(after_if_due, states)(due, states, list(values))
    for state, ((form, _), members) in zip(states, groups.items(), strict=True):
        shapes = [words[k].shape for k in members]
        rows = cut(state.reshape(-1), shapes) if form is None else list(state)
        for k, row in zip(members, rows, strict=True):
            summaries[k].words.set_value(row)


def _rows(summary: Summary) -> int:
    """Returns the number of states that `update_together` has for a summary."""
    return 1 if summary.rows is not None else math.prod(summary.stack)


_SMALL = 2**14  # entries, of tensors that are copied into one before they are reduced


class _Bucket(NamedTuple):
    """Tensors that are reduced together; `length` is that of small ones with zeros behind them, None for one tensor."""

    stack: tuple[int, ...]
    length: int | None
    members: list[int]


def _buckets(summaries: Sequence[Summary], values: Sequence[Any]) -> list[_Bucket]:
    alone: list[_Bucket] = []
    small: dict[tuple[tuple[int, ...], int], list[int]] = {}
    for k, (summary, value) in enumerate(zip(summaries, values, strict=True)):
        x, is_whole = jax.tree.leaves(value)[0], summary.spec is None and summary.rows is None
        if x.size <= _SMALL and is_whole and jnp.issubdtype(x.dtype, jnp.floating):
            length = math.prod(x.shape[len(summary.stack) :])
            small.setdefault((summary.stack, 1 << max(length - 1, 0).bit_length()), []).append(k)
        else:
            alone.append(_Bucket(summary.stack, None, [k]))
    together = [_Bucket(modules, length, members) for (modules, length), members in small.items()]
    return sorted([*alone, *together], key=lambda bucket: math.prod(bucket.stack))


def in_order(summaries: Sequence[Summary], values: Sequence[Any]) -> tuple[list[Summary], list[Any]]:
    """Returns summaries and tensors in the order in which `lanes_of_tensors` returns their lanes."""
    order = [k for bucket in _buckets(summaries, values) for k in bucket.members]
    return [summaries[k] for k in order], [values[k] for k in order]


def lanes_of_tensors(summaries: Sequence[Summary], values: Sequence[Any]) -> jax.Array:
    """Returns the lanes of tensors, as `update_together` takes them; the arguments are those of `in_order`.

    Small tensors, such as biases, are copied into one array, with zeros behind the shorter ones: the library reduces
    only large arrays, and each kernel of XLA's own takes 20 ms to compile.

    Args:
        summaries: a summary for each tensor.
        values: the tensors, or pairs of tensors whose differences are meant.
    """
    if summaries[0].rows is not None:
        lanes = []
        for summary, value in zip(summaries, values, strict=True):
            reduce = functools.partial(lanes_of, where=None, layout=Layout(summary.rows, summary.axis))
            for _ in summary.stack:
                reduce = jax.vmap(reduce)
            lanes.append(reduce(value[0] - value[1] if isinstance(value, tuple) else value)[None])
        return jnp.concatenate(lanes)
    tables, sizes = [], []
    for modules, length, members in _buckets(summaries, values):
        several = math.prod(modules)
        for k in members:
            sizes += several * [math.prod(jax.tree.leaves(values[k])[0].shape[len(modules) :])]
        if length is None:
            numbers = _numbers(values[members[0]], len(modules))
        else:
            numbers = _numbers(_padded([values[k] for k in members], several, length), 1)
            several *= len(members)
        tables.append((numbers, several))
    # The numbers of tensors without a stack are one after the other, and those of a stack are transposed.
    flat: list[jax.Array] = []
    for several, some in itertools.groupby(tables, key=operator.itemgetter(1)):
        together = jnp.concatenate([numbers for numbers, _ in some]).reshape(-1, _NUMBERS, several)
        flat.append(together.transpose(0, 2, 1).reshape(-1, _NUMBERS))
    return lanes_of_sizes(jnp.concatenate(flat), sizes)


_NUMBERS = 6


@functools.partial(jax.jit, static_argnums=1)
def _numbers(value: Any, leading: int) -> jax.Array:
    """Returns the numbers of a tensor for each entry of its leading axes, float32[6 * n]: each for all entries.

    It is not inlined, so that JAX traces and lowers it once for all tensors of a shape.
    """
    x = value[0] - value[1] if isinstance(value, tuple) else value
    x = (jnp.abs(x) if jnp.iscomplexobj(x) else x).astype(jnp.float32)
    *numbers, others = numbers_of(x, tuple(range(leading, x.ndim)))
    digits = others.reshape(-1) if others.ndim == leading else jnp.moveaxis(others, -1, 0).reshape(-1)
    several = math.prod(x.shape[:leading])
    zeros = np.zeros((_NUMBERS - 3) * several - digits.size, np.float32)
    return jax.lax.concatenate([*(x.reshape(several) for x in numbers), digits, zeros], 0)


def _padded(values: Sequence[Any], several: int, length: int) -> jax.Array:
    """Returns float32[n * several, length] of tensors that have at most `length` entries in each of several modules."""
    parts = []
    for value in values:
        x = value[0] - value[1] if isinstance(value, tuple) else value
        size = x.size // several
        flat, behind = x.astype(jnp.float32).reshape(several, size), [(0, 0, 0), (0, length - size, 0)]
        parts.append(flat if size == length else jax.lax.pad(flat, jnp.float32(0), behind))
    return in_one(parts)


def in_one(arrays: Sequence[jax.Array], *, is_split: bool = False) -> jax.Array:
    """Returns the concatenation of arrays. XLA copies flat ones without a kernel for each.

    Args:
        arrays: the arrays.
        is_split: whether they are split over devices, and must not be flattened.
    """
    if is_split:
        return jnp.concatenate(arrays)
    return jnp.concatenate([x.reshape(-1) for x in arrays]).reshape(-1, *arrays[0].shape[1:])


def is_idle(result: Any) -> bool:
    """Returns whether a summary has looked at nothing."""
    return isinstance(result, SummaryResult) and not np.any(result.size) and not np.any(result.nonfinite)
