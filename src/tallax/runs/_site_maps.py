# SPDX-License-Identifier: Apache-2.0
"""Maps of the layers over the steps: one number of `tallax.watch` for all layers of a model.

`layers/0/up:output/rms`, `layers/1/up:output/rms`, ... are one map, whose title has a `*` for the number of the layer.
The entries of an array are one map, too: of a stack of layers (`layers/up:output/rms/0`), or of heads.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tallax.runs._history import Series
from tallax.runs._names import is_entry

_COLUMNS = 300
# Fields with the step and the number of entries of another number; they are drawn only if a pattern selects them.
_BOOKKEEPING = {"size", "updates", "entries", "queries", "largest_at", "nonfinite_at"}


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


def site_of(name: str) -> tuple[str, str] | None:
    """Returns the title of the map that a scalar belongs to, and its label; None for other scalars."""
    path, colon, rest = name.rpartition(":")
    if not colon:
        return None
    role, _, entry = rest.rpartition("/")
    if not is_entry(entry):
        role, entry = rest, ""
    numbers = [part for part in path.split("/") if part.isdigit()]
    if not numbers and not entry:
        return None
    title = "/".join("*" if part.isdigit() else part for part in path.split("/"))
    return f"{title}:{role}", ",".join([*numbers, *([entry] if entry else [])])


def is_bookkeeping(name: str) -> bool:
    """Returns whether a scalar of a site is only the step or the number of entries of another one."""
    return ":" in name and any(part in _BOOKKEEPING for part in name.rpartition(":")[2].split("/"))


def site_map(chosen: Mapping[str, Series[int | float]]) -> SiteMap:
    """Returns the map of some scalars by their labels."""
    labels = sorted(chosen, key=lambda label: [int(part) for part in re.findall(r"\d+", label)])
    steps = sorted({step for series in chosen.values() for step in series.steps})
    values = np.full((len(labels), len(steps)), math.nan)
    for row, label in enumerate(labels):
        values[row, np.searchsorted(steps, chosen[label].steps)] = _floats(chosen[label])
    if len(steps) > _COLUMNS:
        ends = np.linspace(0, len(steps), _COLUMNS + 1).astype(int)
        values = np.stack([_extremes(values[:, a:b]) for a, b in itertools.pairwise(ends)], 1)
        steps = [steps[end - 1] for end in ends[1:]]
    return SiteMap(labels, steps, values)


def _floats(series: Series[int | float]) -> list[float]:
    return [float(value) if not abs(value) >= 1e300 else math.copysign(math.inf, value) for value in series.values]


def _extremes(values: np.ndarray) -> np.ndarray:
    """Returns the entry of the largest magnitude of each row; NaN if all entries are NaN."""
    places = np.where(np.isnan(values), -1.0, np.abs(values)).argmax(1)
    return values[np.arange(len(values)), places]
