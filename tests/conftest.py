# SPDX-License-Identifier: Apache-2.0
"""What tests of other people's modules share."""

import jax
import pytest


@pytest.fixture
def as_users_run_it():
    """JAX's own promotion of dtypes and ranks, and quick compilation: checks compile much and run little."""
    jax.config.update("jax_disable_most_optimizations", True)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()  # hundreds of programs that nobody will run again
