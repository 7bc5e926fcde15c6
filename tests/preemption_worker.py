# SPDX-License-Identifier: Apache-2.0
"""A training run that is preempted: saves every hundredth step only, and once more when SIGTERM comes.

Run by test_preemption.py as `python -m tests.preemption_worker FOLDER STEPS [PORT PROCESSES RANK]`. It prints a line
for each step, and last the sum of its parameters, its count and its position in the data.
"""

from __future__ import annotations

import sys
import time

import jax
import jax.numpy as jnp
from flax import nnx

import tallax


class Numbers:
    """Counts upwards, and can tell how far."""

    def __init__(self):
        self.next_index = 0

    def __next__(self):
        self.next_index += 1
        return self.next_index

    def get_state(self):
        return {"next_index": self.next_index}

    def set_state(self, state):
        self.next_index = state["next_index"]


def main(folder: str, steps: int) -> None:
    model = nnx.Dict(weight=nnx.Param(jnp.zeros(3)), step=tallax.Counter())
    data = Numbers()

    @nnx.jit
    def train_step(model, x):
        model.weight[...] = model.weight[...] * 0.9 + x
        model.step += 1

    with tallax.Checkpoints(folder, every=100, preemption_exit_code=75) as checkpoints:
        start = checkpoints.latest() or 0
        if start:
            checkpoints.restore(model, data=data)
        print(f"start {start}", flush=True)
        for n in range(start, steps):
            train_step(model, jnp.float32(next(data)))
            print(f"step {n + 1}", flush=True)
            time.sleep(0.02)
            checkpoints.save(n + 1, model, data=data)
    total = jax.device_get(model.weight[...]).astype("float64").sum()
    print(f"done {total.hex()} {int(model.step)} {data.next_index}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 3:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.config.update("jax_num_cpu_devices", 1)
        jax.distributed.initialize(f"127.0.0.1:{sys.argv[3]}", int(sys.argv[4]), int(sys.argv[5]))
    main(sys.argv[1], int(sys.argv[2]))
