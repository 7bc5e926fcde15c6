# SPDX-License-Identifier: Apache-2.0
"""What a run says by now as a table that fits a terminal: the one of `tallax tail` and of `sinks.Console`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tallax.runs._bars import bars_of, sparkline
from tallax.runs._history import History, Series
from tallax.runs._names import is_entry, matches, sorted_names
from tallax.runs._number_format import ago, change, number, short
from tallax.runs._record import Bins

KEEP = 64  # values of each name, which is what the widest sparkline shows
_GAP = 2
_NAME, _LOOKS, _WIDEST = 16, 8, 48  # the least width of names and of sparklines, and the most of the latter
_OVERHEAD = 5  # lines around the rows: two of the header, the headings, and what did not fit


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: what it is about.
        value: the latest, in full.
        change: since the record before.
        values: the recent ones, or the bins of the last.
        fresh: whether the last record has it.
    """

    name: str
    value: str
    change: str
    values: Sequence[int | float] | Bins
    fresh: bool


def table(
    history: History, title: str, *, patterns: Sequence[str] = (), width: int, height: int, now: float | None = None
) -> RenderableType:
    """Returns the table, no wider and no higher than told; what does not fit is said.

    Args:
        history: what the run says.
        title: of the run; none where it is "".
        patterns: patterns of the names that are wanted; all without any.
        width: in columns.
        height: in lines.
        now: the time, in seconds since the epoch, to tell the age of the last record; None to leave it out.
    """
    head = _header(history, title, width, now)
    rows = list(rows_of(history, patterns))
    if not rows:
        there = len(history.scalars) + len(history.histograms)
        said = f"none of {there} names matches {' '.join(patterns)}" if patterns and there else "no records yet"
        return Group(head, Text(), Text(said, "dim"))
    room = max(1, height - _OVERHEAD)
    if len(rows) > room:
        rows = list(_folded(rows))
    left_out = rows[room:]
    parts: list[RenderableType] = [head, Text(), _body(rows[:room], width)]
    if left_out:
        parts.append(Text(_rest(left_out), "dim", no_wrap=True, overflow="ellipsis"))
    return Group(*parts)


def rows_of(history: History, patterns: Sequence[str] = ()) -> Iterator[Row]:
    """Yields what is wanted: the user's scalars first, and then items, each histogram before its numbers."""
    last = history.steps[-1] if history.steps else None
    for name in sorted_names(history):
        if matches(name, patterns):
            if name in history.histograms:
                yield _histogram(name, history.histograms[name], last)
            if name in history.scalars:
                yield _scalar(name, history.scalars[name], last)


def speed_of(history: History) -> float | None:
    """Returns the steps a second of the last records: the median, since a run may have been resumed among them."""
    steps, times = history.steps[-10:], history.times[-10:]
    speeds = sorted(
        (steps[k + 1] - steps[k]) / (times[k + 1] - times[k])
        for k in range(len(steps) - 1)
        if times[k + 1] > times[k] and steps[k + 1] > steps[k]
    )
    return speeds[len(speeds) // 2] if speeds else None


def _scalar(name: str, series: Series[int | float], last: int | None) -> Row:
    values, steps = series.values, series.steps
    changed = change(values[-2], values[-1], steps[-1] - steps[-2]) if len(values) > 1 else ""
    return Row(name, number(values[-1]), changed, _drawn(series), steps[-1] == last)


def _drawn(series: Series[int | float]) -> Sequence[int | float]:
    """Returns what a sparkline shows: of a count that only grew, by how much a step; of anything else, its values."""
    values, steps = series.values[-_WIDEST - 1 :], series.steps[-_WIDEST - 1 :]
    pairs = list(itertools.pairwise(values))
    if not pairs or not all(isinstance(value, int) for value in values):
        return values[-_WIDEST:]
    if not all(before <= after for before, after in pairs) or values[0] == values[-1]:
        return values[-_WIDEST:]
    lengths = [max(1, after - before) for before, after in itertools.pairwise(steps)]
    # In hundredths of a step, so that integers beyond 2**53 stay what they are.
    return [
        (after - before) * 100 // length  # pyright: ignore[reportOperatorIssue]
        for (before, after), length in zip(pairs, lengths, strict=True)
    ]


def _histogram(name: str, series: Series[Bins], last: int | None) -> Row:
    values, steps = series.values, series.steps
    total = values[-1].total
    changed = change(values[-2].total, total, steps[-1] - steps[-2]) if len(values) > 1 else ""
    return Row(name, number(total), changed, values[-1], steps[-1] == last)


def _folded(rows: Sequence[Row]) -> Iterator[Row]:
    """Yields rows with those of an array's entries, `load/0` and on, put into one; into that of their bins if any."""
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
    named = title if len(title) <= max(room, _NAME) else "…" + title[1 - max(room, _NAME) :]
    return Text(no_wrap=True, overflow="ellipsis").append(f"{named}  ", "bold cyan").append_text(text)


def _body(rows: Sequence[Row], width: int) -> Table:
    """Returns the rows, in columns whose widths add up to no more than `width`."""
    name = max(4, *(len(row.name) for row in rows))
    value = max(5, *(len(row.value) for row in rows))
    changed = max(6, *(len(row.change) for row in rows))
    looks = min(_WIDEST, width - name - value - changed - 3 * _GAP)
    if looks < _LOOKS:
        name = max(_NAME, name - (_LOOKS - looks))
        looks = width - name - value - changed - 3 * _GAP
    if looks < _LOOKS:  # values are never cut: other columns go
        changed = 0
        looks = width - name - value - 2 * _GAP
    if looks < _LOOKS:
        looks = 0
        name = max(4, min(max(4, *(len(row.name) for row in rows)), width - value - _GAP))
    body = Table(box=None, show_edge=False, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="dim")
    body.add_column("name", width=name, no_wrap=True)
    body.add_column("value", width=value, no_wrap=True, justify="right")
    if changed:
        body.add_column("change", width=changed, no_wrap=True, justify="right")
    if looks:
        body.add_column("recent", width=looks, no_wrap=True)
    for row in rows:
        cells = [
            Text(_cut(row.name, name), "" if row.fresh else "dim"),
            Text(row.value, "bold" if row.fresh else "dim"),
        ]
        if changed:
            cells.append(Text(row.change, "dim"))
        if looks:
            if isinstance(row.values, Bins):
                cells.append(Text(bars_of(row.values, looks), "magenta"))
            else:
                cells.append(Text(sparkline(row.values, width=looks), "green"))
        body.add_row(*cells)
    return body


def _cut(name: str, width: int) -> str:
    """Returns a name, without its first parts where it is too long: the last ones tell most."""
    return name if len(name) <= width else "…" + name[len(name) - width + 1 :]


def _rest(left_out: Sequence[Row]) -> str:
    """Says what did not fit, and how to get there."""
    parent, _, entry = left_out[0].name.rpartition("/")
    pattern = f"{parent}/*" if parent else entry
    return f"... and {len(left_out):,} more; narrow with --names '{pattern}'"
