# SPDX-License-Identifier: Apache-2.0
"""The reference run: plain calls of a model, to which every other run is compared."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tallax.checking._program import Outputs, Program
from tallax.checking._snapshot import Snapshot, arrays_agree, changed, differences, snapshot


@dataclass(frozen=True)
class Reference:
    """The state and the outputs of a model, call by call.

    Attributes:
        start: The values of the new model.
        after: The values of the model after each call.
        outputs: The outputs of each call, on the host.
        noisy: The paths whose values change by more than rounding if the inputs change by rounding. For example, Adam
            does this to a parameter whose gradient is zero except for rounding. For these paths, only "changed or not"
            is compared.
        has_noisy_outputs: True if the outputs are noisy in the same sense.
        last_seconds: The processor time of the last call.
    """

    start: Snapshot
    after: tuple[Snapshot, ...]
    outputs: Outputs
    noisy: frozenset[str] = frozenset()
    has_noisy_outputs: bool = False
    last_seconds: float = 0.0

    @property
    def end(self) -> Snapshot:
        """The values of the model after the last call."""
        return self.after[-1]

    def of_calls(self, calls: int) -> Reference:
        """Returns the reference of the first calls."""
        return dataclasses.replace(self, after=self.after[:calls], outputs=self.outputs[:calls])

    @property
    def written(self) -> set[str]:
        """The paths that the calls change."""
        steps = zip((self.start, *self.after), self.after, strict=False)
        return {path for before, now in steps for path in changed(before, now)}


def called(program: Program, model: Any) -> Reference:
    """Calls `model` with every batch, without any other transformation, and records its values after each call."""
    start, after, outputs, began = snapshot(model), [], [], 0.0
    for batch in program.batches:
        began = time.process_time()
        outputs.append(jax.tree.map(np.asarray, jax.block_until_ready(program.plain_call(model, batch))))
        after.append(snapshot(model))
    return Reference(start, tuple(after), outputs, last_seconds=time.process_time() - began)


def with_noise(program: Program, reference: Reference) -> Reference:
    """Returns the reference with its noisy values marked. Only a training step is examined."""
    if program.is_own_call:
        return reference
    batches = tuple(tuple(_nudged(x) for x in batch) for batch in program.batches)
    try:
        other = called(dataclasses.replace(program, batches=batches), program.new_model())
    except Exception:  # the program rejects perturbed inputs
        return reference
    return dataclasses.replace(
        reference,
        noisy=frozenset(found.path for found in differences(reference.start, reference.end, other.end)),
        has_noisy_outputs=not outputs_agree(reference.outputs, other.outputs),
    )


def _nudged(x: jax.Array) -> jax.Array:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    return x * jnp.asarray(1 + 8 * float(jnp.finfo(x.dtype).eps), x.dtype)


def outputs_agree(expected: Outputs, got: Outputs) -> bool:
    """Returns whether two runs have the same outputs, call by call, except for rounding."""
    return all(
        len(a) == len(b) and all(arrays_agree(x, y) for x, y in zip(a, b, strict=True))
        for a, b in zip(expected, got, strict=True)
    )
