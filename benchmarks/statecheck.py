# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks statecheck`: the time of a check of every module of statecheck's corpus.

Each module is checked in a process of its own, with the settings of `tallax check`. The clock starts when JAX, Flax,
tallax and the corpus are imported, and stops at the report. No program is compiled before, and none comes from a cache
of an earlier check. Modules whose time is not measured within the limit of the whole run count as missed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from benchmarks import _report
from tallax._quick_compiles import compile_quickly
from tallax.checking import statecheck
from tallax.checking._file_check import environment
from tests.right_modules import RIGHT
from tests.wrong_modules import ARGUABLE, WRONG

MEDIAN_SECONDS, LONGEST_SECONDS = 4.0, 12.0  # limits
CASES = {**WRONG, **ARGUABLE, **RIGHT}
# The modules that took the longest when all were measured. A quick run has them, and one in forty of the others.
LONGEST = ("flax-bidirectional", "tallax-in-experts", "train-step")
ROOT = Path(__file__).resolve().parents[1]


def check(name: str) -> dict[str, Any]:
    """Returns the time of a check in this process, and the number of its findings."""
    case, compiled = CASES[name], 0

    def count(event: str, duration_secs: float, **_: Any) -> None:
        nonlocal compiled
        compiled += event == "/jax/core/compile/backend_compile_duration"

    jax.monitoring.register_event_duration_secs_listener(count)
    compile_quickly()  # as `tallax check` does
    warnings.simplefilter("ignore")
    began, cpu = time.perf_counter(), time.process_time()
    report = statecheck(case.make, *case.inputs, call=case.call, progress=False)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
    return {
        "name": name,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "compiled": compiled,
        "findings": len(report.findings),
    }


def measured(names: list[str], limit_seconds: float) -> Iterator[dict[str, Any]]:
    """Yields the time of each module, in turn, until the limit has passed."""
    end = time.monotonic() + limit_seconds
    for name in names:
        left = end - time.monotonic()
        if left <= 0:
            return
        with tempfile.TemporaryDirectory(prefix="tallax-statecheck-") as programs:
            given = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
            command = [sys.executable, "-m", "benchmarks.statecheck", "--module", name]
            try:
                answer = subprocess.run(
                    command,
                    env=environment(programs, given),
                    cwd=ROOT,
                    stdout=subprocess.PIPE,
                    timeout=left,
                    check=True,
                )
            except subprocess.TimeoutExpired:
                return
        yield json.loads(answer.stdout.splitlines()[-1])


def figures(rows: list[dict[str, Any]], count: int) -> dict[str, Any]:
    """Returns the median and the longest time, and whether both limits are met by all `count` modules."""
    seconds = [row["seconds"] for row in rows] or [float("inf")]
    median, longest = statistics.median(seconds), max(seconds)
    return {
        "median_seconds": median,
        "longest_seconds": longest,
        "limits": {"median_seconds": MEDIAN_SECONDS, "longest_seconds": LONGEST_SECONDS},
        "met": median < MEDIAN_SECONDS and longest < LONGEST_SECONDS and len(rows) == count,
        "modules": sorted(rows, key=lambda row: -row["seconds"]),
        "left_out": count - len(rows),
    }


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints and writes `statecheck.json`; returns 1 if a limit is missed or a module is not measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.statecheck", description="Measure statecheck.")
    parser.add_argument("--quick", action="store_true", help="the longest modules, and one in forty of the others")
    parser.add_argument("--output", type=Path, default=_report.RESULTS, metavar="FOLDER", help="for the JSON file")
    parser.add_argument("--limit", type=float, default=2400.0, metavar="SECONDS", help="for all modules together")
    parser.add_argument("--module", metavar="NAME", help="check one module in this process, and print its time as JSON")
    options = parser.parse_args(arguments)
    if options.module:
        print(json.dumps(check(options.module)))
        return 0
    # The longest come first, so that a run that is cut short has the figure that matters.
    names = list(dict.fromkeys([*LONGEST, *list(CASES)[:: 40 if options.quick else 1]]))
    record = {
        **_report.heading("statecheck", "the time of a check of each module of statecheck's corpus"),
        "load_average_before": _report.load_average(),
        "quick": options.quick,
    }
    rows = []
    for row in measured(names, options.limit):
        rows.append(row)
        print(f"{row['name']}: {row['seconds']:.1f} s, {row['compiled']} programs compiled", flush=True)
    found = figures(rows, len(names))
    print(
        f"{len(rows)} of {len(names)} modules: median {found['median_seconds']:.1f} s (limit {MEDIAN_SECONDS:g} s), "
        f"longest {found['longest_seconds']:.1f} s (limit {LONGEST_SECONDS:g} s)"
    )
    _report.write_record(options.output, {**record, **found})
    return int(not found["met"])


if __name__ == "__main__":
    raise SystemExit(main())
