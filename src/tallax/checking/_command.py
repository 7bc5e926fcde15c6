# SPDX-License-Identifier: Apache-2.0
"""The command `tallax check`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rich.console import Console

from tallax._errors import StatecheckError, TallaxError
from tallax.checking._exercise import write_starter
from tallax.checking._file_check import check_file
from tallax.checking._job_runs import JobInFile
from tallax.checking._progress import progress_line
from tallax.checking._report import Report
from tallax.checking._resumecheck import resumecheck


def check(
    target: str, inputs: list[str], call: str | None, calls: int, limit_seconds: float, *, as_json: bool, start: bool
) -> int:
    """Checks FILE:NAME, or grades the exercise in FILE, and prints the report.

    Returns:
        The exit code: 0 if nothing failed, 1 if something failed, 2 if the check could not run, or was cut short before
        anything failed.
    """
    if start:
        try:
            write_starter(Path(target))
        except TallaxError as error:
            print(error, file=sys.stderr)
            return 2
        print(f"{target} is ready to fill in; then run: tallax check {target}")
        return 0
    file, name = _parts_of(target)
    try:
        with progress_line() as notify:
            report = check_file(
                file,
                name or None,
                inputs,
                call=call,
                calls=calls,
                limit_seconds=limit_seconds,
                on_progress=notify,
            )
    except TallaxError as error:
        print(error, file=sys.stderr)
        return 2
    return _printed(report, as_json=as_json)


def check_resume_of(target: str, steps: int, devices: str, limit_seconds: float, *, as_json: bool) -> int:
    """Checks how FILE:JOB resumes, and prints the report.

    Args:
        target: The file and the name of the job.
        steps: The number of steps of each half.
        devices: One number, or two that a comma separates. If it is empty, JAX finds the devices.
        limit_seconds: The time limit of each run.
        as_json: Whether to print JSON.

    Returns:
        The exit code: 0 without failures, 1 with some, 2 if it could not run.
    """
    file, name = _parts_of(target)
    try:
        if not name or not Path(file).is_file():
            raise StatecheckError(
                target,
                "--resume requires a file and the name of a job in it." if not name else "the file does not exist.",
                fix="tallax check train.py:job --resume, for def job(folder, steps): ...",
            )
        counts = _devices_of(devices)
        report = resumecheck(JobInFile(file, name), steps=steps, devices=counts, limit_seconds=limit_seconds)
    except TallaxError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; all processes of the job were ended", file=sys.stderr)
        return 2
    return _printed(report, as_json=as_json)


def _devices_of(text: str) -> int | tuple[int, ...] | None:
    """Returns one number of devices, or those of the two halves."""
    if not text:
        return None
    try:
        counts = tuple(int(part) for part in text.split(","))
    except ValueError:
        counts = ()
    if len(counts) not in (1, 2):
        fix = "--devices 8, or --devices 8,4 for the two halves"
        raise StatecheckError("--devices", "takes one number, or two.", got=text, fix=fix)
    return counts[0] if len(counts) == 1 else counts


def _parts_of(target: str) -> tuple[str, str]:
    """Returns the file and the name in FILE:NAME; an empty name if there is none."""
    file, colon, name = target.rpartition(":")
    return (target, "") if not colon or name.endswith(".py") else (file, name)


def _printed(report: Report, *, as_json: bool) -> int:
    """Prints a report, and returns the exit code."""
    if as_json:
        json.dump(report.to_dict(), sys.stdout, indent=2)
        print()
    else:
        Console(highlight=False).print(report)
    return 0 if report.passed else 1 if report.failures else 2
