# SPDX-License-Identifier: Apache-2.0
"""optax transformations that follow `step=`, so that all schedules use the model's counter.

    optimizer = nnx.Optimizer(model, optax.chain(
        tallax.clip_by_global_norm(optax.linear_schedule(0.1, 1.0, 1_000)),
        tallax.inject_schedules(optax.adamw, learning_rate=schedule),
    ), wrt=nnx.Param)
    optimizer.update(model, grads, step=model.step)

Without `step=`, each transformation follows an exact count of its own updates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
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
from tallax._factory import Factory
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
        zeros = [
            jnp.asarray(_uint64.from_int(0)) for _ in range(3)
        ]  # a separate array for each, so that all of them can be donated
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


class ScheduledState(NamedTuple):
    """The state of `inject_schedules`. Arguments that are not schedules have no state.

    | field | shape | dtype | reset value | reduction |
    |---|---|---|---|---|
    | hyperparams | (): the last value of each schedule, by name | its own | that of count 0 | replicated |
    | hyperparams_states | (2,): by name, low and high word of the exact number of updates | uint32 | 0 | replicated |
    | inner_state | that of the transformation | | | |
    """

    hyperparams: dict[str, jax.Array]
    hyperparams_states: dict[str, Any]
    inner_state: Any


class _StepSchedule(optax.schedules.StatefulSchedule):
    """A schedule of the `step=` of an update, or of an exact count of the previous updates."""

    def __init__(self, schedule: Callable[[Any], Any]):
        self.schedule = schedule

    def init(self) -> jax.Array:
        return jnp.asarray(_uint64.from_int(0))

    def update(self, state: jax.Array, **extra_args: Any) -> jax.Array:
        del extra_args
        return _uint64.add(state, _uint64.pair(jnp.uint32(1)))

    def __call__(self, state: jax.Array, *, step: Any = None, **extra_args: Any) -> jax.Array:
        del extra_args
        return self.schedule(_uint64.to_int32(state) if step is None else as_array(step_value(step)))


def inject_schedules(
    inner_factory: Callable[..., optax.GradientTransformation],
    *args: Any,
    static_args: str | Iterable[str] = (),
    hyperparam_dtype: Any = None,
    **kwargs: Any,
) -> optax.GradientTransformationExtraArgs:
    """Returns the transformation `inner_factory(*args, **kwargs)`, in which any number may be an optax schedule.

    Schedules follow `update(..., step=)`, or an exact count of the updates if `step=` is omitted. All other arguments
    are passed on unchanged. `state.hyperparams["learning_rate"]` is the value at the last update.

    If the factory accepts a schedule for an argument, as optax's factories do for `learning_rate`, it gets a schedule,
    so the updates are bit-equal to those of `optax.adam(schedule)`. If it accepts numbers only, it gets the value.

    Args:
        inner_factory: A function that returns the transformation, such as `optax.adamw`.
        *args: The arguments of the factory. A callable is a schedule, unless it is a type, such as `jnp.bfloat16`, or
            the factory's annotation excludes numbers for the argument, for example for `mask`.
        static_args: The names of other arguments that are callables, but not schedules.
        hyperparam_dtype: The dtype of the schedules' values. By default, values keep their dtype if the factory accepts
            schedules, and have the highest dtype of the parameters if it accepts numbers.
        **kwargs: The keyword arguments of the factory. A callable is a schedule under the same conditions as in
            `*args`.

    Raises:
        InvalidTypeError: `inner_factory` is already a transformation, or `step` is not an integer.
        InvalidValueError: `static_args` names an argument that the factory does not have.

    Example:
        >>> import jax.numpy as jnp, optax, tallax
        >>> sgd = tallax.inject_schedules(optax.sgd, learning_rate=optax.linear_schedule(1.0, 0.0, 10))
        >>> state = sgd.init(jnp.zeros(()))
        >>> updates, state = sgd.update(jnp.ones(()), state, step=5)
        >>> updates
        Array(-0.5, dtype=float32)
    """
    if isinstance(inner_factory, tuple):
        raise InvalidTypeError(
            "inject_schedules",
            "requires a function that returns a transformation, such as optax.adamw, and its arguments.",
            got=f"a {type(inner_factory).__name__}",
            fix="tallax.inject_schedules(optax.adamw, learning_rate=schedule)",
        )
    static = {static_args} if isinstance(static_args, str) else set(static_args)
    factory = Factory(inner_factory, args, kwargs, static)
    schedules = {
        name: value if isinstance(value, optax.schedules.StatefulSchedule) else _StepSchedule(value)
        for name, value in factory.schedules.items()
    }

    def made(values: dict[str, Any], like: Any, *, follows_count: bool) -> optax.GradientTransformationExtraArgs:
        """Returns the inner transformation with these values instead of the schedules."""
        given: dict[str, Any] = {}
        for name, value in values.items():
            schedule = schedules[name]
            if name not in factory.takes_schedules:
                given[name] = _cast(value, _float_dtype(like) if hyperparam_dtype is None else hyperparam_dtype)
            elif follows_count and isinstance(schedule, _StepSchedule):
                # optax counts from 0 or 1, depending on the transformation.
                given[name] = lambda count, f=schedule.schedule: _cast(f(jnp.asarray(count)), hyperparam_dtype)
            else:
                given[name] = lambda count, value=value: _cast(value, hyperparam_dtype)
        return optax.with_extra_args_support(factory.make(given))

    def init(params: optax.Params) -> ScheduledState:
        states = {name: schedule.init() for name, schedule in schedules.items()}
        values = {name: schedule(states[name]) for name, schedule in schedules.items()}
        inner = made(values, params, follows_count=True)
        return ScheduledState(_recorded(values, hyperparam_dtype), states, inner.init(params))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, ScheduledState]:
        states = state.hyperparams_states
        values = {name: schedule(states[name], **extra_args) for name, schedule in schedules.items()}
        like = updates if params is None else params
        inner = made(values, like, follows_count=extra_args.get("step") is None)
        updates, inner_state = inner.update(updates, state.inner_state, params, **extra_args)
        states = {name: schedule.update(states[name], **extra_args) for name, schedule in schedules.items()}
        return updates, ScheduledState(_recorded(values, hyperparam_dtype), states, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _recorded(values: dict[str, Any], dtype: Any) -> dict[str, jax.Array]:
    """Returns values as strongly typed arrays, because a checkpoint does not keep weak types."""
    arrays = {name: jnp.asarray(_cast(value, dtype)) for name, value in values.items()}
    return {name: jax.lax.convert_element_type(value, value.dtype) for name, value in arrays.items()}


def _float_dtype(tree: Any) -> Any:
    """Returns the highest float dtype in a tree, or None if the tree has no floats."""
    dtype = optax.tree.dtype(tree, "highest") if jax.tree.leaves(tree) else None
    return dtype if dtype is not None and jnp.issubdtype(dtype, jnp.floating) else None


def _cast(value: Any, dtype: Any) -> Any:
    """Returns a float in `dtype`. If `dtype` is None, or the value is not a float, returns it unchanged."""
    is_float = dtype is not None and jnp.issubdtype(jnp.result_type(value), jnp.floating)
    return jnp.asarray(value, dtype) if is_float else value
