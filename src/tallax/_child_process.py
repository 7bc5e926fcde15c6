# SPDX-License-Identifier: Apache-2.0
"""A process for the user's code, which may hang, exit or crash: then only that process is lost. Imports no JAX.

`tallax check`, `tallax learn` and `resumecheck` run every file and job in a `Child`. The parent sends one request, a
line of JSON on the child's stdin. The child answers with messages, lines of JSON in a pipe of their own, so that the
prints of the user's code are not among them. `answer` is the child's end of this pipe.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

_KEPT = 4000  # bytes of the output that are kept
_SIGNALS = {int(each): each.name for each in signal.Signals}


class Child:
    """A new Python process that runs one of tallax's modules, in a session of its own.

    Args:
        module: The name of the module. Its first argument is the file descriptor for its messages.
        environment: The environment of the process.
        options: Options of Python, such as `-P`.
        keeps_output: Whether the end of the output is kept, for `output`. Otherwise the output goes to stderr.

    Attributes:
        has_ended: Whether the process has ended, or has closed the pipe of its messages.
    """

    def __init__(
        self, module: str, environment: Mapping[str, str], *, options: tuple[str, ...] = (), keeps_output: bool = False
    ):
        self._answers, answer_to = os.pipe()
        self._printed, print_to = os.pipe() if keeps_output else (None, None)
        self._process = subprocess.Popen(
            [sys.executable, *options, "-m", module, str(answer_to)],
            pass_fds=(answer_to,),
            stdin=subprocess.PIPE,
            stdout=2 if print_to is None else print_to,  # stdout of the parent is for the report
            stderr=print_to,
            start_new_session=True,
            env=environment,
        )
        os.close(answer_to)
        if print_to is not None:
            os.close(print_to)
        self._pending, self._output = b"", b""
        self.has_ended = self._is_closed = False

    def ask(self, **request: Any) -> None:
        """Sends the request. The process reads it as soon as it is ready; later reads of stdin find its end."""
        stdin = self._process.stdin
        assert stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the process has died, so there are no messages
            stdin.write(json.dumps(request).encode() + b"\n")
            stdin.close()

    def wait_for_message(self, seconds: float) -> None:
        """Waits until the process has sent a message, which is left to `messages`."""
        select.select([self._answers], [], [], seconds)

    def messages(self, deadline: float) -> Iterator[dict[str, Any]]:
        """Yields messages until the process has ended or the deadline passes, and an empty one at least every 0.1 s.

        Lines that are no JSON are left out.
        """
        while not self.has_ended and (left := deadline - time.monotonic()) > 0:
            yield from self.receive(min(left, 0.1))
            yield {}

    def receive(self, seconds: float) -> list[dict[str, Any]]:
        """Returns the messages that arrive, and keeps the output; waits for either of them."""
        # The output is read too: a pipe that is full would stop a process that prints much.
        found: list[dict[str, Any]] = []
        sources = [self._answers, *([] if self._printed is None else [self._printed])]
        # A child of the process may keep the pipe open, so the end of the process counts too, once the pipe is empty.
        is_over = self._process.poll() is not None
        readable = select.select(sources, [], [], seconds)[0]
        if self._printed in readable:
            self._read_output()
        if self._answers in readable:
            chunk = os.read(self._answers, 65536)
            *lines, self._pending = (self._pending + chunk).split(b"\n")
            found += filter(None, map(_parsed, lines))
            self.has_ended = not chunk
        elif is_over:
            self.has_ended = True
        return found

    def _read_output(self) -> bool:
        assert self._printed is not None
        chunk = os.read(self._printed, 65536)
        if not chunk:  # closed; a closed pipe is always readable
            os.close(self._printed)
            self._printed = None
        self._output = (self._output + chunk)[-_KEPT:]
        return bool(chunk)

    @property
    def output(self) -> str:
        """The end of the output."""
        for _ in range(16):  # chunks: the user's code may print without end
            if self._printed is None or not select.select([self._printed], [], [], 0)[0] or not self._read_output():
                break
        return self._output.decode(errors="replace").strip()

    def ending(self, limit_seconds: float) -> tuple[str, str]:
        """Returns how a process that sent no result ended: `hangs`, `dies` or `exits`, and the details in words."""
        code = None
        if self.has_ended:
            with contextlib.suppress(subprocess.TimeoutExpired):  # it has closed its pipe, and runs on
                code = self._process.wait(timeout=2)
        if code is None:
            return "hangs", f"still running after {limit_seconds:g} seconds"
        if code < 0:
            return "dies", f"signal {_SIGNALS.get(-code, -code)}"
        return "exits", f"exit code {code}"

    def end(self) -> None:
        """Kills the process with all that it started, in sessions of their own too."""
        if self._is_closed:  # Ctrl-C may come between this call and the caller's note of it
            return
        self._is_closed = True
        end_descendants(self._process.pid)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._answers)
        if self._printed is not None:
            os.close(self._printed)
        with contextlib.suppress(BrokenPipeError):
            if self._process.stdin is not None:
                self._process.stdin.close()


def end_descendants(pid: int) -> None:
    """Kills the processes below a process. Only Linux lists them; elsewhere the end of the group has to do."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = path.read_text().rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(path.parent.name))
    below = children.get(pid, [])
    for child in below:  # grows while it is walked
        below += children.get(child, [])
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(child, signal.SIGKILL)


def answer() -> Callable[..., None]:
    """Returns the function by which a child sends messages: `say(at="scan")`.

    The functions that it needs are bound now, so that a file of the user's that replaces them has no effect here.
    """
    dumps, write, descriptor = json.dumps, os.write, int(sys.argv[1])

    def say(**message: Any) -> None:
        write(descriptor, (dumps(message) + "\n").encode())

    return say


def _parsed(line: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        message = json.loads(line)
        return message if isinstance(message, dict) else {}
    return {}
