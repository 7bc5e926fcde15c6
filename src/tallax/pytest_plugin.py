# SPDX-License-Identifier: Apache-2.0
"""The pytest fixture `statecheck`, which pytest finds by the entry point `pytest11`.

It lives outside the package, and imports it only when the fixture is used: pytest loads plugins before a `conftest.py`
may set JAX's platform and flags, which JAX reads when it is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tallax.checking import Report


@pytest.fixture
def statecheck() -> Callable[..., Report]:
    """Like `tallax.statecheck`, but a failure fails the test with the text of the findings. Returns the report."""

    def check(make: Any, *inputs: Any, **options: Any) -> Report:
        __tracebackhide__ = True  # the findings are more useful than a traceback of tallax
        from tallax.checking import statecheck

        return statecheck(make, *inputs, **options).raise_on_failure()

    return check
