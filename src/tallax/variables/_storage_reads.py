# SPDX-License-Identifier: Apache-2.0
"""Detects reads by functions of Flax that store a value, as opposed to reads by users who compute with it.

`nnx.to_pure_dict` and `nnx.bridge` call the same `get_value()` as all other callers, and later write the result back
unchanged. A count of 2**31 or more would not survive that, because `get_value()` returns an int32. So they get the
exact words.
"""

from __future__ import annotations

import sys

_KEEPERS = ("flax.nnx.statelib", "flax.nnx.bridge.")
_WITHIN = "flax.nnx.variablelib"  # the operators and the constructor of a Variable call through this module


def is_kept_by_flax() -> bool:
    """Returns whether the caller's caller is one of the modules of Flax that store values and write them back."""
    frame = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__") == _WITHIN:
        frame = frame.f_back
    return frame is not None and str(frame.f_globals.get("__name__")).startswith(_KEEPERS)
