# SPDX-License-Identifier: Apache-2.0
"""Updates many summaries at once: all parameters, gradients and updates of a model, or the lanes of all sites."""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tallax import _uint64
from tallax._arrays import is_traced
from tallax._mesh_axes import axes_of_equal, on_first
from tallax.variables import cut, join, stack
from tallax.watching._reduction import Layout, in_auto_axes, lanes_of, lanes_of_sizes, numbers_of
from tallax.watching._summary import Summary
from tallax.watching._summary_words import UPDATES, WORDS, begun, folded


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
        summaries: The summaries.
        values: An array for each, or a tree of arrays.
        reduce: Returns the lanes of some summaries from them and their values: float32[n, 13], one after the other,
            or float32[n, *stack, rows, 13] for summaries that have rows.
        is_reduced: Whether the values are lanes already. They are then put together whether the update is due or not:
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
        summaries: A summary for each tensor.
        values: The tensors, or pairs of tensors whose differences are meant.
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
        arrays: The arrays.
        is_split: Whether they are split over devices, and must not be flattened.
    """
    if is_split:
        return jnp.concatenate(arrays)
    return jnp.concatenate([x.reshape(-1) for x in arrays]).reshape(-1, *arrays[0].shape[1:])
