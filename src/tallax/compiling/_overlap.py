# SPDX-License-Identifier: Apache-2.0
"""The values that two steps share, and how they move from one to the other."""

from __future__ import annotations

import functools
import itertools
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
        columns = [zip(mine.columns(a.number), theirs.columns(b.number), strict=True) for a, b in pairs]
        found = tuple(sorted(itertools.chain.from_iterable(columns)))
        is_same = all(to == start for to, start in found) and len(found) == mine.ends[-1] == theirs.ends[-1]
        self._has_packed = bool(found)
        # Looked up once, because the hash of 1,000 columns takes 60 us.
        self._move = None if is_same or not found else _mover(found)

    def move(self, mine: Any, theirs: Any) -> Any:
        """Returns all packed values of one layout, with the shared ones copied from the other layout."""
        if not self._has_packed:
            return mine
        return theirs if self._move is None else self._move(mine, theirs)


@functools.lru_cache(maxsize=256)
def _mover(columns: tuple[tuple[int, int], ...]) -> Callable[[Any, Any], Any]:
    """Returns the compiled move of columns. Each pair of layouts has one program, also after a `sync()`."""
    to, start = np.array(columns).T
    is_one_run = bool(np.all(np.diff(to) == 1) and np.all(np.diff(start) == 1))

    @jax.jit
    def move(mine: jax.Array, theirs: jax.Array) -> jax.Array:
        if is_one_run:
            part = jax.lax.slice_in_dim(theirs, int(start[0]), int(start[-1]) + 1, axis=1)
            return jax.lax.dynamic_update_slice_in_dim(mine, part, int(to[0]), axis=1)
        return mine.at[:, to].set(theirs[:, start])

    return move
