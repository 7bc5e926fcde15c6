# SPDX-License-Identifier: Apache-2.0
"""Checking a file in a process of its own, within a time limit."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tallax._errors import CannotCheckError, compose
from tallax.checking._report import Report


def check_file(
    file: str,
    name: str | None = None,
    inputs: Sequence[str] = (),
    *,
    call: str | None = None,
    calls: int = 3,
    limit_seconds: float = 300.0,
    on_progress: Callable[[str], None] = lambda check: None,
) -> Report:
    """Checks a module of a file that nobody here wrote, in a process of its own, and returns the report.

    Args:
        file: the path of a Python file.
        name: what to check in it: a module's class, or a function that makes one. None grades the exercise.
        inputs: as `input_of` reads them: `float32[8,4]`, `int32[8]<100`, `x.npy`, Python literals.
        call: the name of a function of the model and the inputs, in the file, to run in place of the model's own call.
        calls: how often each run calls the model.
        limit_seconds: after which the process is ended.
        on_progress: called with the name of each check as it begins.

    Raises:
        CannotCheckError: the file, the name or the inputs are no good, or the process hangs, exits or dies.
    """
    reading, writing = os.pipe()
    request = {"file": file, "name": name, "inputs": list(inputs), "call": call, "calls": calls, "answer_to": writing}
    process = subprocess.Popen(
        [sys.executable, "-m", "tallax.checking._worker", json.dumps(request)],
        pass_fds=(writing,),
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(writing)
    at, answer = "start", None
    deadline = time.monotonic() + limit_seconds
    try:
        for message in _lines(reading, deadline):
            if "at" in message:
                at = message["at"]
                on_progress(at)
            else:
                answer = message
                break
        else:
            process.wait(timeout=max(0.1, deadline - time.monotonic()))
    except (TimeoutError, subprocess.TimeoutExpired):
        raise CannotCheckError(
            compose(
                _subject(file, name),
                f"did not end within {limit_seconds:g} seconds.",
                got=f"still at: {at}",
                fix="smaller inputs or a smaller model; --limit SECONDS to wait longer",
            )
        ) from None
    finally:
        os.close(reading)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with all that it started
        process.wait()
    if answer is None:
        code = process.returncode
        how = f"died of signal {-code}" if code < 0 else f"exited with code {code}"
        raise CannotCheckError(
            compose(
                _subject(file, name),
                "ended before the check did.",
                got=f"{how}, at: {at}",
                fix="a module must not call exit(), and its file must not either when it is imported",
            )
        )
    if "error" in answer:
        raise CannotCheckError(answer["error"])
    return Report.from_dict(answer["report"])


def _subject(file: str, name: str | None) -> str:
    return file if name is None else f"{file}:{name}"


def _lines(descriptor: int, deadline: float) -> Iterator[dict[str, Any]]:
    """Yields the messages of a pipe until it is closed; raises TimeoutError at the deadline."""
    pending = b""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while True:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise TimeoutError
            chunk = os.read(descriptor, 65536)
            if not chunk:
                return
            *lines, pending = (pending + chunk).split(b"\n")
            yield from (json.loads(line) for line in lines)
