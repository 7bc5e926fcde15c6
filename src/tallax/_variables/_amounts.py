# SPDX-License-Identifier: Apache-2.0
"""What a `Counter` takes: checked, and brought to uint64 wherever its value is known."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tallax import _limbs
from tallax._errors import InvalidTypeError, InvalidValueError, compose, describe


def host_counts(value: Any, *, item: object, limit: int | None = None) -> np.ndarray:
    """Returns non-negative integers as uint64; a Python integer beyond saturates, or raises above `limit`."""
    if isinstance(value, int):  # Python's may be of any size, which NumPy would make an object array of
        if value < 0:
            raise negative(value, item=item)
        if limit is not None and value > limit:
            raise InvalidValueError(
                compose(item, "a Counter holds at most 2**64 - 1.", got=describe(value), fix="a smaller number")
            )
        return np.array(min(value, _limbs.MAX), np.uint64)
    check_integer(value, item=item)
    array = np.asarray(value)
    if array.dtype != np.bool_ and not jnp.issubdtype(array.dtype, jnp.unsignedinteger) and np.any(array < 0):
        raise negative(array, item=item)
    return array.astype(np.uint64)


def check_integer(value: Any, *, item: object) -> None:
    """Raises where `value` is not an array of booleans or integers."""
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        if jnp.issubdtype(value.dtype, jnp.integer) or value.dtype == np.bool_:
            return
    raise InvalidTypeError(
        compose(
            item,
            "a Counter takes non-negative integers.",
            got=describe(value),
            fix="self.step += 1, or count a condition with self.step.count(mask)",
        )
    )


def negative(value: Any, *, item: object) -> InvalidValueError:
    return InvalidValueError(
        compose(
            item,
            "a Counter takes non-negative integers.",
            got=describe(value),
            fix="counter.set(n) or counter.reset() to go back; a tallax.Buffer for a number that goes up and down",
        )
    )
