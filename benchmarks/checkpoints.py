# SPDX-License-Identifier: Apache-2.0
"""Group `checkpoints`: writing a model with statistics in its layers, beside writing it without."""

from __future__ import annotations

import atexit
import itertools
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from flax import nnx

import tallax
from benchmarks import transformer
from benchmarks._timing import Case, Group

_PLAIN = "Orbax, without statistics"


def group(size: transformer.Size = transformer.USUAL, number: int = 12) -> Group:
    """Returns the cases. Each writes a model and its optimizer into a new folder, until it is there to stay."""
    folder = Path(tempfile.mkdtemp(prefix="tallax-bench-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    numbers = itertools.count()

    def fresh() -> Path:
        """Returns a path for the next checkpoint; those before it go."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder / str(next(numbers))

    return Group(
        "checkpoints",
        f"a save of a {size.layers}-layer transformer and its Adam",
        _PLAIN,
        [
            Case(name=_PLAIN, make=lambda: _by_orbax(size, 0), fresh=fresh),
            Case(
                name=f"tallax.save, {number} statistics a layer",
                make=lambda: _by_tallax(size, number),
                fresh=fresh,
                limit=1.05,
            ),
            Case(name="tallax.save, without statistics", make=lambda: _by_tallax(size, 0), fresh=fresh),
            Case(name=f"Orbax, {number} statistics a layer", make=lambda: _by_orbax(size, number), fresh=fresh),
        ],
        one_call=True,
        rounds_in_one=5,
    )


def _objects(size: transformer.Size, number: int) -> tuple[Any, ...]:
    things, _ = transformer.model_and_batch(size, number, per_token=True)
    return things


def _by_orbax(size: transformer.Size, number: int) -> Callable[[Path], None]:
    model, optimizer = _objects(size, number)
    checkpointer = ocp.Checkpointer(ocp.StandardCheckpointHandler())

    def save(path: Path) -> None:
        state = {"model": nnx.state(model), "optimizer": nnx.state(optimizer)}
        checkpointer.save(path, args=ocp.args.StandardSave(state))

    return save


def _by_tallax(size: transformer.Size, number: int) -> Callable[[Path], None]:
    objects = _objects(size, number)
    return lambda path: tallax.save(path, *objects)
