# SPDX-License-Identifier: Apache-2.0
"""`StepCounter`, which counts its calls, and `counter_after_n_calls`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tallax._errors import InvalidTypeError, InvalidValueError, describe
from tallax._module import EvalAware
from tallax.variables import Counter


class StepCounter(EvalAware):
    """Counts its calls: `step` starts at 0, and each call adds 1 and returns the new value.

    | field | shape | dtype | reset value | reduction |
    |---|---|---|---|---|
    | step | () | an exact `Counter` | 0 | replicated: a step that all replicas take together counts once |

    Args:
        rngs: The counter takes one key from `rngs.params()`, so adding a counter shifts the stream like any other
            layer.

    Raises:
        InvalidTypeError: `rngs` is not an `nnx.Rngs`.

    `model.eval()` sets `deterministic`, and then a call returns the value and adds nothing.

    Example:
        >>> from flax import nnx
        >>> import tallax
        >>> counter = tallax.StepCounter(nnx.Rngs(0))
        >>> counter(), counter()
        (np.int32(1), np.int32(2))
        >>> counter.step.value
        Array(2, dtype=int32)
    """

    def __init__(self, rngs: nnx.Rngs):
        super().__init__()
        if not isinstance(rngs, nnx.Rngs) and not hasattr(rngs, "params"):  # Flax raises if the stream is missing
            raise InvalidTypeError(
                "StepCounter",
                "requires an nnx.Rngs, which provides one key.",
                got=describe(rngs),
                fix="StepCounter(nnx.Rngs(0)), or a tallax.Counter(), which needs none",
            )
        rngs.params()
        self.step: Counter = Counter(reduce="replicated")

    def __call__(self) -> jax.Array | np.ndarray | np.int32:
        """Returns the number of this call, an int32 scalar saturated at 2**31 - 1 (`int(counter.step)` is exact).

        Outside a trace it is a NumPy scalar, so that an eager call dispatches nothing.
        """
        return self.step._peek() if self.deterministic else self.step._advance_by_one()

    def __int__(self) -> int:
        """Returns the exact number of calls."""
        return int(self.step)

    def __repr__(self) -> str:
        """Returns one line, with the exact number of calls if it can be read."""
        count = self.step._shown()
        return "StepCounter()" if count is None else f"StepCounter(): {' '.join(str(count).split())}"

    __str__ = __repr__


def counter_after_n_calls(seed: int | float, n_calls: int | float) -> jax.Array:
    """Makes a `StepCounter` from `seed`, calls it `n_calls` times, and returns its value and `n_calls`.

    Args:
        seed: An integer, or a float with an integer value. Beyond 64 bits it is reduced modulo 2**63, because JAX's
            keys accept no more.
        n_calls: A non-negative integer, or a float with an integer value.

    Returns:
        float32[2]: `[counter, n_calls]`, which are equal. Beyond 2**24 both are rounded to the nearest float32;
        `int(counter.step)` of a `StepCounter` is exact.

    Raises:
        InvalidValueError: `n_calls` is negative, or either argument is not finite or not whole.

    Example:
        >>> import tallax
        >>> tallax.counter_after_n_calls(seed=0, n_calls=5)
        Array([5., 5.], dtype=float32)
    """
    seed = _whole("seed", seed)
    calls = _whole("n_calls", n_calls)
    if calls < 0:
        raise InvalidValueError(
            "n_calls", "the number of calls must not be negative.", got=describe(n_calls), fix="n_calls=0 or more"
        )
    counter = StepCounter(nnx.Rngs(seed if -(2**63) <= seed < 2**63 else seed % 2**63))
    for _ in range(calls):
        counter()
    return jnp.array([int(counter.step), calls], jnp.float32)


def _whole(name: str, value: Any) -> int:
    try:
        whole = int(value)  # raises for NaN, infinities, and values that are not numbers
        if whole == value:
            return whole
    except (TypeError, ValueError, OverflowError):
        pass
    raise InvalidValueError(
        name, "must be an integer, or a float with an integer value.", got=describe(value), fix=f"{name}=5"
    )
