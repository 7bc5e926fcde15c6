# SPDX-License-Identifier: Apache-2.0
"""Runs of a job in processes of their own: bounded in time, ended with all that they started, two at a time."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import pickle
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tallax._child_process import Child
from tallax._errors import InvalidTypeError, describe
from tallax._quick_compiles import cached_programs
from tallax.checking._job_state import Values


class JobInFile:
    """The job that a file defines. It is pickled as this reference, so that only the new process imports the file."""

    def __init__(self, file: str, name: str):
        self.file, self.__qualname__ = str(Path(file).resolve()), name

    def __call__(self, folder: Path, steps: int) -> Any:
        """Calls the job in this process."""
        return _loaded_job(self.file, self.__qualname__)(folder, steps)

    def __reduce__(self) -> tuple[Any, ...]:
        return _loaded_job, (self.file, self.__qualname__)


def _loaded_job(file: str, name: str) -> Any:
    from tallax.checking._command_inputs import found, loaded

    return found(loaded(Path(file)), name)


def request_of(job: Callable[..., Any]) -> dict[str, Any]:
    """Returns the request that another process needs to find a job: the pickled function, and a `__main__` to run.

    Raises:
        InvalidTypeError: It cannot be found by name, as a lambda or a nested function cannot.
    """
    name = getattr(job, "__qualname__", None) or getattr(getattr(job, "func", None), "__qualname__", None)
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    try:
        pickled = pickle.dumps(job)
    except Exception:  # of a nested function or a lambda, worded differently by each version of Python
        pickled = None
    if pickled is None or (main is None and b"__main__" in pickled) or not callable(job):
        raise InvalidTypeError(
            "resumecheck",
            "runs the job in new processes, which import it by name.",
            got=name or describe(job),
            expected="a function at the top level of a file, or a functools.partial of one",
            fix="def job(folder, steps): ... outside of other functions",
        )
    used = str(Path(main).resolve()) if main and b"__main__" in pickled else None
    return {"name": name or type(job).__name__, "main": used, "job": pickled}


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of the job. The fields from `outcome` on are those of a run that has ended.

    Attributes:
        name: The name in the report, such as "first half, 5 steps".
        folder: The folder that is passed to the job.
        steps: The number of steps that is passed to the job.
        devices: The number of devices. If None, JAX finds them.
        outcome: `ended`, `import`, `raises`, `exits`, `dies` or `hangs`.
        error: The reason, unless it ended well.
        source: The user's line that raised.
        values: The returned state, by path.
        hints: The state that the job keeps and did not return, by path.
        lines: The number of times that each line of the user's files ran.
        seconds: The duration of the call of the job.
        output: The end of its output, if it did not end well.
    """

    name: str
    folder: Path
    steps: int
    devices: int | None = None
    outcome: str = ""
    error: str = ""
    source: str = ""
    values: Values = dataclasses.field(default_factory=dict)
    hints: Values = dataclasses.field(default_factory=dict)
    lines: dict[tuple[str, int], int] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    output: str = ""

    @property
    def is_good(self) -> bool:
        """Whether the job returned."""
        return self.outcome == "ended"


class Runner:
    """Runs a job several times, at most two runs at once."""

    def __init__(self, request: dict[str, Any], folder: Path, limit_seconds: float, notify: Callable[[str], None]):
        self._request = {**request, "limit_seconds": limit_seconds, "checker": os.getpid()}
        self._request["path"] = [entry or os.getcwd() for entry in sys.path]
        self._folder, self._limit, self._notify = folder, limit_seconds, notify
        self._number = 0
        # On an accelerator the first process takes most of its memory, so that a second one would fail.
        self._at_once = 2 if not importlib.metadata.entry_points(group="jax_plugins") else 1

    def run(self, *runs: Run) -> list[Run]:
        """Returns the runs, ended; they take place at the same time where there is room for them."""
        waiting, ended = list(runs), {}
        going: dict[str, tuple[Run, Path, Child, float]] = {}
        try:
            while waiting or going:
                while waiting and len(going) < self._at_once:
                    run = waiting.pop(0)
                    going[run.name] = run, *self._start(run), time.monotonic() + self._limit
                    self._notify("; ".join(going))
                for name, (run, result, child, deadline) in list(going.items()):
                    child.receive(0.01)
                    if child.has_ended or time.monotonic() >= deadline:
                        ended[name] = self._ended(run, result, child)
                        del going[name]
                        self._notify("; ".join(going) or "comparison")
        finally:
            for _, _, child, _ in going.values():
                child.end()
        return [ended[run.name] for run in runs]

    def _start(self, run: Run) -> tuple[Path, Child]:
        """Returns the file for the result, and the process."""
        self._number += 1
        request, result = (self._folder / f"{name}-{self._number}" for name in ("request", "result"))
        run.folder.mkdir(exist_ok=True)
        request.write_bytes(pickle.dumps({**self._request, "folder": str(run.folder), "steps": run.steps}))
        child = Child("tallax.checking._job_worker", self._environment(run.devices), keeps_output=True)
        child.ask(request=str(request), result=str(result))
        return result, child

    def _environment(self, devices: int | None) -> dict[str, str]:
        # The five runs compile the same programs; the first to do so shares them.
        environment = cached_programs(str(self._folder / "programs"), os.environ)
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        if devices is not None:
            flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", environment.get("XLA_FLAGS", ""))
            environment["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={devices}".strip()
            environment.pop("JAX_NUM_CPU_DEVICES", None)  # JAX raises if both are set
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, range(devices)))
        return environment

    def _ended(self, run: Run, result: Path, child: Child) -> Run:
        """Ends the process of a run, and returns the run with its result."""
        if result.exists():
            found = pickle.loads(result.read_bytes())
        else:
            outcome, error = child.ending(self._limit)
            found = {"outcome": outcome, "error": error}
        if found["outcome"] != "ended":
            found["output"] = child.output
        child.end()
        return dataclasses.replace(run, **found)
