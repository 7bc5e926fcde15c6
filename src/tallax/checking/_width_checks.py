# SPDX-License-Identifier: Apache-2.0
"""The check on the width of counts: 2**24 in float32, 2**31 in int32, 2**32 in uint32, and narrower dtypes.

A leaf is treated as a counter if every call adds the same to it, from any start up to the edge of its dtype. An
average, a ring index or a capped count does not behave so. The leaf is then set to a value from which the calls of the
check cross the edge. Its initial value does not matter: a count may start at 1e-4 to avoid a division by zero.

If the increments are whole numbers, every total below the edge must be exact. Otherwise totals are compared up to the
rounding of their dtype, and the edge is the total at which an increment is rounded away.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tallax.checking._check_results import Results, reported
from tallax.checking._diagnosis import finding_of
from tallax.checking._program import Program, Reference, called
from tallax.checking._report import Finding
from tallax.checking._snapshot import Snapshot, is_within, paths_of, variables_of
from tallax.statistics import Statistic
from tallax.variables import Counter

_NOT_COUNTERS = (nnx.RngState, nnx.Cache)
# The values of these Variables are trained, or follow trained values: a constant gradient is not a count.
_NOT_SUMS = (nnx.Param, nnx.OptState)


def widths(program: Program, reference: Reference) -> Results:
    """A count is correct on both sides of the largest number to which its dtype can count."""
    findings, counters = [], 0
    for path in _like_counters(program, reference):
        edge = edge_of(reference.start[path].value.dtype)
        if edge is None:
            continue
        steps = _whole_steps(reference, path)
        if steps is not None:
            is_counter, found = _whole(program, reference, path, steps, edge)
        elif _may_sum(reference, path):
            is_counter, found = _fractional(program, reference, path, edge)
        else:
            continue
        counters += is_counter
        findings += found
    yield from reported("width of counts", findings, f"{counters} found" if counters else "no counts")


def edge_of(dtype: Any) -> int | None:
    """Returns the first number at which a count in `dtype` sticks or wraps, or None."""
    if jnp.issubdtype(dtype, jnp.floating):
        return 2 ** (jnp.finfo(dtype).nmant + 1)
    if jnp.issubdtype(dtype, jnp.integer) and np.dtype(dtype).itemsize <= 4:
        return int(jnp.iinfo(dtype).max) + 1
    return None


# --- candidates -------------------------------------------------------------------------------------------------------


def _like_counters(program: Program, reference: Reference) -> list[str]:
    ours = _of_ours(program.new_model())
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
        and _goes_up(reference, path)
    ]


def _of_ours(model: Any) -> set[str]:
    """Returns the paths within tallax's statistics. Their counts are exact, and their other arrays are not counts."""
    statistics = paths_of(model, Statistic)
    return {path for path in variables_of(model) if is_within(path, statistics)}


def _goes_up(reference: Reference, path: str) -> bool:
    """Returns whether no entry ever decreases, and every call increases at least one entry."""
    steps = _steps(reference, path)
    return bool(np.all(steps >= 0)) and all(bool(np.any(step > 0)) for step in steps)


def _exact(value: Any) -> np.ndarray:
    """Returns an array of Python numbers. Whole numbers become integers, which do not overflow."""
    value = np.atleast_1d(np.asarray(value))
    if not jnp.issubdtype(value.dtype, jnp.integer):
        value = value.astype(np.float64)
    out = np.empty(value.shape, object)
    for index, entry in np.ndenumerate(value):
        out[index] = int(entry) if np.isfinite(entry) and entry == np.floor(entry) else float(entry)
    return out


def _steps(reference: Reference, path: str) -> np.ndarray:
    values = [_exact(state[path].value) for state in (reference.start, *reference.after)]
    with np.errstate(invalid="ignore"):
        return np.diff(np.array(values, object), axis=0)


