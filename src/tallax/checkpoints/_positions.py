# SPDX-License-Identifier: Apache-2.0
"""The position in the data: the state of an iterator as an array of a checkpoint.

An iterator takes part if it has `get_state` and `set_state`, as those of grain do, or `state_dict` and
`load_state_dict`, as those of torchdata do. Its state is written as JSON, in the same commit as everything else, so
that a kill can never leave parameters of one step beside a position of another. Pickle is not used: a checkpoint must
not run code.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from tallax._errors import InvalidTypeError, RestoreError, describe

POSITION = "position"  # the kind of the entry
_METHODS = (("get_state", "set_state"), ("state_dict", "load_state_dict"))


def has_position(thing: Any) -> bool:
    """Returns whether an object can tell its position and be set to one."""
    is_class = isinstance(thing, type)
    return not is_class and any(all(callable(getattr(thing, name, None)) for name in pair) for pair in _METHODS)


def read_position(name: str, thing: Any) -> np.ndarray:
    """Returns the position of an iterator as bytes, with the positions of all processes: each reads its own data.

    Raises:
        InvalidTypeError: Its state has something that JSON cannot write.
    """
    getter = thing.get_state if callable(getattr(thing, "get_state", None)) else thing.state_dict
    state = getter()
    try:
        text = json.dumps([_encoded(state)], separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidTypeError(
            name,
            "the state of an iterator is stored as JSON.",
            got=f"{describe(state)} ({error})",
            expected="numbers, text, bytes, NumPy arrays, and lists and dicts of these",
            fix="get_state and set_state of these, or extra= for state that you restore yourself",
        ) from None
    return _gathered(np.frombuffer(text.encode(), np.uint8))


def _gathered(position: np.ndarray) -> np.ndarray:
    if jax.process_count() == 1:
        return position
    sizes = np.asarray(multihost_utils.process_allgather(np.array([position.size]))).reshape(-1)
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: position.size] = position
    rows = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(sizes), -1)
    states = [json.loads(row[:size].tobytes())[0] for row, size in zip(rows, sizes, strict=True)]
    return np.frombuffer(json.dumps(states, separators=(",", ":")).encode(), np.uint8)


def write_position(name: str, thing: Any, position: Any) -> None:
    """Sets an iterator to a position.

    Raises:
        RestoreError: Another number of processes saved it, each at a position of its own; or the iterator refuses it.
    """
    states = states_in(position)
    index, count = jax.process_index(), jax.process_count()
    if len(states) != count and any(state != states[0] for state in states):
        raise RestoreError(
            name,
            "was saved by another number of processes, each at a position of its own.",
            got=f"{len(states)} positions",
            expected=f"{count}, one for each process",
            fix="restore it with as many processes; or without the iterator, with its name in unexpected=[...]",
        )
    state = _decoded(states[index] if len(states) == count else states[0])
    setter = thing.set_state if callable(getattr(thing, "set_state", None)) else thing.load_state_dict
    try:
        setter(state)
    except Exception as error:
        raise RestoreError(
            name,
            "the iterator does not accept the saved position.",
            got=f"{type(error).__name__}: {error}".split("\n")[0][:200],
            fix="make the iterator as it was when it was saved: the same datasets, transformations and batch size",
        ) from error


def states_in(position: Any) -> list[Any]:
    """Returns the states of all processes, as JSON has them."""
    return json.loads(np.asarray(position, np.uint8).tobytes())


def _encoded(value: Any) -> Any:
    """Returns a state as JSON has it; what JSON lacks becomes a dict with one tag."""
    if value is None or (isinstance(value, bool | int | float | str) and not isinstance(value, np.generic)):
        return value
    if isinstance(value, bytes | bytearray):
        return {"$bytes": base64.b64encode(value).decode()}
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        host = np.asarray(value)
        if host.dtype == object:
            raise TypeError("an array of objects")
        data = base64.b64encode(np.ascontiguousarray(host).tobytes()).decode()
        tag = "$number" if isinstance(value, np.generic) else "$array"
        return {tag: [str(host.dtype), list(host.shape), data]}
    if isinstance(value, tuple):
        return {"$tuple": [_encoded(entry) for entry in value]}
    if isinstance(value, list):
        return [_encoded(entry) for entry in value]
    if isinstance(value, Mapping):
        if any(not isinstance(key, str) for key in value):
            return {"$items": [[_encoded(key), _encoded(entry)] for key, entry in value.items()]}
        if len(value) == 1 and next(iter(value)).startswith("$"):
            raise TypeError(f"a dict with the one key {next(iter(value))!r}")
        return {key: _encoded(entry) for key, entry in value.items()}
    raise TypeError(f"a {type(value).__name__}")


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((tag, body),) = value.items()
        if tag == "$bytes":
            return base64.b64decode(body)
        if tag == "$tuple":
            return tuple(_decoded(entry) for entry in body)
        if tag == "$items":
            return {_decoded(key): _decoded(entry) for key, entry in body}
        if tag in ("$array", "$number"):
            dtype, shape, data = body
            array = np.frombuffer(base64.b64decode(data), jnp.dtype(dtype)).reshape(shape).copy()
            return array[()] if tag == "$number" else array
    return {key: _decoded(entry) for key, entry in value.items()}
