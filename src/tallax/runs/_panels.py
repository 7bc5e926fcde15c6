# SPDX-License-Identifier: Apache-2.0
"""The panels of `tallax plot`: curves with common axes, histograms over the steps, and maps of the layers.

A map has one number of `tallax.watch` for all layers of a model: `layers/0/up:output/rms`, `layers/1/up:output/rms`,
... are one map, whose title has a `*` for the number of the layer. The entries of an array are one map, too: of a stack
of layers (`layers/up:output/rms/0`), or of heads.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tallax.runs._bars import Axis
from tallax.runs._history import History, Series, sorted_names
from tallax.runs._keys import is_entry, is_selected, is_spelled_out, site_key
from tallax.runs._record import Bins

ENTRIES = 12  # the most entries of an array that are curves of one panel; a larger array is a histogram
LAYERS = 4  # the fewest layers with a number that are drawn as a map; fewer are curves of one panel
_RECORDS = 300  # the number of columns of a heat map
_BINS = 64  # the number of its rows if the records have different edges
_ROWS = 128  # the most rows if they have the same edges, because a row thinner than a dot may not be drawn
# Fields with a common unit, the uppermost curve first.
_FAMILIES = (
    ("p99", "median", "p01"),
    ("max", "mean", "min"),
    ("underflow", "overflow", "nan", "posinf", "neginf"),
)


@dataclass(frozen=True)
class Curve:
    """A number over the steps, with its name in the legend."""

    label: str
    series: Series[int | float]


@dataclass(frozen=True)
class SiteMap:
    """A number of several layers over the steps.

    Attributes:
        labels: The number of each layer, and of the entry if there are several: `3`, or `3,1`.
        steps: The steps of the columns, ascending.
        values: float64[layers, steps]; NaN if a layer has no record of a step. If records are left out, a column has
            the largest magnitude since the column before, so that no spike is lost.
    """

    labels: list[str]
    steps: list[int]
    values: np.ndarray


@dataclass
class Panel:
    """Curves with common axes, one histogram over the steps, or one number of all layers over the steps."""

    title: str
    curves: list[Curve] = field(default_factory=list)
    histogram: Series[Bins] | None = None
    layers: SiteMap | None = None

    @property
    def series(self) -> list[Any]:
        """All series that are drawn, each with its steps."""
        if self.layers is not None:
            return [self.layers]
        return [curve.series for curve in self.curves] + ([self.histogram] if self.histogram is not None else [])


def panels_of(run: History, patterns: Sequence[str]) -> list[Panel]:
    """Returns the panels of one run. The entries of an array, and fields with a common unit, are in one panel."""
    names = [name for name in sorted_names(run) if is_selected(name, patterns)]
    blank = _blank_numbers(run, names, patterns)
    names = [name for name in names if name not in blank]
    sites: dict[str, dict[str, Series[int | float]]] = {}
    for name in names:
        if name in run.scalars and (site := _place_in_map(name)) is not None:
            sites.setdefault(site[0], {})[site[1]] = run.scalars[name]
    found: dict[str, Panel] = {}
    for name in names:
        title, label = _place_in_map(name) or ("", "")
        if name in run.scalars and len(sites.get(title, ())) > 1:
            if len(sites[title]) < LAYERS:
                found.setdefault(title, Panel(title)).curves.append(Curve(label, run.scalars[name]))
            elif title not in found:
                found[title] = Panel(title, layers=site_map(sites[title]))
            continue
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
    """Returns the panels of several runs: one for each number, with a curve per run, and one per histogram and run."""
    found: list[Panel] = []
    for name in dict.fromkeys(
        name for run in runs.values() for name in sorted_names(run) if is_selected(name, patterns)
    ):
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
    """Returns whether a number is an entry of an array that is drawn as a histogram."""
    return is_entry(last) and parent in run.histograms and not _few_entries(run, parent)


def _few_entries(run: History, name: str) -> bool:
    """Returns whether a histogram belongs to an array with so few entries that each entry has its own curve."""
    bins = run.histograms[name].values[-1]
    return bins.are_entries and len(bins.counts) <= ENTRIES and f"{name}/0" in run.scalars


@dataclass(frozen=True)
class Heat:
    """A histogram over the steps, on one set of edges.

    Attributes:
        steps: The steps of the records, ascending.
        edges: The edges of the bins, float64[n + 1].
        shares: float64[len(steps), n]: the fraction of the values of a record in each bin; NaN if a record has no
            values.
        axis: The axis that determines the edges.
        new: Whether a record shows only the values since the previous record, or all values.
        entries: Whether the bins are the entries of an array.
    """

    steps: list[int]
    edges: np.ndarray
    shares: np.ndarray
    axis: Axis
    new: bool
    entries: bool


def heat_of(series: Series[Bins], records: int = _RECORDS) -> Heat:
    """Returns a histogram over the steps. If it only grows, each record shows the values since the previous record.

    If there are more records than `records`, one that is left out is part of the next one.
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
    """Returns the growth of the bins from record to record, and the records, or None if the bins do not only grow.

    If the total shrinks, the statistic was reset. If neighbouring buckets were merged differently than before, bins may
    seem to shrink, and the record has no column.
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


def _place_in_map(name: str) -> tuple[str, str] | None:
    """Returns the title of the map that a scalar belongs to, and its label; None for other scalars."""
    key = site_key(name)
    if key is None:
        return None
    path = key.path.split("/")
    numbers = [part for part in path if part.isdecimal()] + ([key.entry] if key.entry else [])
    title = "/".join("*" if part.isdecimal() else part for part in path)
    below = f"/{key.number}" if key.number else ""
    return (f"{title}:{key.role}{below}", ",".join(numbers)) if numbers else None


def _blank_numbers(run: History, names: Sequence[str], patterns: Sequence[str]) -> set[str]:
    """Returns the numbers of sites that are 0 in all layers and steps, unless a pattern contains their names.

    Most models have no zeros, and nothing that is not finite.
    """
    zero: dict[str, bool] = {}
    blank: dict[str, list[str]] = {}
    for name in names:
        key = site_key(name)
        if key is None or name not in run.scalars or any(is_spelled_out(key, pattern) for pattern in patterns):
            continue
        title, _ = _place_in_map(name) or (name, "")
        zero[title] = zero.get(title, True) and not any(run.scalars[name].values)
        blank.setdefault(title, []).append(name)
    return {name for title, names in blank.items() if zero[title] for name in names}


def site_map(chosen: Mapping[str, Series[int | float]]) -> SiteMap:
    """Returns the map of some scalars by their labels."""
    labels = sorted(chosen, key=lambda label: [int(part) for part in re.findall(r"\d+", label)])
    steps = sorted({step for series in chosen.values() for step in series.steps})
    values = np.full((len(labels), len(steps)), math.nan)
    for row, label in enumerate(labels):
        values[row, np.searchsorted(steps, chosen[label].steps)] = _floats(chosen[label])
    if len(steps) > _RECORDS:
        ends = np.linspace(0, len(steps), _RECORDS + 1).astype(int)
        values = np.stack([_extremes(values[:, a:b]) for a, b in itertools.pairwise(ends)], 1)
        steps = [steps[end - 1] for end in ends[1:]]
    return SiteMap(labels, steps, values)


def _floats(series: Series[int | float]) -> list[float]:
    return [float(value) if not abs(value) >= 1e300 else math.copysign(math.inf, value) for value in series.values]


def _extremes(values: np.ndarray) -> np.ndarray:
    """Returns the entry of the largest magnitude of each row; NaN if all entries are NaN."""
    places = np.where(np.isnan(values), -1.0, np.abs(values)).argmax(1)
    return values[np.arange(len(values)), places]
