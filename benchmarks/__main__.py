# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks [GROUP ...] [--quick] [--check] [--output FOLDER] [--plots FOLDER]`."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from rich.console import Console

import benchmarks
from benchmarks import _report
from benchmarks._timing import measure


def main(arguments: list[str] | None = None) -> int:
    """Runs the groups, prints a table and writes a file for each, and returns the exit status."""
    options = _parser().parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 120)  # a log file has room for the whole table
    missed = []
    for name in options.groups or [*benchmarks.GROUPS, *benchmarks.SCRIPTS]:
        if name in benchmarks.SCRIPTS:
            arguments = ["--output", str(options.output), *(["--quick"] if options.quick else [])]
            if importlib.import_module(benchmarks.SCRIPTS[name]).main(arguments):
                missed.append(name)
            continue
        load = _report.load_average()
        group = importlib.import_module(benchmarks.GROUPS[name]).group()
        results = measure(group, rounds=15, round_seconds=1e-3) if options.quick else measure(group, rounds=150)
        console.print(_report.table(group, results))
        console.print(
            f"written: {_report.write(options.output, group, results, quick=options.quick, load=load)}\n", style="dim"
        )
        if options.plots and group.draw:
            path = _report.write_plot(options.plots, group, results)
            console.print(f"drawn: {path}\n", style="dim")
        missed += [f"{name}: {result.case.name}" for result in results if result.met is False]
    if missed:
        console.print("Limits missed: " + "; ".join(missed), style="red")
    return 1 if options.check and missed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure tallax, side by side.")
    # Not `choices`, which refuses an empty list of positional arguments.
    parser.add_argument("groups", metavar="GROUP", nargs="*", type=_group, help=f"of {', '.join(_names())}")
    parser.add_argument("--quick", action="store_true", help="few, short rounds: does it run, and about how fast")
    parser.add_argument("--check", action="store_true", help="exit with status 1 where a limit is missed")
    parser.add_argument(
        "--output", type=Path, default=_report.RESULTS, metavar="FOLDER", help="where the JSON files go"
    )
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="draw what can be drawn, into this folder")
    return parser


def _group(name: str) -> str:
    if name not in _names():
        raise argparse.ArgumentTypeError(f"{name!r} is not a group; there are {', '.join(_names())}")
    return name


def _names() -> list[str]:
    return [*benchmarks.GROUPS, *benchmarks.SCRIPTS]


if __name__ == "__main__":
    sys.exit(main())
