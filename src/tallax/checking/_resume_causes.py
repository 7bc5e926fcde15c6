# SPDX-License-Identifier: Apache-2.0
"""Names what happened to one value in a resume, from its values in the five runs of `resumecheck`.

Nothing here knows a library or a format of checkpoints. The evidence is numbers: a value that equals its initial value
was reset; one that equals the saved value after a round trip through bfloat16 was cast; a count that is ahead by its
whole history was added twice. The restored value is compared first, because everything that is wrong there is a cause,
while most of what differs at the end of the second half is only a consequence. The end of the file has the rules, and
the remedy of a fault by the kind of its value.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TypeAlias

import jax.numpy as jnp
import numpy as np

from tallax.checking._job_values import Value, Values, same, shown
from tallax.checking._report import Finding

# Narrower dtypes first: a value that survives int8 as well as int32 was through the narrowest one only by chance.
_FLOATS = ("float32", "float16", "bfloat16", "float8_e5m2", "float8_e4m3fn")
_INTEGERS = ("float32", "float16", "bfloat16", "int32", "uint32", "int16", "uint16", "int8", "uint8")
_MOST_TIMES = 64

Fault: TypeAlias = tuple[str, str]  # the rule and the sentence


@dataclasses.dataclass(frozen=True)
class Evidence:
    """The values of one path.

    Attributes:
        path: The path.
        initial: The value before the first step, or None if it is not known.
        saved: The value at the end of the first half.
        restored: The value in a new process, before a step, or None if it is not known.
        expected: The value at the end of a run that was not interrupted.
        got: The value at the end of the second half.
        is_restored_known: Whether a new process showed the restored state.
    """

    path: str
    initial: Value | None
    saved: Value | None
    restored: Value | None
    expected: Value | None
    got: Value | None
    is_restored_known: bool

    def finding(self, fault: Fault, got: Value | None, expected: Value | None) -> Finding:
        """Returns a fault as a finding, with its remedy and the two values that show it."""
        rule, message = fault
        fix = remedy(rule, self.path, self.saved, message=message)
        return Finding(rule, self.path, message, got=shown(got), expected=shown(expected), fix=fix)


def cause_at_restore(evidence: Evidence, saved_values: Values) -> Finding | None:
    """Returns the fault that the restored value shows; None if it is the saved value.

    Args:
        evidence: The values of the path.
        saved_values: The saved values of all paths, of which one may have been restored into another place.
    """
    saved, restored = evidence.saved, evidence.restored
    if not evidence.is_restored_known or saved is None or same(saved, restored):
        return None
    if restored is None:
        fault = "left-out", "is not there after a restore."
    else:
        fault = next(_restore_faults(evidence, saved, restored, saved_values))
    return evidence.finding(fault, restored, saved)


def cause_at_end(evidence: Evidence) -> Finding | None:
    """Returns the fault that the second half shows by itself; None for what may be the consequence of another fault."""
    saved, expected, got = evidence.saved, evidence.expected, evidence.got
    if expected is None or same(expected, got):
        return None
    if got is None:
        fault = "left-out", "is not there after the second half."
    elif form := _other_form(expected, got):
        fault = form
    elif saved is None:
        return None
    elif same(got, saved) and evidence.is_restored_known and same(evidence.restored, saved):
        fault = "skipped", "stays as it was restored: the second half does not change it."
    elif same(got, saved) and (expected.is_number or expected.kind == "random"):
        fault = "reset", "has the value of the first half again, as if it had started from its initial value."
    else:
        fault = _uneven_progress(evidence, saved, expected, got)
    return None if fault is None else evidence.finding(fault, got, expected)


# --- a restored value -------------------------------------------------------------------------------------------------


def _restore_faults(evidence: Evidence, saved: Value, restored: Value, saved_values: Values) -> Iterator[Fault]:
    """Yields the faults that a restored value may have had, from the most certain to the last resort."""
    initial = evidence.initial
    if form := _other_form(saved, restored):
        yield form
    if initial is not None and same(initial, restored):
        yield "reset", "starts again from its initial value."
    a, b = saved.array, restored.array
    if saved.is_number and restored.is_number:
        if saved.kind != "random":
            if np.any(a) and not np.any(b):
                yield "reset", "is zero after a restore."
            yield from _shifted(evidence, saved, restored)
            yield from _through_other_dtype(a, b)
            yield from _multiple(a.astype(np.float64), b.astype(np.float64))
        yield from _misplaced(evidence.path, restored, a, saved_values)
        if initial is not None and initial.is_number and initial.array.shape == a.shape != ():
            first, kept = np.asarray(initial.array == b), np.asarray(a == b)
            if np.all(first | kept) and np.any(first & ~kept) and np.any(kept & ~first):
                yield "reset", f"has the initial value in {int(np.sum(first & ~kept))} of {b.size} entries."
    if saved.kind == "random":
        yield "reset", "was seeded anew, and not restored."
    if initial is not None and same(initial, saved):
        yield "differs", "did not change in training, and a restore changes it."
    yield "differs", "has neither the saved nor the initial value after a restore."


def _other_form(saved: Value, restored: Value) -> Fault | None:
    if not (saved.is_number and restored.is_number):
        if saved.kind != "random" and type(saved.value) is not type(restored.value):
            words = f"is a {type(restored.value).__name__} and was a {type(saved.value).__name__}."
            return ("left-out" if restored.value is None else "differs"), words
        return None
    a, b = saved.array, restored.array
    if isinstance(saved.value, np.ndarray) and a.dtype != b.dtype:
        return "cast", f"was {a.dtype} when it was saved, and is {b.dtype} after a restore."
    if a.shape != b.shape:
        return "differs", f"has the shape {list(b.shape)} after a restore, and had {list(a.shape)}."
    return None


def _exact(value: Value | None) -> np.ndarray | None:
    """Returns integers as Python's, which do not wrap around; None of anything else."""
    if value is None or not value.is_integer or value.kind == "random":
        return None
    return np.asarray(value.array).astype(object)


