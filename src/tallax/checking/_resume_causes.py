# SPDX-License-Identifier: Apache-2.0
"""Names what happened to one value in a resume, from its values in the five runs of `resumecheck`.

Nothing here knows a library or a format of checkpoints. The evidence is numbers: a value that equals its initial value
was reset; one that equals the saved value after a round trip through bfloat16 was cast; a count that is ahead by its
whole history was added twice. The restored value is compared first, because everything that is wrong there is a cause,
while most of what differs at the end of the second half is only a consequence.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from tallax.checking._job_state import Value, Values

# Narrower dtypes first: a value that survives int8 as well as int32 was through the narrowest one only by chance.
_FLOATS = ("float32", "float16", "bfloat16", "float8_e5m2", "float8_e4m3fn")
_INTEGERS = ("float32", "float16", "bfloat16", "int32", "uint32", "int16", "uint16", "int8", "uint8")
_MOST_TIMES = 64


@dataclasses.dataclass(frozen=True)
class Evidence:
    """The values of one path.

    Attributes:
        path: the path.
        initial: before the first step; None if it is not known.
        saved: at the end of the first half.
        restored: by a new process, before a step; None if it is not known.
        expected: at the end of a run that was not interrupted.
        got: at the end of the second half.
        is_restored_known: whether a new process showed the restored state.
    """

    path: str
    initial: Value | None
    saved: Value | None
    restored: Value | None
    expected: Value | None
    got: Value | None
    is_restored_known: bool


@dataclasses.dataclass(frozen=True)
class Cause:
    """The fault of one value: the rule, the sentence, and the two values that show it."""

    rule: str
    message: str
    got: str
    expected: str


def same(left: Value | None, right: Value | None) -> bool:
    """Returns whether two values are equal to the bit, with equal dtypes and shapes."""
    if left is None or right is None:
        return left is right
    a, b = left.value, right.value
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return (a.dtype, a.shape) == (b.dtype, b.shape) and a.tobytes() == b.tobytes()
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return False
    return type(a) is type(b) and (a == b or (a != a and b != b))


def cause_at_restore(evidence: Evidence, saved_values: Values) -> Cause | None:
    """Returns the fault that the restored value shows; None if it is the saved value.

    Args:
        evidence: of the path.
        saved_values: of all paths, for a value that was restored into another place.
    """
    saved, restored = evidence.saved, evidence.restored
    if not evidence.is_restored_known or saved is None or same(saved, restored):
        return None
    if restored is None:
        return Cause("left-out", "is not there after a restore.", "nothing", str(saved))
    found = (
        _other_form(saved, restored)
        or _reset(evidence.initial, saved, restored)
        or _shifted(evidence, saved, restored)
        or _through_other_dtype(saved, restored)
        or _multiple(saved, restored)
        or _misplaced(evidence.path, restored, saved, saved_values)
        or _partly_reset(evidence.initial, saved, restored)
    )
    if found is None:
        if saved.kind == "random":
            found = ("reset", "was seeded anew, and not restored.")
        elif evidence.initial is not None and same(evidence.initial, saved):
            found = ("differs", "did not change in training, and a restore changes it.")
        else:
            found = ("differs", "has neither the saved nor the initial value after a restore.")
    return Cause(*found, str(restored), str(saved))


def cause_at_end(evidence: Evidence) -> Cause | None:
    """Returns the fault that the second half shows by itself; None for what may be the consequence of another fault."""
    saved, expected, got = evidence.saved, evidence.expected, evidence.got
    if expected is None or same(expected, got):
        return None
    if got is None:
        return Cause("left-out", "is not there after the second half.", "nothing", str(expected))
    form = _other_form(expected, got)
    if form is not None:
        return Cause(*form, str(got), str(expected))
    if saved is None:
        return None
    if same(got, saved):
        if evidence.is_restored_known and same(evidence.restored, saved):
            message = "stays as it was restored: the second half does not change it."
            return Cause("skipped", message, str(got), str(expected))
        if expected.is_number or expected.kind == "random":
            message = "has the value of the first half again, as if it had started from its initial value."
            return Cause("reset", message, str(got), str(expected))
    base = evidence.restored if evidence.is_restored_known else saved
    return _second_progress(evidence, base, expected, got)


def _second_progress(evidence: Evidence, base: Value | None, expected: Value, got: Value) -> Cause | None:
    """Returns the fault of a count that moves by the same amount in both halves, and did not in this one."""
    initial, saved = evidence.initial, evidence.saved
    if saved is None or base is None or not same(base, saved):
        return None
    start = np.zeros((), np.int64) if initial is None and saved.is_number and not saved.array.ndim else None
    initial = Value(start, saved.kind) if start is not None else initial  # most counts start there
    if initial is None:
        return None
    parts = [_exact(value) for value in (initial, saved, expected, got)]
    if any(part is None for part in parts) or len({part.shape for part in parts if part is not None}) > 1:
        return None
    start, middle, due_end, end = (part for part in parts if part is not None)
    first, due, done = middle - start, due_end - middle, end - middle
    if not np.all(first == due) or not np.any(due):
        return None  # a value that depends on the data: its difference is a consequence
    for times in range(2, _MOST_TIMES):
        if np.all(done == times * due):
            message = f"counts each step of the second half {times} times."
            return Cause("doubled", message, str(got), str(expected))
    return Cause(*_ahead_or_behind(evidence, done - due), str(got), str(expected))


def _other_form(saved: Value, restored: Value) -> tuple[str, str] | None:
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


def _reset(initial: Value | None, saved: Value, restored: Value) -> tuple[str, str] | None:
    if initial is not None and same(initial, restored):
        return "reset", "starts again from its initial value."
    if not restored.is_number or saved.kind == "random":
        return None
    if not np.any(restored.array) and np.any(saved.array):
        return "reset", "is zero after a restore."
    return None


def _partly_reset(initial: Value | None, saved: Value, restored: Value) -> tuple[str, str] | None:
    """Returns the fault of a stack of which some rows were restored."""
    if initial is None or not (saved.is_number and initial.is_number and restored.is_number):
        return None
    a, b, c = initial.array, saved.array, restored.array
    if not a.shape == b.shape == c.shape or c.ndim == 0 or not np.issubdtype(np.result_type(a, b), np.number):
        return None
    first, kept = np.asarray(a == c), np.asarray(b == c)
    if np.all(first | kept) and np.any(first & ~kept) and np.any(kept & ~first):
        return "reset", f"has the initial value in {int(np.sum(first & ~kept))} of {c.size} entries."
    return None


def _exact(value: Value) -> np.ndarray | None:
    """Returns integers as Python's, which do not wrap around; None of anything else."""
    if not value.is_integer or value.kind == "random":
        return None
    return np.asarray(value.array).astype(object)


