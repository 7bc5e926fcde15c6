# SPDX-License-Identifier: Apache-2.0
"""Checks a file in a separate process with a time limit.

This module is both ends of the pipe. The parent is `check_file`. The process runs this module as a program, and sends
`{"at": ...}` when a check begins, `{"cell": ...}` and `{"finding": ...}` for each result, and finally
`{"report": ...}`, `{"error": ...}` for an invalid request, or `{"raised": ...}` if the user's code raised.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tallax._child_process import Child, answer
from tallax._errors import StatecheckError
from tallax._quick_compiles import cached_programs, compile_quickly, quick_xla_flags
from tallax.checking._check_results import Collected
from tallax.checking._report import Cell, Finding, Report


def environment(programs: str, present: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Returns the environment of the process, whose compiled programs go into the folder `programs`.

    The modes of a transformation often lower to the same program, which JAX sees only in its cache on disk. With it, a
    check of a small module takes 13 to 20 percent less CPU time.
    """
    return {**cached_programs(programs, present), "XLA_FLAGS": quick_xla_flags(present.get("XLA_FLAGS", ""))}


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
    collected = Collected(name or Path(file).name, on_progress=on_progress)
    report: Report | None = None
    programs = tempfile.TemporaryDirectory(prefix="tallax-check-", ignore_cleanup_errors=True)
    child = Child("tallax.checking._file_check", environment(programs.name))
    # If the check ends early: the reason, its details, and the fix.
    reason, details, fix = "was interrupted", "", "run it again; a small model takes a few seconds"
    try:
        child.ask(file=file, name=name, inputs=list(inputs), call=call, calls=calls)
        for message in child.messages(time.monotonic() + limit_seconds):
            if "at" in message:
                collected.notify(message["at"])
            elif "cell" in message:
                collected.add(Cell.from_dict(message["cell"]))
            elif "finding" in message:
                collected.add(Finding.from_dict(message["finding"]))
            elif "raised" in message:
                reason, details = "raised before the check was complete", f"{message['raised']}, "
                fix = "correct the code at the end of the traceback above"
                break
            elif "error" in message:
                raise StatecheckError(message["error"])
            elif "report" in message:
                report = Report.from_dict(message["report"])
                break
        else:
            ending, details = child.ending(limit_seconds)
            reason, details = "ended before the check did", f"{details}, "
            fix = "a module must not call exit(), and its file must not either when it is imported"
            if ending == "hangs":
                reason, details = f"did not end within {limit_seconds:g} seconds", "still "
                fix = "smaller inputs or a smaller model; --limit SECONDS to wait longer"
    except KeyboardInterrupt:
        pass
    finally:
        child.end()
        programs.cleanup()
    if report is not None:
        return report
    got = f"{details}at: {collected.at}"
    if collected.cells:
        return collected.report(f"{reason} ({got})")
    raise StatecheckError(file if name is None else f"{file}:{name}", f"{reason}.", got=got, fix=fix)


# --- in the process ---------------------------------------------------------------------------------------------------


def main() -> None:
    """Answers the request on stdin."""
    say = answer()
    try:
        report = _checked(json.loads(sys.stdin.readline()), say)
    except StatecheckError as error:
        say(error=str(error))
    except Exception as error:
        traceback.print_exc()
        say(raised="".join(traceback.format_exception_only(error)).strip().splitlines()[0])
    else:
        say(report=report.to_dict())


def _checked(request: dict[str, Any], say: Callable[..., None]) -> Report:
    # Imported here, so that an import that fails or hangs is reported like any other failure.
    from tallax.checking._command_inputs import found, input_of, loaded, modules_in
    from tallax.checking._exercise import graded
    from tallax.checking._statecheck import check_into

    def note(result: Cell | Finding) -> None:
        say(**{"cell" if isinstance(result, Cell) else "finding": result.to_dict()})

    file, name = request["file"], request["name"]
    collected = Collected(name or Path(file).name, on_progress=lambda check: say(at=check), on_result=note)

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


if __name__ == "__main__":
    main()
