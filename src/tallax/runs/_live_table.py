# SPDX-License-Identifier: Apache-2.0
"""The table of `tallax tail` and `sinks.Console`: the latest values of a run, fitted to a terminal."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from tallax.runs._bars import bars_of, sparkline
from tallax.runs._contents import of_run
from tallax.runs._history import History, Series, sorted_names
from tallax.runs._keys import is_entry
from tallax.runs._number_format import ago, change, cut, number, short
from tallax.runs._record import Bins
from tallax.runs._site_table import SiteRow, Sites, most_unusual_first, other_lines, summary_lines

KEEP = 64  # values of each name, as many as the widest sparkline shows
_GAP = 2
_NAME, _LOOKS, _WIDEST = 16, 8, 48  # the minimum width of names, and the minimum and maximum width of sparklines
_RECENT_RMS = 10  # the minimum width of the sparklines of sites, whose heading is `recent rms`
_FRAME = 2  # lines that belong to no section: the header, and the line on which the cursor stays
# The lines of each section besides its rows: an empty one, the headings, and a line about omitted names or sites.
_HEADINGS = (3, 2, 1)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: The name.
        value: The latest value, in full.
        change: The change since the previous record.
        values: The recent values, or the bins of the last record.
        fresh: Whether the last record has this name.
    """

    name: str
    value: str
    change: str
    values: Sequence[int | float] | Bins
    fresh: bool


def table(
    history: History, title: str, *, patterns: Sequence[str] = (), width: int, height: int, now: float | None = None
) -> RenderableType:
    """Returns the table, fitted to a width in columns and a height in lines, which reports the number of omitted rows.

    Without `now`, in seconds since the epoch, the age of the last record is omitted.
    """
    head = _header(history, title, width, now)
    names, sites = chosen(history, patterns)
    rows = list(rows_of(history, names))
    needs = [len(each) for each in (rows, sites.summaries, sites.others)]
    if not any(needs):
        there = len(history.scalars) + len(history.histograms)
        said = "no site saw anything so far" if sites.idle else "no records yet"
        if patterns and there and not sites.idle:
            said = f"none of {there} names matches {' '.join(patterns)}"
        return Group(head, Text(), Text(said, "dim"))
    if sum(needs) > sum(_rooms(needs, height)):
        rows = list(_folded(rows))
        needs[0] = len(rows)
    rooms = _rooms(needs, height)
    parts: list[RenderableType] = [head]
    if rooms[0]:
        parts += [Text(), *_names(rows[: rooms[0]], width)]
        if len(rows) > rooms[0]:
            pattern = _pattern_of(rows[rooms[0]].name)
            parts.append(_dim(f"... and {len(rows) - rooms[0]:,} more; narrow with --names '{pattern}'"))
    if rooms[1]:
        parts += [Text(), *_summaries(history, sites.summaries, rooms[1], width)]
    if rooms[2]:
        parts += [Text(), *(Text(line, no_wrap=True) for line in other_lines(sites.others[: rooms[2]], width))]
    hidden = sum(needs[1:]) - sum(rooms[1:])
    if hidden:
        order = ", less unusual" if 0 < rooms[1] < needs[1] else ""
        narrow = "" if patterns else "; narrow with --names '*:output'"
        parts.append(_dim(f"... and {hidden:,} more sites{order}{narrow}"))
    return Group(*parts)


def _dim(text: str) -> Text:
    return Text(text, "dim", no_wrap=True, overflow="ellipsis")


