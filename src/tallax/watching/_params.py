# SPDX-License-Identifier: Apache-2.0
"""Parameters, gradients and updates: seen around the `update` of the optimizer, which has all three of them."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from flax import nnx
from jax.sharding import AxisType

from tallax._arrays import is_traced
from tallax._walk import WATCHED
from tallax.statistics import Statistic
from tallax.watching._many_tensors import Tensor, numbers_of_tensors
from tallax.watching._notes import note
from tallax.watching._reduction import Layout
from tallax.watching._site import HISTOGRAM, Site, unwritable
from tallax.watching._step_statistic import steps_together, take_together
from tallax.watching._summary import Summary
from tallax.watching._summary_updates import Update, update_together

PARAMETER, PARAM_GRADIENT, UPDATE = "parameter", "gradient", "update"
ROLES = (PARAMETER, PARAM_GRADIENT, UPDATE)
UPDATE_RATIO = "update_ratio"


class Seen(NamedTuple):
    """A watched Param before the optimizer updates it.

    Attributes:
        site: The site of the module that owns it.
        name: Its name in the site.
        path: Its path in the model.
        variable: The Param.
        value: Its value before the update.
    """

    site: Site
    name: str
    path: tuple[Any, ...]
    variable: Any
    value: jax.Array


def params_below(module: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yields the paths and Params that a module owns, itself or in containers, but not those of other modules."""
    for name, child in vars(module).items():
        if name == WATCHED:
            continue
        if isinstance(child, nnx.Param):
            yield (name,), child
        elif isinstance(child, nnx.List | nnx.Dict | list | tuple | dict):
            leaves = jax.tree_util.tree_leaves_with_path(
                child if not isinstance(child, nnx.Pytree) else dict(vars(child)),
                is_leaf=lambda x: isinstance(x, nnx.Variable | nnx.Module),
            )
            for path, leaf in leaves:
                if isinstance(leaf, nnx.Param):
                    yield (name, *(_key(key) for key in path)), leaf


def _key(key: Any) -> Any:
    text = getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))
    return int(text) if isinstance(text, str) and text.isdigit() else text


def before(model: Any) -> list[Seen]:
    """Returns the watched Params of a model as they are now."""
    found, seen = [], set()
    for path, module in nnx.iter_graph(model, graph=True):
        site = vars(module).get(WATCHED) if isinstance(module, nnx.Pytree) else None
        if not isinstance(site, Site) or site.deterministic:
            continue
        for inner, variable in params_below(module):
            name = ".".join(map(str, inner))
            if id(variable) in seen or not any(f"{name}:{role}" in vars(site) for role in (*ROLES, UPDATE_RATIO)):
                continue
            seen.add(id(variable))
            found.append(Seen(site, name, (*path, *inner), variable, variable.get_value()))
    return found


def after(seen: list[Seen], gradients: Any) -> None:
    """Updates the statistics of the Params, after the optimizer has updated their values."""
    state = gradients if isinstance(gradients, nnx.State) else nnx.state(gradients)
    flat = {tuple(map(_key, path)): leaf for path, leaf in nnx.to_flat_state(state)}
    summaries, tensors, ratios, pairs = [], [], [], []
    for each in seen:
        gradient: Any = flat.get(tuple(map(_key, each.path)))
        if isinstance(gradient, nnx.Variable):
            gradient = gradient.get_value()
        new: Any = each.variable.get_value()
        for role, value in ((PARAMETER, each.value), (PARAM_GRADIENT, gradient), (UPDATE, (new, each.value))):
            for statistic in _statistics(each.site, f"{each.name}:{role}", value):
                if isinstance(statistic, Summary):
                    summaries.append(statistic)
                    value = jax.tree.map(functools.partial(_placed, spec=statistic.spec), value)
                    # In the branch of a step that is due, nothing is shared with the optimizer.
                    is_squared = role == PARAM_GRADIENT and statistic.every == 1
                    tensors.append(_tensor(value, statistic, is_squared=is_squared))
                else:
                    tensor = value[0] - value[1] if role == UPDATE else value
                    each.site.update_or_note(statistic, f"{each.name}:{role}", tensor)
        ratio: Any
        for ratio in _statistics(each.site, f"{each.name}:{UPDATE_RATIO}", new):
            ratios.append(ratio)
            pairs.append(tuple(_placed(value, ratio.spec) for value in (each.value, new - each.value)))
    if ratios:
        take_together(ratios, steps_together(ratios, pairs))
    if summaries:
        due = summaries[0].due()
        groups = numbers_of_tensors(tensors, due)
        update_together([Update([summaries[k] for k in places], numbers) for places, numbers in groups], due)


def _tensor(value: Any, summary: Summary, *, is_squared: bool) -> Tensor:
    is_split = summary.spec is not None or summary.rows is not None
    words = summary.words.get_raw_value() if summary.rows is not None else None
    return Tensor(value, len(summary.stack), Layout(summary.rows, summary.axis), is_split, words, is_squared)


def _placed(value: Any, spec: jax.P | None) -> Any:
    """Returns a gradient or an update, fixed to the placement of its Param.

    The state has a row for each device. Without the constraint, XLA would propagate that split through the reduction to
    the gradient, and from there to the new parameters, which it would then gather at each step.
    """
    value = jax.lax.stop_gradient(value)
    mesh: Any = jax.typeof(value).sharding.mesh
    if spec is None or not is_traced(value) or set(mesh.axis_types) != {AxisType.Auto}:
        return value
    try:
        sharding = jax.NamedSharding(mesh, spec)
        sharding.shard_shape(value.shape)
    except ValueError:  # another mesh, or a lane of `vmap`
        return value
    return jax.lax.with_sharding_constraint(value, sharding)


def _statistics(site: Site, role: str, value: Any) -> Iterator[Statistic]:
    """Yields the statistics of a role that can be updated here."""
    for name in (role, role + HISTOGRAM):
        statistic = vars(site).get(name)
        if statistic is None:
            continue
        note(site.watch, site.site, role, "called")
        if value is None:
            note(site.watch, site.site, role, "the gradients have no entry for it: wrt= of the optimizer leaves it out")
        elif (problem := unwritable(statistic)) is not None:
            note(site.watch, site.site, role, problem)
        else:
            yield statistic
