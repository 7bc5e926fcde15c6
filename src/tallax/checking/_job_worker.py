# SPDX-License-Identifier: Apache-2.0
"""The process of one run of `resumecheck`: calls the job, writes the values of its state, and is killed.

It reads a request that `_job_runs` pickled. It ends by SIGKILL, as a preempted job does: no `atexit`, no thread and no
buffer of the job gets another moment.

While the job runs, its lines and local variables are watched. How often each line of the user's files ran shows whether
a second run continued or started again: a training loop has lines that run once a step, in any job and without its
help. The local variables show state that the job keeps and does not return, such as a generator of random numbers.
`sys.settrace` is the one way to both that works on every Python; frames of libraries are not traced, so that the
tracing of JAX's own code costs one call for each of its functions.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import json
import os
import pickle
import runpy
import signal
import sys
import sysconfig
import threading
import time
import traceback
import types
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from tallax._child_process import end_descendants
from tallax.checking._job_state import global_generators, roots_of, values_of
from tallax.checking._source_lines import is_users, line_of_error


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


def _hints(trace: JobTrace, seen: set[int]) -> dict[str, Any]:
    """Returns the values of state that the job keeps and does not return, by path."""
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


# --- the trace of a job -----------------------------------------------------------------------------------------------

_INSTALLED = tuple(sysconfig.get_paths()[name] for name in ("purelib", "platlib", "stdlib"))
_MOST_LOCALS = 200  # functions whose local variables are kept


@functools.cache
def _is_traced(file: str) -> bool:
    return is_users(file) and not file.startswith(_INSTALLED) and "<" not in file


class JobTrace:
    """The lines and local variables of one call of a job.

    Attributes:
        lines: The number of times that each line ran, by file and line.
        locals_of: The local variables of functions that were called once, at their return, by the function's name.
        own_locals: The local variables of the job itself.
    """

    def __init__(self):
        self.lines: Counter[tuple[str, int]] = Counter()
        self.locals_of: dict[str, dict[str, Any]] = {}
        self.own_locals: dict[str, Any] = {}
        self._calls: Counter[CodeType] = Counter()

    def run(self, job: Callable[..., Any], *arguments: Any) -> Any:
        """Calls a job, and returns what it returns."""
        before = sys.gettrace()
        sys.settrace(self._on_call)
        try:
            return job(*arguments)
        finally:
            sys.settrace(before)

    def _on_call(self, frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        if not _is_traced(code.co_filename):
            return None
        self._calls[code] += not code.co_flags & inspect.CO_GENERATOR  # whose frame returns at each of its values
        return self._on_line

    def _on_line(self, frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        if event == "line":
            self.lines[code.co_filename, frame.f_lineno] += 1
        elif event == "return" and not code.co_flags & inspect.CO_GENERATOR:
            name = code.co_qualname if sys.version_info >= (3, 11) else code.co_name
            if self._calls[code] > 1:  # the function of a step, not the one with the loop
                self.locals_of.pop(name, None)
            elif len(self.locals_of) < _MOST_LOCALS:
                self.locals_of[name] = dict(frame.f_locals)
                self.own_locals = self.locals_of[name]  # the last that returns is the job
        return self._on_line


if __name__ == "__main__":
    main()