def _whole_steps(reference: Reference, path: str) -> np.ndarray | None:
    """Returns the increments of each call as integers, or None if rounding does not explain a fraction."""
    steps = _steps(reference, path)
    dtype = reference.start[path].value.dtype
    if not jnp.issubdtype(dtype, jnp.floating):
        return steps
    eps = float(jnp.finfo(dtype).eps)
    size = np.max(np.abs(np.asarray(reference.end[path].value, np.float64)))
    if not np.isfinite(size):
        return None
    rounded = np.round(steps.astype(np.float64))
    # A whole number plus an offset, such as 8 + 1e-4, is rounded to its dtype, and so are its increments.
    if np.any(np.abs(steps.astype(np.float64) - rounded) > 2 * eps * size) or not np.any(rounded > 0):
        return None
    return np.vectorize(int, otypes=[object])(rounded)


# --- whole increments -------------------------------------------------------------------------------------------------


def _whole(
    program: Program, reference: Reference, path: str, steps: np.ndarray, edge: int
) -> tuple[bool, list[Finding]]:
    """Returns whether a leaf counts in whole numbers, and the finding at the edge, if any."""
    counts = steps.sum(0) > 0  # the high word of a pair does not change, and is skipped
    # From this start, the last call ends just below the edge, where every count is still exact.
    low = max(0, edge - 1 - int(np.max(steps.sum(0))))
    below, above = (_called_from(program, path, counts, at) for at in (low, edge - 1))
    if _strays(reference, below, path, steps, counts, low):
        return False, []  # capped, or taken modulo a number
    stray = _strays(reference, above, path, steps, counts, edge - 1)
    if not stray or _carries(below.end, above.end, path, counts):
        return True, []
    call, got, due = stray
    dtype = reference.start[path].value.dtype
    is_slow = dtype.kind in "iu" and dtype.itemsize >= 4 and not _grows_with_the_batch(program, reference, path)
    worst = np.unravel_index(int(np.argmax(np.abs(got - due))), got.shape)
    message = f"counts in {dtype}, which is exact up to {_power(edge)} only"
    return True, [
        finding_of(
            "narrow-counter",
            path,
            message + ("; it does not grow with the batch, so it takes long to get there." if is_slow else "."),
            f"set to {_power(edge)} - 1, then {call} calls",
            got=str(got[worst]),
            expected=str(due[worst]),
            model=program.new_model(),
            is_warning=is_slow,
        )
    ]


def _grows_with_the_batch(program: Program, reference: Reference, path: str) -> bool:
    """Returns whether twice the batch adds more: then examples or tokens are counted, which soon reach 2**31."""
    once = _steps(reference, path)[0]
    if np.all(once <= 1):
        return False
    twice = tuple(jnp.concatenate([x, x]) if x.ndim else x for x in program.batches[0])
    try:
        ran = called(dataclasses.replace(program, batches=(twice,)), program.new_model())
        return bool(np.any(_steps(ran, path)[0] > once))
    except Exception:  # the model accepts only this batch size
        return True


def _strays(
    reference: Reference, ran: Reference, path: str, steps: np.ndarray, counts: np.ndarray, at: int
) -> tuple[int, np.ndarray, np.ndarray] | None:
    """Returns the last call after which a count that started from `at` is wrong, with the wrong and the right count."""
    start = _exact(reference.start[path].value)
    for call in range(len(ran.after), 0, -1):
        due = np.where(counts, at, start) + steps[:call].sum(0)
        leaf = ran.after[call - 1].get(path)
        if leaf is None or leaf.kind != "variable" or np.shape(leaf.value) != np.shape(reference.start[path].value):
            return call, np.full(due.shape, -1, object), due
        got = _exact(leaf.value)
        if np.any(np.where(counts, got != due, False)):
            return call, got, due
    return None


# --- other increments -------------------------------------------------------------------------------------------------


def _may_sum(reference: Reference, path: str) -> bool:
    leaf = reference.start[path]
    return (
        jnp.issubdtype(leaf.value.dtype, jnp.floating)
        and leaf.variable is not None
        and not issubclass(leaf.variable, _NOT_SUMS)
        and bool(np.all(np.isfinite(np.asarray(reference.end[path].value, np.float64))))
    )


