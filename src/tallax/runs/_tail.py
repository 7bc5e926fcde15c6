# SPDX-License-Identifier: Apache-2.0
"""`tallax tail`: follows a run in the terminal while it is written."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Sequence

try:
    from rich.console import Console, RenderableType
    from rich.live import Live
    from rich.text import Text
except ModuleNotFoundError:
    from tallax.runs._errors import MissingExtraError

    raise MissingExtraError.of("tallax tail", "cli", "rich") from None

from tallax.runs._keyboard import keyboard
from tallax.runs._live_table import KEEP, table
from tallax.runs._run import Run, is_run
from tallax.runs._show import console_on_stdout


def tail(path: str, patterns: Sequence[str], every_seconds: float, *, once: bool, wait: bool) -> None:
    """Shows a run as a live table until Ctrl-C or `q`. If stdout is not a terminal, or with `once`, prints it once.

    Raises:
        RunError: The run does not exist or is damaged.
    """
    console = console_on_stdout()
    # Ctrl-C is the normal way to leave, also while it waits or draws.
    with contextlib.suppress(KeyboardInterrupt):
        if wait and not is_run(path):
            console.print(Text(f"waiting for {path} ...", "dim"))
            while not is_run(path):
                time.sleep(min(every_seconds, 0.5))
        run = Run(path, keep=KEEP)
        if once or not sys.stdout.isatty() or console.is_dumb_terminal:
            _print(run, path, patterns, console)
            return
        try:
            _follow(run, path, patterns, every_seconds, console)
        finally:
            _print(run, path, patterns, console)  # prints the last table again, on the restored screen


def _follow(run: Run, path: str, patterns: Sequence[str], every_seconds: float, console: Console) -> None:
    with keyboard() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(_fitted(run, path, patterns, console), refresh=True)
            if "q" in pressed(every_seconds).lower():
                return
            run.refresh()


def _fitted(run: Run, path: str, patterns: Sequence[str], console: Console) -> RenderableType:
    width, height = console.size
    return table(run, path, patterns=patterns, width=width, height=height, now=time.time())


def _print(run: Run, path: str, patterns: Sequence[str], console: Console) -> None:
    """Prints the table: as high as the terminal, or complete if stdout is not a terminal."""
    height = console.size.height - 1 if sys.stdout.isatty() else sys.maxsize
    console.print(table(run, path, patterns=patterns, width=console.width, height=height, now=time.time()))
