# SPDX-License-Identifier: Apache-2.0
"""The claims of the exercise on state that is counted twice."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from tallax.learning._claims import Claims, Wrong, expect, expect_count, number, parameters_of, same_arrays

CLAIMS = Claims()
NAMES = ("Model", "train_step")
_RATE = 0.1


def _data() -> tuple[jax.Array, jax.Array]:
    x = jnp.array([[1.0, 2.0], [-1.0, 0.5], [0.0, 3.0], [2.0, -2.0], [0.3, 0.1], [1.5, 1.0], [-2.0, 2.0], [1.0, 1.0]])
    return x, jnp.arange(8.0).reshape(8, 1)


def _made(solution: ModuleType) -> tuple[Any, Any]:
    model = solution.Model(nnx.Rngs(0))
    return model, nnx.Optimizer(model, optax.sgd(_RATE), wrt=nnx.Param)


def _stepped(layer: Any, x: jax.Array, y: jax.Array, scale: float = 1.0) -> list[np.ndarray]:
    """Returns the parameters of a layer after a step of gradient descent on a batch."""
    gradient = nnx.grad(lambda layer: jnp.mean((layer(x) - y) ** 2))(layer)
    pairs = zip(jax.tree.leaves(nnx.state(layer, nnx.Param)), jax.tree.leaves(gradient), strict=True)
    return [np.asarray(parameter - _RATE * scale * slope) for parameter, slope in pairs]


@CLAIMS("a plain call of loss counts its examples once")
def _plain_loss(solution: ModuleType) -> None:
    (model, _), (x, y) = _made(solution), _data()
    expect(model.loss(x, y), np.mean((np.asarray(model.layer(x)) - np.asarray(y)) ** 2), "loss")

    def mistake(seen: float) -> str:
        return "counts_calls" if seen == 1 else "halved" if 0 < seen < 8 else "never_counts"

    expect_count(model, "seen", 8, "after one plain call with 8 examples", mistake)


@CLAIMS("a step in parts is a step on the whole batch")
def _step(solution: ModuleType) -> None:
    (model, optimizer), (x, y) = _made(solution), _data()
    layer = nnx.clone(model.layer)
    due = np.mean((np.asarray(layer(x)) - np.asarray(y)) ** 2)
    expect(solution.train_step(model, optimizer, x, y, 4), due, "loss")
    got = parameters_of(model)
    if not same_arrays(got, _stepped(layer, x, y)):
        mistake = "gradient"
        if same_arrays(got, _stepped(layer, x, y, scale=4)):
            mistake = "sum_of_gradients"
        elif any(same_arrays(got, _stepped(layer, x[k : k + 2], y[k : k + 2], s)) for k in (0, 6) for s in (1, 0.25)):
            mistake = "first_part"
        raise Wrong(mistake, got[0], _stepped(layer, x, y)[0])


@CLAIMS("each example and each step counts once")
def _counts(solution: ModuleType) -> None:
    (model, optimizer), (x, y) = _made(solution), _data()
    for calls, parts in enumerate((4, 1, 2), 1):
        solution.train_step(model, optimizer, x, y, parts)
        for name, due, of, too_many in (
            ("seen", 8 * calls, "of 8 examples", "forward_twice"),
            ("steps", calls, f"with {parts} parts", "per_part"),
        ):
            wrong = too_many if number(getattr(model, name)) > due else "never_counts"
            expect_count(model, name, due, f"after {calls} steps {of}", wrong)