def _shifted(evidence: Evidence, saved: Value, restored: Value) -> Iterator[Fault]:
    """Yields the fault of integers that are ahead of the saved ones or behind them by one amount."""
    a, b, initial = _exact(saved), _exact(restored), _exact(evidence.initial)
    if a is None or b is None or a.size == 0:
        return
    if initial is not None and initial.shape == a.shape and np.all(b - a == a - initial) and np.any(b - a):
        yield "doubled", "is restored twice: the saved progress was added to itself."
    times = int(b.flat[0]) // int(a.flat[0]) if a.flat[0] > 1 else 0
    if times > 1 and np.all(b == times * a):
        yield "doubled", f"is {times} times the saved value, as if {times} copies had been summed."
    if np.any(np.abs(a) > 127):
        # A wrapped or rounded integer is a cast, whatever its distance.
        yield from _through_other_dtype(saved.array, restored.array)
    if a.size == 1 or np.all(b - a == (b - a).flat[0]):
        yield _ahead_or_behind(evidence, b - a)


def _ahead_or_behind(evidence: Evidence, difference: np.ndarray) -> Fault:
    amount = int(max(np.ravel(difference).tolist(), key=abs))
    is_position = evidence.expected is not None and evidence.expected.kind == "position"
    if amount > 0:
        if is_position:
            return "skipped", f"is ahead by {amount}: what lies between is never seen."
        return "doubled", f"is ahead by {amount}: it counts {amount} that did not happen."
    if is_position:
        return "doubled", f"is behind by {-amount}: what lies between is seen twice."
    return "skipped", f"is behind by {-amount}: {-amount} that happened are not counted."


def _through_other_dtype(a: np.ndarray, b: np.ndarray) -> Iterator[Fault]:
    is_float = bool(jnp.issubdtype(a.dtype, jnp.floating))
    for name in _FLOATS if is_float else _INTEGERS:
        dtype = np.dtype(jnp.dtype(name))
        if dtype == a.dtype or (is_float and dtype.itemsize >= a.dtype.itemsize):
            continue
        with np.errstate(all="ignore"):
            through = a.astype(dtype).astype(a.dtype)
        if np.array_equal(through, b, equal_nan=is_float) and not np.array_equal(a, b):
            yield "cast", f"went through {name}, and lost the rest."


def _multiple(a: np.ndarray, b: np.ndarray) -> Iterator[Fault]:
    for times in range(2, _MOST_TIMES + 1) if np.any(a) else ():
        if np.allclose(b, times * a, rtol=1e-6, atol=0):
            yield "doubled", f"is {times} times the saved value, as if {times} copies had been summed."
        if np.allclose(b, a / times, rtol=1e-6, atol=0):
            yield "differs", f"is the saved value divided by {times}."


def _misplaced(path: str, restored: Value, saved: np.ndarray, saved_values: Values) -> Iterator[Fault]:
    array = restored.array
    if array.size < 2 and (restored.is_integer or float(array.sum()).is_integer()):
        return  # a small whole number is equal to others by chance
    for other, value in saved_values.items():
        if other != path and same(value, restored):
            yield "misplaced", f"has the saved value of {other}."
    if saved.ndim and saved.shape[0] > 1:
        rows, others = ([row.tobytes() for row in np.ascontiguousarray(part)] for part in (saved, array))
        if sorted(rows) == sorted(others):
            yield "misplaced", "has the saved rows in another order."


# --- a value at the end -----------------------------------------------------------------------------------------------