def _rooms(needs: Sequence[int], height: int) -> list[int]:
    """Returns the number of rows of each section: as many as it needs, or an equal part of the terminal.

    If the terminal is low, the last sections get no rows.
    """
    used = [k for k, need in enumerate(needs) if need]

    def room() -> int:
        return height - _FRAME - sum(_HEADINGS[k] for k in used) - any(needs[1:])

    while len(used) > 1 and room() < 2 * len(used):
        used.pop()
    left = max(1, room())
    rooms = [0] * len(needs)
    for place, k in enumerate(sorted(used, key=lambda k: needs[k])):
        rooms[k] = min(needs[k], left // (len(used) - place))
        left -= rooms[k]
    return rooms


def _summaries(history: History, rows: Sequence[SiteRow], room: int, width: int) -> Iterator[Text]:
    """Yields the lines of the sites with summaries, by name if all fit, and else the most unusual ones."""
    shown = rows if len(rows) <= room else most_unusual_first(rows)[:room]
    lines = summary_lines(shown, width)
    longest = max(map(len, lines))
    looks = min(_WIDEST, width - longest - _GAP)
    last = history.steps[-1] if history.steps else None
    yield _dim(f"{lines[0].ljust(longest + _GAP)}recent rms" if looks >= _RECENT_RMS else lines[0])
    for row, line in zip(shown, lines[1:], strict=True):
        series = history.scalars[row.drawn]
        style = "red" if row.numbers["nonfinite"] else "" if series.steps[-1] == last else "dim"
        text = Text(line.ljust(longest + _GAP) if looks >= _RECENT_RMS else line, style, no_wrap=True)
        if looks >= _RECENT_RMS:
            text.append(sparkline(series.values, width=looks), "green")
        yield text


def chosen(history: History, patterns: Sequence[str]) -> tuple[list[str], Sites]:
    """Returns the selected names that have rows of their own, and the sites, which have a row for all of their numbers.

    A number of a site has a row of its own if a pattern selects this number, such as `*:output/rms`, and not the site.
    """
    contents = of_run(history, "").only(patterns)
    known = {name for name in (*contents.scalars, *contents.histograms) if not contents.site_of(name)}
    return [name for name in sorted_names(history) if name in known], contents.sites


def rows_of(history: History, names: Sequence[str]) -> Iterator[Row]:
    """Yields the rows of some names, with each histogram before its numbers."""
    last = history.steps[-1] if history.steps else None
    for name in names:
        for series in (history.histograms.get(name), history.scalars.get(name)):
            if series is not None:
                yield _row(name, series, last)


def speed_of(history: History) -> float | None:
    """Returns the steps per second of the last records: the median, because a run may have been resumed."""
    steps, times = history.steps[-10:], history.times[-10:]
    speeds = sorted(
        (steps[k + 1] - steps[k]) / (times[k + 1] - times[k])
        for k in range(len(steps) - 1)
        if times[k + 1] > times[k] and steps[k + 1] > steps[k]
    )
    return speeds[len(speeds) // 2] if speeds else None


def _row(name: str, series: Series[Any], last: int | None) -> Row:
    values, steps = series.values[-2:], series.steps[-2:]
    latest = values[-1]
    numbers = [value.total if isinstance(value, Bins) else value for value in values]
    changed = change(numbers[0], numbers[1], steps[-1] - steps[0]) if len(numbers) > 1 else ""
    drawn = latest if isinstance(latest, Bins) else _drawn(series)
    return Row(name, number(numbers[-1]), changed, drawn, steps[-1] == last)


def _drawn(series: Series[int | float]) -> Sequence[int | float]:
    """Returns the values of a sparkline. For a count that only grew, these are its increments per step."""
    values, steps = series.values[-_WIDEST - 1 :], series.steps[-_WIDEST - 1 :]
    pairs = list(itertools.pairwise(values))
    if not pairs or not all(isinstance(value, int) for value in values):
        return values[-_WIDEST:]
    if not all(before <= after for before, after in pairs) or values[0] == values[-1]:
        return values[-_WIDEST:]
    lengths = [max(1, after - before) for before, after in itertools.pairwise(steps)]
    # In hundredths of a step, so that integers beyond 2**53 stay exact.
    return [
        (after - before) * 100 // length  # pyright: ignore[reportOperatorIssue]
        for (before, after), length in zip(pairs, lengths, strict=True)
    ]


def _folded(rows: Sequence[Row]) -> Iterator[Row]:
    """Yields the rows, with the entries of an array (`load/0`, ...) merged, if possible into the row of their bins."""
    k = 0
    while k < len(rows):
        parent, _, entry = rows[k].name.rpartition("/")
        end = k
        while end < len(rows) and _is_entry_of(rows[end].name, parent):
            end += 1
        if end - k < 2 or not is_entry(entry):
            yield rows[k]
            k += 1
            continue
        entries = rows[k:end]
        latest = [row.values[-1] for row in entries if not isinstance(row.values, Bins)]
        if not (k and rows[k - 1].name == parent):
            last = entries[-1].name.rpartition("/")[2]
            fresh = any(row.fresh for row in entries)
            yield Row(f"{parent}/{entry}..{last}", f"{len(entries)} entries", "", latest, fresh)
        k = end


def _is_entry_of(name: str, parent: str) -> bool:
    head, _, tail = name.rpartition("/")
    return head == parent and is_entry(tail)


def _header(history: History, title: str, width: int, now: float | None) -> Text:
    text = Text(no_wrap=True, overflow="ellipsis")
    if history.steps:
        text.append(f"step {history.steps[-1]:,}", "bold")
        speed = speed_of(history)
        if speed is not None:
            text.append(f"  {short(speed)} steps/s")
        if now is not None:
            age = max(0.0, now - history.times[-1])
            text.append(f"  last record {ago(age)} ago", "yellow" if age > 60 else "")
    if not title:
        return text
    room = width - len(text) - 2
    named = Text(f"{cut(title, max(room, _NAME))}  ", "bold cyan", no_wrap=True, overflow="ellipsis")
    return Text(no_wrap=True, overflow="ellipsis").append_text(named).append_text(text)


def _names(rows: Sequence[Row], width: int) -> Iterator[Text]:
    """Yields the lines of names, in columns that fit into `width`. Values are never cut; other columns are left out."""
    longest, value, changed = (
        max(len(heading), *(len(text) for text in texts))
        for heading, texts in (
            ("name", [row.name for row in rows]),
            ("value", [row.value for row in rows]),
            ("change", [row.change for row in rows]),
        )
    )
    room, others = width - value - _GAP, [changed, _LOOKS]
    while others and room - sum(each + _GAP for each in others) < min(longest, _NAME):
        others.pop(0)
    name = max(4, min(longest, room - sum(each + _GAP for each in others)))
    looks = min(_WIDEST, room - name - sum(each + _GAP for each in others) + _LOOKS)

    def line(*cells: tuple[str, str]) -> Text:
        shown = [*cells[:2], *(cells[2:3] if len(others) == 2 else []), *(cells[3:] if others else [])]
        parts = [part for cell in shown for part in (cell, " " * _GAP)]
        return Text.assemble(*parts[:-1], no_wrap=True, overflow="ellipsis")

    dim = "dim"
    yield line(("name".ljust(name), dim), ("value".rjust(value), dim), ("change".rjust(changed), dim), ("recent", dim))
    for row in rows:
        recent = bars_of(row.values, looks) if isinstance(row.values, Bins) else sparkline(row.values, width=looks)
        yield line(
            (cut(row.name, name).ljust(name), "" if row.fresh else dim),
            (row.value.rjust(value), "bold" if row.fresh else dim),
            (row.change.rjust(changed), dim),
            (recent, "magenta" if isinstance(row.values, Bins) else "green"),
        )


def _pattern_of(name: str) -> str:
    """Returns a pattern for `--names` that selects a name and those next to it."""
    parent, _, last = name.rpartition("/")
    return f"{parent}/*" if parent else last
