# SPDX-License-Identifier: Apache-2.0
"""The process of one run of `resumecheck`: calls the job, writes the values of its state, and is killed.

It reads a request that `_job_runs` pickled. It ends by SIGKILL, as a preempted job does: no `atexit`, no thread and no
buffer of the job gets another moment.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pickle
import runpy
import signal
import sys
import threading
import time
import traceback
import types
from pathlib import Path
from typing import Any

from tallax._child_process import end_descendants


def main() -> None:
    """Runs the request whose file the parent names, and writes the file of the result."""
    files = json.loads(sys.stdin.readline())
    request = pickle.loads(Path(files["request"]).read_bytes())
    threading.Thread(target=_watch, args=(request["checker"], request["limit_seconds"]), daemon=True).start()
    result: dict[str, Any] = {}
    phase = "import"
    try:
        sys.path[:] = request["path"]
        if request["main"]:
            module = types.ModuleType("__mp_main__")  # multiprocessing's name for it: no `__main__` guard opens
            module.__dict__.update(runpy.run_path(request["main"], run_name="__mp_main__"))
            sys.modules["__main__"] = sys.modules["__mp_main__"] = module
        job = pickle.loads(request["job"])
        phase = "raises"
        result = _run(job, request)
    except SystemExit as error:
        result = {"outcome": "exits", "error": f"exit code {error.code!r}"}
    except BaseException as error:
        from tallax.checking._source_lines import line_of_error

        text = f"{type(error).__name__}: {error}".strip().split("\n")[0][:300]
        result = {"outcome": phase, "error": text, "source": line_of_error(error)}
        traceback.print_exc()
    partial = Path(f"{files['result']}.partial")
    partial.write_bytes(pickle.dumps(result))
    partial.rename(files["result"])
    sys.stdout.flush()
    sys.stderr.flush()
    _end()


def _watch(checker: int, limit_seconds: float) -> None:
    """Ends this process if the checker was killed, also before this process could look, or did not end it in time."""
    deadline = time.monotonic() + limit_seconds + 10
    while os.getppid() == checker and time.monotonic() < deadline:
        time.sleep(0.5)
    _end()


def _end() -> None:
    end_descendants(os.getpid())
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))


def _run(job: Any, request: dict[str, Any]) -> dict[str, Any]:
    from tallax.checking._job_state import roots_of, values_of
    from tallax.checking._job_trace import JobTrace

    trace, began = JobTrace(), time.perf_counter()
    returned = trace.run(job, Path(request["folder"]), request["steps"])
    seconds = time.perf_counter() - began
    names = {id(value): name for name, value in trace.own_locals.items()}
    seen: set[int] = set()
    values = values_of(roots_of(returned, names), seen=seen)
    for path, value in values.items():
        if isinstance(value.value, str):  # each run has a folder of its own
            values[path] = dataclasses.replace(value, value=value.value.replace(request["folder"], "FOLDER"))
    hints, lines = _hints(trace, seen), dict(trace.lines)
    return {"outcome": "ended", "values": values, "hints": hints, "lines": lines, "seconds": seconds}


def _hints(trace: Any, seen: set[int]) -> dict[str, Any]:
    """Returns the values of state that the job keeps and does not return, by path."""
    from tallax.checking._job_state import global_generators, values_of

    named: dict[str, Any] = {}
    for function, variables in trace.locals_of.items():
        named |= {f"{function}/{name}": value for name, value in variables.items() if _may_be_state(name, value)}
    files = {file for file, _ in trace.lines}
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None) or ""
        if file in files:
            for name, value in vars(module).items():
                if _may_be_state(name, value):
                    named.setdefault(f"{Path(file).name}/{name}", value)
    found = global_generators()
    for name, value in named.items():
        with contextlib.suppress(Exception):  # donated arrays, tracers, a user's objects in any condition
            found |= values_of({name: value}, seen=seen)
    return found


def _may_be_state(name: str, value: Any) -> bool:
    kinds = types.ModuleType | types.FunctionType | type | str | bytes | Path
    return not name.startswith("__") and not isinstance(value, kinds)


if __name__ == "__main__":
    main()
