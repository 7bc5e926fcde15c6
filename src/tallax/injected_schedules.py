# SPDX-License-Identifier: Apache-2.0
"""`inject_schedules`: any number among the arguments of an optax transformation may be a schedule of the model's step.

    optimizer = nnx.Optimizer(model, tallax.inject_schedules(optax.adamw, learning_rate=schedule), wrt=nnx.Param)
    optimizer.update(model, grads, step=model.step)

Without `step=`, schedules follow an exact count of the updates.
"""

from __future__ import annotations

import inspect
import numbers
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tallax import _uint64
from tallax._errors import InvalidTypeError, InvalidValueError
from tallax.schedules import as_array, step_value

_NUMBERS = (numbers.Number, jax.Array, np.ndarray, np.generic)


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


# --- the schedules among the arguments of a factory -------------------------------------------------------------------


class Factory:
    """A function that returns a transformation, and its arguments, some of which are schedules.

    Attributes:
        schedules: The arguments that are schedules, by name. Those of `*args` are named `args_0`, ...
        takes_schedules: The names of the arguments for which the function accepts a schedule, by its annotations.
    """

    def __init__(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], static: Collection[str]
    ):
        signature = _signature_of(function)
        parameters = signature.parameters
        self._function, self._bound = function, signature.bind(*args, **kwargs)  # raises the same error as a call
        annotations: dict[str, Any] = {}
        for name, value in self._bound.arguments.items():
            parameter = parameters[name]
            own: Iterable[str] = [name]
            if parameter.kind is parameter.VAR_POSITIONAL:
                own = [f"{name}_{k}" for k in range(len(value))]
            elif parameter.kind is parameter.VAR_KEYWORD:
                own = value
            annotations.update(dict.fromkeys(own, parameter.annotation))
        self._names = list(annotations)[: len(self._bound.args)]
        values = {**dict(zip(self._names, self._bound.args, strict=True)), **self._bound.kwargs}
        unknown = sorted(set(static) - set(parameters) - set(values))
        if unknown:
            raise InvalidValueError(
                "static_args",
                "every name must be an argument of the function that makes the transformation.",
                got=", ".join(map(repr, unknown)),
                expected=", ".join(parameters),
                fix=f"leave out {unknown[0]!r}, which {getattr(function, '__name__', 'the function')} does not have",
            )
        self.schedules: dict[str, Any] = {}
        self.takes_schedules: set[str] = set()
        for name, value in values.items():
            takes_number, takes_callable = _takes(annotations[name])
            is_schedule = takes_number or not takes_callable or isinstance(value, optax.schedules.StatefulSchedule)
            if name not in static and callable(value) and not isinstance(value, type) and is_schedule:
                self.schedules[name] = value
                if takes_number and takes_callable:
                    self.takes_schedules.add(name)

    def make(self, given: Mapping[str, Any]) -> Any:
        """Calls the function with `given` instead of the schedules."""
        args = [given.get(name, value) for name, value in zip(self._names, self._bound.args, strict=True)]
        return self._function(*args, **{name: given.get(name, x) for name, x in self._bound.kwargs.items()})


def _signature_of(function: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(function, eval_str=True)
    except NameError:  # a string annotation that names a type imported only for type checkers
        return inspect.signature(function)


def _takes(annotation: Any) -> tuple[bool, bool]:
    """Returns whether an annotation accepts numbers, and whether it accepts callables; False twice if it is missing."""
    if isinstance(annotation, str):  # an annotation that could not be evaluated
        return "Schedule" in annotation, "Schedule" in annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        members = [_takes(member) for member in typing.get_args(annotation)]
        return any(number for number, _ in members), any(call for _, call in members)
    origin = typing.get_origin(annotation) or annotation
    if not isinstance(origin, type) or annotation is inspect.Parameter.empty:
        return False, False
    if issubclass(origin, _NUMBERS):
        return True, False
    return False, issubclass(origin, Callable)
