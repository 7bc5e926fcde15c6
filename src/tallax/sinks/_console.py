# SPDX-License-Identifier: Apache-2.0
"""`Console`: a live table in the training terminal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from tallax._errors import MissingExtraError
from tallax.runs import History, Record
from tallax.runs._names import matches, users_scalars
from tallax.runs._number_format import number
from tallax.sinks._partial_writes import encoded

try:
    import rich
    from rich.errors import LiveError
    from rich.live import Live
    from rich.text import Text

    from tallax.runs._live_table import KEEP, table
except ModuleNotFoundError:
    raise MissingExtraError.of("sinks.Console", "console", "rich") from None

_MARGIN = 6  # lines of the terminal that are left for progress bars and what is printed
_SHOWN = 8  # numbers in a line, where the run has no scalars but those of items


class Console:
    """Shows a run in the terminal that it trains in: a table below what is printed, as that of `tallax tail`.

    Where stdout is no terminal, it prints a line for each record instead: the step, and the scalars that the Logger was
    given.

    What is printed while the table is there goes above it. A progress bar of rich lives beside it where both are on one
    `rich.console.Console`: rich's own, unless either is given another. That takes rich 14.1; with an older one a line
    for each record is printed beside a progress bar, as without a terminal. What writes escape codes of its own, as
    tqdm does, and a second rich console do not get on with it. The table is drawn when a record comes, and not more
    often than told; it stays when the sink is closed.

    Resuming: nothing to do. It keeps the last values only, however long the run.

    Args:
        names: which names to show, as a shell matches them: `"gate/*"`. Without it all, as many as there is room for;
            in lines, the scalars that are of no item.
        every_seconds: how long to wait between two tables, at least.
        console: a `rich.console.Console`, where it is not rich's own.

    Raises:
        MissingExtraError: rich is not installed.
    """

    def __init__(self, names: str | Sequence[str] | None = None, *, every_seconds: float = 0.5, console: Any = None):
        self._patterns = [names] if isinstance(names, str) else list(names or ())
        self._every = every_seconds
        self._console = console
        self._history = History(KEEP)
        self._live: Live | None = None
        self._drawn = 0.0  # when, by the monotonic clock
        self._in_lines: bool | None = None  # None until there was a record

    def write(self, record: Record) -> dict[str, Exception]:
        record, errors = encoded(record, _checked)
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
        except LiveError:  # an older rich, and a progress bar
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
        names = [name for name in record.scalars if matches(name, self._patterns)]
        if not self._patterns:
            own = set(users_scalars(self._history))
            names = [name for name in names if name in own] or names[:_SHOWN]
        said = "  ".join(f"{name}={number(record.scalars[name])}" for name in names)
        self._console.print(Text(f"step {record.step:,}  {said}".rstrip()), soft_wrap=True, highlight=False)


def _checked(record: Record) -> Record:
    """Returns a record if all of it can be shown: a value that can't be would take the tables of a hundred records."""
    "".join([*record.scalars, *record.histograms]).encode()
    for value in record.scalars.values():
        number(value)
        float(value)
    return record