def _shifted(evidence: Evidence, saved: Value, restored: Value) -> tuple[str, str] | None:
    """Returns the fault of integers that are ahead of the saved ones or behind them by one amount."""
    a, b = _exact(saved), _exact(restored)
    if a is None or b is None or a.shape != b.shape or a.size == 0:
        return None
    initial = None if evidence.initial is None else _exact(evidence.initial)
    if initial is not None and initial.shape == a.shape and np.all(b - a == a - initial) and np.any(b - a):
        return "doubled", "is restored twice: the saved progress was added to itself."
    times = int(b.flat[0]) // int(a.flat[0]) if a.flat[0] > 1 else 0
    if times > 1 and np.all(b == times * a):
        return "doubled", f"is {times} times the saved value, as if {times} copies had been summed."
    if evidence.saved is not None and _through_other_dtype(saved, restored) and np.any(np.abs(a) > 127):
        return None  # a wrapped or rounded integer is a cast, whatever its distance
    if a.size == 1 or np.all(b - a == (b - a).flat[0]):
        return _ahead_or_behind(evidence, b - a)
    return None


def _ahead_or_behind(evidence: Evidence, difference: np.ndarray) -> tuple[str, str]:
    amount = int(max(np.ravel(difference).tolist(), key=abs))
    is_position = evidence.expected is not None and evidence.expected.kind == "position"
    if amount > 0:
        if is_position:
            return "skipped", f"is ahead by {amount}: what lies between is never seen."
        return "doubled", f"is ahead by {amount}: it counts {amount} that did not happen."
    if is_position:
        return "doubled", f"is behind by {-amount}: what lies between is seen twice."
    return "skipped", f"is behind by {-amount}: {-amount} that happened are not counted."


