# SPDX-License-Identifier: Apache-2.0
"""`resumecheck`: does a training job resume exactly?"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tallax._errors import InvalidValueError, compose, describe
from tallax.checking._check_results import Collected
from tallax.checking._job_runs import Ended, Job, Run, Runner
from tallax.checking._progress import progress_line
from tallax.checking._report import Cell, Finding, Outcome, Report
from tallax.checking._resume_comparison import Comparison, loop_steps

_TOLERANCE = 1e-5
_FIXES = {
    "import": "fix that first: resumecheck imports the file in a new process",
    "raises": "fix that first; a resumed job starts in a new process, with the folder as it is then",
    "exits": "return from the job instead: a job must not end its process",
    "dies": "look for a crash or for too little memory in the output above",
    "hangs": "fewer steps or a smaller model; limit_seconds= to wait longer; look for a thread or process to wait for",
}


def resumecheck(
    job: Callable[..., Any],
    *,
    steps: int = 4,
    devices: int | Sequence[int] | None = None,
    tolerance: float = _TOLERANCE,
    limit_seconds: float = 300.0,
    on_progress: Callable[[str], None] | None = None,
    progress: bool | None = None,
) -> Report:
    """Runs a training job uninterrupted and with a kill in the middle, and reports everything that ends differently.

    `job(folder, steps)` trains from whatever `folder` holds, an empty folder at first, until the global step is
    `steps`. It saves as it does in production, and returns the objects to compare: modules, optimizers, iterators,
    pytrees, as a dict, a tuple or one object. A list of numbers, such as the losses of the steps of this call, is
    compared step by step. Nothing of tallax has to be in it.

    The job runs in new processes: for `2 * steps`; for `steps`, killed when it returns; again for `2 * steps` in the
    folder of the killed run. Two short runs show the state before the first step and right after a restore. Without a
    fault, all values of the second half equal those of the uninterrupted run to the bit, and the report passes.
    Otherwise each finding names the path of a value, its fault (one of `RESUME_RULES`) and the remedy. If two
    uninterrupted runs differ, the report names that.

    Args:
        job: a function at the top level of a file, or a `functools.partial` of one.
        steps: the steps of each half. The job has to save at this step.
        devices: the number of devices for all runs, or the number for the first and for the second half, `(8, 4)`. On
            CPUs JAX then simulates as many. If it is omitted, JAX finds the devices as usual.
        tolerance: if the number of devices changes, how far apart floats may be at the end, relative to the largest of
            their array: another number of devices adds in another order. Restored values must be equal to the bit.
        limit_seconds: the time for each run, after which it is killed and reported.
        on_progress: called with the names of the runs that take place.
        progress: whether a line on stderr shows the run. None shows it if stderr is a terminal.

    Returns:
        A `Report`; print it, or call `raise_on_failure()`. A job that raises, hangs, exits or crashes is a finding.

    Raises:
        InvalidTypeError: another process cannot find `job` by its name.
        InvalidValueError: `steps`, `devices` or `limit_seconds` is not a positive number.
        KeyboardInterrupt: on Ctrl-C, after all processes were ended.

    Example:
        ```python
        def job(folder, steps):
            model, optimizer = make()
            with tallax.Checkpoints(folder) as checkpoints:
                start = checkpoints.latest() or 0
                if start:
                    checkpoints.restore(model, optimizer)
                losses = [train_step(model, optimizer, batch(n)) for n in range(start, steps)]
                checkpoints.save(steps, model, optimizer)
            return {"model": model, "optimizer": optimizer, "losses": losses}


        print(tallax.resumecheck(job, steps=5))
        ```
    """
    return check_resume(
        Job.of(job),
        steps=steps,
        devices=devices,
        tolerance=tolerance,
        limit_seconds=limit_seconds,
        on_progress=on_progress,
        progress=progress,
    )


def check_resume(
    job: Job,
    *,
    steps: int = 4,
    devices: int | Sequence[int] | None = None,
    tolerance: float = _TOLERANCE,
    limit_seconds: float = 300.0,
    on_progress: Callable[[str], None] | None = None,
    progress: bool | None = None,
) -> Report:
    """As `resumecheck`, of a job that was found already."""
    first_devices, second_devices = _checked(steps, devices, limit_seconds)
    with contextlib.ExitStack() as stack:
        line = stack.enter_context(progress_line(progress))

        def notify(runs: str) -> None:
            line(runs)
            if on_progress is not None:
                on_progress(runs)

        # Checkpoints are large, and the folder goes whatever happens.
        folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="tallax-resume-", ignore_cleanup_errors=True))
        )
        collected = Collected(job.name, on_progress=notify)
        runner = Runner(job, folder, limit_seconds=limit_seconds, notify=collected.notify)
        runs = {
            "straight": Run(f"uninterrupted, {2 * steps} steps", folder / "straight", 2 * steps, first_devices),
            "first": Run(f"first half, {steps} steps", folder / "halves", steps, first_devices),
            "initial": Run("before the first step", folder / "initial", 0, first_devices),
            "second": Run(f"second half, {steps} steps", folder / "halves", 2 * steps, second_devices),
            "restored": Run("after a restore", folder / "halves", steps, second_devices),
            "again": Run("uninterrupted, again", folder / "again", 2 * steps, first_devices),
        }
        is_changed = first_devices != second_devices
        _check(collected, runner, runs, steps, tolerance if is_changed else 0.0)
        # Each finding stands for itself: `statecheck` has tiers, in which one finding explains another, and these have
        # no place for the rules of a resume.
        return dataclasses.replace(collected.report(), findings=tuple(collected.findings))


def _checked(steps: Any, devices: Any, limit_seconds: float) -> tuple[int | None, int | None]:
    """Returns the numbers of devices of the two halves; raises if an argument is not valid."""
    counts = tuple(devices) if isinstance(devices, Sequence) else (devices, devices)
    for name, value, is_valid, fix in (
        ("steps", steps, isinstance(steps, int) and steps > 0, "steps=5: each half takes five steps"),
        (
            "devices",
            devices,
            len(counts) == 2 and (devices is None or all(isinstance(n, int) and n > 0 for n in counts)),
            "devices=8, or devices=(8, 4) for the two halves",
        ),
        ("limit_seconds", limit_seconds, limit_seconds > 0, "limit_seconds=300"),
    ):
        if not is_valid:
            raise InvalidValueError(compose(name, "takes positive numbers.", got=describe(value), fix=fix))
    return counts[0], counts[1]


def _check(collected: Collected, runner: Runner, runs: dict[str, Run], steps: int, tolerance: float) -> None:
    names = ("straight", "first", "initial")
    ended: dict[str, Ended] = dict(zip(names, runner.run(*(runs[name] for name in names)), strict=True))
    is_good = _add_runs(collected, ended, ("straight", "first"))
    _add_optional(collected, ended["initial"], "values before the first step are not known")
    if not is_good:
        return
    if not ended["straight"].values:
        collected.add(_finding_of_run("returns-nothing", runs["straight"].name, "returns nothing to compare.", ""))
        return
    if not _has_files(runs["first"].folder):
        collected.add(_finding_of_run("nothing-saved", runs["first"].name, "leaves no file in its folder.", ""))
        return
    ended["restored"], ended["second"] = _both_after_the_kill(runner, runs)
    if not _add_runs(collected, ended, ("second",)):
        return
    _add_optional(collected, ended["restored"], "values right after a restore are not known")
    if not _has_resumed(collected, ended, steps):
        return
    comparison = Comparison(ended, steps, tolerance)
    if comparison.is_different:
        (again,) = runner.run(runs["again"])
        comparison.use_repeat(again)
    collected.add(*comparison.cells(), *comparison.findings())


def _both_after_the_kill(runner: Runner, runs: dict[str, Run]) -> tuple[Ended, Ended]:
    """Returns the run that shows the restored values, and the second half; each finds the folder of the first half.

    They take turns in one folder, since checkpoints may name it: a link to the latest one has an absolute path.
    """
    folder = runs["first"].folder
    kept = folder.with_name("kept")
    shutil.copytree(folder, kept, symlinks=True)  # with the times of the files, by which jobs look for the latest
    (restored,) = runner.run(runs["restored"])
    shutil.rmtree(folder)
    kept.rename(folder)
    (second,) = runner.run(runs["second"])
    return restored, second


def _has_files(folder: Path) -> bool:
    return any(files for _, _, files in os.walk(folder))


def _add_runs(collected: Collected, ended: dict[str, Ended], names: Sequence[str]) -> bool:
    """Adds a cell for each run that has to end well, with a finding if it did not; returns whether all did."""
    for name in names:
        run = ended[name]
        outcome = Outcome.PASSED if run.is_good else Outcome.FAILED
        collected.add(Cell(run.run.name, "", outcome, f"{run.seconds:.1f} s" if run.is_good else run.error))
        if not run.is_good:
            rule = "raises" if run.outcome == "import" else run.outcome
            words = {"import": "cannot be imported", "raises": "raises", "exits": "ends its process"}
            message = {"dies": "dies", "hangs": "does not end"} | words
            when = " when it resumes" if name == "second" else ""
            collected.add(_finding_of_run(rule, run.run.name, f"{message[run.outcome]}{when}.", run.error, run))
            break  # the other half fails in the same way
    return all(ended[name].is_good for name in names)


def _add_optional(collected: Collected, run: Ended, note: str) -> None:
    """Adds a cell for a run that only gives evidence: a job need not bear to be asked for no steps."""
    if run.is_good:
        collected.add(Cell(run.run.name, "", Outcome.PASSED, f"{run.seconds:.1f} s"))
    else:
        collected.add(Cell(run.run.name, "", Outcome.SKIPPED, f"{note}: {run.error}"))


def _has_resumed(collected: Collected, ended: dict[str, Ended], steps: int) -> bool:
    """Adds a finding if the second half did not take the second half's steps; returns whether it continued."""
    taken = loop_steps(ended["straight"], ended["first"], ended["second"], steps)
    if taken is None or steps <= taken < 2 * steps:
        if taken is not None and taken > steps:
            note = f"from step {2 * steps - taken}; if the job saves at step {steps}, no step is taken twice"
            collected.add(Cell("resumed", "", Outcome.PASSED, note))
        return True
    if taken >= 2 * steps:
        message = "starts again at the first step: nothing was restored."
        fix = (
            "read the folder at the start, restore from the last checkpoint in it, and loop from its step; if you save "
            "in the background, wait for the write before the job returns"
        )
    else:
        message = "takes too few steps."
        fix = "loop from the saved step: for n in range(start, steps)"
    finding = Finding(
        "not-resumed",
        ended["second"].run.name,
        message,
        got=f"{taken} steps",
        expected=f"{steps} steps",
        fix=fix,
    )
    collected.add(finding)
    return taken < steps


def _finding_of_run(rule: str, name: str, message: str, got: str, run: Ended | None = None) -> Finding:
    fixes = {
        "returns-nothing": "return the objects to compare: return model, optimizer, data, losses",
        "nothing-saved": "save at the last step too, in the folder that the job gets; or steps= at which it saves",
    }
    source = "" if run is None else run.source or "; ".join(run.output.splitlines()[-1:])
    return Finding(rule, name, message, got=got, fix=fixes.get(rule) or _FIXES[rule], source=source)
