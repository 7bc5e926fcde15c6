# SPDX-License-Identifier: Apache-2.0
"""The values that two steps share, and how they move from one to the other."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from tallax.compiling._layout import Packing, Place


class Overlap:
    """The values that two steps share, which are moved to one of them from the other.

    Attributes:
        values: Pairs of positions among the values of the two steps.
    """

    def __init__(self, mine: Packing, theirs: Packing, pairs: Sequence[tuple[Place, Place]]):
        self.values = [pair for a, b in pairs if a.number is None for pair in zip(a.arrays, b.arrays, strict=True)]
        to = [k for a, _ in pairs for k in mine.columns(a.number)]
        start = [k for _, b in pairs for k in theirs.columns(b.number)]
        runs = _runs(to, start)
        self._has_counts = bool(runs)
        self._is_whole = runs == ((0, 0, mine.ends[-1]),) and mine.ends == theirs.ends
        self._move = None if self._is_whole or not runs else _mover(runs)

    def move(self, mine: Any, theirs: Any) -> Any:
        """Returns all counts of one layout, with the shared counts copied from the other layout."""
        if not self._has_counts:
            return mine
        return theirs if self._move is None else self._move(mine, theirs)


def _runs(to: Sequence[int], start: Sequence[int]) -> tuple[tuple[int, int, int], ...]:
    """Returns pairs of positions as runs: (to, from, length)."""
    runs: list[tuple[int, int, int]] = []
    for column, other in sorted(zip(to, start, strict=True)):
        first, its_first, length = runs[-1] if runs else (0, 0, 0)
        if runs and (column, other) == (first + length, its_first + length):
            runs[-1] = (first, its_first, length + 1)
        else:
            runs.append((column, other, 1))
    return tuple(runs)


@functools.lru_cache(maxsize=256)
def _mover(runs: tuple[tuple[int, int, int], ...]) -> Callable[[Any, Any], Any]:
    """Returns the compiled move of runs of columns. Each pair of layouts has one program, also after a `sync()`."""
    to, start = (np.concatenate([np.arange(run[k], run[k] + run[2]) for run in runs]) for k in (0, 1))

    @jax.jit
    def move(mine: jax.Array, theirs: jax.Array) -> jax.Array:
        if len(runs) == 1:
            ((first, other, length),) = runs
            part = jax.lax.slice_in_dim(theirs, other, other + length, axis=1)
            return jax.lax.dynamic_update_slice_in_dim(mine, part, first, axis=1)
        return mine.at[:, to].set(theirs[:, start])

    return move