def _through_other_dtype(saved: Value, restored: Value) -> tuple[str, str] | None:
    if not (saved.is_number and restored.is_number) or saved.kind == "random":
        return None
    a, b = saved.array, restored.array
    if a.shape != b.shape:
        return None
    is_float = bool(jnp.issubdtype(a.dtype, jnp.floating))
    for name in _FLOATS if is_float else _INTEGERS:
        dtype = np.dtype(jnp.dtype(name))
        if dtype == a.dtype or (is_float and dtype.itemsize >= a.dtype.itemsize):
            continue
        with np.errstate(all="ignore"):
            through = a.astype(dtype).astype(a.dtype)
        if np.array_equal(through, b, equal_nan=is_float) and not np.array_equal(a, b):
            return "cast", f"went through {name}, and lost the rest."
    return None


def _multiple(saved: Value, restored: Value) -> tuple[str, str] | None:
    if not (saved.is_number and restored.is_number) or saved.kind == "random":
        return None
    a, b = saved.array, restored.array
    if a.shape != b.shape or not np.any(a):
        return None
    a, b = a.astype(np.float64), b.astype(np.float64)
    for times in range(2, _MOST_TIMES + 1):
        if np.allclose(b, times * a, rtol=1e-6, atol=0):
            return "doubled", f"is {times} times the saved value, as if {times} copies had been summed."
        if np.allclose(b, a / times, rtol=1e-6, atol=0):
            return "differs", f"is the saved value divided by {times}."
    return None


def _misplaced(path: str, restored: Value, saved: Value, saved_values: Values) -> tuple[str, str] | None:
    if not restored.is_number or (
        restored.array.size < 2 and (restored.is_integer or float(restored.array.sum()).is_integer())
    ):
        return None  # a small whole number is equal to others by chance
    for other, value in saved_values.items():
        if other != path and same(value, restored):
            return "misplaced", f"has the saved value of {other}."
    a, b = saved.array, restored.array
    if a.ndim and a.shape == b.shape and a.shape[0] > 1:
        rows, others = ([row.tobytes() for row in np.ascontiguousarray(part)] for part in (a, b))
        if sorted(rows) == sorted(others):
            return "misplaced", "has the saved rows in another order."
    return None


def differences(expected: Values, got: Values, *, tolerance: float = 0.0) -> list[str]:
    """Returns the paths whose values differ.

    Args:
        expected: the values of one run.
        got: those of another.
        tolerance: how far apart floats may be, relative to the largest of their array; 0 for equal to the bit.
    """
    return [
        path
        for path in dict.fromkeys((*expected, *got))
        if not same(expected.get(path), got.get(path)) and not _is_near(expected.get(path), got.get(path), tolerance)
    ]


def _is_near(a: Value | None, b: Value | None, tolerance: float) -> bool:
    if not tolerance or a is None or b is None or not (a.is_number and b.is_number) or a.is_integer or b.is_integer:
        return False
    left, right = a.array.astype(np.float64), b.array.astype(np.float64)
    if left.shape != right.shape or a.array.dtype != b.array.dtype:
        return False
    scale = max(np.max(np.abs(left), initial=0.0), 1e-30)
    return bool(np.allclose(left, right, rtol=0, atol=tolerance * scale, equal_nan=True))


def records_in(straight: Values, second: Values) -> list[str]:
    """Returns the paths that list one number for each step, such as the losses.

    Args:
        straight: the values of the run that was not interrupted.
        second: those of the second half, whose records may start at its first step or at the first step of all.
    """
    found = []
    for path, value in straight.items():
        other = second.get(path)
        if other is None or not value.is_number or value.array.ndim == 0 or other.array.ndim == 0:
            continue
        is_shorter = len(other.array) < len(value.array) and other.array.shape[1:] == value.array.shape[1:]
        if (value.kind == "record" and (value.keys is not None or "loss" in path.lower() or is_shorter)) or (
            value.kind in ("array", "plain") and is_shorter
        ):
            found.append(path)
    return found


def tails(straight: Value, second: Value, steps: int) -> tuple[Value, Value, int]:
    """Returns the entries of two records that belong to the second half, and the number of the first of their steps."""
    if straight.keys is not None and second.keys is not None:
        keys = sorted(set(straight.keys) & set(second.keys))[-steps:]
        places = ([each.index(key) for key in keys] for each in (straight.keys, second.keys))
        parts = [each.array[place] for each, place in zip((straight, second), places, strict=True)]
        return Value(parts[0], "record"), Value(parts[1], "record"), keys[0] if keys else steps + 1
    length = min(len(straight.array), len(second.array), steps)
    parts = [each.array[len(each.array) - length :] for each in (straight, second)]
    return Value(parts[0], "record"), Value(parts[1], "record"), 2 * steps - length + 1
