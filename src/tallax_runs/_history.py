# SPDX-License-Identifier: Apache-2.0
"""`History`: records by name, as curves and tables want them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from tallax_runs._record import Bins, Item, Record

Value = TypeVar("Value")


@dataclass
class Series(Generic[Value]):
    """The values that one name had, and at which steps."""

    steps: list[int] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)

    def add(self, step: int, value: Value) -> None:
        """Adds what a record says."""
        self.steps.append(step)
        self.values.append(value)


class History:
    """Records, sorted by the names in them.

    Attributes:
        scalars: by name, a `Series` of ints, exact however large, and floats.
        histograms: by name, a `Series` of `Bins`.
        items: by name, what the items of the model are.
        steps: of all records without a prefix.
        times: when each of those was taken, in seconds since the epoch.
    """

    def __init__(self) -> None:
        self.scalars: dict[str, Series[int | float]] = {}
        self.histograms: dict[str, Series[Bins]] = {}
        self.items: dict[str, Item] = {}
        self.steps: list[int] = []
        self.times: list[float] = []
        self._said: dict[str, Mapping[str, Item]] = {}  # what each source last said that the items are

    def add(self, record: Record, prefix: str = "") -> None:
        """Adds a record.

        Args:
            record: what a run says about a step.
            prefix: what to put in front of its names.
        """
        if not prefix:
            self.steps.append(record.step)
            self.times.append(record.time)
        for name, value in record.scalars.items():
            self.scalars.setdefault(prefix + name, Series()).add(record.step, value)
        for name, bins in record.histograms.items():
            self.histograms.setdefault(prefix + name, Series()).add(record.step, bins)
        if record.items is not self._said.get(prefix):
            self._said[prefix] = record.items
            self.items |= {prefix + name: item for name, item in record.items.items()}
