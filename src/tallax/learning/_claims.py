# SPDX-License-Identifier: Apache-2.0
"""Testing claims about a program: `Wrong`, and the measurements that several exercises share.

The measurements accept every style of state that is right: any type of Variable that is not a parameter, integers or
floats, and tallax's own types.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeAlias

import jax
import numpy as np
from flax import nnx

from tallax._errors import describe
from tallax.checking._attribute_checks import after_weight_decay
from tallax.checking._snapshot import changed
from tallax.variables import Counter

Test: TypeAlias = Callable[[ModuleType], None]
Claim: TypeAlias = tuple[str, Test]


class Claims(list[Claim]):
    """The claims of an exercise, in the order in which they are tested. `@CLAIMS("sentence")` adds a test to them."""

    def __call__(self, sentence: str) -> Callable[[Test], Test]:
        """Returns a decorator for the test of a claim."""

        def add(test: Test) -> Test:
            self.append((sentence, test))
            return test

        return add


class Wrong(Exception):  # noqa: N818 - it is an answer, not an error of the grader
    """A claim does not hold.

    Attributes:
        mistake: The name of the mistake in the exercise's `text.md`.
        got: The result of the program.
        expected: The right result.
        source: The line of the learner's file, if one can be named.
    """

    def __init__(self, mistake: str, got: object = "", expected: object = "", source: str = ""):
        super().__init__(mistake)
        self.mistake, self.source = mistake, source
        self.got = shown(got)
        self.expected = shown(expected)


def shown(value: object) -> str:
    """Words a result: numbers and small arrays by their values, anything else by its type."""
    if isinstance(value, str):
        return value
    if isinstance(value, nnx.Variable):
        return f"{type(value).__name__} {shown(value.get_value())}"
    if isinstance(value, jax.Array | np.ndarray | np.generic) and np.size(value) <= 8:
        return str(_short(np.asarray(value)))
    if isinstance(value, bool | int | float | list | tuple):
        return str(value)
    return describe(value)


def _short(array: np.ndarray) -> Any:
    """Returns the entries as Python numbers; a float32 with the digits that distinguish it, 9.9 and not 9.8999996."""
    if array.ndim:
        return [_short(entry) for entry in array]
    return float(str(array)) if array.dtype.kind == "f" else array.tolist()


def number(value: object) -> Any:
    """Returns the value of a count or of an array, as a NumPy array; a Counter's exactly.

    Raises:
        TypeError: It is not an array or a number.
    """
    if isinstance(value, Counter):
        return np.asarray(int(value)) if value.shape == () else np.asarray(value)
    if isinstance(value, nnx.Variable):
        value = value.get_value()
    if not isinstance(value, jax.Array | np.ndarray | np.generic | bool | int | float):
        raise TypeError(f"expected an array or a number, got {describe(value)}")
    return np.asarray(value)


def expect(got: object, expected: object, mistake: str) -> None:
    """Raises `Wrong` with both numbers, unless they are equal but for rounding.

    Raises:
        Wrong: The numbers differ, or `got` is not a number.
    """
    try:
        is_right = close(number(got), expected)
    except TypeError:
        is_right = False
    if not is_right:
        raise Wrong(mistake, got, expected)


def expect_count(owner: Any, name: str, expected: int, when: str, mistake: str | Callable[[int], str]) -> None:
    """Raises `Wrong` unless a count is right.

    Args:
        owner: The object with the count.
        name: The name of the count's attribute.
        expected: The right count.
        when: The time in words, such as "after 5 batches".
        mistake: Its name, or a function from the wrong count to the name.

    Raises:
        Wrong: The count differs.
    """
    count = number(getattr(owner, name)).item()
    if count != expected:
        name_of = mistake if callable(mistake) else lambda count: mistake
        raise Wrong(name_of(count), f"{name} is {count:g} {when}", str(expected))


def close(got: Any, expected: Any) -> bool:
    """Returns whether two arrays have the same shape and are equal but for rounding."""
    got, expected = np.asarray(got), np.asarray(expected)
    return got.shape == expected.shape and bool(np.allclose(got, expected, rtol=1e-5, atol=1e-6))


def require_untrained(model: Any, name: str, mistake: str) -> None:
    """Raises `Wrong` if an optimizer of the parameters changes the attribute, or would.

    Raises:
        Wrong: It is an `nnx.Param`, or a step of adamw changes it.
    """
    before, after = after_weight_decay(model)
    moved = [path for path in changed(before, after) if path == name or path.startswith(f"{name}/")]
    if moved:
        raise Wrong(mistake, f"{name} is {after[moved[0]].describe()}", f"{name} is {before[moved[0]].describe()}")
    held = getattr(model, name, None)
    if isinstance(held, nnx.Param):
        raise Wrong(mistake, f"{name} is a {type(held).__name__}", f"{name} is not a parameter")


def parameters_of(model: Any) -> list[np.ndarray]:
    """Returns the values of the parameters, in the order of their paths."""
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))]


def same_arrays(left: list[np.ndarray], right: list[np.ndarray]) -> bool:
    """Returns whether two lists of arrays agree, array by array, but for rounding."""
    return len(left) == len(right) and all(close(a, b) for a, b in zip(left, right, strict=True))
