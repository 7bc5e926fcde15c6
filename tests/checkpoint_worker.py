# SPDX-License-Identifier: Apache-2.0
"""A training run that anybody may kill: goes on from its latest checkpoint, and says what it came to.

Run by test_checkpoint_kills.py as `python -m tests.checkpoint_worker FOLDER STEPS`. It prints a line for each step that
it takes, and last a digest of all that it holds.
"""

from __future__ import annotations

import hashlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import tallax


class Model(nnx.Module):
    """A layer, random noise, and items of all kinds of state."""

    def __init__(self, rngs: nnx.Rngs):
        self.layer = nnx.Linear(8, 256, rngs=rngs)
        self.norm = nnx.BatchNorm(256, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.step = tallax.Counter(2**32 - 3)
        self.outputs = tallax.statistics.Histogram(-3.0, 3.0, bins=64)
        self.mean = tallax.statistics.Moments()

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.dropout(self.norm(self.layer(x)))
        self.outputs.update(y)
        self.mean.update(y)
        return y


def train_step(model: Model, optimizer: nnx.Optimizer, x: jax.Array) -> jax.Array:
    loss, grads = tallax.value_and_grad(lambda model: (model(x) ** 2).mean())(model)
    optimizer.update(model, grads)
    model.step += 1
    return loss


def digest(*things: object) -> str:
    """Returns a digest of every bit that things hold."""
    found = hashlib.blake2b(digest_size=16)
    for path, node in sorted(nnx.to_flat_state(nnx.split(things, graph=True)[1]), key=lambda entry: str(entry[0])):
        raw = node.get_raw_value() if isinstance(node, nnx.Variable) else node
        if isinstance(raw, jax.Array) and jnp.issubdtype(raw.dtype, jax.dtypes.prng_key):
            raw = jax.random.key_data(raw)
        found.update(repr(path).encode() + np.asarray(raw).tobytes())
    return found.hexdigest()


def main(folder: str, steps: int) -> None:
    model = Model(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    step = tallax.compile_step(train_step, model, optimizer)
    with tallax.Checkpoints(folder, keep=2, every=2) as checkpoints:
        start = checkpoints.latest() or 0
        if start:
            checkpoints.restore(step)
        print(f"start {start}", flush=True)
        for n in range(start, steps):
            step(np.random.default_rng(n).normal(size=(16, 8)).astype(np.float32))
            checkpoints.save(n + 1, step)
            print(f"step {n + 1}", flush=True)
    step.sync()
    print(f"done {digest(model, optimizer)} {int(model.step)} {int(model.mean.compute().count)}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
