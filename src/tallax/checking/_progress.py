# SPDX-License-Identifier: Apache-2.0
"""The line on stderr that names the current check."""

from __future__ import annotations

import contextlib
import io
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

Notify = Callable[[str], None]


@contextlib.contextmanager
def progress_line(wanted: bool | None = None, on_progress: Notify | None = None) -> Iterator[Notify]:
    """Shows the names of checks while the block runs, and then removes the line.

    Args:
        wanted: If None, the line is shown if stderr is a terminal. If True, it is always shown, as one line per check
            if stderr is not a terminal. If False, it is never shown.
        on_progress: A function that is called with the same names.

    Yields:
        A function to call with the name of each check as it begins.
    """
    stream: Any = sys.stderr or io.StringIO()  # some launchers start a program without it
    is_terminal = stream.isatty()
    is_shown = is_terminal if wanted is None else wanted
    began = time.perf_counter()

    def notify(check: str) -> None:
        if is_shown and is_terminal:
            stream.write(f"\r\x1b[2K{check} ({time.perf_counter() - began:.0f} s)")
            stream.flush()
        elif is_shown:
            print(f"check: {check}", file=stream, flush=True)
        if on_progress is not None:
            on_progress(check)

    try:
        yield notify
    finally:
        if is_shown and is_terminal:
            stream.write("\r\x1b[2K")
            stream.flush()
