# SPDX-License-Identifier: Apache-2.0
"""The settings of a process that compiles many small programs and runs each a few times."""

from __future__ import annotations

import gc
import importlib.metadata
from collections.abc import Mapping

# XLA's fusion emitters for the CPU take 15 of the 40 ms of processor time in which jaxlib 0.10 compiles one operation,
# and half of the time for a program of some hundred. Without them, a product and a sum may be rounded separately: the
# last bits of floats can differ, counts can't. jaxlib 0.12 has no such flag, and XLA ends the process if it does not
# know a flag, so the flag is passed to no untested version.
_WITHOUT_EMITTERS = {"0.10": "--xla_cpu_use_fusion_emitters=false"}


def quick_xla_flags(present: str = "") -> str:
    """Returns the value of `XLA_FLAGS` for such a process, given the present value."""
    release = ".".join(importlib.metadata.version("jaxlib").split(".")[:2])
    return f"{present} {_WITHOUT_EMITTERS.get(release, '')}".strip()


def cached_programs(folder: str, present: Mapping[str, str]) -> dict[str, str]:
    """Returns an environment in which JAX keeps all compiled programs in a folder, unless the user has set a cache."""
    if "JAX_COMPILATION_CACHE_DIR" in present:
        return dict(present)
    return {
        **present,
        "JAX_COMPILATION_CACHE_DIR": folder,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def compile_quickly() -> None:
    """Sets up this process, which belongs to tallax alone, after its imports.

    XLA leaves out its costly optimizations. Python collects garbage among new objects only: a check makes some millions
    of objects, for which it would search all modules of JAX and Flax several times.
    """
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    gc.freeze()
    young, middle, old = gc.get_threshold()
    gc.set_threshold(young, middle, 10 * old)
