# SPDX-License-Identifier: Apache-2.0
"""The line on stderr that names the current check. rich draws it if it is installed."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

Notify = Callable[[str], None]


@contextlib.contextmanager
def progress_line(wanted: bool | None = None) -> Iterator[Notify]:
    """Shows the names of checks while the block runs, and then removes the line.

    Args:
        wanted: If None, the line is shown if stderr is a terminal. If True, it is always shown, as one line per check
            if stderr is not a terminal. If False, it is never shown.

    Yields:
        A function to call with the name of each check as it begins.
    """
    stream: Any = sys.stderr
    is_terminal = stream is not None and stream.isatty()
    if stream is None or wanted is False or (wanted is None and not is_terminal):
        yield lambda check: None
    elif not is_terminal:
        yield lambda check: print(f"check: {check}", file=stream, flush=True)
    else:
        with contextlib.ExitStack() as stack:
            try:
                notify = stack.enter_context(_drawn_by_rich())
            except Exception:  # rich is not installed, or the caller already has a live display
                notify = stack.enter_context(_drawn_by_hand(stream))
            yield notify


@contextlib.contextmanager
def _drawn_by_rich() -> Iterator[Notify]:
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True, highlight=False), transient=True) as progress:
        task = progress.add_task("start")
        yield lambda check: progress.update(task, description=check)


@contextlib.contextmanager
def _drawn_by_hand(stream: Any) -> Iterator[Notify]:
    began = time.perf_counter()

    def notify(check: str) -> None:
        stream.write(f"\r\x1b[2K{check} ({time.perf_counter() - began:.0f} s)")
        stream.flush()

    try:
        yield notify
    finally:
        stream.write("\r\x1b[2K")
        stream.flush()
