# SPDX-License-Identifier: Apache-2.0
"""optax transformations that read `step=`, so that the model's counter is the one truth.

    optimizer = nnx.Optimizer(model, optax.chain(
        tallax.clip_by_global_norm(optax.linear_schedule(0.1, 1.0, 1_000)),
        tallax.scheduled(optax.adamw, learning_rate=schedule),
    ), wrt=nnx.Param)
    optimizer.update(model, grads, step=model.step)

Without `step=` each follows an exact count of its own updates.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from tallax import _limbs
from tallax._errors import InvalidTypeError, InvalidValueError, TracedReadError, compose, describe
from tallax._placement import is_traced
from tallax.schedules import step_value


class ClipByGlobalNormState(NamedTuple):
    """The state of `clip_by_global_norm`; `clip_counts` reads it.

    | field | shape | dtype | reset value | how copies combine |
    |---|---|---|---|---|
    | updates, clipped, nonfinite | (2,): low and high word of an exact count | uint32 | 0 | same |
    | max_norm | (): the threshold of the last update | float32 | that of count 0 | same |
    """

    updates: jax.Array
    clipped: jax.Array
    nonfinite: jax.Array
    max_norm: jax.Array


@dataclass(frozen=True)
class ClipCounts:
    """How often gradients were clipped.

    Attributes:
        updates: how many updates there were, exactly.
        clipped: how many had a global norm above the threshold, infinite ones included.
        nonfinite: how many had a global norm that was NaN or infinite.
        rate: clipped / updates; 0.0 before the first update.
        max_norm: the threshold of the last update.
    """

    updates: int
    clipped: int
    nonfinite: int
    rate: float
    max_norm: float


def clip_by_global_norm(max_norm: float | Callable[[Any], Any]) -> optax.GradientTransformationExtraArgs:
    """Scales updates down to a global norm, which may be a schedule, and counts how often it did.

    The updates are those of `optax.clip_by_global_norm`: with `g` the global norm over all leaves, they stay as they
    are where `g < max_norm`, and become `u / g * max_norm` otherwise.

    Args:
        max_norm: the largest global norm, positive; or an optax schedule of it, which follows `update(..., step=)`, or,
            where that is not given, the number of updates before this one.

    Returns:
        A transformation whose state is a `ClipByGlobalNormState`. Its `update` takes `step=`, a `Counter` or an
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
                compose("max_norm", "takes a number or an optax schedule.", got=describe(max_norm), fix="max_norm=1.0")
            )
        if not is_traced(max_norm) and not max_norm > 0:
            raise InvalidValueError(
                compose("max_norm", "a clip threshold is positive.", got=describe(max_norm), fix="max_norm=1.0")
            )

    def threshold(count: Any) -> jax.Array:
        return jnp.asarray(max_norm(count) if callable(max_norm) else max_norm, jnp.float32)

    def init(params: optax.Params) -> ClipByGlobalNormState:
        del params
        zeros = [jnp.zeros(2, jnp.uint32) for _ in range(3)]  # one array each, so that all of them can be donated
        return ClipByGlobalNormState(*zeros, max_norm=threshold(jnp.int32(0)))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, *, step: Any = None, **extra_args: Any
    ) -> tuple[optax.Updates, ClipByGlobalNormState]:
        del params, extra_args
        limit = threshold(_limbs.to_int32(state.updates) if step is None else step_value(step))
        norm = jnp.asarray(optax.tree.norm(updates))
        within = norm < limit

        def clip(leaf: jax.Array) -> jax.Array:
            return jnp.where(within, leaf, (leaf / norm.astype(leaf.dtype)) * limit.astype(leaf.dtype))

        return jax.tree.map(clip, updates), ClipByGlobalNormState(
            updates=_limbs.add(state.updates, _limbs.pair(jnp.uint32(1))),
            clipped=_limbs.add(state.clipped, _limbs.pair(norm > limit)),
            nonfinite=_limbs.add(state.nonfinite, _limbs.pair(~jnp.isfinite(norm))),
            max_norm=limit,
        )

    return optax.GradientTransformationExtraArgs(init, update)


