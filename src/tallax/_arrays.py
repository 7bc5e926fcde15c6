# SPDX-License-Identifier: Apache-2.0
"""Predicates and conversions for arrays: traced, pending, committed, on the host."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.errors import ConcretizationTypeError, TracerArrayConversionError, TracerIntegerConversionError

# The errors of JAX for Python code that needs the value of a traced array.
NEEDS_A_VALUE = (ConcretizationTypeError, TracerArrayConversionError, TracerIntegerConversionError)


def is_traced(*values: Any) -> bool:
    """Returns whether any of the values is traced, so that it exists only when a compiled program runs."""
    return any(isinstance(value, Tracer) for value in values)


def is_ready(value: jax.Array) -> bool:
    """Returns whether a concrete array can be read without waiting for the device."""
    return value.is_ready()  # pyright: ignore[reportAttributeAccessIssue]  # public, but missing from jax's annotations


def is_in_host_memory(value: jax.Array) -> bool:
    """Returns whether a concrete array needs no copy to be read by the host."""
    return _is_host(value.sharding)


@functools.lru_cache(maxsize=64)
def _is_host(sharding: jax.sharding.Sharding) -> bool:
    return all(device.platform == "cpu" for device in sharding.device_set)


def is_committed(value: Any) -> bool:
    """Returns whether the array was put on particular devices, as `jax.device_put` and shardings do."""
    return isinstance(value, jax.Array) and not is_traced(value) and value.committed


def on_host(raw: Any) -> np.ndarray | None:
    """Returns an array as NumPy, or None if this would wait for the device or lose a deliberate placement."""
    if isinstance(raw, np.ndarray):
        return np.asarray(raw)  # JAX's derivatives pass a subclass
    if isinstance(raw, jax.Array) and not is_traced(raw) and not is_committed(raw) and is_ready(raw):
        return np.asarray(raw)
    return None


_to_device = jax.jit(lambda x: x)  # the quickest way from NumPy to a jax.Array (6 us, where jnp.asarray takes 17)


def to_device(value: np.ndarray | np.generic) -> jax.Array:
    """Returns a NumPy array as a JAX array on the default device."""
    try:
        return _to_device(value)
    except jax.errors.JaxRuntimeError:  # an explicit transfer, which `jax.transfer_guard("disallow")` permits
        return jax.device_put(value)


def as_guarded(f: Callable[..., Any], *arrays: jax.Array) -> Any:
    """Returns `f(*arrays)`. Under a transfer guard it is compiled, because op by op JAX would transfer constants."""
    try:
        return f(*arrays)
    except jax.errors.JaxRuntimeError:
        return jax.jit(f)(*arrays)


def placed(value: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    """Returns a value that is equal in every process as an array with a sharding, which may span processes."""
    if sharding.is_fully_addressable:
        return jax.device_put(value, sharding)
    return jax.jit(_same, out_shardings=sharding)(value)  # `device_put` does not accept an array of one process here


def _same(value: jax.Array) -> jax.Array:
    return value


def home_of(values: Iterable[Any]) -> jax.sharding.Sharding | None:
    """Returns the sharding for values without a placement: replicated over the mesh of the other values."""
    shardings = [value.sharding for value in values if is_committed(value)]
    for sharding in shardings:
        if isinstance(sharding, jax.NamedSharding):
            return jax.NamedSharding(sharding.mesh, jax.P())
    return shardings[0] if len(set(shardings)) == 1 else None


def unsplit(value: jax.Array) -> jax.Array:
    """Returns `value` replicated on every device if an explicit mesh splits it, for example by heads or experts.

    State is replicated and stays so, and JAX refuses to stack or concatenate split and replicated arrays.
    """
    sharding = jax.typeof(value).sharding
    if not any(sharding.spec):
        return value
    return jax.sharding.reshard(value, jax.NamedSharding(sharding.mesh, jax.P(*(None for _ in value.shape))))
