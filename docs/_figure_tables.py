# SPDX-License-Identifier: Apache-2.0
"""Writes the tables of four pages, such as docs/performance.md, from the figures in docs/figures.

`make performance` copies the results of `make bench` to docs/figures and runs it; tests/test_figures.py compares the
pages with the figures. A table is between two comments, `<!-- figures: NAME -->` and `<!-- end -->`; the text around it
is written by hand. NAME is that of a group of benchmarks, or a key of `TABLES`.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
FIGURES = DOCS / "figures"
PAGES = ("performance.md", "many-devices.md", "statecheck.md", "guides/watch-a-model.md")
BLOCK = re.compile(r"<!-- figures: (?P<name>[\w-]+) -->\n.*?<!-- end -->", re.DOTALL)
NOT_MEASURED = "Not measured yet: run `make bench` and `make performance`."
PACKAGES = ("python", "jax", "flax", "numpy", "torch")
SEVERAL = 5  # of the rows that `extremes` shows at each end

Records = dict[str, dict[str, Any]]


def table(headings: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Returns a table in Markdown."""
    headings = list(headings)
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def duration(seconds: float) -> str:
    """Returns a time with two digits."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def size(number: float) -> str:
    """Returns a number of bytes with its unit."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= scale:
            return f"{number / scale:.3g} {unit}"
    return f"{number:.0f} B"


def source(record: dict[str, Any]) -> str:
    """Returns a line with the machine, its load, the versions and the date of some figures."""
    machine, versions = record["machine"], record["versions"]
    load = record.get("load_average_before", record["load_average"])
    parts = [
        f"{machine['processor'] or machine['platform']}, {machine['cores']} cores, {machine['backend']}",
        "load average unknown" if load is None else f"load average {load:.1f} before the run",
        ", ".join(f"{name} {versions[name]}" for name in PACKAGES if name in versions),
        record["date"][:10] + (", a quick run" if record.get("quick") else ""),
    ]
    return "Measured on " + "; ".join(parts) + "."


# --- groups of ratios -------------------------------------------------------------------------------------------------


