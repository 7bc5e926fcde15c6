# SPDX-License-Identifier: Apache-2.0
"""Runs of a job in processes of their own: bounded in time, ended with all that they started, two at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tallax._errors import InvalidTypeError, compose, describe
from tallax.checking._job_state import Values

_KEPT = 2000  # characters of the output of a run that failed


@dataclasses.dataclass(frozen=True)
class Job:
    """A job as another process can find it.

    Attributes:
        name: of the function.
        request: the file and the name, or the pickled function, with the import path of this process.
    """

    name: str
    request: dict[str, Any]

    @classmethod
    def of(cls, job: Callable[..., Any]) -> Job:
        """Returns a function of this process.

        Raises:
            InvalidTypeError: it cannot be found by name, as a lambda or a nested function cannot.
        """
        name = getattr(job, "__qualname__", None) or getattr(getattr(job, "func", None), "__qualname__", None)
        main = getattr(sys.modules.get("__main__"), "__file__", None)
        try:
            pickled = pickle.dumps(job)
        except Exception:  # of a nested function or a lambda, worded differently by each version of Python
            pickled = None
        is_unnamed = pickled is None or (main is None and b"__main__" in pickled)
        if pickled is None or is_unnamed or not callable(job):
            raise InvalidTypeError(
                compose(
                    "resumecheck",
                    "runs the job in new processes, which import it by name.",
                    got=name or describe(job),
                    expected="a function at the top level of a file, or a functools.partial of one",
                    fix="def job(folder, steps): ... outside of other functions",
                )
            )
        used = str(Path(main).resolve()) if main and b"__main__" in pickled else None
        return cls(name or type(job).__name__, {"file": None, "name": None, "main": used, "job": pickled})

    @classmethod
    def in_file(cls, file: str, name: str) -> Job:
        """Returns a function that a file defines."""
        return cls(name, {"file": str(Path(file).resolve()), "name": name, "main": None, "job": None})


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of the job, asked for.

    Attributes:
        name: in the report, such as "first half, 5 steps".
        folder: that the job gets.
        steps: that the job gets.
        devices: the number of devices; None for those of the environment.
    """

    name: str
    folder: Path
    steps: int
    devices: int | None = None


@dataclasses.dataclass(frozen=True)
class Ended:
    """One run, ended.

    Attributes:
        run: the run.
        outcome: `ended`, `import`, `raises`, `exits`, `dies` or `hangs`.
        error: the reason, unless it ended well.
        source: the user's line that raised.
        values: the state that the job returned, by path.
        hints: the state that it keeps and did not return, by path.
        lines: how often each line of the user's files ran.
        seconds: of the call of the job.
        output: the end of what it printed, if it did not end well.
    """

    run: Run
    outcome: str
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

    def __init__(self, job: Job, folder: Path, *, limit_seconds: float, notify: Callable[[str], None]):
        self._job, self._folder, self._limit, self._notify = job, folder, limit_seconds, notify
        self._number = 0
        # On an accelerator the first process takes most of its memory, so that a second one would fail.
        self._at_once = 2 if not importlib.metadata.entry_points(group="jax_plugins") else 1

    def run(self, *runs: Run) -> list[Ended]:
        """Returns the runs, ended; they take place at the same time where there is room for them."""
        waiting, ended = list(runs), {}
        processes: dict[str, _Process] = {}
        try:
            while waiting or processes:
                while waiting and len(processes) < self._at_once:
                    run = waiting.pop(0)
                    processes[run.name] = self._start(run)
                    self._notify("; ".join(processes))
                time.sleep(0.02)
                for name, process in list(processes.items()):
                    if (found := process.poll()) is not None:
                        ended[name] = found
                        del processes[name]
                        self._notify("; ".join(processes) or "comparison")
        finally:
            for process in processes.values():
                process.end()
        return [ended[run.name] for run in runs]

    def _start(self, run: Run) -> _Process:
        self._number += 1
        return _Process(run, self._job, self._folder / f"run-{self._number}", self._limit, self._environment(run))

    def _environment(self, run: Run) -> dict[str, str]:
        environment = dict(os.environ)
        # The five runs compile the same programs; the first to do so shares them.
        environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(self._folder / "programs"))
        environment.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        environment.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
        if run.devices is not None:
            flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", environment.get("XLA_FLAGS", ""))
            environment["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={run.devices}".strip()
            environment.pop("JAX_NUM_CPU_DEVICES", None)  # JAX raises if both are set
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, range(run.devices)))
        return environment


class _Process:
    """The process of one run."""

    def __init__(self, run: Run, job: Job, folder: Path, limit_seconds: float, environment: dict[str, str]):
        folder.mkdir()
        run.folder.mkdir(exist_ok=True)
        self._run, self._output, self._result = run, folder / "output", folder / "result"
        request = {**job.request, "folder": str(run.folder), "steps": run.steps}
        request["limit_seconds"], request["checker"] = limit_seconds, os.getpid()
        request["path"] = [entry or os.getcwd() for entry in sys.path]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        (folder / "request").write_bytes(pickle.dumps(request))
        with open(self._output, "wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tallax.checking._job_worker", str(folder / "request"), str(self._result)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
            )
        self._limit, self._deadline = limit_seconds, time.monotonic() + limit_seconds

    def poll(self) -> Ended | None:
        """Returns the run if it has ended or its time is over; None while it runs."""
        if self._process.poll() is None:
            if time.monotonic() < self._deadline:
                return None
            self.end()
            error = f"still running after {self._limit:g} seconds"
            return Ended(self._run, "hangs", error, output=self._printed())
        self.end()
        if not self._result.exists():
            code = self._process.returncode
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            return Ended(self._run, "dies" if code < 0 else "exits", how, output=self._printed())
        found = pickle.loads(self._result.read_bytes())
        return Ended(self._run, **found, output="" if found["outcome"] == "ended" else self._printed())

    def end(self) -> None:
        """Kills the process with all that it started, in sessions of their own too."""
        end_descendants(self._process.pid)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _printed(self) -> str:
        return self._output.read_bytes()[-_KEPT:].decode(errors="replace").strip()


def end_descendants(pid: int) -> None:
    """Kills the processes below a process; only Linux lists them, elsewhere the end of the group has to do."""
    for child in _descendants(pid):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(child, signal.SIGKILL)


def _descendants(pid: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = path.read_text().rpartition(")")[2].split()
            parents.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found: list[int] = []
    below: Sequence[int] = parents.get(pid, ())
    while below:
        found += below
        below = [child for parent in below for child in parents.get(parent, ())]
    return found
