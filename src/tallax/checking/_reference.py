# SPDX-License-Identifier: Apache-2.0
"""What plain calls of a model do: the measure of everything else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from tallax.checking._program import Program
from tallax.checking._state import Snapshot, changed, snapshot
from tallax.checking._transformations import Outputs


@dataclass(frozen=True)
class Reference:
    """What a model held and returned, call by call.

    Attributes:
        start: what it holds when it is new.
        after: what it holds after each call.
        outputs: what each call returned, on the host.
    """

    start: Snapshot
    after: tuple[Snapshot, ...]
    outputs: Outputs

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
