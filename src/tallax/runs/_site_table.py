# SPDX-License-Identifier: Apache-2.0
"""The sites of `tallax.watch` as a table with a row for each, shared by `print(watch)`, `show`, `tail` and notebooks.

A summary has columns. The numbers of presets and other statistics differ, so each of them is one text.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from tallax.runs._bars import bars_of
from tallax.runs._keys import SiteKey, site_key, sort_key
from tallax.runs._number_format import cut, number, short
from tallax.runs._record import Bins

COLUMNS = ("site", "rms", "mean", "largest", "at", "zeros", "non-finite")
_NARROW_WITHOUT = ("mean", "zeros", "at")  # the order in which a narrow terminal loses columns
_SUMMARY = {"size", "rms", "mean", "largest", "largest_at", "zeros", "nonfinite"}
_GAP = "  "
_BARS = 24  # characters of a histogram


@dataclass(frozen=True)
class SiteRow:
    """The numbers of a site; of a stack of layers, those of one layer.

    Attributes:
        name: The name: `layers/0/up:output`, or `layers/up[3]:output` for a layer of a stack.
        numbers: The numbers of a summary by name; empty for other statistics.
        text: The numbers of another statistic.
        drawn: The name of the number whose values over the steps stand for the row, or an empty string.
    """

    name: str
    numbers: Mapping[str, Any]
    text: str = ""
    drawn: str = ""

    @property
    def cells(self) -> tuple[str, ...]:
        """The name and the numbers, in the order of `COLUMNS`."""
        numbers = self.numbers
        seen = max(numbers["size"] - numbers["nonfinite"], 1)
        sizes = (short(numbers[field]) for field in ("rms", "mean", "largest"))
        zeros = f"{numbers['zeros'] / seen:.1%}" if numbers["zeros"] else "0"
        return self.name, *sizes, number(numbers["largest_at"]), zeros, number(numbers["nonfinite"])

    @property
    def in_short(self) -> str:
        """The most important numbers as text."""
        if not self.numbers:
            return self.text
        fields = ["rms", "largest", *(["nonfinite"] if self.numbers["nonfinite"] else [])]
        return ", ".join(f"{field} {short(self.numbers[field])}" for field in fields)


@dataclass(frozen=True)
class Sites:
    """The sites of a run or a checkpoint, in the order of their names.

    Attributes:
        summaries: The sites with a summary that saw a tensor.
        others: The sites with another statistic.
        idle: The names of sites that saw nothing so far.
    """

    summaries: list[SiteRow]
    others: list[SiteRow]
    idle: list[str]


def sites_of(scalars: Mapping[str, int | float], histograms: Mapping[str, Bins]) -> Sites:
    """Returns the sites of some numbers and bins, all of which belong to sites."""
    keys: dict[str, list[tuple[SiteKey, str]]] = {}
    for name in (*scalars, *histograms):
        key = site_key(name)
        if key is not None:
            keys.setdefault(key.site, []).append((key, name))
    found = Sites([], [], [])
    for site in sorted(keys, key=sort_key):
        of_scalars = [(key, name) for key, name in keys[site] if name in scalars]
        if {key.number for key, _ in of_scalars} >= _SUMMARY:
            _add_summaries(found, site, of_scalars, scalars)
        else:
            found.others.append(_other(site, of_scalars, scalars, histograms.get(site)))
    found.others.sort(key=lambda row: row.name.rpartition(":")[2])  # equal statistics together
    return found


def _add_summaries(
    found: Sites, site: str, keys: Iterable[tuple[SiteKey, str]], scalars: Mapping[str, int | float]
) -> None:
    layers: dict[str, dict[str, int | float]] = {}
    drawn: dict[str, str] = {}
    for key, name in keys:
        layers.setdefault(key.entry, {})[key.number] = scalars[name]
        if key.number == "rms":
            drawn[key.entry] = name
    rows = [
        SiteRow(layer_name(site, entry), numbers, drawn=drawn[entry])
        for entry, numbers in layers.items()
        if numbers.keys() >= _SUMMARY and numbers["size"]
    ]
    if rows:
        found.summaries.extend(rows)
    else:
        found.idle.append(site)


def _other(
    site: str, keys: Iterable[tuple[SiteKey, str]], scalars: Mapping[str, int | float], bins: Bins | None
) -> SiteRow:
    fields: dict[str, list[int | float]] = {}
    drawn = ""
    for key, name in keys:
        if not key.is_bookkeeping:
            fields.setdefault(key.number.partition("/")[0], []).append(scalars[name])
            drawn = drawn or name
    texts = [f"{field} {ends_of(values)}".lstrip() for field, values in fields.items()]
    if bins is not None:
        texts.insert(0, bars_of(bins, _BARS))
    return SiteRow(site, {}, ", ".join(texts), drawn)


def layer_name(site: str, entry: str) -> str:
    """Returns the name of one layer of a stack: `layers/up[3]:output`."""
    path, _, role = site.rpartition(":")
    return f"{path}[{entry}]:{role}" if entry else site


def ends_of(values: Iterable[int | float]) -> str:
    """Returns the least and the largest of some numbers as text: `3.33 to 3.39`."""
    least, most = (number(end) if isinstance(end, int) else short(end) for end in (min(values), max(values)))
    return most if least == most else f"{least} to {most}"


def most_unusual_first(rows: Sequence[SiteRow]) -> list[SiteRow]:
    """Returns summaries with entries that are not finite, then those with a spike or unlike other layers, then others.

    Equal parts of different layers have equal names but for the numbers in them, and are compared with each other.
    """
    sizes: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row.numbers["rms"] > 0:
            sizes[_kind(row.name)].append(math.log(row.numbers["rms"]))
    usual = {kind: median(values) for kind, values in sizes.items()}

    def unusual(row: SiteRow) -> tuple[bool, float]:
        rms, largest = row.numbers["rms"], row.numbers["largest"]
        spike = max(largest, 0.0) / rms if rms > 0 else 0.0
        apart = abs(math.log(rms) - usual[_kind(row.name)]) if rms > 0 else 0.0
        dead = row.numbers["zeros"] / row.numbers["size"]
        return bool(row.numbers["nonfinite"]), math.log1p(spike) + apart + dead

    return sorted(rows, key=unusual, reverse=True)


def _kind(name: str) -> str:
    return re.sub(r"\d+", "*", name)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns a line for each row, with the first column aligned on the left and all others on the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [_GAP.join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]


def summary_lines(rows: Sequence[SiteRow], width: int | None = None) -> list[str]:
    """Returns the headings and a line for each summary; in a narrow terminal with fewer columns and cut names."""
    table = [COLUMNS, *(row.cells for row in rows)]
    if width is None:
        return aligned(table)
    kept = list(range(len(COLUMNS)))
    longest = max(len(row[0]) for row in table)
    for column in _NARROW_WITHOUT:
        if _room_for_names(table, kept, width) >= min(longest, width // 2):
            break
        kept.remove(COLUMNS.index(column))
    room = max(4, _room_for_names(table, kept, width))
    return aligned([(cut(row[0], room), *(row[k] for k in kept[1:])) for row in table])


def _room_for_names(table: Sequence[Sequence[str]], kept: Sequence[int], width: int) -> int:
    return width - sum(len(_GAP) + max(len(row[k]) for row in table) for k in kept[1:])


def other_lines(rows: Sequence[SiteRow], width: int | None = None) -> list[str]:
    """Returns a line for each site with another statistic."""
    longest = max(len(row.name) for row in rows)
    room = longest if width is None else min(longest, width // 2)
    lines = [f"{cut(row.name, room).ljust(room)}{_GAP}{row.text}".rstrip() for row in rows]
    return lines if width is None else [line if len(line) <= width else line[: width - 1] + "…" for line in lines]


def lines_of(sites: Sites, width: int) -> list[list[str]]:
    """Returns the lines of all sites: those with summaries, those with other statistics, and those that saw nothing.

    Lines of other statistics may be longer than `width`, so that no number is cut.
    """
    found = []
    if sites.summaries:
        found.append(summary_lines(sites.summaries, width))
    if sites.others:
        found.append(other_lines(sites.others))
    if sites.idle:
        found.append([f"{len(sites.idle):,} site{'s' if len(sites.idle) > 1 else ''} saw nothing so far"])
    return found
