# SPDX-License-Identifier: Apache-2.0
"""Runs Flax's own tests of NNX with `Counter` and `Buffer` in place of Flax's Variables, and reports the failures.

    FLAX_CHECKOUT=path/to/flax python tests/peers/flax_nnx.py [transforms_test.py ...]

The checkout is Flax's repository or its source distribution, at the release that is installed:
`pip download --no-deps --no-binary flax flax==0.12.8` downloads the latter. Each test file
runs three times: unchanged; with Counters for non-negative integers and Buffers for other arrays; and with Buffers
alone (`flax_nnx_substitution.py` does it). If a test passes unchanged and fails with tallax, it is either expected to,
because it asserts something that a documented law of tallax excludes, or it shows a fault of tallax.
`flax_nnx_expected.toml` lists the expected failures.

Exits 1 if there is a fault, if a listed failure no longer fails, or if a test file did not finish; otherwise 0.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import fnmatch
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
import tomllib

HERE = pathlib.Path(__file__).parent
VARIABLE = "FLAX_CHECKOUT"
RUNS = ("", "counter", "buffer")
REST = "(the rest)"  # stands for the tests of a file that did not run


@dataclasses.dataclass(frozen=True)
class Result:
    """The outcome of one test, and how many tallax variables it made."""

    outcome: str
    error: str = ""
    counters: int = 0
    buffers: int = 0

    @property
    def fails(self) -> bool:
        return self.outcome in ("failed", "crashed")


@dataclasses.dataclass(frozen=True)
class Expected:
    """Failures that a law of tallax explains: patterns of test names, and one of the error."""

    law: str
    error: str
    tests: tuple[str, ...]


@dataclasses.dataclass
class Verdict:
    """The tests of one run with tallax, compared with those of the unchanged run."""

    passed: list[str] = dataclasses.field(default_factory=list)
    skipped: list[str] = dataclasses.field(default_factory=list)
    not_ours: list[str] = dataclasses.field(default_factory=list)  # fails unchanged, too
    expected: dict[str, str] = dataclasses.field(default_factory=dict)  # test to law
    faults: dict[str, str] = dataclasses.field(default_factory=dict)  # test to error
    used: set[tuple[int, str]] = dataclasses.field(default_factory=set)  # entries by number, and their patterns


def read_expected(path: pathlib.Path) -> list[Expected]:
    entries = tomllib.loads(path.read_text())["expected"]
    return [Expected(entry["law"], entry["error"], tuple(entry["tests"])) for entry in entries]


def classify(unchanged: dict[str, Result], with_tallax: dict[str, Result], expected: list[Expected]) -> Verdict:
    """Sorts the tests of a run with tallax by whether they fail, and why."""
    verdict = Verdict()
    for test, result in with_tallax.items():
        before = unchanged.get(test)
        if before is not None and before.fails:
            verdict.not_ours.append(test)
        elif not result.fails:
            (verdict.skipped if result.outcome == "skipped" else verdict.passed).append(test)
        else:
            explained = [
                (number, pattern)
                for number, entry in enumerate(expected)
                for pattern in entry.tests
                if fnmatch.fnmatchcase(test, pattern) and re.search(entry.error, result.error, re.DOTALL)
            ]
            verdict.used.update(explained)
            if explained:
                verdict.expected[test] = expected[explained[0][0]].law
            else:
                verdict.faults[test] = result.error
    return verdict


def stale(expected: list[Expected], unchanged: dict[str, Result], verdicts: list[Verdict]) -> list[str]:
    """Returns the patterns that explain no failure any more, though a test of that name runs and passes unchanged."""
    used = set().union(*(verdict.used for verdict in verdicts))
    runs = [test for test, result in unchanged.items() if result.outcome == "passed"]
    return [
        f"{pattern}: {entry.law}"
        for number, entry in enumerate(expected)
        for pattern in entry.tests
        if (number, pattern) not in used and fnmatch.filter(runs, pattern)
    ]


def run_file(folder: pathlib.Path, name: str, replace: str, limit: float) -> dict[str, Result]:
    """Runs one test file, again from after a test that ends the process; bounded in time."""
    results: dict[str, Result] = {}
    ends = time.monotonic() + limit
    with tempfile.TemporaryDirectory() as scratch:
        records = pathlib.Path(scratch, "records.jsonl")
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=4",  # as Flax's tests ask for
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH")))),
            "TALLAX_PEERS_REPLACE": replace,
            "TALLAX_PEERS_RECORDS": str(records),
        }
        while True:
            records.write_text("")
            command = [sys.executable, "-m", "pytest", "-q", "--tb=no", "-c", os.devnull, f"--rootdir={folder}"]
            command += ["-p", "no:cacheprovider", "-p", "flax_nnx_substitution", str(folder / name)]
            command += [f"--deselect={test}" for test in results]
            process = subprocess.Popen(
                command,
                cwd=scratch,
                env=environment,
                start_new_session=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            try:
                output, _ = process.communicate(timeout=max(1.0, ends - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                output, _ = process.communicate()
            except BaseException:  # Ctrl-C
                os.killpg(process.pid, signal.SIGKILL)
                raise
            new = _read(records)
            results |= new
            if process.returncode in (0, 1, 5):  # as pytest ends: all passed, some failed, none left to run
                return results
            if not new or time.monotonic() > ends:
                results[f"{name}::{REST}"] = Result("crashed", f"{name} did not finish:\n{output[-2000:]}")
                return results


def _read(records: pathlib.Path) -> dict[str, Result]:
    found: dict[str, Result] = {}
    for line in records.read_text().splitlines():
        entry = json.loads(line)
        test = entry.pop("test")
        old = found.get(test)
        if old is None or old.outcome == "crashed" or not old.fails:  # a failed part of a test stays
            found[test] = Result(**entry)
    return found


def run_all(folder: pathlib.Path, files: list[str], limit: float) -> dict[str, dict[str, Result]]:
    runs: dict[str, dict[str, Result]] = {replace: {} for replace in RUNS}
    for name in files:
        for replace in RUNS:
            began = time.monotonic()
            results = run_file(folder, name, replace, limit)
            runs[replace] |= results
            failed = sum(result.fails for result in results.values())
            took = f"{time.monotonic() - began:.0f} s"
            print(f"{name}, {replace or 'unchanged'}: {len(results)} tests, {failed} fail, {took}", flush=True)
    return runs


def report(runs: dict[str, dict[str, Result]], expected: list[Expected]) -> bool:
    """Prints the counts, the faults and the stale entries; returns whether there are none of the latter two."""
    unchanged, verdicts = runs[""], []
    for replace in RUNS[1:]:
        verdict = classify(unchanged, runs[replace], expected)
        verdicts.append(verdict)
        touched = [result for result in runs[replace].values() if result.counters or result.buffers]
        print(f"\n{replace}: {len(runs[replace])} tests, {len(touched)} of them make a tallax variable")
        print(f"  pass: {len(verdict.passed)}, skipped: {len(verdict.skipped)}")
        print(f"  fail unchanged too: {len(verdict.not_ours)}")
        print(f"  fail as expected: {len(verdict.expected)}")
        for law, number in collections.Counter(verdict.expected.values()).most_common():
            print(f"    {number:4} {law}")
        print(f"  faults of tallax: {len(verdict.faults)}")
        for test, error in verdict.faults.items():
            print(f"    {test}\n      {error[:600]}")
    old = stale(expected, unchanged, verdicts)
    for entry in old:
        print(f"no longer fails: {entry}")
    unfinished = [result.error for test, result in unchanged.items() if test.endswith(REST)]
    for error in unfinished:
        print(error)
    if unused := [replace for replace in RUNS[1:] if not any(r.counters or r.buffers for r in runs[replace].values())]:
        print(f"no test made a tallax variable: {', '.join(unused)}")
    return not (old or unfinished or unused or any(verdict.faults for verdict in verdicts))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="*", help="paths of test files below tests/nnx; by default all directly in it")
    parser.add_argument("--limit", type=float, default=1800, help="seconds for one run of one file")
    parser.add_argument("--expected", type=pathlib.Path, default=HERE / "flax_nnx_expected.toml")
    parser.add_argument("--save", type=pathlib.Path, help="a file to write all results to, as JSON")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the run of tests ends, too
    checkout = os.environ.get(VARIABLE)
    if not checkout:
        print(f"Flax's tests did not run: {VARIABLE} does not name a checkout of Flax.")
        return 0
    folder = pathlib.Path(checkout, "tests", "nnx").resolve()
    files = options.files or sorted(path.name for path in folder.glob("*_test.py"))
    if not files:
        print(f"Flax's tests did not run: {folder} has no tests.")
        return 1
    runs = run_all(folder, files, options.limit)
    if options.save:
        options.save.write_text(
            json.dumps({run: {test: dataclasses.asdict(r) for test, r in found.items()} for run, found in runs.items()})
        )
    return 0 if report(runs, read_expected(options.expected)) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
