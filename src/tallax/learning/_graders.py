# SPDX-License-Identifier: Apache-2.0
"""Grading in processes of their own, of which the next one is always warm. Imports no JAX."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tallax._quick_compiles import quick_xla_flags
from tallax.learning._exercises import Exercise
from tallax.learning._grade import MISTAKES, Failure, Grade

_KEPT = 4000  # bytes of the program's output that are kept


class Interrupted(Exception):  # noqa: N818 - nothing is wrong
    """The grade is no longer needed, for example because the file was saved again."""


class Grader:
    """Grades files, each in a new process.

    Importing JAX and compiling a first program take about two seconds. So the process for the next grade is started
    when this one begins, and is ready when the file is saved again. A process is never used twice: a solution would
    find the state that the one before it left behind.
    """

    def __init__(self, limit_seconds: float = 60.0):
        self._limit_seconds = limit_seconds
        self._next: _Process | None = None

    def __enter__(self) -> Grader:
        self._next = _Process()
        return self

    def __exit__(self, *error: object) -> None:
        if self._next is not None:
            self._next.close()
            self._next = None

    def wait_until_warm(self, seconds: float = 60.0) -> None:
        """Waits until the process for the next grade has imported JAX."""
        self._next = self._next or _Process()
        select.select([self._next.answers], [], [], seconds)  # its first message is left to `messages`

    def grade(
        self,
        exercise: Exercise,
        file: Path,
        on_claim: Callable[[str, bool], None] = lambda claim, held: None,
        is_unneeded: Callable[[], bool] = lambda: False,
    ) -> Grade:
        """Grades a file.

        Args:
            exercise: the exercise.
            file: the learner's file.
            on_claim: called with each claim when its test begins, with False, and when it holds, with True.
            is_unneeded: called several times each second; if it returns True, grading ends.

        Raises:
            Interrupted: `is_unneeded` returned True.
        """
        process, self._next = self._next or _Process(), None
        began, token, held, at = time.monotonic(), secrets.token_hex(16), [], "the file runs"
        deadline = began + self._limit_seconds
        try:
            process.request({"exercise": exercise.name, "file": str(file), "token": token})
            for message in process.messages(deadline):
                if is_unneeded():
                    raise Interrupted
                if message.get("token") != token:  # forged, or the note that the process is ready
                    continue
                if "at" in message:
                    at = message["at"]
                    on_claim(at, False)
                elif "held" in message:
                    held.append(message["held"])
                    on_claim(message["held"], True)
                else:
                    failure = failure_of(exercise, message)
                    break
            else:
                failure = self._unanswered(process, at, time.monotonic() >= deadline)
            return Grade(tuple(held), failure, process.printed(), time.monotonic() - began)
        finally:
            process.close()
            self._next = self._next or _Process()

    def _unanswered(self, process: _Process, at: str, is_late: bool) -> Failure:
        code = 0 if is_late else process.wait()
        mistake, got = "exits", f"exit code {code}"
        if is_late:
            mistake, got = "hangs", f"still running after {self._limit_seconds:g} s"
        elif code < 0:
            mistake, got = "crashes", f"signal {-code}"
        return Failure(at, mistake, MISTAKES[mistake], got)


def failure_of(exercise: Exercise, message: dict[str, Any]) -> Failure | None:
    """Returns the failure that the last message of the process reports; None if the file has passed."""
    if "wrong" not in message:
        return None
    mistake = message["wrong"]
    sentence = exercise.mistakes.get(mistake) or MISTAKES[mistake]
    return Failure(
        message["claim"], mistake, sentence, *(message.get(name, "") for name in ("got", "expected", "source"))
    )


class _Process:
    """A process that imports JAX, waits for a request, answers it and ends.

    Attributes:
        answers: the descriptor of the pipe that it writes its messages to.
    """

    def __init__(self) -> None:
        self.answers, writing = os.pipe()
        printed, output = os.pipe()
        flags = quick_xla_flags(os.environ.get("XLA_FLAGS", ""))
        self._process = subprocess.Popen(
            # -P keeps the learner's folder, with files such as `random.py`, out of the import path.
            [sys.executable, "-P", "-W", "ignore", "-m", "tallax.learning._grading_process", str(writing)],
            pass_fds=(writing,),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={
                **os.environ,
                "JAX_PLATFORMS": "cpu",
                # An exercise needs two devices. Of several equal flags, XLA uses the last one.
                "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count=2".strip(),
            },
        )
        os.close(writing)
        os.close(output)
        self._output, self._printed = b"", printed

    def request(self, request: dict[str, Any]) -> None:
        """Passes the request to the process, which reads it as soon as it is ready."""
        stdin = self._process.stdin
        assert stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has died; `messages` ends at once
            stdin.write(json.dumps(request).encode() + b"\n")
            stdin.flush()

    def messages(self, deadline: float) -> Iterator[dict[str, Any]]:
        """Yields messages until the process ends or the deadline passes; an empty one ten times each second.

        Reads the program's output too: a pipe that nobody reads would stop a program that prints much.
        """
        pending, sources = b"", [self.answers, self._printed]
        while time.monotonic() < deadline:
            for source in select.select(sources, [], [], 0.1)[0]:
                chunk = os.read(source, 65536)
                if source == self._printed:
                    self._output = (self._output + chunk)[-_KEPT:]
                    sources = sources if chunk else [self.answers]
                elif not chunk:
                    return
                else:
                    *lines, pending = (pending + chunk).split(b"\n")
                    yield from map(_parsed, lines)
            yield {}

    def printed(self) -> str:
        """Returns the last lines that the program printed."""
        for _ in range(16):  # chunks: a program may print without end
            if not select.select([self._printed], [], [], 0)[0] or not (chunk := os.read(self._printed, 65536)):
                break
            self._output = (self._output + chunk)[-_KEPT:]
        return self._output.decode(errors="replace").strip()

    def wait(self) -> int:
        """Returns the exit code of a process that has closed its pipe; ends one that does not exit."""
        try:
            return self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            return 0

    def close(self) -> None:
        """Ends the process, with all processes that it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self.answers)
        os.close(self._printed)
        with contextlib.suppress(BrokenPipeError):
            if self._process.stdin is not None:
                self._process.stdin.close()


def _parsed(line: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        message = json.loads(line)
        return message if isinstance(message, dict) else {}
    return {}
