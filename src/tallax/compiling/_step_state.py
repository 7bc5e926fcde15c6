# SPDX-License-Identifier: Apache-2.0
"""The state that a step changes, and the programs that change it."""

from __future__ import annotations

from typing import Any, NamedTuple


class Items(NamedTuple):
    """The state of tallax variables: all counts in one array, if there are any, and small values."""

    packed: Any
    values: list[Any]


class State(NamedTuple):
    """The state that a step changes: the tallax variables, and the arrays that it may overwrite."""

    items: Items
    rest: list[Any]

    @property
    def values(self) -> list[Any]:
        """All values except the counts, in the order of the layout."""
        return self.items.values + self.rest

    def plain(self) -> tuple[tuple[Any, list[Any]], list[Any]]:
        """Returns the state as plain tuples, without names."""
        return (self.items.packed, self.items.values), self.rest
