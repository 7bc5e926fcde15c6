# SPDX-License-Identifier: Apache-2.0
"""The report of a run: a table for people, and a JSON file for comparing runs."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
from rich.table import Table

from benchmarks._timing import Group, Result

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("tallax", "jax", "jaxlib", "flax", "optax", "numpy", "torch", "equinox", "boost-histogram")


def table(group: Group, results: list[Result]) -> Table:
    """Returns the group's results as a table."""
    columns = Table(title=f"{group.name}: {group.title}", title_justify="left", title_style="bold")
    columns.add_column("case")
    for heading in ("median", "quartiles", "ratio"):
        columns.add_column(heading, justify="right", no_wrap=True)
    columns.add_column("to")
    columns.add_column("limit", no_wrap=True)
    for result in results:
        columns.add_row(*_row(result))
        for name in result.case.versus:
            columns.add_row("", "", "", _ratio(result, name), name, _limit(result, name))
        if result.case.limit_seconds is not None:
            columns.add_row("", "", "", "", "", f"<= {duration(result.case.limit_seconds)}: {_verdict(result.in_time)}")
    return columns


def heading(name: str, title: str) -> dict[str, Any]:
    """Returns the part that all results share: the date, the versions, the machine and its load."""
    return {
        "group": name,
        "title": title,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": _versions(),
        "machine": _machine(),
        "load_average": load_average(),
    }


def load_average() -> float | None:
    """Returns the number of processes that were running or waiting in the last minute; None if it is not known."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def write(folder: Path, group: Group, results: list[Result], *, quick: bool, load: float | None = None) -> Path:
    """Writes `<group>.json` into the folder and returns its path; `load` is the load average before the run."""
    cases = [_case(result) for result in results]
    record = {**heading(group.name, group.title), "quick": quick, "load_average_before": load, "cases": cases}
    return write_record(folder, record)


def write_record(folder: Path, record: dict[str, Any]) -> Path:
    """Writes a record with a `heading` into the folder and returns the path of the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{record['group']}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path


def write_plot(folder: Path, group: Group, results: list[Result]) -> Path:
    """Writes `<group>.svg` into the folder and returns its path."""
    import matplotlib as mpl

    assert group.draw is not None
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{group.name}.svg"
    with mpl.rc_context({"svg.hashsalt": "tallax"}):  # with this, and no date, the same results give the same file
        group.draw(results).savefig(path, metadata={"Date": None})
    return path


def duration(seconds: float) -> str:
    """Returns a time with three digits and the unit that suits it.

    >>> duration(0.0000123456)
    '12.3 us'
    """
    units = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
    unit = next((unit for unit, scale in units.items() if seconds >= scale), "ns")
    return f"{seconds / units[unit]:.3g} {unit}"


def _row(result: Result) -> tuple[str, ...]:
    name, seconds = result.case.name, result.seconds
    if seconds is None:
        return name, "-", "-", "-", f"left out: {result.case.needs} is not installed", _limit(result, result.reference)
    quartiles = f"{duration(seconds.lower)} .. {duration(seconds.upper)}"
    ratio = "1" if result.reference == name else _ratio(result, result.reference)
    reference = "" if result.reference == name else result.reference
    return name, duration(seconds.median), quartiles, ratio, reference, _limit(result, result.reference)


def _ratio(result: Result, name: str) -> str:
    return f"{result.ratios[name].median:.3f}" if name in result.ratios else "-"


def _limit(result: Result, name: str) -> str:
    limit = result.limits[name]
    if limit is None:
        return ""
    return f"<= {limit:.2f}: {_verdict(result.meets(name))}"


def _verdict(met: bool | None) -> str:
    return {True: "[green]met[/]", False: "[red]missed[/]", None: "not measured"}[met]


def _case(result: Result) -> dict[str, Any]:
    return {
        "name": result.case.name,
        "seconds": result.seconds and asdict(result.seconds),
        "rounds": result.rounds,
        "calls_per_round": result.calls,
        "reference": result.reference,
        "ratio": result.ratio and result.ratio.median,
        "ratios": {name: asdict(ratio) for name, ratio in result.ratios.items()},
        "limits": {name: limit for name, limit in result.limits.items() if limit is not None},
        **({} if result.case.limit_seconds is None else {"limit_seconds": result.case.limit_seconds}),
        "met": result.met,
        "left_out": None if result.seconds else f"{result.case.needs} is not installed",
    }


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _machine() -> dict[str, Any]:
    # Neither a host name nor a path: results are meant to be shared.
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
    }


def _processor() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)
