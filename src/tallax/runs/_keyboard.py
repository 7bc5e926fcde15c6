# SPDX-License-Identifier: Apache-2.0
"""Single keys from a terminal, without Enter, on POSIX systems and on Windows."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def keyboard() -> Iterator[Callable[[float], str]]:
    """Yields a function that waits some seconds for a key and returns it, or an empty string.

    Keys are not shown while the block runs; afterwards the terminal is as it was. If stdin is not a terminal, the
    function only waits.
    """
    try:
        import termios
        import tty
    except ModuleNotFoundError:
        yield _on_windows
        return
    try:
        before = termios.tcgetattr(sys.stdin)
    except Exception:  # stdin is not a terminal, or closed
        yield _only_waiting
        return

    def pressed(seconds: float) -> str:
        if not select.select([sys.stdin], [], [], seconds)[0]:
            return ""
        keys = os.read(sys.stdin.fileno(), 64)
        if not keys:
            raise KeyboardInterrupt  # the terminal is gone
        return keys.decode(errors="replace")

    tty.setcbreak(sys.stdin)
    try:
        yield pressed
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _only_waiting(seconds: float) -> str:
    time.sleep(seconds)
    return ""


def _on_windows(seconds: float) -> str:
    import msvcrt

    deadline = time.monotonic() + seconds
    while not msvcrt.kbhit():  # pyright: ignore[reportAttributeAccessIssue]
        if time.monotonic() >= deadline:
            return ""
        time.sleep(0.02)
    return msvcrt.getwch()  # pyright: ignore[reportAttributeAccessIssue]
