# SPDX-License-Identifier: Apache-2.0
"""Runs written without a model, with everything that is hard to draw."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from tallax.runs import Bins, Record, StateInfo
from tallax.runs._jsonl_format import FIRST_LINE, Encoder

ITEMS = {
    "seen": StateInfo("Counter", (), "uint32", 8, True),
    "gate/fired": StateInfo("Rate", (2,), "uint32", 16, True),
    "gate/load": StateInfo("Counter", (4,), "uint32", 32, True),
    "gate/logits": StateInfo("Histogram", (13,), "uint32", 104, True),
    "scratch": StateInfo("Buffer", (100,), "float32", 400, False),
}
EDGES = np.linspace(-4.0, 4.0, 9)


def record(k: int, **scalars: float) -> Record:
    """Returns record number `k` of a run, at step `10 * k`."""
    load = np.array([k, 2 * k, 3 * k, 4 * k], np.uint64)
    numbers = {
        "seen": 2**53 + 1 + 640 * k,
        "gate/fired/fired": 3 * k,
        "gate/fired/total": 10 * k,
        "gate/fired/rate": 0.3,
        **{f"gate/load/{n}": int(count) for n, count in enumerate(load)},
        "scratch/min": -1.0,
        "scratch/mean": 0.5,
        "scratch/max": 2.0,
        "loss": 1 / (k + 1),
        **scalars,
    }
    counts = np.array([0, 1, 2, 5, 9, 4, 2, 1], np.uint64) * np.uint64(k)
    bins = {"gate/load": Bins(np.arange(5) - 0.5, load), "gate/logits": Bins(EDGES, counts)}
    return Record(10 * k, 1.7e9 + k, 0, numbers, bins, ITEMS)


SUMMARY = ("size", "mean", "rms", "largest", "largest_at", "zeros", "nonfinite", "nonfinite_at", "updates")


def watched(step: int, layers: int = 5, **numbers: float) -> Record:
    """Returns a record as a Logger writes it for a watched model whose layers are sites, and a stack of two layers.

    `numbers` are numbers of the output of layer 2.
    """
    sites = [f"layers/{k}:output" for k in range(layers)]
    scalars: dict[str, int | float] = {"loss": 1.0 / step}
    for k, site in enumerate([*sites, "stack/up:output", "stack/up:output"]):
        found = dict(zip(SUMMARY, (64 * step, 0.5, 1.0 + k, 2.0 + k, step, 0, 0, 0, step), strict=True))
        entry = f"/{k - layers}" if k >= layers else ""
        scalars |= {f"{site}/{name}{entry}": value for name, value in (found | (numbers if k == 2 else {})).items()}
    for k in range(layers):
        scalars |= {f"layers/{k}:attention/entropy/{head}": 1.0 + head for head in range(3)}
        scalars |= {f"layers/{k}:attention/queries/{head}": 64 * step for head in range(3)}
    scalars |= {f"idle:output/{name}": 0 for name in SUMMARY}
    scalars["head/kernel:update_ratio"] = 0.25
    sites += [f"layers/{k}:attention" for k in range(layers)]
    sites += ["stack/up:output", "idle:output", "head/kernel:update_ratio", "head:output_histogram"]
    bins = {"head:output_histogram": Bins(EDGES, np.arange(8, dtype=np.uint64))}
    info = StateInfo("Summary", (17,), "uint32", 68, True)
    return Record(step, 1.7e9 + step, 0, scalars, bins, {**dict.fromkeys(sites, info), "seen": ITEMS["seen"]})


def odd_records() -> list[Record]:
    """Returns records whose numbers have no scale in common, or none at all, and histograms whose edges move."""
    found = []
    for k in range(12):
        edges = np.linspace(-1.0 - k, 1.0 + k, 9)
        numbers = {
            "constant": 1.5,
            "nan": math.nan,
            "sometimes": math.nan if k % 4 == 1 else math.inf if k == 6 else -math.inf if k == 7 else math.sin(k),
            "huge": 2**64 - 1 - k,
            "giant": 10**400 + k,
            "extreme": (-1) ** k * 1.7e308,
            "decay": 10.0 ** (-k / 2),
            "$dollar_$": k,
            "[red]bracket[/]": k,
            "_private": float(k),
            **{f"array/{n}": n * k * 1.0 for n in range(20)},
            "a/name/that/goes/on/through/many/layers/until/it/ends": k**2,
        }
        if k == 5:
            numbers["once"] = 3.0
        histograms = {
            "moving": Bins(edges, np.arange(8, dtype=np.uint64)),
            "one": Bins(np.array([0.0, 1.0]), np.array([k], np.uint64)),
            "empty": Bins(np.linspace(0, 1, 5), np.zeros(4, np.uint64)),
            "decades": Bins(np.geomspace(1e-6, 1e3, 19), np.full(18, k, np.uint64)),
            "experts": Bins(np.arange(65) - 0.5, np.arange(64, dtype=np.uint64) * np.uint64(k)),
        }
        found.append(Record(100 * k + 1, 1.7e9 + k, 0, numbers, histograms))
    return found


def write(folder: Path, records: Iterable[Record]) -> Path:
    """Writes records to a folder as a run; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    encoder = Encoder()
    (folder / "records.jsonl").write_bytes(FIRST_LINE + b"".join(encoder.line(each) for each in records))
    return folder
