# SPDX-License-Identifier: Apache-2.0
"""The claims of the exercise on a buffer that must not train."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tallax.learning._claims import (
    Claim,
    Wrong,
    after_weight_decay,
    close,
    expect,
    number,
    parameters_of,
    require_untrained,
    same_arrays,
    shown,
)

NAMES = ("Model",)
_MEAN, _SCALE = (10.0, -3.0), (2.0, 0.5)
_X = ((12.0, 4.0), (7.0, -3.5), (10.0, 0.0))


def _model(solution: ModuleType, mean: Any = _MEAN, scale: Any = _SCALE) -> Any:
    return solution.Model(jnp.array(mean), jnp.array(scale), nnx.Rngs(0))


def _normalizes(solution: ModuleType) -> None:
    model, x = _model(solution), jnp.array(_X)
    expected = (np.array(_X) - np.array(_MEAN)) / np.array(_SCALE)
    expect(model.normalize(x), expected.astype(np.float32), "output")
    got, normalized = model(x), jnp.asarray(expected, jnp.float32)
    is_twice = close(number(got), np.asarray(model.layer(model.normalize(normalized))))
    expect(got, np.asarray(model.layer(normalized)), "normalizes_twice" if is_twice else "unused")


def _is_not_trained(solution: ModuleType) -> None:
    model = _model(solution)
    for name in ("mean", "scale"):
        variable = getattr(model, name)
        if not isinstance(variable, nnx.Param):
            continue
        before, after = after_weight_decay(model)
        mistake = "weight_decay"
        if variable.has_metadata("trainable"):
            mistake = "flag"
        elif type(variable) is not nnx.Param:
            mistake = "subclass"
        elif any(np.any(leaf) for leaf in jax.tree.leaves(_gradient(model)[name])):
            mistake = "gradient"
        raise Wrong(mistake, f"{name} is {shown(after[name].value)}", f"{name} is {shown(before[name].value)}")
    for name in ("mean", "scale"):
        require_untrained(model, name, "weight_decay")


def _gradient(model: Any) -> Any:
    return nnx.grad(lambda model: jnp.mean(model(jnp.array(_X)) ** 2))(model)


def _layer_is_trained(solution: ModuleType) -> None:
    model = _model(solution)
    leaves = jax.tree.leaves(nnx.state(model.layer, nnx.Param))
    if len(leaves) != 2:
        raise Wrong("nothing_trains", f"layer has {len(leaves)} parameters", "layer has 2 parameters")
    gradient = jax.tree.leaves(_gradient(model)["layer"])
    if not all(np.any(leaf) for leaf in gradient):
        raise Wrong("nothing_trains", "a gradient of zero", "a gradient")


def _is_restored(solution: ModuleType) -> None:
    trained, new = _model(solution), _model(solution, (0.0, 0.0), (1.0, 1.0))
    nnx.update(new, jax.tree.map(jnp.copy, nnx.state(trained)))  # as a checkpoint does
    x = jnp.array(_X)
    if not close(new.normalize(x), trained.normalize(x)):
        got = f"normalize(x)[0] after restoring is {np.asarray(new.normalize(x))[0].tolist()}"
        pairs = [(getattr(new, name), getattr(trained, name)) for name in ("mean", "scale")]
        is_in_state = all(isinstance(a, nnx.Variable) and close(number(a), number(b)) for a, b in pairs)
        mistake = "captured" if is_in_state else "not_in_state"
        raise Wrong(mistake, got, str(np.asarray(trained.normalize(x))[0].tolist()))
    if not same_arrays(parameters_of(new), parameters_of(trained)):
        raise Wrong("nothing_trains", "the weights of layer are not restored", "the saved weights")


CLAIMS: tuple[Claim, ...] = (
    ("the inputs are normalized", _normalizes),
    ("an optimizer does not change mean and scale", _is_not_trained),
    ("layer is trained", _layer_is_trained),
    ("a checkpoint contains mean and scale", _is_restored),
)