def clip_counts(state: Any) -> ClipCounts:
    """Returns how often the one `clip_by_global_norm` in an optimizer clipped; waits for the values.

    Args:
        state: an `nnx.Optimizer`, or any optax state.

    Raises:
        InvalidValueError: there is none in it, or more than one.
        TracedReadError: called inside a trace.
    """
    tree = state.opt_state if isinstance(state, nnx.Optimizer) else state

    def is_clip(node: Any) -> bool:
        return isinstance(node, ClipByGlobalNormState)

    found = [node for node in jax.tree.leaves(tree, is_leaf=is_clip) if is_clip(node)]
    if len(found) != 1:
        raise InvalidValueError(
            compose(
                "clip_counts",
                "takes an optimizer with one tallax.clip_by_global_norm in it.",
                got=f"{len(found)} of them",
                fix="optax.chain(tallax.clip_by_global_norm(1.0), ...), or the state of the one that is meant",
            )
        )
    fields = [nnx.as_pure(field) for field in found[0]]
    if is_traced(*fields):
        raise TracedReadError(
            compose(
                "clip_counts",
                "reads exact counts on the host, which a trace does not have.",
                got="a traced optimizer state",
                fix="call it outside jit; inside, the ClipByGlobalNormState has max_norm as an array",
            )
        )
    updates, clipped, nonfinite, max_norm = map(np.asarray, fields)
    counts = [int(_limbs.to_uint64(limbs)) for limbs in (updates, clipped, nonfinite)]
    rate = counts[1] / counts[0] if counts[0] else 0.0
    return ClipCounts(*counts, rate=rate, max_norm=float(max_norm))


class _StepSchedule(optax.schedules.StatefulSchedule):
    """A schedule of the `step=` that an update is given, or of an exact count of the updates before it."""

    def __init__(self, schedule: Callable[[Any], Any]):
        self.schedule = schedule

    def init(self) -> jax.Array:
        return jnp.zeros(2, jnp.uint32)

    def update(self, state: jax.Array, **extra_args: Any) -> jax.Array:
        del extra_args
        return _limbs.add(state, _limbs.pair(jnp.uint32(1)))

    def __call__(self, state: jax.Array, *, step: Any = None, **extra_args: Any) -> jax.Array:
        del extra_args
        return self.schedule(_limbs.to_int32(state) if step is None else step_value(step))


def scheduled(
    inner_factory: Callable[..., optax.GradientTransformation],
    *args: Any,
    static_args: str | Iterable[str] = (),
    hyperparam_dtype: Any = None,
    **kwargs: Any,
) -> optax.GradientTransformationExtraArgs:
    """Returns `inner_factory(*args, **kwargs)` where any number may be an optax schedule.

    It is `optax.inject_hyperparams`, and its state is read in the same way (`state.hyperparams["learning_rate"]`), but
    the schedules follow `update(..., step=)`. Without it they follow an exact count of the updates.

    Args:
        inner_factory: what makes the transformation, such as `optax.adamw`.
        *args: its arguments; a callable is taken for a schedule.
        static_args: the names of arguments that are callables and not schedules, such as `mask`.
        hyperparam_dtype: the dtype of the hyperparameters; by default the highest of the parameters'.
        **kwargs: its keyword arguments, likewise.

    Raises:
        InvalidTypeError: `inner_factory` is a transformation already, or `step` is not an integer.

    Example:
        >>> import jax.numpy as jnp, optax, tallax
        >>> sgd = tallax.scheduled(optax.sgd, learning_rate=optax.linear_schedule(1.0, 0.0, 10))
        >>> state = sgd.init(jnp.zeros(()))
        >>> updates, state = sgd.update(jnp.ones(()), state, step=5)
        >>> updates
        Array(-0.5, dtype=float32)
    """
    if isinstance(inner_factory, tuple):
        raise InvalidTypeError(
            compose(
                "scheduled",
                "takes what makes a transformation, and its arguments.",
                got=f"a {type(inner_factory).__name__}",
                fix="tallax.scheduled(optax.adamw, learning_rate=schedule)",
            )
        )
    static = {static_args} if isinstance(static_args, str) else set(static_args)
    bound = inspect.signature(inner_factory).bind(*args, **kwargs)
    for name, value in bound.arguments.items():
        if callable(value) and name not in static and not isinstance(value, optax.schedules.StatefulSchedule):
            bound.arguments[name] = _StepSchedule(value)
    inject = optax.inject_hyperparams(inner_factory, static_args=static, hyperparam_dtype=hyperparam_dtype)
    return inject(*bound.args, **bound.kwargs)
