# SPDX-License-Identifier: Apache-2.0
"""`History`: the records of a run by name, the order of the names, and patterns that match them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Generic, TypeVar

from tallax.runs._record import Bins, Record, StateInfo

Value = TypeVar("Value")
_ENTRY = re.compile(r"\d+(,\d+)*")


@dataclass
class Series(Generic[Value]):
    """The values of one name over the steps.

    Attributes:
        steps: The steps, in the order of the records.
        values: One value for each step: an int (exact however large) or a float for a scalar, `Bins` for a histogram.
    """

    steps: list[int] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)

    def add(self, step: int, value: Value, keep: int | None = None) -> None:
        """Adds a value. If there are more than `2 * keep`, only the last `keep` stay."""
        self.steps.append(step)
        self.values.append(value)
        if keep is not None and len(self.steps) > 2 * keep:
            del self.steps[:-keep], self.values[:-keep]


class History:
    """Records, sorted by the names in them.

    Args:
        keep: The minimum number of values to keep for each name, the last ones. None keeps all.

    Attributes:
        scalars: A `Series` of ints (exact however large) and floats by name.
        histograms: A `Series` of `Bins` by name.
        state: A `StateInfo` of each variable and statistic by name.
        steps: The steps of all records without a prefix.
        times: The times of those records, in seconds since the epoch.
    """

    def __init__(self, keep: int | None = None) -> None:
        self.keep = keep
        self.scalars: dict[str, Series[int | float]] = {}
        self.histograms: dict[str, Series[Bins]] = {}
        self.state: dict[str, StateInfo] = {}
        self.steps: list[int] = []
        self.times: list[float] = []
        self._last_state: dict[str, Mapping[str, StateInfo]] = {}  # the last `record.state` of each prefix

    def add(self, record: Record, prefix: str = "") -> None:
        """Adds a record, with a prefix for its names."""
        if not prefix:
            self.steps.append(record.step)
            self.times.append(record.time)
            if self.keep is not None and len(self.steps) > 2 * self.keep:
                del self.steps[: -self.keep], self.times[: -self.keep]
        for name, value in record.scalars.items():
            self.scalars.setdefault(prefix + name, Series()).add(record.step, value, self.keep)
        for name, bins in record.histograms.items():
            self.histograms.setdefault(prefix + name, Series()).add(record.step, bins, self.keep)
        if record.state is not self._last_state.get(prefix):
            self._last_state[prefix] = record.state
            self.state |= {prefix + name: item for name, item in record.state.items()}


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
