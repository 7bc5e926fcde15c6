# SPDX-License-Identifier: Apache-2.0
"""Group `async-checkpoints`: how long a training loop waits for a checkpoint that is written in the background."""

from __future__ import annotations

import atexit
import itertools
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax import nnx

import tallax
from benchmarks._timing import Case, Group

_COPY = "a copy of the state on the device, and a step"


class _Large(nnx.Module):
    """A state that takes long to copy, of which a step changes little."""

    def __init__(self, arrays: int, width: int):
        self.weights = nnx.List([nnx.Param(jnp.zeros((width, width))) for _ in range(arrays)])
        self.step = tallax.Counter()
        self.seen = tallax.statistics.Histogram(-3.0, 3.0, bins=64)


def _train_step(model: _Large, x: jax.Array) -> jax.Array:
    model.step += 1
    model.seen.update(x)
    return x.sum()


def group(arrays: int = 60, width: int = 1000) -> Group:
    """Returns the cases. Before each, what the one before began to write is waited for, untimed."""
    turns: dict[str, _Turn] = {}
    return Group(
        "async-checkpoints",
        f"the time that a checkpoint of {arrays * width**2 * 4 / 1e6:.0f} MB takes from a loop",
        _COPY,
        [
            _case(_COPY, _copied(arrays, width), turns),
            _case("Checkpoints.save(n, step), and a step", _through_step(arrays, width), turns, limit=2.0),
            _case("Checkpoints.save(n, model), and a step", _of_objects(arrays, width), turns, limit=2.0),
            _case("Orbax's manager, save(n, state), and a step", _by_orbax(arrays, width), turns),
        ],
        one_call=True,
        rounds_in_one=10,
    )


class _Turn:
    """A turn of a loop that saves, and the wait for what it began to write."""

    def __init__(self, save: Callable[[int], Any], step: Callable[[], Any], wait: Callable[[], Any]):
        self.save, self.step, self.wait = save, step, wait
        self.numbers = itertools.count(1)

    def __call__(self, number: int) -> None:
        self.save(number)
        jax.block_until_ready(self.step())


def _case(name: str, make: Callable[[], _Turn], turns: dict[str, _Turn], limit: float | None = None) -> Case:
    def once() -> _Turn:
        turns[name] = make()
        return turns[name]

    def wait() -> None:
        for turn in turns.values():  # or the one case would be timed while the other's checkpoint is written
            turn.wait()

    def fresh() -> int:
        wait()
        return next(turns[name].numbers)

    return Case(name=name, make=once, fresh=fresh, limit=limit, done=wait)


def _folder() -> str:
    """Returns a new folder, which goes when the process ends."""
    folder = tempfile.mkdtemp(prefix="tallax-bench-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _compiled(arrays: int, width: int) -> tuple[_Large, Callable[[], Any], Any]:
    model, x = _Large(arrays, width), jnp.ones(16)
    step = tallax.compile_step(_train_step, model)
    jax.block_until_ready(step(x))
    return model, lambda: step(x), step


def _copied(arrays: int, width: int) -> Callable[[], _Turn]:
    def make() -> _Turn:
        _, step, _ = _compiled(arrays, width)
        state = nnx.state(_Large(arrays, width))
        return _Turn(lambda _: jax.block_until_ready(jax.tree.map(jnp.copy, state)), step, lambda: None)

    return make


def _through_step(arrays: int, width: int) -> Callable[[], _Turn]:
    def make() -> _Turn:
        _, step, compiled = _compiled(arrays, width)
        checkpoints = tallax.Checkpoints(_folder(), keep=1)
        return _Turn(lambda number: checkpoints.save(number, compiled), step, checkpoints.wait)

    return make


def _of_objects(arrays: int, width: int) -> Callable[[], _Turn]:
    def make() -> _Turn:
        model, x = _Large(arrays, width), jnp.ones(16)
        step = nnx.jit(_train_step, donate_argnums=0)
        jax.block_until_ready(step(model, x))
        checkpoints = tallax.Checkpoints(_folder(), keep=1)

        def turn() -> Any:
            return step(model, x), nnx.state(model)

        return _Turn(lambda number: checkpoints.save(number, model), turn, checkpoints.wait)

    return make


def _by_orbax(arrays: int, width: int) -> Callable[[], _Turn]:
    def make() -> _Turn:
        model, step, compiled = _compiled(arrays, width)
        manager = ocp.CheckpointManager(_folder(), options=ocp.CheckpointManagerOptions(max_to_keep=1))

        def save(number: int) -> None:
            compiled.sync()
            manager.save(number, args=ocp.args.StandardSave(nnx.state(model)))

        return _Turn(save, step, manager.wait_until_finished)

    return make
