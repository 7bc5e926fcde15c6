# SPDX-License-Identifier: Apache-2.0
"""The check on the width of counts: across 2**24 in float32, 2**31 in int32, 2**32 in uint32, and narrower ones.

A leaf looks like a counter if every call adds whole numbers to it, and goes on doing so up to the edge of its dtype;
a ring index or a capped count does not. It is then set so that the calls of the check take it across that edge.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tallax._variables import Counter
from tallax.checking._matrix import Results, reported
from tallax.checking._program import Program
from tallax.checking._reference import Reference, called
from tallax.checking._report import Finding
from tallax.checking._sources import line_of_assignment
from tallax.checking._state import Snapshot, variables_of
from tallax.statistics import Statistic

_NOT_COUNTERS = (nnx.RngState, nnx.Cache)


def widths(program: Program, reference: Reference) -> Results:
    """A count is right on both sides of the largest number up to which its dtype counts."""
    findings, counters = [], 0
    for path in _like_counters(program, reference):
        dtype = reference.start[path].value.dtype
        edge = edge_of(dtype)
        if edge is None:
            continue
        counts = _steps(reference, path).sum(0) > 0  # the high word of a pair stands still, and is left alone
        # From here the last call comes to just below the edge, where every count of everything is still right.
        low = max(0, edge - 1 - int(np.max(_steps(reference, path).sum(0))))
        below, above = (_called_from(program, path, counts, at) for at in (low, edge - 1))
        if _strays(reference, below, path, counts, low):
            continue  # capped, or taken modulo something
        counters += 1
        stray = _strays(reference, above, path, counts, edge - 1)
        if not stray or _carries(below.end, above.end, path, counts):
            continue
        call, got, due = stray
        is_slow = dtype.kind in "iu" and dtype.itemsize >= 4 and not _grows_with_the_batch(program, reference, path)
        worst = np.unravel_index(int(np.argmax(np.abs(got - due))), got.shape)
        findings.append(
            Finding(
                "narrow-counter",
                path,
                f"counts in {dtype}, which is right up to {_power(edge)} only"
                + ("; it does not grow with the batch, so that takes long." if is_slow else "."),
                (f"set to {_power(edge)} - 1, then {call} calls",),
                got=str(got[worst]),
                expected=str(due[worst]),
                fix=f"self.{path.rsplit('/', 1)[-1]} = tallax.Counter(), exact up to 2**64 - 1",
                source=line_of_assignment(program.make(), path),
                is_warning=is_slow,
            )
        )
    yield from reported("width of counts", findings, f"{counters} found" if counters else "no counts")


def edge_of(dtype: Any) -> int | None:
    """Returns the first number up to which `dtype` counts by ones, after which it sticks or wraps; None if none is."""
    if jnp.issubdtype(dtype, jnp.floating):
        return 2 ** (jnp.finfo(dtype).nmant + 1)
    if jnp.issubdtype(dtype, jnp.integer) and np.dtype(dtype).itemsize <= 4:
        return int(jnp.iinfo(dtype).max) + 1
    return None


def _like_counters(program: Program, reference: Reference) -> list[str]:
    ours = _of_ours(program.make())
    return [
        path
        for path, leaf in reference.start.items()
        if path in reference.end
        and leaf.variable is not None
        and not issubclass(leaf.variable, (*_NOT_COUNTERS, Counter))
        and path not in ours
        and leaf.is_number
        and leaf.value.dtype.kind != "b"
        and all(path in state and state[path].kind == "variable" for state in reference.after)
        and all(state[path].value.shape == leaf.value.shape for state in reference.after)
        and _counts_up(reference, path)
    ]


def _of_ours(model: Any) -> set[str]:
    """Returns the paths within tallax's statistics: their counts are exact, their other words are no counts."""
    inside = [
        "/".join(map(str, (*path, "")))
        for path, node in nnx.iter_modules(model, graph=True)
        if isinstance(node, Statistic)
    ]
    return {path for path in variables_of(model) if path.startswith(tuple(inside))} if inside else set()


