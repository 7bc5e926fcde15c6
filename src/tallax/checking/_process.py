# SPDX-License-Identifier: Apache-2.0
"""Checks a file in a separate process with a time limit.

If the user's file hangs, exits or crashes, only that process is lost. This module is both ends of the pipe. The parent
is `check_file`. The process runs this module as a program: it reads a request as JSON from the command line, and writes
lines of JSON to the file descriptor given in the request: `{"at": ...}` when a check begins, `{"cell": ...}` and
`{"finding": ...}` for each result, and finally `{"report": ...}`, `{"error": ...}` for an invalid request, or
`{"raised": ...}` if the user's code raised.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from tallax._errors import StatecheckError
from tallax._quick_compiles import compile_quickly, quick_xla_flags
from tallax.checking._check_results import Collected
from tallax.checking._report import Report, cell_from, finding_from


def environment(programs: str, present: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Returns the environment of the process, whose compiled programs go into the folder `programs`.

    The modes of a transformation often lower to the same program, which JAX sees only in its cache on disk. With it, a
    check of a small module takes 13 to 20 percent less CPU time. If the user has set a cache, it is kept.
    """
    cache = {
        "JAX_COMPILATION_CACHE_DIR": programs,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    given = present if "JAX_COMPILATION_CACHE_DIR" in present else {**present, **cache}
    return {**given, "XLA_FLAGS": quick_xla_flags(present.get("XLA_FLAGS", ""))}


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
    """Checks a module of a file in a separate process, and returns the report.

    Args:
        file: The path of a Python file.
        name: The name of a module class in the file, or of a function that returns a module. None grades the exercise.
        inputs: The inputs of a call, such as `float32[8,4]`, `int32[8]<100`, `x.npy` or a Python literal.
        call: The name of a function in the file. It takes the model and the inputs, and runs instead of the model's own
            call.
        calls: The number of calls in each run.
        limit_seconds: The time after which the process is ended.
        on_progress: A function that is called with the name of each check as it begins.

    Returns:
        The report. If the process hangs, exits or dies, or if you press Ctrl-C, it contains the checks that had run,
        and is marked `incomplete`.

    Raises:
        StatecheckError: The file, the name or the inputs are invalid, or the user's code raised or ended the process
            before the first check was complete.
    """
    reading, writing = os.pipe()
    request = {"file": file, "name": name, "inputs": list(inputs), "call": call, "calls": calls, "answer_to": writing}
    programs = tempfile.TemporaryDirectory(prefix="tallax-check-", ignore_cleanup_errors=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "tallax.checking._process", json.dumps(request)],
        pass_fds=(writing,),
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        env=environment(programs.name),
    )
    os.close(writing)
    collected = Collected(name or Path(file).name, on_progress=on_progress)
    answer = None
    early: tuple[str, str, str] | None = None  # the rule, the value found, and the fix
    deadline = time.monotonic() + limit_seconds
    try:
        for message in _lines(reading, deadline):
            if "at" in message:
                collected.notify(message["at"])
            elif "cell" in message:
                collected.add(cell_from(message["cell"]))
            elif "finding" in message:
                collected.add(finding_from(message["finding"]))
            else:
                answer = message
                break
        else:
            process.wait(timeout=max(0.1, deadline - time.monotonic()))
    except (TimeoutError, subprocess.TimeoutExpired):
        early = (
            f"did not end within {limit_seconds:g} seconds",
            f"still at: {collected.at}",
            "smaller inputs or a smaller model; --limit SECONDS to wait longer",
        )
    except KeyboardInterrupt:
        early = "was interrupted", f"at: {collected.at}", "run it again; a small model takes a few seconds"
    finally:
        os.close(reading)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the process and its children
        process.wait()
        programs.cleanup()
    if answer is not None and "raised" in answer:
        early = (
            "raised before the check was complete",
            f"{answer['raised']}, at: {collected.at}",
            "correct the code at the end of the traceback above",
        )
        answer = None
    if answer is None:
        if early is None:
            code = process.returncode
            how = f"died of signal {-code}" if code < 0 else f"exited with code {code}"
            fix = "a module must not call exit(), and its file must not either when it is imported"
            early = "ended before the check did", f"{how}, at: {collected.at}", fix
        rule, got, fix = early
        if collected.cells:
            return collected.report(f"{rule} ({got})")
        raise StatecheckError(_subject(file, name), f"{rule}.", got=got, fix=fix)
    if "error" in answer:
        raise StatecheckError(answer["error"])
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


# --- in the process ---------------------------------------------------------------------------------------------------


def main() -> None:
    """Answers the request in `sys.argv[1]`."""
    request = json.loads(sys.argv[1])
    with os.fdopen(request["answer_to"], "w") as pipe:
        os.dup2(2, 1)  # the user's prints go to stderr, because stdout is for the report
        try:
            report = _checked(request, pipe)
        except StatecheckError as error:
            _say(pipe, error=str(error))
        except Exception as error:
            traceback.print_exc()
            _say(pipe, raised="".join(traceback.format_exception_only(error)).strip().splitlines()[0])
        else:
            _say(pipe, report=report.to_dict())


def _checked(request: dict[str, Any], pipe: TextIO) -> Any:
    # Imported here, so that an import that fails or hangs is reported like any other failure.
    from tallax.checking._check_results import Collected
    from tallax.checking._command_inputs import found, input_of, loaded, modules_in
    from tallax.checking._exercise import graded
    from tallax.checking._report import Cell, to_plain
    from tallax.checking._statecheck import check_into

    def note(result: Any) -> None:
        _say(pipe, **{"cell" if isinstance(result, Cell) else "finding": to_plain(result)})

    file, name = request["file"], request["name"]
    collected = Collected(name or Path(file).name, on_progress=lambda check: _say(pipe, at=check), on_result=note)

    compile_quickly()
    collected.notify("import of the file")
    module = loaded(Path(file))
    if name is None:
        if hasattr(module, "StepCounter") or hasattr(module, "counter_after_n_calls"):
            return graded(module, collected)
        names = modules_in(module)
        raise StatecheckError(
            file,
            "the file has no exercise, so name the module to check.",
            got=f"modules: {', '.join(names) or 'none'}",
            fix=f"tallax check {file}:{(names or ['Name'])[0]}",
        )
    check_into(
        collected,
        found(module, name),
        tuple(input_of(text) for text in request["inputs"]),
        calls=request["calls"],
        call=None if request["call"] is None else found(module, request["call"]),
    )
    return collected.report()


def _say(pipe: TextIO, **message: Any) -> None:
    pipe.write(json.dumps(message) + "\n")
    pipe.flush()


if __name__ == "__main__":
    main()
