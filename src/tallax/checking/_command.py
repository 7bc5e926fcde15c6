# SPDX-License-Identifier: Apache-2.0
"""`tallax check`, on a terminal."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rich.console import Console

from tallax._errors import TallaxError
from tallax.checking._exercise import write_starter
from tallax.checking._process import check_file
from tallax.checking._progress import progress_line


def check(
    target: str, inputs: list[str], call: str | None, calls: int, limit_seconds: float, *, as_json: bool, start: bool
) -> int:
    """Checks FILE:NAME, or grades the exercise in FILE, and prints the report.

    Returns:
        the exit code: 0 without failures, 1 with some, 2 if it could not run, or not to its end and without a failure
        until then.
    """
    if start:
        try:
            write_starter(Path(target))
        except TallaxError as error:
            print(error, file=sys.stderr)
            return 2
        print(f"{target} is ready to fill in; then run: tallax check {target}")
        return 0
    file, colon, name = target.rpartition(":")
    if not colon or name.endswith(".py"):
        file, name = target, ""
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
    if as_json:
        json.dump(report.to_dict(), sys.stdout, indent=2)
        print()
    else:
        Console(highlight=False).print(report)
    return 0 if report.passed else 1 if report.failures else 2
