# SPDX-License-Identifier: Apache-2.0
"""The claims of the exercise on resuming exactly."""

from __future__ import annotations

import os
import tempfile
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tallax.learning._claims import Claims, Wrong, close
from tallax.learning._exercises import exercises

CLAIMS = Claims()
NAMES = ("Job", "save", "load")


def _weights(job: Any) -> np.ndarray:
    return np.asarray(job.model.weights[...])


def _arrays(part: Any) -> list[np.ndarray]:
    leaves = jax.tree.leaves(nnx.state(part))
    is_key = [jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves]
    return [np.asarray(jax.random.key_data(x) if k else x) for x, k in zip(leaves, is_key, strict=True)]


def _same(left: Any, right: Any) -> bool:
    pairs = list(zip(_arrays(left), _arrays(right), strict=True))
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)


@CLAIMS("a job computes what it computed before")
def _trajectory(solution: ModuleType) -> None:
    original = ModuleType("original")
    exec(next(exercise.start for exercise in exercises() if exercise.name == "exact_resume"), original.__dict__)
    job, due = solution.Job(), original.Job()
    job.train(4)
    due.train(4)
    if not close(_weights(job), _weights(due)):
        raise Wrong("trajectory", _weights(job), _weights(due))


def _saved_and_loaded(solution: ModuleType, steps: int) -> tuple[Any, Any]:
    """Returns a job that was trained some steps, and the one that `load` returns for it."""
    with tempfile.TemporaryDirectory() as folder:
        path, moved = os.path.join(folder, "job.npz"), os.path.join(folder, "moved.npz")
        job = solution.Job()
        job.train(steps)
        parts = (job.model, job.optimizer, job.rngs)
        before = [np.copy(leaf) for part in parts for leaf in _arrays(part)]
        solution.save(job, path)
        after = [leaf for part in (job.model, job.optimizer, job.rngs) for leaf in _arrays(part)]
        if not all(np.array_equal(a, b) for a, b in zip(before, after, strict=True)):
            raise Wrong("save_changes", "the state of the job after save is not that before", "the same state")
        solution.save(solution.Job(), os.path.join(folder, "other.npz"))
        os.rename(path, moved)
        try:
            return job, solution.load(moved)
        except (KeyError, FileNotFoundError) as error:
            raise Wrong("in_memory", f"a file that was moved raises {type(error).__name__}", "its job") from error


@CLAIMS("weights, optimizer and noise come back")
def _parts_come_back(solution: ModuleType) -> None:
    job, loaded = _saved_and_loaded(solution, 3)
    if loaded is job:
        raise Wrong("in_memory", "load returns the very job that was saved", "a new job")
    if not np.array_equal(_weights(job), _weights(loaded)):
        mistake = "rounded" if np.allclose(_weights(job), _weights(loaded), atol=0.01) else "weights"
        raise Wrong(mistake, f"weights are {_weights(loaded).tolist()}", str(_weights(job).tolist()))
    for name, mistake in (("optimizer", "optimizer"), ("rngs", "noise")):
        try:
            is_same = _same(getattr(job, name), getattr(loaded, name))
        except ValueError:  # other numbers of arrays
            is_same = False
        if not is_same:
            raise Wrong(mistake, f"the state of {name} is not that of the saved job", "the same state")


@CLAIMS("a loaded job continues exactly")
def _continues(solution: ModuleType) -> None:
    for steps in (1, 4):
        job, loaded = _saved_and_loaded(solution, steps)
        due = solution.Job()
        due.train(steps + 2)
        job.train(2)
        if not np.array_equal(_weights(job), _weights(due)):
            raise Wrong("save_changes", _weights(job), _weights(due))
        before = _weights(loaded).copy()
        try:
            losses = loaded.train(2)
        except Exception as error:
            raise Wrong("not_continued", f"train raises {type(error).__name__}: {error}", "two more steps") from error
        if np.array_equal(before, _weights(loaded)):
            raise Wrong("not_continued", "the weights of the loaded job do not move", "two more steps")
        if not np.array_equal(_weights(loaded), _weights(due)):
            mistake = "rounded" if close(_weights(loaded), _weights(due)) else "data"
            raise Wrong(mistake, f"weights {_weights(loaded).tolist()}, losses {losses}", str(_weights(due).tolist()))