def _fractional(program: Program, reference: Reference, path: str, edge: int) -> tuple[bool, list[Finding]]:
    """Returns whether a leaf sums fractional increments, and the finding for a large total, if any.

    It is a sum if each call adds the same, except for rounding, from two larger starts: one at which the increments
    keep half of their digits, and one at which they keep two bits. From these starts an average changes by a different
    amount, and a capped or wrapped value does not reach the same sum.
    """
    steps = _steps(reference, path).astype(np.float64)
    total = steps.sum(0)
    counts = total > 0
    largest = float(np.max(steps))
    unit = 2.0 ** np.ceil(np.log2(largest))
    for at in (unit * 2.0 ** (edge.bit_length() // 2), unit * edge / 8):
        if not _adds_the_same(_called_from(program, path, counts, at), path, total, counts, at, edge):
            return False, []
    at = unit * edge  # at this total an increment is half the distance between two floats, so some increments are lost
    got = _moved(_called_from(program, path, counts, at), path, at)
    lost = got is not None and counts & (np.abs(got - total) > total / 4)
    if got is None or not np.any(lost):
        return True, []
    worst = np.unravel_index(int(np.argmax(np.where(lost, np.abs(got - total), -1))), got.shape)
    follows_data = _follows_the_data(program, reference, path)
    dtype = reference.start[path].value.dtype
    name = path.rsplit("/", 1)[-1]
    return True, [
        finding_of(
            "narrow-counter",
            path,
            f"adds up in {dtype}, which loses increments of {largest:.3g} once the total is about {at:.3g}.",
            f"set to {at:.3g}, then {len(steps)} calls",
            got=f"{got[worst]:.6g} more",
            expected=f"{total[worst]:.6g} more",
            fix=f"self.{name} = tallax.statistics.Moments() for an average; or count whole units in a tallax.Counter"
            if follows_data
            else f"self.{name} = tallax.Counter() for the whole units, and multiply by the scale where it is read",
            model=program.new_model(),
            # A warning only: sums of squares and of losses are often kept in float32 on purpose, and a training step
            # may sum gradients and start again after a few steps.
            is_warning=follows_data or not program.is_own_call,
        )
    ]


def _adds_the_same(ran: Reference, path: str, total: np.ndarray, counts: np.ndarray, at: float, edge: int) -> bool:
    got = _moved(ran, path, at)
    if got is None:
        return False
    # The tolerance is half a unit in the last place of the total for each call.
    rounding = len(ran.after) * 2.0 * at / edge
    return bool(np.all(np.abs(got - total)[counts] <= rounding + 0.02 * total[counts]))


def _moved(ran: Reference, path: str, at: float) -> np.ndarray | None:
    """Returns the change of a leaf by the calls if it starts at `at`, or None if its type changed."""
    leaf = ran.end.get(path)
    if leaf is None or leaf.kind != "variable" or np.shape(leaf.value) != np.shape(ran.start[path].value):
        return None
    moved = np.atleast_1d(np.asarray(leaf.value, np.float64) - np.asarray(ran.start[path].value, np.float64))
    return moved if np.all(np.isfinite(moved)) else None


def _follows_the_data(program: Program, reference: Reference, path: str) -> bool:
    """Returns whether different inputs add a different amount."""
    batches = tuple(tuple(_other(x) for x in batch) for batch in program.batches)
    try:
        ran = called(dataclasses.replace(program, batches=batches), program.new_model())
        return not np.allclose(_steps(ran, path).astype(float), _steps(reference, path).astype(float), rtol=1e-3)
    except Exception:  # the model rejects these inputs
        return True


def _other(x: jax.Array) -> jax.Array:
    if jnp.issubdtype(x.dtype, jnp.floating):
        return x * jnp.asarray(0.5, x.dtype)
    return jnp.zeros_like(x) if jnp.issubdtype(x.dtype, jnp.integer) else x


# --- runs from another start ------------------------------------------------------------------------------------------


def _called_from(program: Program, path: str, counts: np.ndarray, at: float) -> Reference:
    """Returns the values after the calls if the counting entries at `path` start from `at`."""
    model = program.new_model()
    variables = variables_of(model)
    name = path
    while name not in variables:  # the raw value is a tree, and the path leads into it
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
    """Returns whether another integer takes the carry at the edge, as the high word of a wide count does."""
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
