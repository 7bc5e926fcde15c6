# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks memory`: the memory of a process over 100,000 compiled steps that log and save.

After the first tenth of the steps, everything that a run allocates once has been allocated. From then on the resident
memory should stay as it is; `growth` is the most that it ever exceeds that of the first tenth, as a fraction of it.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import tallax
from benchmarks import _report

STEPS, LOGGED, SAVED = 100_000, 100, 5_000  # a log record and a checkpoint after so many steps
LIMIT = 0.02


class Model(nnx.Module):
    """A small network that counts."""

    def __init__(self):
        self.layer = nnx.Linear(16, 16, rngs=nnx.Rngs(0))
        self.steps = tallax.Counter()
        self.active = tallax.statistics.Rate(shape=16)
        self.values = tallax.statistics.Histogram(-3.0, 3.0)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.layer(x))
        self.steps += 1
        self.active.update(x > 0)
        self.values.update(x)
        return x


def train(model: Model, optimizer: nnx.Optimizer, x: jax.Array) -> jax.Array:
    """Updates the model."""
    loss, grads = tallax.value_and_grad(lambda model: (model(x) ** 2).mean())(model)
    with jax.numpy_dtype_promotion("standard"):
        optimizer.update(model, grads)
    return loss


def resident_bytes() -> int:
    """Returns the resident memory of this process, on Linux."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def measure(steps: int) -> dict[str, Any]:
    """Trains, and returns the resident memory after each tenth of the steps, and its growth after the first."""
    model, x = Model(), jnp.ones((8, 16))
    optimizer = nnx.Optimizer(model, optax.adam(1e-4), wrt=nnx.Param)
    found, began = [], time.perf_counter()
    with (
        tempfile.TemporaryDirectory(prefix="tallax-memory-") as folder,
        tallax.Logger(tallax.sinks.Jsonl(Path(folder) / "run"), every=LOGGED) as log,
        tallax.Checkpoints(Path(folder) / "checkpoints", keep=2) as checkpoints,
        tallax.compile_step(train, model, optimizer) as step,
    ):
        for number in range(1, steps + 1):
            loss = step(x)
            log(step, step=number, loss=loss)
            if number % SAVED == 0:
                checkpoints.save(number, step)
            if number % (steps // 10) == 0:
                checkpoints.wait()
                log.flush()
                gc.collect()
                found.append(resident_bytes())
        assert int(model.steps) == steps
    growth = max(found) / found[0] - 1
    return {"steps": steps, "bytes": found, "growth": growth, "seconds": time.perf_counter() - began}


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints and writes `memory.json`; returns 1 if the memory grew by more than the limit."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.memory", description="Measure the memory of a long run."
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the steps")
    parser.add_argument("--output", type=Path, default=_report.RESULTS, metavar="FOLDER", help="for the JSON file")
    options = parser.parse_args(arguments)
    figures = measure(STEPS // 10 if options.quick else STEPS)
    mebibytes = ", ".join(f"{each / 2**20:.1f}" for each in figures["bytes"])
    print(f"{figures['steps']} steps: {mebibytes} MiB, growth {figures['growth']:.2%}, {figures['seconds']:.0f} s")
    record = {
        **_report.heading("memory", "the memory of a long run"),
        "quick": options.quick,
        "limit": LIMIT,
        **figures,
    }
    _report.write_record(options.output, record)
    return int(figures["growth"] > LIMIT)


if __name__ == "__main__":
    raise SystemExit(main())
