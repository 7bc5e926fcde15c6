# SPDX-License-Identifier: Apache-2.0
"""`Console`: a sink that shows a live table in the terminal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from tallax._errors import MissingExtraError
from tallax.runs import History, Record
from tallax.runs._history import users_scalars
from tallax.runs._number_format import number
from tallax.runs._site_table import most_unusual_first
from tallax.sinks._partial_writes import encode_or_omit

try:
    import rich
    from rich.errors import LiveError
    from rich.live import Live
    from rich.text import Text

    from tallax.runs._live_table import KEEP, chosen, table
except ModuleNotFoundError:
    raise MissingExtraError.of("sinks.Console", "console", "rich") from None

_MARGIN = 6  # lines of the terminal that stay free for progress bars and printed text
_SHOWN = 8  # numbers in a line, if all scalars belong to the state


class Console:
    """Shows a run in the terminal in which it trains, as the table of `tallax tail` below the printed text.

    If stdout is not a terminal, it prints a line for each record: the step, and the scalars passed to the Logger. Of
    the sites of a watch that `names` selects, it prints the eight most unusual ones.

    Text that is printed while the table is shown goes above it. A progress bar of rich works alongside it if both use
    the same `rich.console.Console`, by default rich's own. This needs rich 14.1. With an older version, a line for each
    record is printed alongside a progress bar. A second rich console, and programs that write their own escape codes,
    such as tqdm, disturb the table. The table is drawn when a record arrives, at most every `every_seconds`. It stays
    when the sink is closed.

    Only the last values are kept in memory, however long the run.

    Args:
        names: Shell patterns of the names to show, one or several, such as `"gate/*"`. If omitted, the table shows as
            many names as fit, and a line shows the scalars that do not belong to the state.
        every_seconds: The minimum time between two tables, in seconds.
        console: A `rich.console.Console`. If omitted, rich's own.

    Raises:
        MissingExtraError: The package rich is not installed.
    """

    def __init__(self, names: str | Sequence[str] | None = None, *, every_seconds: float = 0.5, console: Any = None):
        self._patterns = [names] if isinstance(names, str) else list(names or ())
        self._every = every_seconds
        self._console = console
        self._history = History(KEEP)
        self._live: Live | None = None
        self._drawn = 0.0  # the time of the monotonic clock
        self._in_lines: bool | None = None  # None until there was a record

    def write(self, record: Record) -> dict[str, Exception]:
        record, errors = encode_or_omit(record, _checked)
        self._history.add(record)
        if self._in_lines is None:
            self._begin()
        if self._in_lines:
            self._print(record)
        elif self._live is not None and time.monotonic() - self._drawn >= self._every:
            self._draw(self._live)
        return errors

    def close(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            try:
                self._draw(live)
            finally:
                live.stop()

    def __repr__(self) -> str:
        return f"Console({', '.join(map(repr, self._patterns))})"

    def _begin(self) -> None:
        if self._console is None:
            self._console = rich.get_console()
        self._in_lines = not self._console.is_terminal or self._console.is_dumb_terminal
        if self._in_lines:
            return
        live = Live(console=self._console, auto_refresh=False)
        try:
            live.start()
        except LiveError:  # an older rich, with a progress bar
            self._in_lines = True
        else:
            self._live = live
            self._draw(live)

    def _draw(self, live: Live) -> None:
        self._drawn = time.monotonic()
        width, height = self._console.size
        height = max(8, height - _MARGIN)
        live.update(table(self._history, "", patterns=self._patterns, width=width, height=height), refresh=True)

    def _print(self, record: Record) -> None:
        own = () if self._patterns else users_scalars(self._history)
        names, rows = [name for name in own if name in record.scalars], []
        if not names:  # the names that were asked for, or the first of the state
            selected, sites = chosen(self._history, self._patterns)
            alone = set(selected)
            names = [name for name in record.scalars if name in alone][: None if self._patterns else _SHOWN]
            rows = [row for row in (*most_unusual_first(sites.summaries), *sites.others) if row.drawn in record.scalars]
        said = [f"{name}={number(record.scalars[name])}" for name in names]
        said += [f"{row.name}: {row.in_short}" for row in rows[:_SHOWN]]
        if len(rows) > _SHOWN:
            said.append(f"... and {len(rows) - _SHOWN:,} more sites")
        line = "  ".join([f"step {record.step:,}", *said])
        self._console.print(Text(line), soft_wrap=True, highlight=False)


def _checked(record: Record) -> Record:
    """Returns the record, or raises if a value cannot be shown, which would break the table of many later records."""
    "".join([*record.scalars, *record.histograms]).encode()
    for value in record.scalars.values():
        number(value)
        float(value)
    return record
