# SPDX-License-Identifier: Apache-2.0
"""`ScheduledValue`: a value on the model that follows an optax schedule, and that you can log, save and pin."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tallax import _uint64
from tallax._arrays import NEEDS_A_VALUE, as_guarded, is_traced, to_device
from tallax._display import card, worded
from tallax._errors import InvalidTypeError, InvalidValueError, describe
from tallax._module import StateOwner
from tallax.variables import Buffer, Counter, TwoPartCount

_ZERO = np.int32(0)
_NOT_CALLED = -1.0  # instead of 1 for pinned and 0 for not pinned


class ScheduledValue(StateOwner):
    """A scalar that follows a schedule: the temperature of a gate, the weight of a loss, the probability of a mask.

    | field | shape | dtype | reset value | reduction |
    |---|---|---|---|---|
    | state | (3,): the last value, the pinned value, 1 if pinned | float32 | 0, 0, -1: not called | replicated |

    Args:
        schedule: An optax schedule, or any function from an int32 count to a scalar.
        name: A label for tables and logs, in addition to the attribute's name.
        persistent: Whether checkpoints save the state.

    In eval mode (`model.eval()`, or `nnx.view(model, deterministic=True)`) a call returns the value and stores nothing.

    Example:
        >>> import optax, tallax
        >>> temperature = tallax.ScheduledValue(optax.linear_schedule(5.0, 1.0, 10_000))
        >>> temperature(2_500)
        Array(4., dtype=float32)
        >>> temperature.pin(2.0)
        >>> temperature(2_501)
        Array(2., dtype=float32)
        >>> temperature.release()
        >>> temperature(10_000)
        Array(1., dtype=float32)
    """

    _written_by = "self.{name}.pin(x), which writes into it; or del self.{name} first"
    _dtypes: ClassVar[Mapping[str, Any]] = {"state": np.dtype(np.float32)}

    def __init__(self, schedule: Callable[[Any], Any], *, name: str | None = None, persistent: bool = True):
        if not callable(schedule):
            raise InvalidTypeError(
                "ScheduledValue",
                "requires a schedule: a function from a step count to a scalar.",
                got=describe(schedule),
                fix="optax.constant_schedule(2.0), or optax.linear_schedule(5.0, 1.0, 10_000)",
            )
        super().__init__()
        self.schedule = schedule
        self.name = name
        # Raises if the schedule does not return a scalar. Nothing is computed, and a schedule that branches in Python
        # is skipped.
        with contextlib.suppress(*NEEDS_A_VALUE):
            jax.eval_shape(self._scheduled, jax.ShapeDtypeStruct((), jnp.int32))
        # The state starts on the host, because no code may use a device before jax.distributed.initialize. So
        # `schedule(0)` is computed later.
        start = np.array((0.0, 0.0, _NOT_CALLED), np.float32)
        self.state: Buffer = Buffer(start, persistent=persistent)

    def __call__(self, step: Any = None) -> jax.Array:
        """Returns the value at `step`, and stores it.

        Args:
            step: The step: a `Counter`, a `StepCounter`, or an integer scalar, traced or not. The schedule gets it as
                int32, saturated at 2**31 - 1. If omitted, the value of the last call is returned.

        Returns:
            float32[]: the pinned value if there is one, otherwise `schedule(step)`. If `vmap` has made a stack of
            scheduled values, for example one per layer, a call of the stack returns one value for each.

        Raises:
            InvalidTypeError: `step` is not an integer scalar.
        """
        if step is None:
            return self.value
        self.refuse_casts()
        value, state = as_guarded(self._followed, self.state[...], as_array(step_value(step)))
        if not self.deterministic:
            self.state[...] = state
        return value

    def _followed(self, state: jax.Array, count: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the value at a count, and the new state."""
        pinned, mode = state[..., 1], state[..., 2]
        value = jnp.where(mode > 0, pinned, self._scheduled(count))
        return value, _packed(value, pinned, jnp.maximum(mode, 0.0))

    @property
    def value(self) -> jax.Array:
        """float32[]: the value of the last call, or the pinned one; `schedule(0)` before."""
        self.refuse_casts()
        return as_guarded(self._value_of, self.state[...])

    def pin(self, value: Any) -> None:
        """Sets the value to `value` at all steps from now on. Compiled steps are not compiled again.

        Raises:
            InvalidValueError: `value` is NaN or not a scalar.
        """
        if not is_traced(value) and (np.ndim(value) != 0 or np.isnan(value)):
            raise InvalidValueError(
                self,
                "can only be pinned to one number that is not NaN.",
                got=describe(value),
                fix="pin(2.0), or release() to follow the schedule",
            )
        self.refuse_casts()
        self.state[...] = jnp.broadcast_to(_packed(value, value, 1.0), self.state.shape)

    def release(self) -> None:
        """Follows the schedule again from the next call."""
        self.state[...] = _packed(self.value, 0.0, 0.0)

    def read(self, state: Mapping[str, Any]) -> Any:
        """Returns the value of a state: a float for a NumPy array, float32[] for a JAX array, an array for a stack."""
        return self._value_of(state["state"])

    def _value_of(self, state: Any) -> Any:
        value, mode = state[..., 0], state[..., 2]
        if isinstance(state, np.ndarray):
            called = mode != _NOT_CALLED
            current = value if called.all() else np.where(called, value, self._scheduled(_ZERO))
            return current if state.ndim > 1 else float(current)
        return jnp.where(mode == _NOT_CALLED, self._scheduled(_ZERO), value)

    def _attributes(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return card(repr(self), None)

    def _title(self) -> str:
        name = f"{self.name!r}, " if self.name is not None else ""
        return f"ScheduledValue({name}{_called(self.schedule)})"

    def _summary(self) -> str:
        """Returns the formatted value, and whether it is pinned; an empty string if it cannot be read."""
        state = self.state._shown()
        if state is None:
            return ""
        state = np.asarray(state)
        value = " ".join(worded(self._value_of(state)).split())
        return f"{value}{', pinned' if (state[..., 2] > 0).any() else ''}"

    def _scheduled(self, count: Any) -> jax.Array:
        value = jnp.asarray(self.schedule(as_array(count)), jnp.float32)
        if value.shape != ():
            raise InvalidValueError(
                "ScheduledValue",
                "the schedule must return a scalar.",
                got=describe(value),
                fix="one ScheduledValue for each number, or a tallax.Buffer for an array",
            )
        return value


def _called(schedule: Any) -> str:
    """Returns the name of a schedule function, or of the function that made it."""
    return getattr(schedule, "__qualname__", repr(schedule)).partition(".<locals>")[0]


def _packed(value: Any, pinned: Any, is_pinned: Any) -> jax.Array:
    parts = (jnp.asarray(part, jnp.float32) for part in (value, pinned, is_pinned))
    return jnp.stack(jnp.broadcast_arrays(*parts), axis=-1)


def as_array(count: Any) -> jax.Array:
    """Returns a count as int32[], which every schedule gets."""
    return count if isinstance(count, jax.Array) else to_device(np.int32(count))


def step_value(step: Any) -> jax.Array | np.int32:
    """Returns a step as int32[], saturated at 2**31 - 1.

    Args:
        step: A `Counter`; a module with a `Counter` as its `step`, such as `StepCounter`; an integer; an integer scalar
            array; or the two words of a `Counter`, which is what `nnx.Optimizer.update(..., step=counter)` passes on.

    Raises:
        InvalidTypeError: It is none of these.
    """
    if isinstance(step, nnx.Pytree):
        step = getattr(step, "step", step)
    if isinstance(step, Counter):
        return step.get_value()
    if isinstance(step, nnx.Variable):
        step = step.get_value()
    if isinstance(step, TwoPartCount):  # the words of a Counter inside `tallax.compile_step`
        return _uint64.to_int32(step.limbs)
    if isinstance(step, np.ndarray | np.generic) and step.ndim == 0 and step.dtype.kind in "iu":
        step = int(step)  # JAX would cut it to 32 bits
    if isinstance(step, int) and not isinstance(step, bool):
        return np.int32(max(-_uint64.INT32_MAX, min(step, _uint64.INT32_MAX)))
    if isinstance(step, jax.Array | np.ndarray | np.generic) and jnp.issubdtype(step.dtype, jnp.integer):
        step = jnp.asarray(step)
        if step.shape == ():
            wide = jnp.iinfo(step.dtype).max > _uint64.INT32_MAX
            return (jnp.minimum(step, _uint64.INT32_MAX) if wide else step).astype(jnp.int32)
        if step.ndim == 1 and _uint64.has_limb_axis(step):
            return _uint64.to_int32(step)
    raise InvalidTypeError(
        "step",
        "a schedule requires an integer step.",
        got=describe(step),
        expected="a Counter, a StepCounter, or an integer scalar",
        fix="step=model.step",
    )
