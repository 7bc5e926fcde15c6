# SPDX-License-Identifier: Apache-2.0
"""`assert_replicated`: a check that the copies on all devices and in all processes are equal."""

from __future__ import annotations

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.nnx import filterlib
from jax.experimental import multihost_utils

from tallax._arrays import is_traced
from tallax._errors import ReplicasError, TracedReadError, describe
from tallax.variables import Buffer, Counter

_DIGEST = 16  # bytes


def assert_replicated(model: Any, *, only: Any = (Counter, Buffer)) -> None:
    """Raises if a replicated value differs, in any bit, between devices or processes.

    It detects a batch that each process passed to a compiled step as its own NumPy array, a step that some processes
    skipped, and a `shard_map` with `check_vma=False` that returned a different value on each device. All processes must
    call it together. It copies the values to the host, and exchanges 32 bytes for each array and device.

    Args:
        model: A module, or any other node of Flax NNX's graph.
        only: An NNX filter that selects the Variables to compare. By default these are the tallax variables; `...`
            selects all, including parameters.

    Raises:
        ReplicasError: Copies differ, or the processes do not have the same Variables.
        TracedReadError: Called inside a trace.

    Example:
        >>> from flax import nnx
        >>> import tallax
        >>> tallax.assert_replicated(nnx.Dict(step=tallax.StepCounter(nnx.Rngs(0))))
    """
    selected = filterlib.to_predicate(only)
    chosen = [
        (path, variable)
        for path, variable in nnx.iter_graph(model)
        if isinstance(variable, nnx.Variable) and selected(path, variable)
    ]
    for _, variable in chosen:
        check_concrete(variable)
    arrays = [np.shape(variable.get_raw_value()) for _, variable in chosen]
    outline = _digest(repr([(path, shape) for (path, _), shape in zip(chosen, arrays, strict=True)]).encode())
    if len(np.unique(_from_all_processes(np.frombuffer(outline, np.uint8)), axis=0)) > 1:
        raise ReplicasError(
            "assert_replicated",
            "all processes must have the same Variables.",
            got="different Variables or shapes in another process",
            fix="build the same model in all processes, and call assert_replicated in all of them",
        )
    if not chosen:
        return
    own = np.zeros((len(chosen), jax.local_device_count(), 2 * _DIGEST), np.uint8)
    for row, (_, variable) in zip(own, chosen, strict=True):
        for cell, (place, content) in zip(row, fingerprints(variable), strict=False):
            cell[:] = np.frombuffer(place + content, np.uint8)
    everywhere = _from_all_processes(own)
    for number, (_, variable) in enumerate(chosen):
        copies: dict[bytes, set[bytes]] = {}
        for cell in everywhere[:, number].reshape(-1, 2 * _DIGEST):
            if cell.any():
                copies.setdefault(cell[:_DIGEST].tobytes(), set()).add(cell[_DIGEST:].tobytes())
        check_alike(variable, copies)


def check_concrete(variable: nnx.Variable[Any]) -> None:
    if is_traced(variable.get_raw_value()):
        raise TracedReadError(
            variable,
            "replicas can only be laid out, combined or compared outside a trace, between steps.",
            got=describe(variable.get_raw_value()),
            fix="call it outside of jit and shard_map",
        )


def check_alike(variable: nnx.Variable[Any], copies: dict[bytes, set[bytes]]) -> None:
    most = max(map(len, copies.values()), default=1)
    if most > 1:
        raise ReplicasError(
            variable,
            "the copies of a replicated value differ between devices or processes.",
            got=f"{most} different values",
            fix="jax.make_array_from_process_local_data(sharding, x) for the batch of several processes; "
            "shard_map with check_vma=True; or reduce= if each replica has its own value",
        )


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST).digest()


def fingerprints(variable: nnx.Variable[Any]) -> list[tuple[bytes, bytes]]:
    """Returns two digests for each device of this process: of the index of its part, and of the bits of the part."""
    value = variable.get_raw_value()
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    if not isinstance(value, jax.Array):
        value = np.asarray(value)
        parts = [(tuple(slice(None) for _ in value.shape), value)]
    else:
        parts = [(shard.index, np.asarray(shard.data)) for shard in value.addressable_shards]
    places = [[part.indices(size) for part, size in zip(index, value.shape, strict=True)] for index, _ in parts]
    return [
        (_digest(repr(place).encode()), _digest(str(data.dtype).encode() + data.tobytes()))
        for place, (_, data) in zip(places, parts, strict=True)
    ]


def _from_all_processes(own: np.ndarray) -> np.ndarray:
    """Returns uint8[processes, *shape]."""
    return np.asarray(multihost_utils.process_allgather(own)).reshape(-1, *own.shape)
