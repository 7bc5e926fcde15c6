# SPDX-License-Identifier: Apache-2.0
"""What plain calls of a model do: the measure of everything else."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tallax.checking._program import Outputs, Program
from tallax.checking._snapshot import Snapshot, arrays_agree, changed, differences, snapshot


@dataclass(frozen=True)
class Reference:
    """What a model held and returned, call by call.

    Attributes:
        start: what it holds when it is new.
        after: what it holds after each call.
        outputs: what each call returned, on the host.
        noisy: the paths that a change of the inputs by their rounding changes by more than rounding, as Adam does to a
            parameter whose gradient is zero but for rounding. Of them only "changed or not" can be compared.
        has_noisy_outputs: whether the outputs are like that.
    """

    start: Snapshot
    after: tuple[Snapshot, ...]
    outputs: Outputs
    noisy: frozenset[str] = frozenset()
    has_noisy_outputs: bool = False

    @property
    def end(self) -> Snapshot:
        """What the model holds after the last call."""
        return self.after[-1]

    @property
    def written(self) -> set[str]:
        """The paths that the calls change."""
        steps = zip((self.start, *self.after), self.after, strict=False)
        return {path for before, now in steps for path in changed(before, now)}


def called(program: Program, model: Any) -> Reference:
    """Calls `model` with every batch, and notes what it holds after each."""
    start, after, outputs = snapshot(model), [], []
    for batch in program.batches:
        outputs.append(jax.tree.map(np.asarray, jax.block_until_ready(program.call(model, batch))))
        after.append(snapshot(model))
    return Reference(start, tuple(after), outputs)


def with_noise(program: Program, reference: Reference) -> Reference:
    """Returns a reference that knows which of its values are noise; only a training step is looked at."""
    if program.is_own_call:
        return reference
    batches = tuple(tuple(_nudged(x) for x in batch) for batch in program.batches)
    try:
        other = called(dataclasses.replace(program, batches=batches), program.make())
    except Exception:  # inputs that must be these very numbers
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
    """Whether two runs returned the same, call by call, but for rounding."""
    return all(
        len(a) == len(b) and all(arrays_agree(x, y) for x, y in zip(a, b, strict=True))
        for a, b in zip(expected, got, strict=True)
    )
