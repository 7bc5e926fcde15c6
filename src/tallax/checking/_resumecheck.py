# SPDX-License-Identifier: Apache-2.0
"""`resumecheck`: does a training job resume exactly?"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tallax._errors import InvalidValueError, describe
from tallax.checking._check_results import Collected
from tallax.checking._job_runs import Run, Runner, request_of
from tallax.checking._progress import progress_line
from tallax.checking._report import Cell, Finding, Outcome, Report
from tallax.checking._resume_comparison import Comparison, loop_steps

_TOLERANCE = 1e-5
# For each way in which a run ends badly: the words, and the fix.
_ENDS = {
    "import": ("cannot be imported", "fix that first: resumecheck imports the file in a new process"),
    "raises": ("raises", "fix that first; a resumed job starts in a new process, with the folder as it is then"),
    "exits": ("ends its process", "return from the job instead: a job must not end its process"),
    "dies": ("dies", "look for a crash or for too little memory in the output above"),
    "hangs": (
        "does not end",
        "fewer steps or a smaller model; limit_seconds= to wait longer; look for a thread or process to wait for",
    ),
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
        job: A function at the top level of a file, or a `functools.partial` of one.
        steps: The steps of each half. The job has to save at this step.
        devices: The number of devices for all runs, or the number for the first and for the second half, `(8, 4)`. On
            CPUs JAX then simulates as many. If it is omitted, JAX finds the devices as usual.
        tolerance: The accepted difference of floats at the end, relative to the largest of their array. It holds only
            if the number of devices changes: another number of devices adds in another order. Restored values must be
            equal to the bit.
        limit_seconds: The time for each run, after which it is killed and reported.
        on_progress: A function that is called with the names of the runs that take place.
        progress: Whether a line on stderr shows the run. None shows it if stderr is a terminal.

    Returns:
        A `Report`; print it, or call `raise_on_failure()`. A job that raises, hangs, exits or crashes is a finding.

    Raises:
        InvalidTypeError: Another process cannot find `job` by its name.
        InvalidValueError: `steps`, `devices` or `limit_seconds` is not a positive number.
        KeyboardInterrupt: On Ctrl-C, after all processes were ended.

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
    first_devices, second_devices = _checked(steps, devices, limit_seconds)
    request = request_of(job)
    with contextlib.ExitStack() as stack:
        notify = stack.enter_context(progress_line(progress, on_progress))
        # Checkpoints are large, and the folder goes whatever happens.
        temporary = tempfile.TemporaryDirectory(prefix="tallax-resume-", ignore_cleanup_errors=True)
        folder = Path(stack.enter_context(temporary))
        collected = Collected(request["name"], on_progress=notify)
        runner = Runner(request, folder, limit_seconds, collected.notify)
        runs = {
            "straight": Run(f"uninterrupted, {2 * steps} steps", folder / "straight", 2 * steps, first_devices),
            "first": Run(f"first half, {steps} steps", folder / "halves", steps, first_devices),
            "initial": Run("before the first step", folder / "initial", 0, first_devices),
            "second": Run(f"second half, {steps} steps", folder / "halves", 2 * steps, second_devices),
            "restored": Run("after a restore", folder / "halves", steps, second_devices),
            "again": Run("uninterrupted, again", folder / "again", 2 * steps, first_devices),
        }
        tolerance = tolerance if first_devices != second_devices else 0.0
        for result in _results(runner, runs, steps, tolerance):
            collected.add(result)
        # Each finding stands for itself: `statecheck` has tiers, in which one finding explains another, and these have
        # no place for the rules of a resume.
        return dataclasses.replace(collected.report(), findings=tuple(collected.findings))


def _checked(steps: Any, devices: Any, limit_seconds: float) -> tuple[int | None, int | None]:
    """Returns the numbers of devices of the two halves; raises if an argument is not valid."""
    counts = tuple(devices) if isinstance(devices, Sequence) else (devices, devices)
    are_counts = len(counts) == 2 and (devices is None or all(isinstance(n, int) and n > 0 for n in counts))
    for name, value, is_valid, fix in (
        ("steps", steps, isinstance(steps, int) and steps > 0, "steps=5: each half takes five steps"),
        ("devices", devices, are_counts, "devices=8, or devices=(8, 4) for the two halves"),
        ("limit_seconds", limit_seconds, limit_seconds > 0, "limit_seconds=300"),
    ):
        if not is_valid:
            raise InvalidValueError(name, "takes positive numbers.", got=describe(value), fix=fix)
    return counts[0], counts[1]


def _results(runner: Runner, runs: dict[str, Run], steps: int, tolerance: float) -> Iterator[Cell | Finding]:
    """Runs the job, and yields a row for each run, then the differences. Ends at the first run that ends badly."""
    names = ("straight", "first", "initial")
    runs |= zip(names, runner.run(*(runs[name] for name in names)), strict=True)
    straight, first = runs["straight"], runs["first"]
    yield from _rows(straight, *([first] if straight.is_good else []))  # the other half fails in the same way
    yield _row_of_evidence(runs["initial"], "values before the first step are not known")
    if not (straight.is_good and first.is_good):
        return
    if not straight.values:
        fix = "return the objects to compare: return model, optimizer, data, losses"
        yield Finding("returns-nothing", straight.name, "returns nothing to compare.", fix=fix)
        return
    if not any(files for _, _, files in os.walk(first.folder)):
        fix = "save at the last step too, in the folder that the job gets; or steps= at which it saves"
        yield Finding("nothing-saved", first.name, "leaves no file in its folder.", fix=fix)
        return
    # These take turns in one folder, since checkpoints may name it: a link to the latest one has an absolute path.
    folder, kept = first.folder, first.folder.with_name("kept")
    shutil.copytree(folder, kept, symlinks=True)  # with the times of the files, by which jobs look for the latest
    (runs["restored"],) = runner.run(runs["restored"])
    shutil.rmtree(folder)
    kept.rename(folder)
    (runs["second"],) = runner.run(runs["second"])
    yield from _rows(runs["second"], when=" when it resumes")
    if not runs["second"].is_good:
        return
    yield _row_of_evidence(runs["restored"], "values right after a restore are not known")
    taken = loop_steps(runs, "second", steps)
    if taken is not None and taken != steps:
        yield _wrong_steps(runs["second"].name, taken, steps)
    if taken is None or taken < 2 * steps:
        yield from Comparison(runs, steps, tolerance).results(lambda: runner.run(runs["again"])[0])


def _rows(*runs: Run, when: str = "") -> Iterator[Cell | Finding]:
    """Yields a cell for each run that has to end well, with a finding if it did not."""
    for run in runs:
        outcome = Outcome.PASSED if run.is_good else Outcome.FAILED
        yield Cell(run.name, "", outcome, f"{run.seconds:.1f} s" if run.is_good else run.error)
        if not run.is_good:
            words, fix = _ENDS[run.outcome]
            rule = "raises" if run.outcome == "import" else run.outcome
            source = run.source or "; ".join(run.output.splitlines()[-1:])
            yield Finding(rule, run.name, f"{words}{when}.", got=run.error, fix=fix, source=source)


def _row_of_evidence(run: Run, note: str) -> Cell:
    """Returns the cell of a run that only gives evidence: a job need not bear to be asked for no steps."""
    if run.is_good:
        return Cell(run.name, "", Outcome.PASSED, f"{run.seconds:.1f} s")
    return Cell(run.name, "", Outcome.SKIPPED, f"{note}: {run.error}")


def _wrong_steps(name: str, taken: int, steps: int) -> Cell | Finding:
    """Returns a finding if the second half starts again or takes too few steps; a cell if it repeats some steps."""
    if steps < taken < 2 * steps:
        note = f"from step {2 * steps - taken}; if the job saves at step {steps}, no step is taken twice"
        return Cell("resumed", "", Outcome.PASSED, note)
    message, fix = "takes too few steps.", "loop from the saved step: for n in range(start, steps)"
    if taken >= 2 * steps:
        message = "starts again at the first step: nothing was restored."
        fix = (
            "read the folder at the start, restore from the last checkpoint in it, and loop from its step; if you save "
            "in the background, wait for the write before the job returns"
        )
    return Finding("not-resumed", name, message, got=f"{taken} steps", expected=f"{steps} steps", fix=fix)