def _uneven_progress(evidence: Evidence, saved: Value, expected: Value, got: Value) -> Fault | None:
    """Returns the fault of a count that moves by the same amount in both halves, and did not in this one."""
    initial = evidence.initial
    if evidence.is_restored_known and not same(evidence.restored, saved):
        return None
    if initial is None and saved.is_number and not saved.array.ndim:
        initial = Value(np.zeros((), np.int64), saved.kind)  # most counts start there
    parts = [part for value in (initial, saved, expected, got) if (part := _exact(value)) is not None]
    if len(parts) < 4 or len({part.shape for part in parts}) > 1:
        return None
    start, middle, due_end, end = parts
    first, due, done = middle - start, due_end - middle, end - middle
    if not np.all(first == due) or not np.any(due):
        return None  # a value that depends on the data: its difference is a consequence
    for times in range(2, _MOST_TIMES):
        if np.all(done == times * due):
            return "doubled", f"counts each step of the second half {times} times."
    return _ahead_or_behind(evidence, done - due)


# --- rules and remedies -----------------------------------------------------------------------------------------------

# Every rule of `resumecheck`. `not-reproducible`, `differs` and `raises` are rules of `statecheck` too.
RESUME_RULES = {
    "reset": "a value starts again from its initial value, or is made anew",
    "left-out": "a value is not there after a restore",
    "doubled": "a value counts something twice: it is restored twice, ahead, or a multiple of the saved one",
    "skipped": "a value is behind, does not change any more, or steps over data",
    "cast": "a value changes its dtype, or went through a narrower one",
    "misplaced": "a value was restored into the place of another one, or in another order",
    "differs": "a value differs, and no other rule explains it",
    "not-resumed": "the second half takes all steps again, or too few",
    "nothing-saved": "the first half leaves no file",
    "returns-nothing": "the job returns nothing that could be compared",
    "not-trained": "nothing that the job returns changes in the second half",
    "not-reproducible": "two uninterrupted runs end differently, so that no resume can be exact",
    "raises": "the job raises, or its file does",
    "exits": "the job ends its process",
    "dies": "the process of the job is killed, or crashes",
    "hangs": "the job does not end in time",
}

_SAVE = (
    "save it with the rest, and restore it: tallax.save stores every Variable of the objects that you pass, and extra= "
    "stores numbers and text"
)
_BY_RULE = {
    "reset": _SAVE,
    "left-out": _SAVE,
    "doubled": "restore it once: if the restore sets it, nothing may step it, add to it or sum its copies afterwards",
    "skipped": "set it to the saved value, and start the loop at the saved step: for n in range(start, steps)",
    "cast": "save and restore it in the dtype that training uses; tallax.restore never casts",
    "misplaced": "restore by name, as tallax.restore does, and not by position or by a sorted list of names",
    "differs": "save and restore it as it is; tallax.save compares every value by its checksum",
}
_RANDOM = (
    "save the random state with the rest: tallax.save(path, model, rngs=rngs) for nnx.Rngs, bit_generator.state for "
    "NumPy, random.getstate() for Python; or derive it from the step: jax.random.fold_in(key, step)"
)
_POSITION = (
    "save the position in the same commit: checkpoints.save(n, model, optimizer, data=iterator), for any iterator with "
    "get_state and set_state"
)
_OPTIMIZER = "save the optimizer too, and restore into both: checkpoints.save(n, model, optimizer)"
_BATCH_STATISTICS = "save the whole state, not nnx.Param alone: checkpoints.save(n, model, optimizer)"
_FROZEN = (
    "restore into the objects that the training step uses, before you make an optimizer, a compiled step or a copy of "
    "them"
)
_OPTIMIZER_WORDS = {"opt", "optimizer", "opt_state", "optim", "optimizer_state", "mu", "nu"}


def remedy(rule: str, path: str, value: Value | None, *, message: str = "") -> str:
    """Returns the fix.

    Args:
        rule: The rule of the fault.
        path: The path of the value.
        value: The value as it was saved.
        message: The sentence of the fault. A value that does not change any more needs another remedy than one that is
            behind.
    """
    kind = "" if value is None else value.kind
    if rule == "skipped" and "does not change" in message:
        return _FROZEN
    if rule in ("reset", "left-out", "differs"):
        if kind == "random" or kind in ("RngCount", "RngKey", "RngState"):
            return _RANDOM
        if kind == "position":
            return _POSITION
        if kind.startswith("Opt") or _OPTIMIZER_WORDS & set(path.lower().split("/")):
            return _OPTIMIZER
        if kind == "BatchStat":
            return _BATCH_STATISTICS
    if rule in ("skipped", "doubled") and kind == "position":
        return _POSITION
    return _BY_RULE.get(rule, _BY_RULE["differs"])
