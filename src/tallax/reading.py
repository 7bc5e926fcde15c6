# SPDX-License-Identifier: Apache-2.0
"""Reads all state of a model at once: in one copy from the device to the host, or as arrays inside a trace."""

from __future__ import annotations

import dataclasses
import functools
import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tallax import _uint64
from tallax._arrays import home_of, is_committed, is_in_host_memory, is_ready, is_traced, unsplit
from tallax._display import worded
from tallax._errors import InvalidTypeError, TracedReadError, describe
from tallax._walk import groups_of
from tallax.runs import StateInfo
from tallax.runs._html import state_table
from tallax.schedules import ScheduledValue
from tallax.statistics import Statistic
from tallax.variables import Buffer, Counter

_MANY = 8  # more arrays than this are gathered first, so that there is one copy to wait for


def collect(*objects: Any) -> Reading:
    """Starts to copy all state of some objects to the host, and returns immediately.

    The values are those at the time of the call, even if the objects change later or their arrays are donated. Arrays
    on a device are first gathered into one array there, and then copied at once. If a compiled step owns the state,
    `step.collect()` is faster.

    Args:
        *objects: Modules and optimizers. If two have state of the same name, names begin with the number of the object:
            `0/step`, `1/step`.

    Raises:
        InvalidTypeError: An object is not a module, or the state of a statistic was cast.
        ReplicasError: A variable has per-replica state.
        TracedReadError: The call is inside a trace. Use `snapshot` there, which returns arrays.

    Example:
        >>> import jax.numpy as jnp, tallax
        >>> from flax import nnx
        >>> model = nnx.Dict(step=tallax.Counter(), gate=nnx.Dict(fired=tallax.statistics.Rate()))
        >>> model.step += 1
        >>> model.gate.fired.update(jnp.array([True, False]))
        >>> reading = tallax.collect(model)
        >>> model.step += 1
        >>> reading.result()
        {'gate/fired': RateResult(fired=1, total=2, rate=0.5), 'step': 1}
    """
    return reading_of(entries_of(objects))


def reading_of(entries: Sequence[Entry]) -> Reading:
    """Starts to copy the values of some entries to the host.

    Raises:
        ReplicasError: A variable has per-replica state.
        TracedReadError: The call is inside a trace.
    """
    states: list[Any] = []
    for entry in entries:
        if any(map(_is_traced, entry.items.values())):
            raise TracedReadError(
                entry.name,
                "has no value on the host inside a trace.",
                got="collect(...) inside a compiled function",
                fix="tallax.snapshot(model), which returns arrays; or collect(model) outside",
            )
        states += entry.stored()
    there = [k for k, state in enumerate(states) if isinstance(state, jax.Array)]

    arrays = [states[k] for k in there]
    for k in there:
        states[k] = None  # otherwise a reading would keep the objects alive

    def decode(copies: list[np.ndarray]) -> Decoded:
        copied = iter(copies)
        here = (next(copied) if state is None else state for state in states)
        values = {entry.name: entry.value([next(here) for _ in entry.items]) for entry in entries}
        return values, errors_among(values.values())

    return Reading(entries, arrays, decode)


def reading_of_arrays(arrays: Mapping[str, jax.Array]) -> Reading:
    """Starts to copy some arrays to the host. The result has them by name."""
    names = list(arrays)  # not the arrays, whose memory a reading must not keep
    return Reading((), list(arrays.values()), lambda copies: (dict(zip(names, copies, strict=True)), []))


def _is_traced(variable: Counter | Buffer) -> bool:
    """Returns whether the value of a variable is traced; a count of a compiled step may be a tree of arrays."""
    raw = variable.get_raw_value()
    return type(raw) is not np.ndarray and is_traced(*jax.tree.leaves(raw))


def snapshot(*objects: Any) -> dict[str, Any]:
    """Returns all state of some objects as arrays, with the same names as `collect`.

    You can use the arrays inside a compiled function, or return them from it. Counts are int32, saturated at 2**31 - 1.

    Args:
        *objects: Modules and optimizers.

    Raises:
        InvalidTypeError: An object is not a module.
        ReplicasError: A variable has per-replica state.

    Example:
        >>> import jax.numpy as jnp, tallax
        >>> from flax import nnx
        >>> model = nnx.Dict(step=tallax.Counter(), scale=tallax.Buffer(jnp.ones(2)))
        >>> nnx.jit(tallax.snapshot)(model)
        {'scale': Array([1., 1.], dtype=float32), 'step': Array(0, dtype=int32)}
    """
    return {entry.name: _as_arrays(entry) for entry in entries_of(objects)}