def ratios(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the ratios of a group, the largest first, without those of a case to itself."""
    rows = [
        {"case": case["name"], "to": to, "limit": case["limits"].get(to), "rounds": case["rounds"], **figures}
        for case in record["cases"]
        for to, figures in case["ratios"].items()
        if to != case["name"]
    ]
    return sorted(rows, key=lambda row: (-row["median"], row["case"], row["to"]))


def ratio_row(row: dict[str, Any]) -> list[str]:
    """Returns the cells of a ratio; one above its limit is in bold."""
    limit, median = row["limit"], f"{row['median']:.3g}"
    is_missed = limit is not None and row["median"] > limit
    goal = "" if limit is None else f"{limit:.3g}" + (", **missed**" if is_missed else "")
    return [
        row["case"],
        row["to"],
        f"**{median}**" if is_missed else median,
        f"{row['lower']:.3g} to {row['upper']:.3g}",
        goal,
    ]


RATIO_HEADINGS = ("measured", "time divided by that of", "ratio", "quartiles", "limit")


def group_table(record: dict[str, Any]) -> str:
    """Returns the ratios of a group, the worst first; of a group without ratios, the times."""
    found = ratios(record)
    rounds = {case["rounds"] for case in record["cases"] if case["rounds"]}
    line = f"{record['title'][:1].upper()}{record['title'][1:]}; {max(rounds, default=0)} rounds. {source(record)}"
    if found:
        return f"{line}\n\n{table(RATIO_HEADINGS, map(ratio_row, found))}"
    times = [case for case in record["cases"] if case["seconds"]]
    rows = []
    for case in sorted(times, key=lambda case: -case["seconds"]["median"]):
        median, lower, upper = (duration(case["seconds"][key]) for key in ("median", "lower", "upper"))
        limit = case.get("limit_seconds")
        missed = limit is not None and case["seconds"]["median"] > limit
        rows.append(
            [case["name"], median, f"{lower} to {upper}", duration(limit) + ", **missed**" * missed if limit else ""]
        )
    return f"{line}\n\n{table(('measured', 'time', 'quartiles', 'limit'), rows)}"


def extremes(records: Records) -> str:
    """Returns the largest and the smallest ratios of all groups on the page, and those above their limits."""
    names = [name for name in blocks("performance.md") if "cases" in records.get(name, {})]
    rows = sorted((row for name in names for row in ratios(records[name])), key=lambda row: -row["median"])
    if len(rows) < 2 * SEVERAL:
        return NOT_MEASURED
    missed = [row for row in rows if row["limit"] is not None and row["median"] > row["limit"]]
    chosen = [*rows[:SEVERAL], *rows[-SEVERAL:]]
    text = f"The {SEVERAL} largest and the {SEVERAL} smallest of {len(rows)} ratios:\n\n"
    text += table(RATIO_HEADINGS, map(ratio_row, chosen))
    if not missed:
        return f"{text}\n\nNo ratio is above its limit."
    return f"{text}\n\n{len(missed)} ratios are above their limits:\n\n{table(RATIO_HEADINGS, map(ratio_row, missed))}"


# --- figures of scripts -----------------------------------------------------------------------------------------------


def first_step(records: Records) -> str:
    """Returns the parts of first calls."""
    record = records["first-step"]
    parts = list(record["rows"][0]["seconds"])
    rows = []
    for row in record["rows"]:
        medians = (duration(row["seconds"][part]["median"]) for part in parts)
        rows.append([row["step"], row["way"], *medians, f"{row['ratio']['median']:.2f}"])
    return f"{source(record)}\n\n{table(('step', 'compiled by', *parts, 'ratio to nnx.jit'), rows)}"


def memory(records: Records) -> str:
    """Returns the memory over a long run."""
    record = records["memory"]
    each = record["steps"] // 10
    rows = [[f"{each * (k + 1):,}", f"{number / 2**20:.1f} MiB"] for k, number in enumerate(record["bytes"])]
    growth = f"After the first {each:,} steps the memory grew by {100 * record['growth']:.2f} percent at most."
    return f"{growth} {source(record)}\n\n{table(('steps', 'resident memory'), rows)}"


def statecheck(records: Records) -> str:
    """Returns the median and the longest times of a check."""
    record = records["statecheck"]
    modules, limits = record["modules"], record["limits"]
    rows = [
        [name, duration(record[key]), duration(limits[key]) + ", **missed**" * (record[key] >= limits[key])]
        for name, key in ((f"median of {len(modules)} modules", "median_seconds"), ("longest", "longest_seconds"))
    ]
    longest = ", ".join(f"`{row['name']}` {duration(row['seconds'])}" for row in modules[:SEVERAL])
    left = f" Modules without a measured time: {record['left_out']}." if record["left_out"] else ""
    return f"{source(record)}{left}\n\n{table(('check', 'time', 'limit'), rows)}\n\nThe {SEVERAL} longest: {longest}."


def _sent(rows: list[dict[str, Any]]) -> str:
    """Returns the collectives and bytes of a step, for one number of devices or for several."""
    if not rows:
        return ""

    def text(row: dict[str, Any]) -> str:
        branch = f" (rarely {row['in_branch']} more, {size(row['payload_in_branch'])})" if row["in_branch"] else ""
        return f"{row['collectives']}, {size(row['payload'])}{branch}" if row["payload"] or branch else "0"

    texts = [text(row) for row in rows]
    if len(set(texts)) == 1:
        return texts[0]
    return "; ".join(f"{row['devices']} devices: {each}" for row, each in zip(rows, texts, strict=True))


def scale_steps(records: Records) -> str:
    """Returns the collectives and bytes that state adds to a step."""
    record = records["scale"]
    rows: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    for row in record["compiled"]["steps"]:
        state = row["state"] if row["count"] == 1 else f"{row['count']} {row['state']}s"
        rows.setdefault((row["layout"], state), {}).setdefault(row["way"], []).append(row)
    ways = ("jit", "shard_map", "per-replica")
    cells = _joined([[*key, *(_sent(found.get(way, [])) for way in ways)] for key, found in rows.items()])
    devices = sorted({row["devices"] for row in record["compiled"]["steps"]})
    agree = [row["agrees"] for row in record["compiled"]["steps"]]
    line = (
        f"Compiled for {', '.join(map(str, devices[:-1]))} and {devices[-1]} devices with jax "
        f"{record['versions']['jax']}. {agree.count(True)} of {len(agree)} programs send the bytes of the formula."
    )
    return f"{line}\n\n{table(('mesh', 'state', 'under `jit`', 'in `shard_map`', 'per replica'), cells)}"


def _joined(rows: list[list[Any]]) -> list[list[Any]]:
    """Returns the rows, of which those that differ only in the mesh, the first cell, are one row."""
    meshes: dict[tuple[Any, ...], list[str]] = {}
    for mesh, *others in rows:
        meshes.setdefault(tuple(others), []).append(mesh)
    return [["; ".join(names), *others] for others, names in meshes.items()]


def scale_model(records: Records) -> str:
    """Returns the time of the collectives of a step, for more devices than were compiled for."""
    record = records["scale"]
    rows: dict[tuple[str, str, str], dict[int, dict[str, Any]]] = {}
    for row in record["modelled"]["steps"]:
        if row["payload"]:
            state = row["state"] if row["count"] == 1 else f"{row['count']} {row['state']}s"
            rows.setdefault((row["layout"], state, row["way"]), {})[row["devices"]] = row
    devices = sorted({number for found in rows.values() for number in found})
    ordered = sorted(rows.items(), key=lambda item: -item[1][devices[-1]]["seconds"])
    cells = []
    for key, found in ordered:
        most = found[devices[-1]]
        times = (duration(found[number]["seconds"]) for number in devices)
        cells.append([*key, most["collectives"], size(most["payload"]), *times])
    cells = _joined(cells)
    headings = (f"{number:,} devices" for number in devices)
    return table(("mesh", "state", "way", "collectives", f"bytes, {devices[-1]:,}", *headings), cells)


def scale_readings(records: Records) -> str:
    """Returns the cost of reading the state."""
    record = records["scale"]
    rows: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for row in [*record["compiled"]["readings"], *record["modelled"]["readings"]]:
        rows.setdefault((row["state"], row["way"]), {})[row["devices"]] = row
    devices = sorted({number for found in rows.values() for number in found})
    ordered = sorted(rows.items(), key=lambda item: -item[1][devices[-1]]["to_host"])
    cells = [
        [*key, *(f"{size(found[number]['payload'])}, {size(found[number]['to_host'])}" for number in devices)]
        for key, found in ordered
    ]
    headings = ("state", "kept", *(f"{number:,} devices" for number in devices))
    return table(headings, cells)


_COSTS = {"step": "step", "host": "host, each call", "compile": "compilation", "temporary": "temporary memory"}


def _cost(numbers: dict[str, float], limits: dict[str, Any], cost: str, case: str) -> str:
    """Returns the ratio of a cost, in bold if it is above its limit."""
    ratio = next((numbers[key] for key in (f"{cost}_seconds_ratio", f"{cost}_bytes_ratio") if key in numbers), None)
    if ratio is None:
        return ""
    limit = limits.get(cost)
    limit = limit.get(case) if isinstance(limit, dict) else limit
    return f"{ratio:.3f}" if limit is None or ratio <= limit else f"**{ratio:.3f}**"


def watch_costs(records: Records) -> str:
    """Returns the costs of watched steps, as ratios to the step that is not watched."""
    return _watch_table(records, ("layers", "deep", "scanned"), ("step", "compile", "temporary"))


def watch_host(records: Records) -> str:
    """Returns the time of the host at each call, as a ratio to that of the step that is not watched."""
    return _watch_table(records, ("host",), ("host",))


def watch_others(records: Records) -> str:
    """Returns the costs of other libraries beside a watch of the same tensors."""
    return _watch_table(records, ("others",), ("step", "compile", "temporary"))


def _watch_table(records: Records, parts: Iterable[str], costs: tuple[str, ...]) -> str:
    record = records["watch-costs"]
    rows = []
    for part in parts:
        limits = record["limits"].get("layers" if part == "deep" else part, {})
        model, cases = record["parts"][part]["model"], record["parts"][part]["cases"]
        for case, numbers in list(cases.items())[1:]:
            rows.append([model, case, *(_cost(numbers, limits, cost, case) for cost in costs)])
    return f"{source(record)}\n\n{table(('model', 'measured', *map(_COSTS.get, costs)), rows)}"


TABLES: dict[str, Callable[[Records], str]] = {
    "extremes": extremes,
    "first-step": first_step,
    "memory": memory,
    "scale-steps": scale_steps,
    "scale-model": scale_model,
    "scale-readings": scale_readings,
    "statecheck": statecheck,
    "watch-costs": watch_costs,
    "watch-host": watch_host,
    "watch-others": watch_others,
}


# --- pages ------------------------------------------------------------------------------------------------------------


def blocks(page: str) -> list[str]:
    """Returns the names of the tables of a page."""
    return BLOCK.findall((DOCS / page).read_text())


def _groups(name: str) -> list[str]:
    """Returns the groups that a table may be of: `scale` for `scale-model`, `watch-costs` for `watch-host`."""
    return [name.partition("-")[0]] if not name.startswith("watch-") else ["watch-costs"]


def written(page: str, records: Records) -> str:
    """Returns the text of a page with its tables written anew."""

    def block(match: re.Match[str]) -> str:
        name = match["name"]
        if name != "extremes" and not any(group in records for group in (name, *_groups(name))):
            text = NOT_MEASURED
        else:
            text = TABLES[name](records) if name in TABLES else group_table(records[name])
        return f"<!-- figures: {name} -->\n\n{text}\n\n<!-- end -->"

    return BLOCK.sub(block, (DOCS / page).read_text())


def records_in(folder: Path) -> Records:
    """Returns the committed figures by the name of their group."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def main(arguments: list[str] | None = None) -> int:
    """Copies new results to docs/figures, and writes the tables of the pages."""
    parser = argparse.ArgumentParser(description="Write the tables of the pages from the figures.")
    parser.add_argument("results", nargs="?", type=Path, help="a folder with new results of benchmarks")
    options = parser.parse_args(arguments)
    if options.results is not None:
        names = {name for page in PAGES for name in blocks(page)} | {"scale", "watch-costs"}
        for path in sorted(options.results.glob("*.json")):
            if path.stem in names:
                shutil.copyfile(path, FIGURES / path.name)
    records = records_in(FIGURES)
    for page in PAGES:
        (DOCS / page).write_text(written(page, records))
    return 0


if __name__ == "__main__":
    sys.exit(main())
