# SPDX-License-Identifier: Apache-2.0
"""Grading in processes of their own, of which the next one is always warm. Imports no JAX."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
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

_PRINTED = 4000  # bytes of the program's output that are kept


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
        self._next.wait_until_ready(seconds)

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
        try:
            return self._graded(process, exercise, file, on_claim, is_unneeded)
        finally:
            process.close()
            if self._next is None:
                self._next = _Process()

    def _graded(
        self,
        process: _Process,
        exercise: Exercise,
        file: Path,
        on_claim: Callable[[str, bool], None],
        is_unneeded: Callable[[], bool],
    ) -> Grade:
        began = time.monotonic()
        deadline = began + self._limit_seconds
        token = secrets.token_hex(16)
        process.request({"exercise": exercise.name, "file": str(file), "token": token})
        held, at = [], "the file runs"
        verdict: Failure | bool | None = None
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
                verdict = _failure(exercise, message) if "wrong" in message else True
                break
        if verdict is None:
            verdict = self._unanswered(process, at, time.monotonic() >= deadline)
        seconds = time.monotonic() - began
        return Grade(tuple(held), None if verdict is True else verdict, process.printed(), seconds)

    def _unanswered(self, process: _Process, at: str, is_late: bool) -> Failure:
        if is_late:
            return Failure(at, "hangs", MISTAKES["hangs"], f"still running after {self._limit_seconds:g} s")
        code = process.wait()
        if code < 0:
            return Failure(at, "crashes", MISTAKES["crashes"], f"signal {-code}")
        return Failure(at, "exits", MISTAKES["exits"], f"exit code {code}")


def _failure(exercise: Exercise, message: dict[str, Any]) -> Failure:
    mistake = message["wrong"]
    sentence = exercise.mistakes.get(mistake) or MISTAKES[mistake]
    details = (message.get(name, "") for name in ("got", "expected", "source"))
    return Failure(message["claim"], mistake, sentence, *details)


class _Process:
    """A process that imports JAX, waits for a request, answers it and ends."""

    def __init__(self) -> None:
        self._answers, writing = os.pipe()
        flags = quick_xla_flags(os.environ.get("XLA_FLAGS", ""))
        self._process = subprocess.Popen(
            # -P keeps the learner's folder, with files such as `random.py`, out of the import path.
            [sys.executable, "-P", "-W", "ignore", "-m", "tallax.learning._grading_process", str(writing)],
            pass_fds=(writing,),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={
                **os.environ,
                "JAX_PLATFORMS": "cpu",
                # An exercise needs two devices. Of several equal flags, XLA uses the last one.
                "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count=2".strip(),
            },
        )
        os.close(writing)
        self._output = b""

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
        stdout = self._process.stdout
        assert stdout is not None
        pending = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._answers, selectors.EVENT_READ)
            selector.register(stdout, selectors.EVENT_READ)
            while time.monotonic() < deadline:
                events = selector.select(0.1)
                for key, _ in events:
                    chunk = os.read(key.fd, 65536)
                    if key.fd != self._answers:
                        self._output = (self._output + chunk)[-_PRINTED:]
                        if not chunk:
                            selector.unregister(stdout)
                    elif not chunk:
                        return
                    else:
                        *lines, pending = (pending + chunk).split(b"\n")
                        yield from map(_parsed, lines)
                yield {}

    def wait_until_ready(self, seconds: float) -> None:
        """Waits for the first message of the process, and leaves it to `messages`."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._answers, selectors.EVENT_READ)
            selector.select(seconds)

    def printed(self) -> str:
        """Returns the last lines that the program printed."""
        stdout = self._process.stdout
        assert stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            while selector.select(0) and (chunk := os.read(stdout.fileno(), 65536)):
                self._output = (self._output + chunk)[-_PRINTED:]
                if len(chunk) == 65536:
                    break  # a program that prints without end
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
        os.close(self._answers)
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                if pipe is not None:
                    pipe.close()


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}
