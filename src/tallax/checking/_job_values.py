# SPDX-License-Identifier: Apache-2.0
"""One value of a job's state, and whether two values, or two records of a run, are the same."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from tallax._errors import describe
from tallax.checking._snapshot import equal


@dataclasses.dataclass(frozen=True)
class Value:
    """One value of a job's state.

    Attributes:
        value: A NumPy array, a number, text, bytes, or None.
        kind: The class of its Variable, such as `Param`; `random` for keys and generators, `position` for the state of
            an iterator, `record` for a list of numbers such as the losses, `array` or `plain` for everything else.
        keys: The names of the entries, if a record has names.
    """

    value: Any
    kind: str
    keys: tuple[int, ...] | None = None

    @property
    def array(self) -> np.ndarray:
        """The value as a NumPy array; of text, one without a numeric dtype."""
        return self.value if isinstance(self.value, np.ndarray) else np.asarray(self.value)

    @property
    def is_number(self) -> bool:
        """True if the value is a number or an array of numbers; booleans are not numbers."""
        if isinstance(self.value, bool | np.bool_) or self.value is None:
            return False
        return is_numeric(self.array.dtype)

    @property
    def is_integer(self) -> bool:
        """True if the value is an integer or an array of integers."""
        return self.is_number and bool(jnp.issubdtype(self.array.dtype, jnp.integer))

    def __str__(self) -> str:
        if self.kind == "random":
            return "a random state" if not isinstance(self.value, np.ndarray) else f"a key ({self.value.tolist()})"[:80]
        if isinstance(self.value, np.ndarray):
            if self.value.size <= 4:
                return describe(self.value)
            start = np.array2string(self.value.reshape(-1)[:3], precision=6, separator=", ").rstrip("]")
            return f"{self.value.dtype}[{','.join(map(str, self.value.shape))}] ({start}, ...])"
        text = repr(self.value)
        return text if len(text) <= 60 else f"{text[:57]}..."


Values = dict[str, Value]


def is_numeric(dtype: Any) -> bool:
    """Returns whether a dtype holds numbers. bfloat16 and float8 do; bool does not."""
    return bool(jnp.issubdtype(dtype, jnp.number))


def shown(value: Value | None) -> str:
    """Returns a value as text for a report."""
    return "nothing" if value is None else str(value)


def same(left: Value | None, right: Value | None) -> bool:
    """Returns whether two values are equal to the bit, with equal dtypes and shapes."""
    if left is None or right is None:
        return left is right
    return equal(left.value, right.value)


def differences(expected: Values, got: Values, *, tolerance: float = 0.0) -> list[str]:
    """Returns the paths whose values differ.

    Args:
        expected: The values of one run.
        got: The values of another run.
        tolerance: The accepted difference of floats, relative to the largest of their array; 0 for equal to the bit.
    """
    return [
        path for path in dict.fromkeys((*expected, *got)) if not _alike(expected.get(path), got.get(path), tolerance)
    ]


def _alike(a: Value | None, b: Value | None, tolerance: float) -> bool:
    if same(a, b):
        return True
    if not tolerance or a is None or b is None or not (a.is_number and b.is_number) or a.is_integer or b.is_integer:
        return False
    left, right = a.array.astype(np.float64), b.array.astype(np.float64)
    if left.shape != right.shape or a.array.dtype != b.array.dtype:
        return False
    scale = max(np.max(np.abs(left), initial=0.0), 1e-30)
    return bool(np.allclose(left, right, rtol=0, atol=tolerance * scale, equal_nan=True))


def records_in(straight: Values, second: Values) -> list[str]:
    """Returns the paths that list one number for each step, such as the losses.

    Args:
        straight: The values of the run that was not interrupted.
        second: The values of the second half, whose records may start at its first step or at the first step of all.
    """
    found = []
    for path, value in straight.items():
        other = second.get(path)
        if other is None or not value.is_number or value.array.ndim == 0 or other.array.ndim == 0:
            continue
        is_shorter = len(other.array) < len(value.array) and other.array.shape[1:] == value.array.shape[1:]
        is_named = value.kind == "record" and (value.keys is not None or "loss" in path.lower())
        if is_named or (is_shorter and value.kind in ("record", "array", "plain")):
            found.append(path)
    return found


def first_late(straight: Value, second: Value, steps: int, tolerance: float) -> int | None:
    """Returns the first step of the second half at which two records differ, or None if they are equal."""
    expected, got, step = tails(straight, second, steps)
    for number, entries in enumerate(zip(expected.array, got.array, strict=True)):
        left, right = (Value(np.asarray(entry), "record") for entry in entries)
        if not _alike(left, right, tolerance):
            return step + number
    return None


def tails(straight: Value, second: Value, steps: int) -> tuple[Value, Value, int]:
    """Returns the entries of two records that belong to the second half, and the number of the first of their steps."""
    if straight.keys is not None and second.keys is not None:
        keys = sorted(set(straight.keys) & set(second.keys))[-steps:]
        places = ([each.index(key) for key in keys] for each in (straight.keys, second.keys))
        parts = [each.array[place] for each, place in zip((straight, second), places, strict=True)]
        return Value(parts[0], "record"), Value(parts[1], "record"), keys[0] if keys else steps + 1
    length = min(len(straight.array), len(second.array), steps)
    parts = [each.array[len(each.array) - length :] for each in (straight, second)]
    return Value(parts[0], "record"), Value(parts[1], "record"), 2 * steps - length + 1
