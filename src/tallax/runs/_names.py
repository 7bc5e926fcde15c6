# SPDX-License-Identifier: Apache-2.0
"""The names of a run: whose they are, their order, and which ones a pattern means."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from tallax.runs._history import History

_ENTRY = re.compile(r"\d+(,\d+)*")


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Tells whether a name is one that the patterns mean, as a shell would match them; without any, all are.

    A pattern means what lies below it, too: `gate` is `gate/fired` as well.
    """
    return not patterns or any(fnmatchcase(name, pattern) or name.startswith(f"{pattern}/") for pattern in patterns)


def sorted_names(history: History) -> list[str]:
    """Returns all names: those of the user's scalars as they came, and then those of items, entries by number."""
    own = users_scalars(history)
    others = {*history.histograms, *history.scalars} - set(own)
    return [*own, *sorted(others, key=_sorted_by)]


def users_scalars(history: History) -> list[str]:
    """Returns the names of the scalars that are of no item."""
    return [name for name in history.scalars if not _is_of_item(name, history)]


def _is_of_item(name: str, history: History) -> bool:
    while name:
        if name in history.state or name in history.histograms:
            return True
        name = name.rpartition("/")[0]
    return False


def _sorted_by(name: str) -> tuple[object, ...]:
    """Makes `load/10` come after `load/9`, and what lies below a name right after it."""
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"[/,]", name))


def is_entry(part: str) -> bool:
    """Tells whether the last part of a name is the place of an array's entry: `3`, or `1,2`."""
    return bool(_ENTRY.fullmatch(part))
