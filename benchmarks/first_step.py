# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks first-step`: the parts of the first call of a step, with `nnx.jit` and with `compile_step`.

JAX reports the time of each trace, lowering and compilation. The rest of a call is that of Flax and tallax: the walk
over the objects, the take-over of their values, and the step itself. Every call is that of new objects and of a new
function, with JAX's persistent cache off, and both ways take turns.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from benchmarks import _reference_step as ref
from benchmarks import _report, transformer
from benchmarks._timing import Figures

EVENTS = {
    "trace": "/jax/core/compile/jaxpr_trace_duration",
    "lower": "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "compile": "/jax/core/compile/backend_compile_duration",
}
REST = "the rest"
WAYS: dict[str, Callable[..., Callable[[], Any]]] = {"nnx.jit": ref.by_nnx_jit, "compile_step": ref.by_compile_step}
Prepare = Callable[[], tuple[Any, Any, Callable[..., Any]]]  # makes objects, a batch and the function of a step


def _mlp(counters: int) -> tuple[Any, Any, Callable[..., Any]]:
    return ref.objects(lambda: ref.Counters(counters)), ref.batch(counters), ref.new_train_step()


def _transformer(size: transformer.Size, number: int) -> tuple[Any, Any, Callable[..., Any]]:
    return *transformer.model_and_batch(size, number), functools.partial(transformer.train_step)


STEPS: dict[str, Prepare] = {
    "MLP": lambda: _mlp(0),
    "MLP, 100 counters": lambda: _mlp(100),
    "6-layer transformer, 3 variables and statistics a layer": lambda: _transformer(transformer.USUAL, 3),
}


@contextlib.contextmanager
def recorded() -> Iterator[dict[str, list[tuple[float, float]]]]:
    """Yields the intervals of JAX's events of a block, by the name of their part, while they are added."""
    found: dict[str, list[tuple[float, float]]] = {part: [] for part in EVENTS}
    names = {event: part for part, event in EVENTS.items()}
    is_open = True

    def listener(event: str, duration_secs: float, **_: Any) -> None:
        if is_open and event in names:
            now = time.perf_counter()
            found[names[event]].append((now - duration_secs, now))

    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        yield found
    finally:
        is_open = False  # there is no public way to remove a listener


def length(intervals: list[tuple[float, float]]) -> float:
    """Returns the length of the union of intervals: the trace of a nested function is part of that of the outer one.

    >>> length([(1.0, 2.0), (0.0, 3.0), (5.0, 6.0)])
    4.0
    """
    total, end = 0.0, float("-inf")
    for start, stop in sorted(intervals):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


def first_call(prepare: Prepare, way: str) -> dict[str, float]:
    """Returns the seconds of the parts of one first call."""
    objects, batch, function = prepare()
    call = WAYS[way](objects, batch, function)
    with recorded() as intervals:
        began = time.perf_counter()
        call()
        total = time.perf_counter() - began
    parts = {part: length(found) for part, found in intervals.items()}
    # Lowering may trace, and a trace may compile a constant: a part counts only what no later part has.
    everything = length([interval for found in intervals.values() for interval in found])
    return {**parts, REST: total - everything, "total": total}


def measure(rounds: int, steps: Mapping[str, Prepare]) -> list[dict[str, Any]]:
    """Returns a row for each step and way: the median and the quartiles of each part, and the ratio of the totals."""
    rows = []
    for name, prepare in steps.items():
        taken: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for way in WAYS:
            first_call(prepare, way)  # traces of optax's functions, and imports
        for number in range(rounds):
            for way in sorted(WAYS, reverse=bool(number % 2)):
                taken[way].append(first_call(prepare, way))
        totals = {way: [each["total"] for each in calls] for way, calls in taken.items()}
        for way, calls in taken.items():
            ratios = [a / b for a, b in zip(totals[way], totals["nnx.jit"], strict=True)]
            parts = {part: dataclasses.asdict(Figures.of([each[part] for each in calls])) for part in calls[0]}
            rows.append({"step": name, "way": way, "seconds": parts, "ratio": dataclasses.asdict(Figures.of(ratios))})
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints a table and writes `first-step.json`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.first_step", description="Measure first calls.")
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--output", type=Path, default=_report.RESULTS, metavar="FOLDER", help="for the JSON file")
    options = parser.parse_args(arguments)
    load, was_on = _report.load_average(), jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        rows = measure(1 if options.quick else 5, STEPS)
    finally:
        jax.config.update("jax_enable_compilation_cache", was_on)
    for row in rows:
        parts = "  ".join(
            f"{part} {_report.duration(figures['median']):>8}" for part, figures in row["seconds"].items()
        )
        print(f"{row['step']:60} {row['way']:13} {parts}  ratio {row['ratio']['median']:.2f}")
    record = {**_report.heading("first-step", "the parts of the first call of a step"), "quick": options.quick}
    _report.write_record(options.output, {**record, "load_average_before": load, "rows": rows})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
