# SPDX-License-Identifier: Apache-2.0
"""State that was cast from outside, as `jax.tree.map(lambda x: x.astype(...), nnx.state(model))` does."""

from __future__ import annotations

from typing import Any

import numpy as np

from tallax._errors import InvalidTypeError, compose
from tallax.variables._base import StateVariable


def refuse_cast(owner: object, variable: StateVariable, dtype: Any) -> None:
    """Raises if the array of a variable has another dtype than the one that its owner keeps it in.

    It looks at the dtype alone, so it costs the same inside a trace, and while a compiled step holds the array.

    Raises:
        InvalidTypeError: the array was cast.
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
