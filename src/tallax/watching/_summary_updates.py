# SPDX-License-Identifier: Apache-2.0
"""Updates many summaries at once: those of all sites, or those of all parameters, gradients and updates of a model."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tallax import _uint64
from tallax._arrays import is_traced
from tallax._mesh_axes import axes_of_equal, marked, on_first, varying_axes
from tallax.variables import cut, join, stack
from tallax.watching._reduction import LANES, Layout, Numbers, in_auto_axes, in_one, numbers_of, table_of
from tallax.watching._summary import Summary
from tallax.watching._summary_words import UPDATES, WORDS, begun, folded
from tallax.watching._tap import lanes_of_tokens

_UNKNOWN = object()


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


class Update(NamedTuple):
    """What a step adds to some summaries: the numbers of one tensor for each, the lanes of one, or the cotangent of its token."""

    summaries: list[Summary]
    value: Any


def update_together(updates: Sequence[Update], due: Any = _UNKNOWN) -> None:
    """Updates the summaries of one watch, whole stacks too; if the update is due.

    All states are updated by the same operations. One by one, 204 parameters, gradients and updates of a transformer
    added 29,000 lines to the program that is compiled.

    Args:
        updates: The updates, each of other summaries.
        due: The result of `due_together`, if it is known.
    """
    if not updates:
        return
    due = due_together([each for update in updates for each in update.summaries]) if due is _UNKNOWN else due
    groups: dict[Any, list[Update]] = {}
    for update in updates:
        summary = update.summaries[0]
        # A table that is split over devices is not flattened, since that would move it between them.
        form = summary.words.get_raw_value().shape if summary.rows is not None else None
        groups.setdefault((form, summary.window), []).append(update)
    for form, members in groups.items():
        groups[form] = sorted(members, key=lambda each: _order_of(each.value))
    summaries = [[summary for update in members for summary in update.summaries] for members in groups.values()]
    words = [[summary.words._stored() for summary in some] for some in summaries]
    for summary in itertools.chain(*summaries):
        summary.count()
    states = [
        begun(_rows_of(some) if form is None else stack(some), window)
        for some, (form, window) in zip(words, groups, strict=True)
    ]
    once = [
        [axes_of_equal(update.value, summary.words) for update in members for summary in update.summaries]
        for members in groups.values()
    ]

    def after(states: list[Any], tables: list[Any]) -> list[Any]:
        new = []
        for state, table, axes, some in zip(states, tables, once, summaries, strict=True):
            every = folded(state, table)
            if any(axes):
                each = [axes for axes, summary in zip(axes, some, strict=True) for _ in range(_rows(summary))]
                every = jnp.stack([on_first(every[k], axes, otherwise=state[k]) for k, axes in enumerate(each)])
            new.append(every)
        return new

    def after_if_due(due: Any, states: list[Any], given: list[Any]) -> list[Any]:
        # Outside of the branch, because each array that a branch takes needs a kernel of its own.
        tables = [_lanes_of(values, is_split=form is not None) for (form, _), values in zip(groups, given, strict=True)]
        if due is None:
            return after(states, tables)
        return jax.lax.cond(due, after, lambda states, _: states, states, tables)

    if due is None or is_traced(due) or due:
        due = due if is_traced(due) else None
        values = [[update.value for update in members] for members in groups.values()]
        states = in_auto_axes(after_if_due, states)(due, states, values)
    for state, (form, _), some, before in zip(states, groups, summaries, words, strict=True):
        rows = cut(state.reshape(-1), [each.shape for each in before]) if form is None else list(state)
        for summary, row in zip(some, rows, strict=True):
            summary.words.set_value(row)


def _order_of(value: Any) -> tuple[int, tuple[int, ...]]:
    """Returns the place of a value among others: numbers of one shape, and then lanes before tokens."""
    return (0, value.total.shape) if isinstance(value, Numbers) else (value.shape[-1], ())


def _lanes_of(values: Sequence[Any], *, is_split: bool) -> jax.Array:
    """Returns the lanes of values in the order of `_order_of`, float32[n, *rows, 14]."""
    tables = []
    for length, group in itertools.groupby(values, key=lambda each: _order_of(each)[0]):
        some = list(group)
        if length == 0:
            tables.append(table_of(some, is_split=is_split))
            continue
        lanes = jnp.stack(some) if is_split else in_one([x.reshape(-1, length) for x in some])
        tables.append(lanes if length == LANES else lanes_of_tokens(lanes))
    return jnp.concatenate(tables) if len(tables) > 1 else tables[0]


def _rows(summary: Summary) -> int:
    """Returns the number of states that `update_together` has for a summary."""
    return 1 if summary.rows is not None else math.prod(summary.stack)


_LARGE = 2**12  # entries, from which on the memory of a tensor matters
_TOGETHER = 24  # tensors of which one branch takes all


def numbers_of_tensors(summaries: Sequence[Summary], values: Sequence[Any], due: Any) -> list[Update]:
    """Returns the numbers of parameters, gradients and updates.

    Args:
        summaries: A summary for each tensor.
        values: The tensors, or pairs of tensors whose differences are meant.
        due: Whether the tensors are looked at; None if they always are.
    """
    if due is not None and not is_traced(due):
        due = None  # `update_together` drops the numbers if the update is not due
    updates: list[Update] = []
    for members in _shares(values) if due is not None else [range(len(values))]:
        some = [summaries[k] for k in members]
        buckets = _buckets(some, [values[k] for k in members])

        def reduce(values: Sequence[Any], some: Any = some, buckets: Any = buckets) -> list[Numbers]:
            return [_numbers_of_bucket(bucket, some, values) for bucket in buckets]

        numbers = _if_due(due, reduce, [values[k] for k in members])
        for bucket, each in zip(buckets, numbers, strict=True):
            updates.append(Update([some[k] for k in bucket.members], each))
    return updates


def _shares(values: Sequence[Any]) -> list[list[int]]:
    """Returns the tensors that one branch takes, so that no other part of a step has to keep many of them.

    XLA would otherwise keep the old values of all parameters until the last gradient is known.
    """
    small, large = [], []
    for k, value in enumerate(values):
        (large if jax.tree.leaves(value)[0].size > _LARGE else small).append(k)
    shares = [large[k : k + _TOGETHER] for k in range(0, len(large), _TOGETHER)]
    return [share for share in (*shares, small) if share]


def _if_due(due: Any, reduce: Callable[[Sequence[Any]], list[Numbers]], values: list[Any]) -> list[Numbers]:
    if due is None:
        return reduce(values)
    varying = tuple(frozenset().union(*map(varying_axes, jax.tree.leaves(values))))

    def zeros(values: list[Any]) -> list[Numbers]:
        return jax.tree.map(lambda each: jnp.zeros(each.shape), jax.eval_shape(reduce, values))

    def branch(make: Callable[..., Any]) -> Callable[..., Any]:
        return lambda values: jax.tree.map(lambda column: marked(column, varying), make(values))

    return jax.lax.cond(due, branch(reduce), branch(zeros), values)


class _Bucket(NamedTuple):
    """Tensors that are reduced together; `length` is that of small ones with zeros behind them, None for one tensor."""

    length: int | None
    members: list[int]


_SMALL = 2**14  # entries, of tensors that are copied into one before they are reduced


def _buckets(summaries: Sequence[Summary], values: Sequence[Any]) -> list[_Bucket]:
    alone: list[_Bucket] = []
    small: dict[int, list[int]] = {}
    for k, (summary, value) in enumerate(zip(summaries, values, strict=True)):
        x, is_whole = jax.tree.leaves(value)[0], summary.spec is None and summary.rows is None
        if x.size <= _SMALL and is_whole and jnp.issubdtype(x.dtype, jnp.floating):
            entries = math.prod(x.shape[len(summary.stack) :])
            small.setdefault(1 << max(entries - 1, 0).bit_length(), []).append(k)
        else:
            alone.append(_Bucket(None, [k]))
    return [*alone, *(_Bucket(length, _pairs_last(members, values)) for length, members in small.items())]


def _pairs_last(members: Sequence[int], values: Sequence[Any]) -> list[int]:
    return sorted(members, key=lambda k: isinstance(values[k], tuple))


def _numbers_of_bucket(bucket: _Bucket, summaries: Sequence[Summary], values: Sequence[Any]) -> Numbers:
    """Returns the numbers of a bucket.

    Small tensors, such as biases, are copied into one array, with zeros behind the shorter ones: the library reduces
    only large arrays, and each kernel of XLA's own takes 20 ms to compile.
    """
    stacks = [summaries[k].stack for k in bucket.members]
    some = [values[k] for k in bucket.members]
    if bucket.length is None:
        summary = summaries[bucket.members[0]]
        return _numbers(_difference(some[0]), Layout(summary.rows, summary.axis), len(stacks[0]))
    several = [math.prod(stack) for stack in stacks]

    def table(values: Sequence[jax.Array], start: int) -> jax.Array:
        return in_one([_padded(x, several[start + k], bucket.length) for k, x in enumerate(values)])

    single = [value for value in some if not isinstance(value, tuple)]
    pairs = [value for value in some if isinstance(value, tuple)]
    if bucket.length > _LARGE or not pairs:
        # One by one, since XLA would put the old values together at the beginning of the step, and keep the result.
        x = table([_difference(value) for value in some], 0)
    else:
        new, old = (table(each, len(single)) for each in zip(*pairs, strict=True))
        x = jnp.concatenate([table(single, 0), new - old]) if single else new - old
    sizes = [math.prod(jax.tree.leaves(value)[0].shape[len(stack) :]) for value, stack in zip(some, stacks, strict=True)]
    entries = tuple(size for size, n in zip(sizes, several, strict=True) for _ in range(n))
    return dataclasses.replace(_numbers(x, Layout(), 1), entries=entries)


def _difference(value: Any) -> jax.Array:
    return value[0] - value[1] if isinstance(value, tuple) else value


@functools.partial(jax.jit, static_argnums=(1, 2))
def _numbers(x: jax.Array, layout: Layout, leading: int) -> Numbers:
    """Returns the numbers of a tensor. It is not inlined, so that JAX traces and lowers it once for each shape."""
    return numbers_of(x, layout, leading=leading)


def _padded(x: jax.Array, several: int, length: int) -> jax.Array:
    """Returns float32[several, length] of a tensor that has at most `length` entries in each of several modules."""
    size = x.size // several
    flat, behind = x.astype(jnp.float32).reshape(several, size), [(0, 0, 0), (0, length - size, 0)]
    return flat if size == length else jax.lax.pad(flat, jnp.float32(0), behind)
