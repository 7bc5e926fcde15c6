# SPDX-License-Identifier: Apache-2.0
"""Whether a learner's file replaced functions that grading relies on.

This is not a sandbox: a file that is determined to cheat can. It finds the usual ways, and accidents such as an
assignment to `jnp.array`.
"""

from __future__ import annotations

import builtins
import sys
from typing import Any

import flax
import jax
import numpy as np
import optax
from flax import nnx

_MODULES = (builtins, jax, jax.numpy, jax.lax, jax.tree, jax.random, flax, nnx, np, optax)
_CLASSES = (nnx.Variable, nnx.Param, nnx.BatchStat, nnx.Module, nnx.Pytree, nnx.Optimizer, nnx.Rngs, nnx.Linear)


def fingerprint() -> dict[str, Any]:
    """Returns the functions, classes and constants that grading relies on, by dotted name."""
    own = [module for name, module in sys.modules.items() if name == "tallax" or name.startswith("tallax.")]
    found = {
        f"{module.__name__}.{name}": value
        for module in (*_MODULES, *own)
        for name, value in vars(module).items()
        if not name.startswith("__") or name == "__import__"
    }
    for cls in _CLASSES:
        found |= {f"{cls.__module__}.{cls.__qualname__}.{name}": value for name, value in vars(cls).items()}
    return found


def first_replaced(before: dict[str, Any]) -> str:
    """Returns the name of something that is no longer what it was; an empty string if there is none."""
    now = fingerprint()
    # A name that is new is harmless: modules load parts of themselves when they are first used.
    return next((name for name, value in before.items() if now.get(name) is not value and not _is_cache(name)), "")


def _is_cache(name: str) -> bool:
    return name.rpartition(".")[2] in ("__abstractmethods__", "_abc_impl", "__annotations__", "__annotations_cache__")
