# SPDX-License-Identifier: Apache-2.0
"""Group `watch`: a step of a transformer whose tensors are watched, beside the same step without a watch."""

from __future__ import annotations

import json
import pathlib
import sys
import time
from typing import Any

import jax
from flax import nnx

import tallax
from benchmarks import _reference_step as ref
from benchmarks import transformer
from benchmarks._timing import Case, Group

NONE = "not watched"
EVERYTHING = {"output_gradients": True, "parameters": True, "gradients": True, "updates": True}
WATCHED: dict[str, dict[str, Any]] = {
    "outputs": {},
    "outputs and their gradients": {"output_gradients": True},
    "everything": EVERYTHING,
    "everything, every=10": {**EVERYTHING, "every": 10},
}


def group(layers: int = 4) -> Group:
    """Returns the cases."""
    return Group(
        "watch",
        f"a step of a {layers}-layer transformer of width 128 with Adam, 8 x 128 tokens",
        NONE,
        [
            Case(name=NONE, make=lambda: _step(layers, None)),
            *(Case(name=name, make=lambda how=how: _step(layers, how)) for name, how in WATCHED.items()),
        ],
        rounds_in_one=5,
    )


def _watched(layers: int, how: dict[str, Any] | None) -> tuple[tuple[Any, nnx.Optimizer], tuple[jax.Array]]:
    (model, optimizer), batch = transformer.model_and_batch(transformer.Size(layers=layers), 0)
    if how is not None:
        tallax.watch(model, optimizer, **how)
    return (model, optimizer), batch


def _step(layers: int, how: dict[str, Any] | None) -> Any:
    return ref.by_compile_step(*_watched(layers, how), transformer.train_step)


def compiled(layers: int, how: dict[str, Any] | None) -> dict[str, float]:
    """Returns the processor time of lowering and compiling a step, and the temporary memory of its program."""
    objects, batch = _watched(layers, how)
    start = time.process_time()
    lowered = nnx.jit(transformer.train_step).lower(*objects, *batch)
    middle = time.process_time()
    program: Any = lowered.compile()
    end = time.process_time()
    memory = program.compiled.memory_analysis()
    return {
        "lower_seconds": middle - start,
        "compile_seconds": end - middle,
        "temporary_bytes": memory.temp_size_in_bytes,
    }


def main(layers: int = 4) -> None:
    """Writes the compile times and the temporary memory of each case to benchmarks/results/watch_compile.json."""
    jax.config.update("jax_enable_compilation_cache", False)
    compiled(1, None)  # imports, and starts the compiler
    results = {name: compiled(layers, how) for name, how in {NONE: None, **WATCHED}.items()}
    path = pathlib.Path("benchmarks/results/watch_compile.json")
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(results, indent=2))
    for name, numbers in results.items():
        sys.stdout.write(f"{name:30} " + " ".join(f"{key} {value:,.2f}" for key, value in numbers.items()) + "\n")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
