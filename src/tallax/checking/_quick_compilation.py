# SPDX-License-Identifier: Apache-2.0
"""Settings of JAX under which the programs of a check compile quickly, for the time of the check only.

A check compiles about a hundred programs and runs each a few times, so that nearly all its time is XLA's. Two settings
change that, and neither changes which programs are traced, compiled or run:

- XLA compiles without most optimizations.
- The modes of a transformation often lower to the same program. JAX compares programs only in its persistent cache, so
  the check uses one in a temporary folder. If the user has set up a persistent cache, that one is used.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator

import jax
from jax.experimental.compilation_cache import compilation_cache

# `jax.jit` keys its programs by this value. Without it, a function that the user's code jits at module level would run
# unoptimized after the check, because `jax_disable_most_optimizations` is not part of the key.
_is_within_check = jax.make_user_context(False)


@contextlib.contextmanager
def quick_compilation() -> Iterator[None]:
    """Compiles quickly within the block. JAX's settings are global, so other threads compile quickly too."""
    settings: dict[str, bool | int | str | None] = {"jax_disable_most_optimizations": True}
    has_cache = jax.config.values["jax_enable_compilation_cache"] and jax.config.values["jax_compilation_cache_dir"]
    with contextlib.ExitStack() as stack:
        if not has_cache:
            settings |= {
                "jax_enable_compilation_cache": True,
                "jax_compilation_cache_dir": stack.enter_context(
                    tempfile.TemporaryDirectory(prefix="tallax-statecheck-", ignore_cleanup_errors=True)
                ),
                "jax_persistent_cache_min_compile_time_secs": 0,
                "jax_persistent_cache_min_entry_size_bytes": -1,
            }
        before = {name: jax.config.values[name] for name in settings}
        try:
            _apply(settings, reset=not has_cache)
            with _is_within_check(True):
                yield
        finally:
            _apply(before, reset=not has_cache)


def _apply(settings: dict[str, bool | int | str | None], *, reset: bool) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)
    if reset:  # JAX reads the folder once, and also remembers that there was none
        compilation_cache.reset_cache()
