# SPDX-License-Identifier: Apache-2.0
"""`History`: records by name, as curves and tables want them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from tallax.runs._record import Bins, StateInfo, Record

Value = TypeVar("Value")


@dataclass
class Series(Generic[Value]):
    """The values that one name had, and at which steps.

    Attributes:
        steps: in the order of the records.
        values: one for each step: an int, exact however large, or a float of a scalar; `Bins` of a histogram.
    """

    steps: list[int] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)

    def add(self, step: int, value: Value, keep: int | None = None) -> None:
        """Adds what a record says; of more than twice `keep`, the last `keep` stay."""
        self.steps.append(step)
        self.values.append(value)
        if keep is not None and len(self.steps) > 2 * keep:
            del self.steps[:-keep], self.values[:-keep]


class History:
    """Records, sorted by the names in them.

    Args:
        keep: how many of the last values of each name to keep, at least; None for all.

    Attributes:
        scalars: by name, a `Series` of ints, exact however large, and floats.
        histograms: by name, a `Series` of `Bins`.
        items: by name, what the items of the model are.
        steps: of all records without a prefix.
        times: when each of those was taken, in seconds since the epoch.
    """

    def __init__(self, keep: int | None = None) -> None:
        self.keep = keep
        self.scalars: dict[str, Series[int | float]] = {}
        self.histograms: dict[str, Series[Bins]] = {}
        self.state: dict[str, StateInfo] = {}
        self.steps: list[int] = []
        self.times: list[float] = []
        self._said: dict[str, Mapping[str, StateInfo]] = {}  # what each source last said that the items are

    def add(self, record: Record, prefix: str = "") -> None:
        """Adds a record.

        Args:
            record: what a run says about a step.
            prefix: what to put in front of its names.
        """
        if not prefix:
            self.steps.append(record.step)
            self.times.append(record.time)
            if self.keep is not None and len(self.steps) > 2 * self.keep:
                del self.steps[: -self.keep], self.times[: -self.keep]
        for name, value in record.scalars.items():
            self.scalars.setdefault(prefix + name, Series()).add(record.step, value, self.keep)
        for name, bins in record.histograms.items():
            self.histograms.setdefault(prefix + name, Series()).add(record.step, bins, self.keep)
        if record.state is not self._said.get(prefix):
            self._said[prefix] = record.state
            self.state |= {prefix + name: item for name, item in record.state.items()}
