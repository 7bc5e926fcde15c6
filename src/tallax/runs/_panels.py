# SPDX-License-Identifier: Apache-2.0
"""What `tallax plot` draws together: which curves share axes, and what a histogram looks like over the steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tallax.runs._histogram_axis import Axis
from tallax.runs._history import History, Series
from tallax.runs._names import is_entry, matches, sorted_names
from tallax.runs._record import Bins

ENTRIES = 12  # of an array, as curves of one panel; with more, its histogram tells more
_RECORDS = 300  # columns of a heat map
_BINS = 64  # its rows, where the edges of the records differ
_ROWS = 128  # its rows where they don't, at most: a row that is narrower than a dot may not be drawn at all
# Fields that share a unit, the uppermost curve first.
_FAMILIES = (
    ("p99", "median", "p01"),
    ("max", "mean", "min"),
    ("underflow", "overflow", "nan", "posinf", "neginf"),
)


@dataclass(frozen=True)
class Curve:
    """A number over the steps, and what the legend calls it."""

    label: str
    series: Series[int | float]


@dataclass
class Panel:
    """What shares axes: curves, or one histogram over the steps."""

    title: str
    curves: list[Curve] = field(default_factory=list)
    histogram: Series[Bins] | None = None

    @property
    def series(self) -> list[Series[Any]]:
        """All that is drawn."""
        return [curve.series for curve in self.curves] + ([self.histogram] if self.histogram is not None else [])


def panels_of(run: History, patterns: Sequence[str]) -> list[Panel]:
    """Returns the panels of one run: the entries of an array, and fields of one unit, share theirs."""
    names = [name for name in sorted_names(run) if matches(name, patterns)]
    found: dict[str, Panel] = {}
    for name in names:
        if name in run.histograms and not _few_entries(run, name):
            found[f"{name} "] = Panel(name, histogram=run.histograms[name])
        if name not in run.scalars:
            continue
        parent, _, last = name.rpartition("/")
        family = next((family for family in _FAMILIES if last in family), ())
        if _is_in_histogram(run, parent, last):
            continue
        if is_entry(last) and parent:
            title, label = parent, last
        elif parent and sum(f"{parent}/{other}" in names for other in family) > 1:
            there = [other for other in family if f"{parent}/{other}" in names]
            title, label = f"{parent}: {', '.join(there)}", last
        else:
            title, label = name, ""
        panel = found.setdefault(title, Panel(title))
        panel.curves.append(Curve(label, run.scalars[name]))
        if family:
            panel.curves.sort(key=lambda curve: family.index(curve.label) if curve.label else 0)
    return list(found.values())


def panels_over_each_other(runs: dict[str, History], patterns: Sequence[str]) -> list[Panel]:
    """Returns the panels of several runs: each number has its own with a curve for each run, each histogram one a run.

    Args:
        runs: by what the legend calls them.
        patterns: patterns of names.
    """
    found: list[Panel] = []
    for name in dict.fromkeys(name for run in runs.values() for name in sorted_names(run) if matches(name, patterns)):
        parent, _, last = name.rpartition("/")
        curves = []
        for label, run in runs.items():
            if name in run.histograms and not _few_entries(run, name):
                found.append(Panel(f"{name}: {label}", histogram=run.histograms[name]))
            if name in run.scalars and not _is_in_histogram(run, parent, last):
                curves.append(Curve(label, run.scalars[name]))
        if curves:
            found.append(Panel(name, curves))
    return found


def _is_in_histogram(run: History, parent: str, last: str) -> bool:
    """Tells whether a number is an entry of an array that is drawn as a histogram."""
    return is_entry(last) and parent in run.histograms and not _few_entries(run, parent)


def _few_entries(run: History, name: str) -> bool:
    """Tells whether a histogram is an array's of which each entry has a curve that can be told from the others."""
    bins = run.histograms[name].values[-1]
    return bins.are_entries and len(bins.counts) <= ENTRIES and f"{name}/0" in run.scalars


@dataclass(frozen=True)
class Heat:
    """A histogram over the steps, on one set of edges.

    Attributes:
        steps: of the records, rising.
        edges: float64[n + 1].
        shares: float64[len(steps), n]: of the values of each record, which lie in a bin; NaN of none.
        axis: where the edges come from.
        new: whether the values of a record are those since the one before, or all.
        entries: whether the bins are an array's entries.
    """

    steps: list[int]
    edges: np.ndarray
    shares: np.ndarray
    axis: Axis
    new: bool
    entries: bool


def heat_of(series: Series[Bins], records: int = _RECORDS) -> Heat:
    """Returns a histogram over the steps: of one that only grows, what each record has more than the one before.

    Args:
        series: the records.
        records: how many to show at most; those that are left out are part of the next one.
    """
    last_of_step = {step: k for k, step in enumerate(series.steps)}
    chosen = list(last_of_step.values())
    if len(chosen) > records:
        chosen = [chosen[round(k)] for k in np.linspace(0, len(chosen) - 1, records)]
    steps = [series.steps[k] for k in chosen]
    bins = [series.values[k] for k in chosen]
    axis = Axis.of(bins)
    are_entries = all(each.are_entries for each in bins)
    alike = all(np.array_equal(each.edges, bins[0].edges) for each in bins)
    if alike and axis.threshold is None:
        bins = [each.at_most(_ROWS) for each in bins]
        edges, mass = bins[0].edges, np.stack([each.counts.astype(np.float64) for each in bins])
    else:
        edges, mass = axis.edges(_BINS), np.stack([axis.spread(each, _BINS) for each in bins])
    found = _grown(mass)
    if found is not None:
        mass, kept = found
        steps = [step for step, keep in zip(steps, kept, strict=True) if keep]
    totals = mass.sum(1, keepdims=True)
    with np.errstate(invalid="ignore"):
        shares = np.where(totals > 0, mass / totals, math.nan)
    return Heat(steps, edges, shares, axis, found is not None, are_entries)


def _grown(mass: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns by how much the bins grew from record to record, and of which records; None where they do not just grow.

    Fewer in all than before is a statistic that was reset. Where neighbouring buckets were put together otherwise than
    before, bins may seem to shrink: that record has no column of its own.
    """
    totals = mass.sum(1)
    if len(mass) < 2 or totals[-1] <= 0 or not (np.diff(totals) != 0).any():
        return None
    before = np.where((np.diff(totals) < 0)[:, None], 0.0, mass[:-1])
    grown = np.concatenate([mass[:1], mass[1:] - before])
    lost = -np.minimum(grown, 0.0).sum(1)
    kept = lost <= 0.005 * np.maximum(grown, 0.0).sum(1)
    if kept.sum() < 0.5 * len(kept):
        return None
    return np.maximum(grown[kept], 0.0), kept
