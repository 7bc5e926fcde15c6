# SPDX-License-Identifier: Apache-2.0
"""The claims of the exercise on derivatives and the rest of the state."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tallax._arrays import is_traced
from tallax.learning._claims import Claim, Wrong, close, expect, number, parameters_of, same_arrays
from tallax.variables import Counter

NAMES = ("Model", "train_step")
_RATE = 0.05


def _data() -> tuple[jax.Array, jax.Array]:
    return jnp.array([[1.0, 2.0], [-1.0, 0.5], [0.0, 3.0]]), jnp.array([[1.0], [0.0], [-1.0]])


def _loss_of(layer: Any, step: int) -> jax.Array:
    x, y = _data()
    return jnp.mean((layer(x / 2.0) / (1.0 + 0.1 * step) - y) ** 2)


def _loss(solution: ModuleType) -> None:
    model = solution.Model(nnx.Rngs(0))
    due = _loss_of(nnx.clone(model.layer), 0)
    expect(solution.train_step(model, *_data(), _RATE), np.asarray(due), "loss")


def _descends(solution: ModuleType) -> None:
    model = solution.Model(nnx.Rngs(0))
    layer = nnx.clone(model.layer)
    old = parameters_of(layer)
    slopes = [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.grad(lambda layer: _loss_of(layer, 0))(layer))]
    solution.train_step(model, *_data(), _RATE)
    got = parameters_of(model.layer)

    def moved_by(rate: float) -> bool:
        return same_arrays(got, [value - rate * slope for value, slope in zip(old, slopes, strict=True)])

    if not moved_by(_RATE):
        named = {"no_step": 0.0, "ascent": -_RATE, "unscaled": 1.0}
        mistake = next((name for name, rate in named.items() if moved_by(rate)), "gradient")
        raise Wrong(mistake, got[0], (old[0] - _RATE * slopes[0]).astype(np.float32))


def _rest_stays(solution: ModuleType) -> None:
    model = solution.Model(nnx.Rngs(0))
    for done in range(1, 4):
        solution.train_step(model, *_data(), _RATE)
        for name in ("step", "scale"):
            held = getattr(model, name)
            if not isinstance(held, Counter) and is_traced(
                held.get_value() if isinstance(held, nnx.Variable) else held
            ):
                raise Wrong("tracer", f"{name} is a tracer", f"{name} is an array")
        step = float(number(model.step))
        if step != done:
            mistake = "lost" if step == 0 else "forward_twice" if step == 2 * done else "differentiated"
            raise Wrong(mistake, f"step is {step:g} after {done} training step(s)", str(done))
        if not close(number(model.scale), [2.0, 2.0]):
            raise Wrong("moves_scale", model.scale, [2.0, 2.0])


def _accepts_integers(solution: ModuleType) -> None:
    model = solution.Model(nnx.Rngs(0))
    if not isinstance(model.step, Counter):
        model.step.set_value(jnp.zeros((), jnp.int32))
    try:
        solution.train_step(model, *_data(), _RATE)
    except TypeError as error:
        got = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
        raise Wrong("integers_raise", got, "step is 1") from error
    if int(number(model.step)) != 1:
        raise Wrong("differentiated", f"an integer step is {number(model.step)} after one training step", "1")


CLAIMS: tuple[Claim, ...] = (
    ("the loss is that before the step", _loss),
    ("the parameters descend", _descends),
    ("step is exactly 1 higher, and scale stays", _rest_stays),
    ("step may be an integer", _accepts_integers),
)
