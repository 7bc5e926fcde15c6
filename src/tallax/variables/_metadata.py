# SPDX-License-Identifier: Apache-2.0
"""The metadata of tallax variables: `reduce`, the layout of per-replica state, and checks of names and values."""

from __future__ import annotations

import difflib
from typing import Any, Literal, NamedTuple, TypeAlias

from tallax._errors import InvalidTypeError, InvalidValueError, describe

Reduce: TypeAlias = Literal["sum", "max", "min", "replicated"]
_REDUCTIONS = ("sum", "max", "min", "replicated")
DECLARED = ("persistent", "reduce", "per_replica")  # a dict of other metadata does not replace these


class PerReplica(NamedTuple):
    """The layout of per-replica state: one value for each replica, one behind the other on the first axis."""

    axes: tuple[str, ...]  # the mesh axes of the replicas
    shape: tuple[int, ...]  # the number of axes of one replica's value; scalars are stored with one axis


def refuse_kind(kind: str, name: str, value: Any) -> None:
    """Raises for a kind of Variable that Flax's transformations do not thread in every mode."""
    if name in ("hijax", "ref") and value:
        raise InvalidValueError(
            kind,
            f"a tallax variable must be a plain Variable; {name}=True loses or doubles counts under transformations.",
            got=f"{name}=True",
            fix=f"omit {name}; to set it for parameters, nnx.with_vars(model, only=nnx.Param, {name}=True)",
        )


def check_reduce(kind: str, reduce: Any) -> None:
    if reduce not in _REDUCTIONS:
        raise InvalidValueError(
            kind,
            "unknown reduction.",
            got=describe(reduce),
            expected=", ".join(map(repr, _REDUCTIONS)),
            fix='reduce="replicated" for a value that is equal on all replicas, such as a result of jax.lax.pmean',
        )


def refuse_misspelled(kind: str, name: str, value: Any) -> None:
    """Raises if a name of metadata is probably misspelled. Flax accepts any name, so it would be ignored."""
    refuse_kind(kind, name, value)
    if name in ("dtype", "shape"):  # a label of this name would shadow the attribute of the array
        raise InvalidTypeError(
            kind,
            "has the dtype and shape of its value.",
            got=f"{name}={describe(value)}",
            fix="Buffer(jnp.zeros(shape, dtype)); Counter(shape=...) always counts up to 2**64 - 1",
        )
    for meant in difflib.get_close_matches(name, ("persistent", "reduce", "shape"), n=1, cutoff=0.8):
        raise InvalidTypeError(
            kind,
            f"unknown metadata {name!r}; did you mean {meant!r}?",
            got=f"{name}={describe(value)}",
            fix=f"{meant}=..., or another name for a label of your own",
        )
