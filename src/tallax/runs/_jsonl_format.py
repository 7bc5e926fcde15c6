# SPDX-License-Identifier: Apache-2.0
"""The format of a run on disk: a first line with the version, then a line of JSON for each record.

    {"format": "tallax run", "version": 1}
    {"step": 100, "time": 1.7e9, "scalars": {"loss": 0.5}, "histograms": {"logits": {"edges": [0, 1], "counts": [7]}}}
    {"step": 200, "time": 1.7e9, "scalars": {"loss": 0.4}, "histograms": {"logits": {"counts": [9]}}}

The edges of a histogram and the descriptions of the state (`"state"`) are written only when they change, so a line is
read together with the lines before it. JSON has no numbers for NaN and the infinities; they are the strings "NaN",
"Infinity" and "-Infinity", as in the JSON of protocol buffers. Integers are written in full, also beyond 2**53.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from tallax.runs._errors import RunError
from tallax.runs._record import Bins, Record, StateInfo

VERSION = 1
FIRST_LINE = json.dumps({"format": "tallax run", "version": VERSION}).encode() + b"\n"
_SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class Encoder:
    """Turns the records of one file into its lines, in order."""

    def __init__(self) -> None:
        self._edges: dict[str, np.ndarray] = {}
        self._state: Mapping[str, StateInfo] = {}  # all descriptions that have been written
        self._last_state: Mapping[str, StateInfo] | None = None  # the `state` of the last record

    def line(self, record: Record) -> bytes:
        """Returns the line of a record."""
        entry: dict[str, Any] = {"step": record.step, "time": record.time}
        if record.process:
            entry["process"] = record.process
        entry["scalars"] = dict(record.scalars)
        if record.histograms:
            entry["histograms"] = {name: self._histogram(name, bins) for name, bins in record.histograms.items()}
        if record.state is not self._last_state:
            new = {name: asdict(item) for name, item in record.state.items() if self._state.get(name) != item}
            if new:
                entry["state"] = new
                self._state = {**self._state, **record.state}
            self._last_state = record.state
        try:
            return _encoded(entry)
        except ValueError:  # a number is not finite; checking each one for this takes longer, and it is rare
            entry["scalars"] = {name: plain(value) for name, value in record.scalars.items()}
            return _encoded(entry)

    def _histogram(self, name: str, bins: Bins) -> dict[str, Any]:
        known = self._edges.get(name)
        counts = {"counts": bins.counts.tolist()}
        if known is bins.edges or np.array_equal(known, bins.edges):  # pyright: ignore[reportArgumentType]
            return counts
        self._edges[name] = bins.edges
        return {"edges": [plain(edge) for edge in bins.edges.tolist()], **counts}


class Decoder:
    """Turns the lines of one file into its records, in order."""

    def __init__(self, name: str):
        self._name = name
        self._edges: dict[str, np.ndarray] = {}
        self._state: dict[str, StateInfo] = {}
        self._lines = 0

    def record(self, line: bytes) -> Record | None:
        """Returns the record of a line; None for the first line.

        Raises:
            RunError: The line is not in this format, or in a later version of it.
        """
        self._lines += 1
        try:
            entry = json.loads(line)
            if self._lines == 1:
                return self._check(entry)
            if "state" in entry:
                infos = entry["state"].items()
                new = {name: StateInfo(**{**info, "shape": tuple(info["shape"])}) for name, info in infos}
                self._state = {**self._state, **new}  # records before this one keep theirs
            histograms = {name: self._bins(name, bins) for name, bins in entry.get("histograms", {}).items()}
            scalars = {name: _number(value) for name, value in entry["scalars"].items()}
            step, time, process = entry["step"], entry["time"], entry.get("process", 0)
            return Record(step, time, process, scalars, histograms, self._state)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, RunError):
                raise
            raise RunError(
                self._name,
                f"line {self._lines} is not a record of a run.",
                got=repr(line[:60]),
                fix="restore a complete copy; or cut the file before this line, to keep the records before it",
            ) from None

    def _check(self, entry: Any) -> None:
        version = entry["version"]
        if entry["format"] != "tallax run":
            raise ValueError
        if version > VERSION:
            raise RunError(
                self._name,
                "was written by a later tallax.",
                got=f"version {version} of the format",
                expected=f"at most {VERSION}",
                fix="pip install --upgrade tallax",
            )

    def _bins(self, name: str, bins: dict[str, Any]) -> Bins:
        if "edges" in bins:
            self._edges[name] = np.array([_number(edge) for edge in bins["edges"]], np.float64)
        counts = np.array(bins["counts"], np.uint64)
        edges = self._edges[name]
        if edges.shape != (len(counts) + 1,):
            raise ValueError
        return Bins(edges, counts)


def _encoded(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def plain(value: int | float) -> int | float | str:
    """Returns a number as JSON can store it: NaN and the infinities become strings."""
    if isinstance(value, int) or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _number(value: Any) -> int | float:
    if isinstance(value, str):
        return _SPECIAL[value]
    if not isinstance(value, int | float):
        raise TypeError
    return value
