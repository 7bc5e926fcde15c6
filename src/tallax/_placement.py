# SPDX-License-Identifier: Apache-2.0
"""Where an array's value is: in a trace, still being computed, or placed on devices on purpose."""

from __future__ import annotations

from typing import Any

import jax
from jax.core import Tracer


def is_traced(*values: Any) -> bool:
    """Tells whether any of the values exists only when a compiled program runs."""
    return any(isinstance(value, Tracer) for value in values)


def is_ready(value: jax.Array) -> bool:
    """Tells whether a concrete array can be read without waiting for the device."""
    return value.is_ready()  # pyright: ignore[reportAttributeAccessIssue]  # public, but missing from jax's annotations


def is_committed(value: Any) -> bool:
    """Tells whether the array was put on particular devices, as `jax.device_put` and shardings do."""
    return isinstance(value, jax.Array) and value.committed
