# SPDX-License-Identifier: Apache-2.0
"""The cells of a table of tests that `make test` runs; `make thorough` runs the others."""

import itertools
from collections.abc import Iterable
from typing import Any

import pytest


def cell(*values: Any, quick: bool, id: str | None = None) -> Any:  # noqa: A002 - pytest's word
    """Returns the values as a parameter, which is marked as thorough unless it is quick."""
    return pytest.param(*values, id=id, marks=[] if quick else [pytest.mark.thorough])


def by_turns(*axes: Iterable[Any], one_in: int = 2) -> list[Any]:
    """Returns all combinations of values, of which one in so many is quick.

    These are the combinations in which the sum of the positions is a multiple of `one_in`. So every value is quick with
    one in so many values of every other axis.
    """
    numbered = (list(enumerate(axis)) for axis in axes)
    combinations = [zip(*pairs, strict=True) for pairs in itertools.product(*numbered)]
    return [cell(*values, quick=sum(positions) % one_in == 0) for positions, values in combinations]
