# SPDX-License-Identifier: Apache-2.0
"""Updates many summaries at once: those of all sites, or those of all parameters, gradients and updates of a model."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tallax._arrays import is_traced
from tallax._mesh_axes import axes_of_equal, on_first
from tallax.variables import cut, join, stack
from tallax.watching._lanes import LANES, in_one, table_of, table_of_packed
from tallax.watching._reduction import Numbers, PackedNumbers, in_auto_axes
from tallax.watching._summary import Summary
from tallax.watching._summary_words import WORDS, begun, folded
from tallax.watching._tap import lanes_of_tokens

_UNKNOWN = object()


def _rows_of(words: Sequence[Any]) -> jax.Array:
    """Returns states of any stacks, and without rows, as uint32[n, 17]."""
    return join([jnp.asarray(each) for each in words]).reshape(-1, WORDS)


class Update(NamedTuple):
    """The update of some summaries by a step.

    Attributes:
        summaries: The summaries.
        value: The numbers of one tensor for each of them, or the lanes of one, or the cotangent of its token.
    """

    summaries: list[Summary]
    value: Any


def update_together(updates: Sequence[Update], due: Any = _UNKNOWN) -> None:
    """Updates the summaries of one watch, whole stacks too; if the update is due.

    All states are updated by the same operations. One by one, 204 parameters, gradients and updates of a transformer
    added 29,000 lines to the program that is compiled.

    Args:
        updates: The updates, each of other summaries.
        due: The result of `Summary.due` of the first, if it is known.
    """
    if not updates:
        return
    due = updates[0].summaries[0].due() if due is _UNKNOWN else due
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
    """Returns the place of a value among others: numbers of one shape, packed ones, and then lanes before tokens."""
    if isinstance(value, Numbers):
        return 0, value.total.shape
    return (1 if isinstance(value, PackedNumbers) else value.shape[-1]), ()


def _lanes_of(values: Sequence[Any], *, is_split: bool) -> jax.Array:
    """Returns the lanes of values in the order of `_order_of`, float32[n, *rows, 14]."""
    tables = []
    for kind, group in itertools.groupby(values, key=lambda each: _order_of(each)[0]):
        some = list(group)
        if kind == 0:
            tables.append(table_of(some, is_split=is_split))
        elif kind == 1:
            tables.append(table_of_packed(some))
        else:
            lanes = jnp.stack(some) if is_split else in_one([x.reshape(-1, kind) for x in some])
            tables.append(lanes if kind == LANES else lanes_of_tokens(lanes))
    return jnp.concatenate(tables) if len(tables) > 1 else tables[0]


def _rows(summary: Summary) -> int:
    """Returns the number of states that `update_together` has for a summary."""
    return 1 if summary.rows is not None else math.prod(summary.stack)
