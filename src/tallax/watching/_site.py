# SPDX-License-Identifier: Apache-2.0
"""`Site`: the state of one watched module, in a single attribute of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tallax._arrays import is_traced
from tallax._backward_observers import BackwardObserver
from tallax._errors import TraceError
from tallax._mesh_axes import mapped_axes, varying_axes
from tallax.statistics import Statistic
from tallax.watching._notes import note
from tallax.watching._reduction import Layout
from tallax.watching._summary import Summary
from tallax.watching._tap import LANES, parts_of_lanes, tap

INPUT, OUTPUT, GRADIENT = "input", "output", "output_gradient"
HISTOGRAM = "_histogram"


class Site(BackwardObserver):
    """The statistics of a watched module: those of its calls by role, and those of its Params by name and role.

    An evaluation is not counted: `model.eval()` sets `deterministic` here as in every statistic.

    Args:
        name: the path of the module when it was watched.
        watch: the number of the watch, under which notes are kept.
        methods: the methods that are watched.
    """

    def __init__(self, name: str, watch: int, methods: tuple[str, ...]):
        super().__init__()
        self.site, self.watch, self.methods = name, watch, methods

    @property
    def statistics(self) -> dict[str, Statistic]:
        """The statistics by role: `output`, or for a Param `kernel:gradient`."""
        return {name: value for name, value in sorted(vars(self).items()) if isinstance(value, Statistic)}

    # --- the forward pass ---------------------------------------------------------------------------------------------

    def observe(self, role: str, value: Any) -> None:
        """Updates the statistics of a role with all arrays of floats in a value."""
        statistics = self.statistics
        chosen = [statistics[name] for name in (role, role + HISTOGRAM) if name in statistics]
        if not chosen or self.deterministic:
            return
        note(self.watch, self.site, role, "called")
        leaves = list(floats_in(value))
        if not leaves:
            note(self.watch, self.site, role, "no arrays of floating-point numbers")
        for statistic in chosen:
            problem = _problem(statistic) if leaves else "no arrays"
            if problem:
                note(self.watch, self.site, role, problem)
            elif isinstance(statistic, Summary):
                statistic.observe(leaves)
            else:
                for leaf in leaves:
                    statistic.update(leaf)

    # --- the backward pass --------------------------------------------------------------------------------------------

    @property
    def _gradient(self) -> Summary | None:
        return vars(self).get(GRADIENT)

    def with_tap(self, value: Any) -> Any:
        """Returns a value whose arrays of floats report their gradients, if there is a token."""
        summary = self._gradient
        if summary is None or self.deterministic:
            return value
        note(self.watch, self.site, GRADIENT, "called")
        variable = vars(self).get("token_variable")
        if variable is None:
            return value
        token = variable.get_raw_value()
        if token.ndim > (1 if summary.rows is None else 2):
            note(self.watch, self.site, GRADIENT, _NOT_MAPPED)
            return value
        due, layout = summary.due(), Layout(summary.rows, summary.axis)
        due = None if due is None else jnp.asarray(due)

        def tapped(leaf: Any) -> Any:
            return tap(leaf, token, due, layout) if _is_floats(leaf) and isinstance(leaf, jax.Array) else leaf

        return jax.tree.map(tapped, value, is_leaf=_is_node)

    def token(self) -> jax.Array | None:
        """Returns the token of the gradient of the output; None if it is not watched, or in evaluation mode."""
        summary = self._gradient
        if summary is None or self.deterministic:
            return None
        return jnp.zeros((*summary.words.get_raw_value().shape[:-1], LANES), jnp.float32)

    def attach(self, token: jax.Array) -> None:
        """Makes the token available to `with_tap`."""
        self.token_variable = nnx.Variable(token)

    def detach(self) -> None:
        """Removes the token."""
        del self.token_variable

    def absorb(self, cotangent: jax.Array) -> None:
        """Updates the statistic of the gradient."""
        summary = self._gradient
        assert summary is not None
        if (problem := unwritable(summary)) is not None:
            note(self.watch, self.site, GRADIENT, problem)
            return
        summary.absorb(parts_of_lanes(cotangent))


_NOT_MAPPED = (
    "the whole stack of modules was used at once; map over its state like over its Params: "
    "in_axes=0 in nnx.scan or nnx.vmap, or nnx.StateAxes({..., tallax.Counter: 0, tallax.Buffer: 0})"
)


def _problem(statistic: Statistic) -> str | None:
    """Returns the reason why a statistic cannot be updated here; None if it can."""
    if isinstance(statistic, Summary) and not statistic.is_whole():
        return _NOT_MAPPED
    axes = mapped_axes()
    if axes and not varying_axes(jax.lax.axis_index(axes[0])):
        return "a shard_map with check_vma=False, inside which it is unknown how replicas combine"
    return unwritable(statistic)


def unwritable(statistic: Statistic) -> str | None:
    """Returns the reason why the state of a statistic cannot be written here; None if it can."""
    for variable in statistic.variables.values():
        raw = variable.get_raw_value()
        try:
            variable.set_raw_value(raw)  # changes nothing, and raises where a write would
        except TraceError:
            return "a transformed function closes over the module, so its state cannot be written; pass it as an argument"
    return None


def floats_in(value: Any) -> Iterator[Any]:
    """Yields the arrays of floats in a value, but not those of modules and Variables."""
    for leaf in jax.tree.leaves(value, is_leaf=_is_node):
        if not _is_node(leaf) and _is_floats(leaf):
            yield leaf


def _is_node(x: Any) -> bool:
    return isinstance(x, nnx.Pytree | nnx.Variable | nnx.State)


def _is_floats(x: Any) -> bool:
    return (
        (isinstance(x, jax.Array | np.ndarray) or is_traced(x))
        and jnp.issubdtype(x.dtype, jnp.inexact)
        and bool(np.size(x))
    )
