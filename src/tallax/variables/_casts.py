# SPDX-License-Identifier: Apache-2.0
"""Detects state that was cast from outside, as by `jax.tree.map(lambda x: x.astype(...), nnx.state(model))`."""

from __future__ import annotations

from typing import Any

import numpy as np

from tallax._errors import InvalidTypeError, compose
from tallax.variables._base import StateVariable


def refuse_cast(owner: object, variable: StateVariable, dtype: Any) -> None:
    """Raises if the dtype of a variable's array differs from the dtype that its owner uses.

    It reads only the dtype, so it costs the same inside a trace, and while a compiled step owns the array.

    Raises:
        InvalidTypeError: The array was cast.
    """
    raw = variable.get_raw_value()
    found = getattr(raw, "dtype", dtype)  # a tree.map may have put a shape or a sharding here
    if found != dtype:
        raise InvalidTypeError(
            compose(
                owner,
                f"its state must be {np.dtype(dtype)}, but was cast, so its values are no longer right.",
                got=f"{found}[{','.join(map(str, raw.shape))}]",
                fix="cast only the parameters: nnx.state(model, nnx.Param); to recover the state, restore a "
                "checkpoint into a new model",
            )
        )
