# SPDX-License-Identifier: Apache-2.0
"""Strict numerics for every test: no implicit promotion of dtypes or ranks, warnings are errors, eight CPU devices."""

import os

# Read by XLA when the first backend starts, so before anything creates an array.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis
import jax

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Deadlines measure the machine, and compilation falls on the first example.
hypothesis.settings.register_profile("tallax", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("tallax")
