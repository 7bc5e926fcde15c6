# SPDX-License-Identifier: Apache-2.0
"""`History`: the records of a run by name, and the order of the names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from tallax.runs._keys import owner_of, sort_key
from tallax.runs._record import Bins, Record, StateInfo

Value = TypeVar("Value")


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


def sorted_names(history: History) -> list[str]:
    """Returns all names: the user's scalars in order of appearance, then those of the state, sorted."""
    own = users_scalars(history)
    others = {*history.histograms, *history.scalars} - set(own)
    return [*own, *sorted(others, key=sort_key)]


def users_scalars(history: History) -> list[str]:
    """Returns the names of the scalars that do not belong to the state."""
    return [name for name in history.scalars if not owner_of(name, history.state, history.histograms)]
