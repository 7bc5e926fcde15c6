# SPDX-License-Identifier: Apache-2.0
"""Group `positions`: saving and restoring a model with the position in the data, beside doing so without it."""

from __future__ import annotations

import atexit
import itertools
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import tallax
from benchmarks import transformer
from benchmarks._timing import Case, Group

_SAVE, _RESTORE = "tallax.save", "tallax.restore"


class _Batches:
    """An iterator whose state is as large as that of a shuffled loader: a generator, an index and an order."""

    def __init__(self, size: int = 1000):
        self.rng, self.next_index = np.random.default_rng(0), 0
        self.order = self.rng.permutation(size).tolist()

    def get_state(self) -> dict[str, Any]:
        return {"rng": self.rng.bit_generator.state, "next_index": self.next_index, "order": self.order}

    def set_state(self, state: dict[str, Any]) -> None:
        self.rng.bit_generator.state = state["rng"]
        self.next_index, self.order = state["next_index"], state["order"]


def group(size: transformer.Size = transformer.USUAL, number: int = 12) -> Group:
    """Returns the cases: a save into a new folder, and a restore of one that was saved before."""
    folder = Path(tempfile.mkdtemp(prefix="tallax-bench-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    numbers = itertools.count()

    def fresh() -> Path:
        """Returns a path for the next checkpoint; those before it go."""
        shutil.rmtree(folder / "saves", ignore_errors=True)
        (folder / "saves").mkdir()
        return folder / "saves" / str(next(numbers))

    def save(*data: _Batches) -> Callable[[Path], None]:
        objects, _ = transformer.model_and_batch(size, number, per_token=True)
        return lambda path: tallax.save(path, *objects, *data)

    def restore(name: str, *data: _Batches) -> Callable[[], Any]:
        objects, _ = transformer.model_and_batch(size, number, per_token=True)
        tallax.save(folder / name, *objects, *data)
        return lambda: tallax.restore(folder / name, *objects, *data)

    return Group(
        "positions",
        f"the position in the data, with a {size.layers}-layer transformer and its Adam",
        _SAVE,
        [
            Case(name=_SAVE, make=save, fresh=fresh),
            Case(name=f"{_SAVE}, with the position", make=lambda: save(_Batches()), fresh=fresh, limit=1.05),
            Case(name=_RESTORE, make=lambda: restore("without")),
            Case(
                name=f"{_RESTORE}, with the position",
                make=lambda: restore("with", _Batches()),
                reference=_RESTORE,
                limit=1.1,
            ),
        ],
        one_call=True,
        rounds_in_one=3,
    )
