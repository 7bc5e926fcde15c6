# SPDX-License-Identifier: Apache-2.0
"""`StepStatistic`: the base of the statistics of presets, which have numbers for each unit, head or expert.

A preset differs from another in three things only: the tensors it takes (`chosen`), the numbers of them (`reduce`), and
the record that it makes of the totals (`read`). Counts, sums and the largest value are added up here. The state and the
numbers of one step have the same form, a table of words of 32 bits: one row for each device along the axes of the
batch if the model is on a mesh, one column for each channel, and for each channel

    counts      exact, two words each; the first is the number of entries that were looked at
    sums        float32 pairs, all high words first
    largest     its bits, and the two words of the update at which it came, if the statistic has a largest value

so a step is added to the state as one state is merged into another.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tallax import _uint64
from tallax._arrays import is_traced, unsplit
from tallax._mesh_axes import axes_of_equal, axes_to_combine, marked, on_first
from tallax.statistics import Statistic, _two_floats
from tallax.statistics._statistic import exact_or_traced
from tallax.variables import Buffer, Counter, cut, stack
from tallax.watching._reduction import axis_of_rows, in_first_row, with_all_of_vmap
from tallax.watching._summary_words import bits_of, floats_of

_SMALL = 2**14  # entries, of tensors that are copied into one before they are reduced


class ChannelNumbers(NamedTuple):
    """The numbers of some tensors for each channel."""

    counts: Any  # uint32[channels, counts, 2]: two words each
    sums: jax.Array  # float32[channels, sums]
    largest: jax.Array  # float32[channels, 0 or 1]


class Totals(NamedTuple):
    """The numbers of all updates; each has the shape of the stack, and the channels."""

    counts: Any  # uint64, or int32 in a trace: [*stack, channels, counts]
    sums: Any  # [*stack, channels, sums]
    largest: Any  # [*stack, channels]; 0 if nothing was looked at
    at: Any  # [*stack, channels]


class StepStatistic(Statistic):
    """ChannelNumbers for each channel, of which each step adds some.

    | field | shape | dtype | reset value | reduction |
    |---|---|---|---|---|
    | updates | () | an exact `Counter` | 0 | replicated |
    | words | (channels, words), or (rows, channels, words) | uint32 | 0 | merged |

    Args:
        channels: The number of units, heads or experts.
        every: The tensors are looked at in every n-th update.
        window: The numbers start again after this many updates; None if they are those of all updates.
        rows: The number of rows of the state, on a mesh; None for a state without an axis of rows.
        axis: The axis of the tensors that is split over the rows, if its size allows it; None for the first row only.
    """

    source: ClassVar[str] = "output"  # or "attention", or "update"
    counts: ClassVar[int] = 1
    sums: ClassVar[int] = 0
    has_largest: ClassVar[bool] = False
    _dtypes: ClassVar[Mapping[str, Any]] = {"words": np.dtype(np.uint32)}

    def __init__(
        self,
        channels: int,
        *,
        every: int = 1,
        window: int | None = None,
        rows: int | None = None,
        axis: int | None = 0,
    ):
        super().__init__()
        self.channels, self.every, self.window, self.rows, self.axis = channels, every, window, rows, axis
        self.updates: Counter = Counter(reduce="replicated")
        words = 2 * self.counts + 2 * self.sums + 3 * self.has_largest
        self.words: Buffer = Buffer(np.zeros((*(() if rows is None else (rows,)), channels, words), np.uint32))

    @abc.abstractmethod
    def chosen(self, leaves: Sequence[Any]) -> list[tuple[Any, ...]] | str:
        """Returns the arrays to look at, each time as arguments of `reduce`; or the reason why it finds no array."""

    @abc.abstractmethod
    def reduce(self, *arrays: Any) -> ChannelNumbers:
        """Returns the numbers of some arrays."""

    def batch_axes(self, x: Any) -> int:
        """Returns the number of leading axes of an array along which its numbers add up."""
        return x.ndim - 1

    @property
    def stack(self) -> tuple[int, ...]:
        """The shape of the stack of modules whose state this is; `()` inside a scan, and for a module on its own."""
        return self.words.get_raw_value().shape[: -2 if self.rows is None else -3]

    # --- a step -------------------------------------------------------------------------------------------------------

    def no_step(self, due: Any = None) -> jax.Array:
        """Returns the numbers of a step that has looked at nothing yet."""
        del due  # `add_to_step` computes it
        return marked(jnp.zeros(self.words.get_raw_value().shape, jnp.uint32), self.words._replica_axes)

    def add_to_step(self, step: jax.Array, arrays: tuple[Any, ...]) -> jax.Array:
        """Returns the numbers of a step after some more arrays, which are looked at only if the update is due."""
        due = self.due()
        if due is not None and not is_traced(due):
            if not due:
                return step
            due = None
        arrays = tuple(None if x is None else jax.lax.stop_gradient(jnp.asarray(x)) for x in arrays)
        how = axes_to_combine(*(x for x in arrays if x is not None), state=self.words, alike=True)

        def add(step: jax.Array, arrays: tuple[Any, ...]) -> jax.Array:
            if not how.over:
                words = self.words_of(arrays)
            else:
                words = _combined(self._as_words(self.reduce(*arrays)), how.over, self.merged)
                words = words if self.rows is None else in_first_row(words, self.rows)
            return self.merged(step, on_first(words, how.once))

        def add_if_due(step: jax.Array, due: Any, arrays: tuple[Any, ...]) -> jax.Array:
            if due is None:
                return add(step, arrays)
            return jax.lax.cond(due, add, lambda step, _: step, step, arrays)

        return with_all_of_vmap(add_if_due, 0)(step, due, arrays)

    def words_of(self, arrays: tuple[Any, ...]) -> jax.Array:
        """Returns the numbers of some arrays as words."""
        return self._as_words(_by_rows(self.reduce, arrays, self.rows, self.axis, self.batch_axes(arrays[0])))

    def due(self) -> Any:
        """Returns whether the next update looks at the tensors: None if every one does, or a boolean."""
        return None if self.every == 1 else self._next(self.every)

    def begin(self) -> Any:
        """Counts an update; returns the state that it is added to."""
        restart = None if self.window is None else self._next(self.window)
        self.updates.increment(1, axis_name=())
        words = self.words._stored()
        return words if restart is None else jnp.where(jnp.asarray(restart), jnp.uint32(0), words)

    def start_at(self, updates: int) -> None:
        """Sets the number of updates so far."""
        self.updates.set(updates)

    def _next(self, n: int) -> Any:
        return self.updates.every(n).reshape(-1)[0]

    def _accumulate(self, x: jax.Array, where: jax.Array | None) -> None:
        del where
        found = self.chosen([x])
        take_together(
            [self], [self.add_to_step(self.no_step(), found[0])] if not isinstance(found, str) else [self.no_step()]
        )

    # --- words --------------------------------------------------------------------------------------------------------

    def _as_words(self, numbers: ChannelNumbers) -> jax.Array:
        counts = unsplit(jnp.asarray(numbers.counts))
        sums = bits_of(unsplit(numbers.sums))
        parts = [counts.reshape(*counts.shape[:-2], 2 * self.counts), sums, jnp.zeros_like(sums)]
        if self.has_largest:
            largest = bits_of(unsplit(numbers.largest))
            parts += [largest, jnp.zeros((*largest.shape[:-1], 2), jnp.uint32)]
        return jnp.concatenate(parts, -1)

    def merged(self, left: jax.Array, right: jax.Array) -> jax.Array:
        """Returns the union of two tables of words."""
        n, m = 2 * self.counts, self.sums
        high, low, largest = slice(n, n + m), slice(n + m, n + 2 * m), n + 2 * m
        pairs = [words[..., :n].reshape(*words.shape[:-1], self.counts, 2) for words in (left, right)]
        parts = [_uint64.add(*pairs).reshape(*left.shape[:-1], n)]
        if m:
            ours, theirs = [(floats_of(words[..., high]), floats_of(words[..., low])) for words in (left, right)]
            parts += [bits_of(part) for part in _two_floats.add(ours, theirs)]
        if self.has_largest:
            is_empty, adds_none = (_uint64.is_zero(words[..., :2]) for words in (left, right))
            ours, theirs = (floats_of(words[..., largest]) for words in (left, right))
            earlier = (theirs == ours) & _uint64.less(right[..., -2:], left[..., -2:])
            better = ~adds_none & (is_empty | (theirs > ours) | earlier)
            parts.append(jnp.where(better[..., None], right[..., largest:], left[..., largest:]))
        return jnp.concatenate(parts, -1)

    def totals(self, state: Mapping[str, Any]) -> Totals:
        """Returns the numbers of all rows of a state: on the host, or traced."""
        words = state["words"] if self.rows is not None else state["words"][..., None, :, :]
        traced = isinstance(words, jax.Array)
        xp: Any = jnp if traced else np
        n, m = 2 * self.counts, self.sums
        pairs = words[..., :n].reshape(*words.shape[:-1], self.counts, 2)
        if traced:
            counts = _uint64.to_int32(functools.reduce(_uint64.add, jnp.moveaxis(pairs, -4, 0)))
            floats = floats_of(words)
        else:
            counts = _uint64.to_uint64(np.ascontiguousarray(pairs)).sum(-3, dtype=np.uint64)
            floats = np.ascontiguousarray(words).view(np.float32).astype(np.float64)
        sums = (floats[..., n : n + m] + floats[..., n + m : n + 2 * m]).sum(-3)
        if not self.has_largest:
            return Totals(counts, sums, None, None)
        seen = ~_uint64.is_zero(words[..., :2])
        largest = xp.where(seen, floats[..., n + 2 * m], -xp.inf)
        row = largest.argmax(-2)[..., None, :]
        at = xp.take_along_axis(exact_or_traced(xp.asarray(words[..., -2:])), row, -2)[..., 0, :]
        largest = largest.max(-2)
        return Totals(counts, sums, xp.where(seen.any(-2), largest, 0.0), at)

    # --- the protocol of statistics -----------------------------------------------------------------------------------

    def reset(self) -> None:
        """Forgets everything that was fed."""
        self.refuse_casts()
        self.updates.reset()
        self.words[...] = np.zeros(self.words.shape, np.uint32)

    def _merge(self, other: Any, once: tuple[Hashable, ...] = ()) -> None:
        self.updates._add_combined(on_first(other.updates._words(), once))
        self._join(other, 0)

    def _join(self, replica: Any, number: Any) -> None:
        del number  # the replicas took the same updates
        self.words.set_value(self.merged(jnp.asarray(self.words._stored()), jnp.asarray(replica.words._stored())))

    def _configuration(self) -> dict[str, Any]:
        own: dict[str, Any] = {"channels": self.channels, "every": self.every, "window": self.window, "rows": self.rows}
        return {name: value for name, value in own.items() if value is not None and (name, value) != ("every", 1)}


def take_together(statistics: Sequence[StepStatistic], steps: Sequence[jax.Array]) -> None:
    """Counts one update of each statistic, and adds the numbers of its step to its state; those of whole stacks, too.

    States of one form are stacked and updated by the same operations, so that there are fewer to compile.
    """
    groups: dict[Any, list[int]] = {}
    for k, statistic in enumerate(statistics):
        groups.setdefault((type(statistic), steps[k].shape, statistic.window), []).append(k)
    for members in groups.values():
        chosen = [statistics[k] for k in members]
        before = stack([statistic.begin() for statistic in chosen])
        step = jnp.stack([steps[k] for k in members])
        if chosen[0].has_largest:
            at = jnp.stack([jnp.asarray(statistic.updates._words()) for statistic in chosen])
            at = at.reshape(*at.shape[:-1], *[1] * (step.ndim - at.ndim), 2)
            step = step.at[..., -2:].set(jnp.broadcast_to(at, (*step.shape[:-1], 2)))
        after = chosen[0].merged(before, step)
        is_split = chosen[0].rows is not None
        parts = list(after) if is_split else cut(after.reshape(-1), [after.shape[1:]] * len(chosen))
        for statistic, words in zip(chosen, parts, strict=True):
            statistic.words.set_value(words)


def steps_together(statistics: Sequence[StepStatistic], arrays: Sequence[tuple[Any, ...]]) -> list[jax.Array]:
    """Returns the numbers of a step for several statistics that were updated equally often; those of stacks, too."""
    # Small tensors of one shape, such as all biases, are copied into one, which takes fewer operations to compile.
    groups: dict[Any, list[int]] = {}
    for k, (statistic, each) in enumerate(zip(statistics, arrays, strict=True)):
        alone = k if each[0].size > _SMALL or statistic.rows is not None else None
        kinds = tuple((x.shape, x.dtype) for x in each)
        groups.setdefault((type(statistic), kinds, statistic.stack, alone), []).append(k)

    def look(steps: list[jax.Array], arrays: list[Any]) -> list[jax.Array]:
        found = list(steps)
        for members in groups.values():
            words = statistics[members[0]].words_of
            for _ in statistics[members[0]].stack:
                words = jax.vmap(words)
            if len(members) == 1:
                found[members[0]] = words(arrays[members[0]])
                continue
            together = jax.vmap(words)(jax.tree.map(lambda *each: jnp.stack(each), *(arrays[k] for k in members)))
            for place, k in enumerate(members):
                found[k] = together[place]
        once = [axes_of_equal(each, statistic.words) for statistic, each in zip(statistics, arrays, strict=True)]
        return list(map(on_first, found, once))

    due, steps = statistics[0].due(), [statistic.no_step() for statistic in statistics]
    if due is None:
        return look(steps, list(arrays))
    return jax.lax.cond(due, look, lambda steps, _: steps, steps, list(arrays))


def _by_rows(
    reduce: Callable[..., ChannelNumbers], arrays: tuple[Any, ...], rows: int | None, start: int | None, limit: int
) -> ChannelNumbers:
    """Returns the numbers of each part of the batch, so that each device of a mesh reduces its own part alone."""
    if rows is None:
        return reduce(*arrays)
    shape = arrays[0].shape
    axis = axis_of_rows(shape[:limit], rows, start)
    if axis is None:
        return jax.tree.map(lambda part: in_first_row(part, rows), reduce(*arrays))

    def is_split(x: Any) -> bool:
        return x is not None and x.ndim > axis and x.shape[axis] == shape[axis]

    split = [
        x.reshape(*x.shape[:axis], rows, x.shape[axis] // rows, *x.shape[axis + 1 :]) if is_split(x) else x
        for x in arrays
    ]
    return jax.vmap(reduce, [axis if is_split(x) else None for x in arrays])(*split)


def _combined(words: jax.Array, over: tuple[Hashable, ...], merge: Callable[..., jax.Array]) -> jax.Array:
    """Returns the words of all replicas together, by one all-reduce of a table with a row for each replica."""
    replicas = int(np.prod([jax.lax.axis_size(axis) for axis in over]))
    rows = marked(jnp.zeros((replicas, *words.shape), jnp.uint32), over).at[jax.lax.axis_index(over)].set(words)
    rows = jax.lax.psum(rows, over)
    return functools.reduce(merge, [rows[k] for k in range(replicas)])