def _counts_up(reference: Reference, path: str) -> bool:
    values = np.array([_exact(state[path].value, whole=False) for state in (reference.start, *reference.after)], object)
    if any(value is None for value in values.ravel()):
        return False
    steps = np.diff(values, axis=0)
    return bool(np.all(steps >= 0)) and bool(np.all([np.any(step > 0) for step in steps]))


def _exact(value: np.ndarray, *, whole: bool = True) -> np.ndarray:
    """Returns an array of Python integers; with `whole=False`, None where an entry is not a whole number."""
    value = np.atleast_1d(np.asarray(value))
    if not jnp.issubdtype(value.dtype, jnp.integer):
        value = value.astype(np.float64)
    out = np.empty(value.shape, object)
    for index, entry in np.ndenumerate(value):
        is_whole = np.isfinite(entry) and entry == np.floor(entry)
        out[index] = int(entry) if is_whole else (float(entry) if whole else None)
    return out


def _steps(reference: Reference, path: str) -> np.ndarray:
    return np.diff(
        np.array([_exact(state[path].value) for state in (reference.start, *reference.after)], object), axis=0
    )


def _grows_with_the_batch(program: Program, reference: Reference, path: str) -> bool:
    """Whether a call with twice the batch adds more: it counts examples or tokens, which are soon 2**31, not calls."""
    once = _steps(reference, path)[0]
    if np.all(once <= 1):
        return False
    twice = tuple(jnp.concatenate([x, x]) if x.ndim else x for x in program.batches[0])
    try:
        ran = called(dataclasses.replace(program, batches=(twice,)), program.make())
        return bool(np.any(_steps(ran, path)[0] > once))
    except Exception:  # a model of a fixed batch does not tell
        return True


def _strays(
    reference: Reference, ran: Reference, path: str, counts: np.ndarray, at: int
) -> tuple[int, np.ndarray, np.ndarray] | None:
    """Returns the last call after which a count that started from `at` is not what it should be, and both counts."""
    start = _exact(reference.start[path].value)
    for call in range(len(ran.after), 0, -1):
        due = _exact(reference.after[call - 1][path].value)
        due = np.where(counts, at + (due - start), due)
        leaf = ran.after[call - 1].get(path)
        if leaf is None or leaf.kind != "variable" or np.shape(leaf.value) != np.shape(reference.start[path].value):
            return call, np.full(due.shape, -1, object), due
        got = _exact(leaf.value)
        if not np.array_equal(got, due):
            return call, got, due
    return None


def _called_from(program: Program, path: str, counts: np.ndarray, at: int) -> Reference:
    """Returns what calls leave if the entries that count at `path` start from `at`."""
    model = program.make()
    variables = variables_of(model)
    name = path
    while name not in variables:  # the raw value is a tree, and the path goes on within it
        name = name.rpartition("/")[0]
    rest = path[len(name) + 1 :]

    def preset(inner: Any, leaf: Any) -> Any:
        if jax.tree_util.keystr(inner, simple=True, separator="/") != rest:
            return leaf
        leaf = jnp.asarray(leaf)
        return jnp.where(counts.reshape(leaf.shape), jnp.asarray(at, leaf.dtype), leaf)

    variable = variables[name]
    variable.set_raw_value(jax.tree_util.tree_map_with_path(preset, variable.get_raw_value()))
    return called(program, model)


def _carries(below: Snapshot, above: Snapshot, path: str, counts: np.ndarray) -> bool:
    """Whether another integer takes up, above the edge, what this one could not hold: the high word of a wide count."""
    own = _exact(below[path].value) != _exact(above[path].value)
    return bool(np.any(own & ~counts)) or any(
        other != path
        and leaf.kind == "variable"
        and leaf.is_number
        and leaf.value.dtype.kind in "iu"
        and other in above
        and not np.array_equal(leaf.value, above[other].value)
        for other, leaf in below.items()
    )


def _power(edge: int) -> str:
    return f"2**{edge.bit_length() - 1}"
