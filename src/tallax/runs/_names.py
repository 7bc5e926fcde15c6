# SPDX-License-Identifier: Apache-2.0
"""Names in a run: their order, their owners, and patterns that match them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from tallax.runs._history import History

_ENTRY = re.compile(r"\d+(,\d+)*")


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Returns whether a name matches one of some shell patterns. Without patterns, every name matches.

    A pattern also matches everything below a name: `gate` matches `gate/fired`.
    """
    return not patterns or any(fnmatchcase(name, pattern) or name.startswith(f"{pattern}/") for pattern in patterns)


def sorted_names(history: History) -> list[str]:
    """Returns all names: the user's scalars in order of appearance, then those of the state, sorted."""
    own = users_scalars(history)
    others = {*history.histograms, *history.scalars} - set(own)
    return [*own, *sorted(others, key=_sorted_by)]


def users_scalars(history: History) -> list[str]:
    """Returns the names of the scalars that do not belong to the state."""
    return [name for name in history.scalars if not _belongs_to_state(name, history)]


def _belongs_to_state(name: str, history: History) -> bool:
    while name:
        if name in history.state or name in history.histograms:
            return True
        name = name.rpartition("/")[0]
    return False


def _sorted_by(name: str) -> tuple[object, ...]:
    """Returns a sort key by which `load/10` follows `load/9`, and names below another follow it directly."""
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"[/,]", name))


def is_entry(part: str) -> bool:
    """Returns whether the last part of a name is the index of an array entry: `3`, or `1,2`."""
    return bool(_ENTRY.fullmatch(part))
