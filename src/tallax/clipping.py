# SPDX-License-Identifier: Apache-2.0
"""`clip_by_global_norm`, an optax transformation that follows a schedule and counts its clips.

    optimizer = nnx.Optimizer(model, optax.chain(
        tallax.clip_by_global_norm(optax.linear_schedule(0.1, 1.0, 1_000)),
        optax.adamw(1e-3),
    ), wrt=nnx.Param)
    optimizer.update(model, grads, step=model.step)

Without `step=`, the schedule follows an exact count of the updates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from tallax import _uint64
from tallax._arrays import is_traced
from tallax._errors import InvalidTypeError, InvalidValueError, TracedReadError, describe
from tallax.schedules import as_array, step_value


class ClipByGlobalNormState(NamedTuple):
    """The state of `clip_by_global_norm`, which `clip_counts` reads.

    | field | shape | dtype | reset value | reduction |
    |---|---|---|---|---|
    | updates, clipped, nonfinite | (2,): low and high word of an exact count | uint32 | 0 | replicated |
    | max_norm | (): the threshold of the last update | float32 | that of count 0 | replicated |
    """

    updates: jax.Array
    clipped: jax.Array
    nonfinite: jax.Array
    max_norm: jax.Array


@dataclass(frozen=True)
class ClipCounts:
    """The numbers of updates and clips of a `clip_by_global_norm`.

    Attributes:
        updates: The exact number of updates.
        clipped: The number of updates with a global norm above the threshold, including infinite norms.
        nonfinite: The number of updates with a global norm that was NaN or infinite.
        rate: Clipped / updates; 0.0 before the first update.
        max_norm: The threshold of the last update.
    """

    updates: int
    clipped: int
    nonfinite: int
    rate: float
    max_norm: float


def clip_by_global_norm(max_norm: float | Callable[[Any], Any]) -> optax.GradientTransformationExtraArgs:
    """Scales updates down to a global norm, which may be a schedule, and counts the updates that were scaled.

    The updates equal those of `optax.clip_by_global_norm`. Let `g` be the global norm over all leaves. If `g <
    max_norm`, the updates do not change. Otherwise an update `u` becomes `u / g * max_norm`.

    Args:
        max_norm: The largest global norm, a positive number or an optax schedule. A schedule follows `update(...,
            step=)`, or the number of previous updates if `step=` is omitted.

    Returns:
        A transformation whose state is a `ClipByGlobalNormState`. Its `update` accepts `step=`, a `Counter` or an
        integer.

    Raises:
        InvalidTypeError: `max_norm` is neither a number nor a schedule, or `step` is not an integer.
        InvalidValueError: `max_norm` is a number that is not positive.

    Example:
        >>> import jax.numpy as jnp, tallax
        >>> clip = tallax.clip_by_global_norm(1.0)
        >>> state = clip.init(jnp.zeros(2))
        >>> updates, state = clip.update(jnp.array([3.0, 4.0]), state)
        >>> tallax.clip_counts(state)
        ClipCounts(updates=1, clipped=1, nonfinite=0, rate=1.0, max_norm=1.0)
    """
    if not callable(max_norm):
        if isinstance(max_norm, bool) or not isinstance(max_norm, int | float | np.generic | jax.Array):
            raise InvalidTypeError(
                "max_norm", "must be a number or an optax schedule.", got=describe(max_norm), fix="max_norm=1.0"
            )
        if not is_traced(max_norm) and not max_norm > 0:
            raise InvalidValueError(
                "max_norm", "the clip threshold must be positive.", got=describe(max_norm), fix="max_norm=1.0"
            )

    def threshold(count: Any) -> jax.Array:
        return jnp.asarray(max_norm(count) if callable(max_norm) else max_norm, jnp.float32)

    def init(params: optax.Params) -> ClipByGlobalNormState:
        del params
        # A separate array for each, so that all of them can be donated.
        zeros = [jnp.asarray(_uint64.from_int(0)) for _ in range(3)]
        return ClipByGlobalNormState(*zeros, max_norm=threshold(jnp.int32(0)))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, *, step: Any = None, **extra_args: Any
    ) -> tuple[optax.Updates, ClipByGlobalNormState]:
        del params, extra_args
        limit = threshold(_uint64.to_int32(state.updates) if step is None else as_array(step_value(step)))
        norm = jnp.asarray(optax.tree.norm(updates))
        bound = limit.astype(norm.dtype)  # the dtype to which a Python number is promoted
        within, above = norm < bound, norm > bound

        def clip(leaf: jax.Array) -> jax.Array:
            # Not jnp.where, which would convert integers to floats. optax raises for them.
            return jax.lax.select(within, leaf, (leaf / norm.astype(leaf.dtype)) * limit.astype(leaf.dtype))

        return jax.tree.map(clip, updates), ClipByGlobalNormState(
            updates=_uint64.add(state.updates, _uint64.pair(jnp.uint32(1))),
            clipped=_uint64.add(state.clipped, _uint64.pair(above)),
            nonfinite=_uint64.add(state.nonfinite, _uint64.pair(~jnp.isfinite(norm))),
            max_norm=limit,
        )

    return optax.GradientTransformationExtraArgs(init, update)


def clip_counts(state: Any) -> ClipCounts:
    """Returns the counts of the only `clip_by_global_norm` in an optimizer. Waits for the values.

    Args:
        state: An `nnx.Optimizer` or any optax state.

    Raises:
        InvalidValueError: The optimizer does not have exactly one `clip_by_global_norm`.
        TracedReadError: The call is inside a trace.
    """
    tree = state.opt_state if isinstance(state, nnx.Optimizer) else state

    def is_clip(node: Any) -> bool:
        return isinstance(node, ClipByGlobalNormState)

    found = [node for node in jax.tree.leaves(tree, is_leaf=is_clip) if is_clip(node)]
    if len(found) != 1:
        raise InvalidValueError(
            "clip_counts",
            "requires an optimizer with exactly one tallax.clip_by_global_norm.",
            got=f"{len(found)} of them",
            fix="optax.chain(tallax.clip_by_global_norm(1.0), ...), or the state of one of them",
        )
    fields = [nnx.as_pure(field) for field in found[0]]
    if is_traced(*fields):
        raise TracedReadError(
            "clip_counts",
            "cannot read exact counts inside a trace.",
            got="a traced optimizer state",
            fix="call it outside jit; inside, the ClipByGlobalNormState has max_norm as an array",
        )
    updates, clipped, nonfinite, max_norm = map(np.asarray, fields)
    counts = [int(_uint64.to_uint64(limbs)) for limbs in (updates, clipped, nonfinite)]
    rate = counts[1] / counts[0] if counts[0] else 0.0
    return ClipCounts(*counts, rate=rate, max_norm=float(max_norm))
