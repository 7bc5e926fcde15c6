# SPDX-License-Identifier: Apache-2.0
"""The errors of a compiled step that more than one file raises."""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx

from tallax._errors import InvalidTypeError, StateOwnedByStepError, StructureChangedError, TraceError, compose
from tallax.compiling._structure import Change


def refuse_objects(batch: Any) -> None:
    """Raises if a batch contains a module or a Variable, because changes by the step would be lost."""
    known = (nnx.Pytree, nnx.Variable)
    for leaf in jax.tree.leaves(batch, is_leaf=lambda x: isinstance(x, (*known, nnx.State))):
        if isinstance(leaf, known) and not isinstance(leaf, nnx.State):
            raise InvalidTypeError(
                compose(
                    "the compiled step",
                    "accepts only arrays; the state of a module in the batch would be lost.",
                    got=f"a {type(leaf).__name__}",
                    fix="bind it: compile_step(train_step, model, rngs), with train_step(model, rngs, x)",
                )
            )


def changed(change: Change | None) -> Exception:
    """Returns the error for a function that changed the structure of the objects inside the step."""
    return StructureChangedError(
        compose(
            change.name if change is not None else "the bound objects",
            "a compiled step cannot change the structure of its objects.",
            got=change.text if change is not None else "another structure",
            fix="change it between two calls, or keep it in a Variable; nnx.pop removes sown values",
        )
    )


def written_past(names: str) -> StateOwnedByStepError:
    return StateOwnedByStepError(
        compose(
            names,
            "was written while a compiled step owned it, so the step did not see the new value.",
            got="a write between two calls of the step",
            fix="step.sync() before the write; tallax variables can be written at any time",
        )
    )


def in_a_trace() -> TraceError:
    return TraceError(
        compose(
            "the compiled step",
            "keeps the state between calls, so it cannot be called inside a trace.",
            got="a call inside jit, scan or another transformation",
            fix="call the step outside; step.scan(batches) runs several steps in one program",
        )
    )


def lost() -> StateOwnedByStepError:
    return StateOwnedByStepError(
        compose(
            "the compiled step",
            "failed while it ran, after it had overwritten the previous state, so the state is lost.",
            got="a call that raised inside JAX",
            fix="restore the last checkpoint; compile_step(..., donate=False) keeps the state before a step",
        )
    )