class Reading:
    """The values of the state at one time, which are being copied to the host.

    `collect` and `CompiledStep.collect` return readings. A reading that you drop has no further cost.

    Attributes:
        entries: The entries, in the order of their names in `result`.

    Args:
        entries: The entries to read.
        arrays: The arrays on devices.
        decode: A function from these arrays on the host to the value of each entry by name, and the errors among them.
        lasting: Whether the arrays will not be overwritten. If False, they are gathered before this returns.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        arrays: Sequence[jax.Array],
        decode: Callable[[list[np.ndarray]], Decoded],
        *,
        lasting: bool = False,
    ):
        self.entries: Sequence[Entry] = entries
        self._decode = decode
        self._copies = _Copies(arrays, gather=not lasting or len(arrays) > _MANY)
        self._lock = threading.Lock()
        self._result: Decoded | None = None

    def done(self) -> bool:
        """Returns whether `result` would return without waiting for the device."""
        return self._result is not None or self._copies.are_ready()

    def result(self) -> dict[str, Any]:
        """Returns the values by name. The first call waits for the copy. Any thread may call it.

        Returns:
            The values by path. A statistic or a `ScheduledValue` has one entry with its record or number. Every other
            Variable has its own entry. A count is an exact int, or a uint64 array if the Counter has a shape. A Buffer
            is a Python number, or an array if it has a shape. Do not write to the arrays.

        Raises:
            RuntimeError: The program that computes the values failed. This is JAX's own error.
        """
        values, errors = self._decoded()
        if errors:
            raise errors[0]
        return values

    def outcomes(self) -> dict[str, Any]:
        """Like `result`, but with an `Unreadable` for each statistic that raised in `read()`."""
        return self._decoded()[0]

    def _decoded(self) -> Decoded:
        with self._lock:
            if self._result is None:
                self._result = self._decode(self._copies.on_host())
                self._copies = _Copies((), gather=False)
        return self._result

    def __repr__(self) -> str:
        return f"<Reading of {len(self.entries)} items: {'ready' if self.done() else 'on its way'}>"

    def _repr_html_(self) -> str:
        """Returns the values as HTML. Like `result`, it waits for the copy."""
        values = self.result()
        rows = [(entry.name, entry.description, worded(values[entry.name])) for entry in self.entries]
        return state_table(f"{len(rows)} names", rows)


@dataclass(frozen=True)
class Unreadable:
    """Stands for a value that could not be read.

    Attributes:
        error: The exception that the statistic raised.
    """

    error: Exception


# Values by name, and the errors of those that are `Unreadable`: a search of 1,000 counts for errors takes 22 us, so
# the decoder reports them, which knows which values cannot have any.
Decoded: TypeAlias = tuple[dict[str, Any], list[Exception]]


def errors_among(values: Iterable[Any]) -> list[Exception]:
    """Returns the errors of the values that are `Unreadable`."""
    return [value.error for value in values if type(value) is Unreadable]


@dataclass(frozen=True)
class Entry:
    """The state under one name: a single Variable, or a statistic or `ScheduledValue` with its Variables.

    Attributes:
        name: The path, joined by slashes.
        items: The Variables by attribute. The name of a single Variable is empty.
        owner: The statistic or `ScheduledValue` that owns the Variables, or None.
    """

    name: str
    items: Mapping[str, Counter | Buffer]
    owner: Statistic | ScheduledValue | None

    @property
    def item(self) -> Counter | Buffer:
        """The Variable. If there are several, this is the one with the largest array."""
        if len(self.items) == 1:
            return next(iter(self.items.values()))
        return max(self.items.values(), key=lambda item: item.get_raw_value().nbytes)

    @functools.cached_property
    def description(self) -> StateInfo:
        """The kind, shape and size, without the value. The dtype and shape are those of the largest array."""
        item = self.item
        raw = item.get_raw_value()
        shape, kind = raw.shape, type(item if self.owner is None else self.owner).__name__
        if isinstance(item, Counter):
            shape = shape[:-1]
        size = sum(each.get_raw_value().nbytes for each in self.items.values())
        return StateInfo(kind, tuple(shape), str(raw.dtype), size, bool(item.get_metadata("persistent", True)))

    def stored(self) -> list[Any]:
        """Returns the state without moving it: one array for each Variable. A Counter is returned as words."""
        if self.owner is not None:
            return list(self.owner.stored_state().values())
        return [item._exact() for item in self.items.values()]

    def value(self, states: Sequence[np.ndarray]) -> Any:
        """Returns the value of a state on the host. If `read()` raises, an `Unreadable`, so that no other is lost."""
        if self.owner is not None:
            try:
                return self.owner.read(dict(zip(self.items, states, strict=True)))
            except Exception as error:
                return Unreadable(error)
        (state,) = states
        if isinstance(self.item, Counter):
            if state.ndim > 1:
                return _uint64.to_uint64(state)
            low, high = state.tolist()
            return low + (high << 32)
        return state if state.ndim else state.item()


def entries_of(objects: Sequence[Any], names: Sequence[str] | None = None) -> list[Entry]:
    """Returns the entries of some objects, each once.

    If two objects have state of the same name, the names of the objects are used as prefixes.

    Raises:
        InvalidTypeError: An object is not a module.
    """
    entries: dict[str, Entry] = {}
    for number, thing in enumerate(objects):
        if not isinstance(thing, nnx.Pytree):
            raise InvalidTypeError(
                "collect",
                "requires modules or optimizers.",
                got=describe(thing),
                fix="collect(model); log(model, loss=loss) for a Logger's numbers",
            )
        groups = groups_of(thing, Counter | Buffer)
        found = [Entry(group.name, dict(group.variables), cast(Any, group.owner)) for group in groups]
        label = names[number] if names is not None else str(number)
        while any(entry.name in entries for entry in found):  # the prefix itself may be the name of an entry
            found = [dataclasses.replace(entry, name=f"{label}/{entry.name}") for entry in found]
        entries.update((entry.name, entry) for entry in found)
    return list(entries.values())


def _as_arrays(entry: Entry) -> Any:
    if entry.owner is None:
        return entry.item.get_value()
    return jax.tree.map(jnp.asarray, entry.owner.read(entry.owner.state_here()))


class _Copies:
    """Arrays that are being copied to the host: unchanged, or gathered into few arrays."""

    def __init__(self, arrays: Sequence[jax.Array], *, gather: bool):
        # NumPy has no random keys, so their words are copied.
        arrays = [array if isinstance(array.dtype, np.dtype) else jax.random.key_data(array) for array in arrays]
        self._arrays = arrays
        self._vectors: list[tuple[list[int], jax.Array]] = []
        if gather:
            self._shapes = [(array.shape, array.dtype) for array in arrays]
            self._gather(arrays)
            self._arrays = [vector for _, vector in self._vectors]
        for array in self._arrays:
            if not is_in_host_memory(array):
                array.copy_to_host_async()

    def _gather(self, arrays: Sequence[jax.Array]) -> None:
        groups: dict[Any, list[int]] = {}
        for k, array in enumerate(arrays):
            groups.setdefault(frozenset(array.sharding.device_set) if is_committed(array) else None, []).append(k)
        for numbers in groups.values():
            chosen = tuple(arrays[k] for k in numbers)
            gathered = _gatherer(home_of(chosen))(chosen)
            for members, vector in zip(_by_kind([arrays[k].dtype for k in numbers]).values(), gathered, strict=True):
                self._vectors.append(([numbers[k] for k in members], vector))

    def are_ready(self) -> bool:
        return all(map(is_ready, self._arrays))

    def on_host(self) -> list[np.ndarray]:
        """Returns the arrays, which may be views of device memory."""
        if not self._vectors:
            return [np.asarray(array) for array in self._arrays]
        found: dict[int, np.ndarray] = {}
        for numbers, vector in self._vectors:
            flat, start = np.asarray(vector), 0
            for k in numbers:
                shape, dtype = self._shapes[k]
                end = start + math.prod(shape)
                found[k] = flat[start:end].view(dtype).reshape(shape)
                start = end
        return [found[k] for k in range(len(self._shapes))]


def _by_kind(dtypes: Sequence[Any]) -> dict[Any, list[int]]:
    """Returns the groups of arrays that are gathered into one vector: all 32-bit arrays, and others by dtype."""
    kinds: dict[Any, list[int]] = {}
    for k, dtype in enumerate(dtypes):
        kinds.setdefault("words" if dtype.itemsize == 4 else str(dtype), []).append(k)
    return kinds


@functools.cache
def _gatherer(home: jax.sharding.Sharding | None) -> Callable[[tuple[jax.Array, ...]], list[jax.Array]]:
    # Replicated on every device, so that every process can read it.
    return jax.jit(functools.partial(_gather, home=home), out_shardings=home)


def _gather(arrays: tuple[jax.Array, ...], home: jax.sharding.Sharding | None) -> list[jax.Array]:
    vectors = []
    for kind, numbers in _by_kind([array.dtype for array in arrays]).items():
        parts = [unsplit(arrays[k]).ravel() for k in numbers]
        if isinstance(home, jax.NamedSharding) and home.mesh.size > 1:
            # Without the constraint XLA splits the vector over the devices, and gathers all of it a second time.
            parts = [jax.lax.with_sharding_constraint(part, home) for part in parts]
        if kind == "words":
            parts = [jax.lax.bitcast_convert_type(part, jnp.uint32) for part in parts]
        vectors.append(jnp.concatenate(parts))
    return vectors
