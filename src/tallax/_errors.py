# SPDX-License-Identifier: Apache-2.0
"""The exceptions of tallax, whose constructor formats their messages.

```
TallaxError
├── InvalidTypeError        also a TypeError: a float count, a buffer written with a different dtype
├── InvalidValueError       also a ValueError: a negative count, a wrong shape, a NaN pin
├── ReplacedVariableError   also a TypeError: `self.step = self.step + 1`
├── TraceError              also a flax TraceContextError: a write from another trace level
├── TracedReadError         also a TypeError: `int(counter)` under `jit`
├── ReplicasError           also a ValueError: unknown replicas to sum over, or copies that differ
├── StateOwnedByStepError   also a RuntimeError: a value was used that a compiled step owns
├── StructureChangedError   also a ValueError: the model is no longer the one that a step was compiled for
├── CheckpointError         also an OSError: a checkpoint is missing, damaged, foreign, or too new
├── RestoreError            also a ValueError: a checkpoint and a model differ; it has a `report`
├── StatecheckError         also a ValueError: statecheck cannot run its argument
├── CheckFailedError        also an AssertionError: statecheck found a fault
├── SinkError               also a RuntimeError: a sink of a Logger could not write
├── RunLockedError          also a RuntimeError: two programs are about to write to one run
├── RunError                also a ValueError: a path that is not a run
└── MissingExtraError       also an ImportError: an optional dependency is not installed
```

Every message names the variable or module by the path that a user would type, states the rule, shows the value found,
and ends with a fix. The path is looked up only when an error is raised, because a Variable does not know its path.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import flax
import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tallax._arrays import is_traced
from tallax.runs._errors import MissingExtraError as MissingExtraError
from tallax.runs._errors import TallaxError, subject_name

_LIBRARIES = tuple(os.path.dirname(file) + os.sep for file in (__file__, flax.__file__, jax.__file__))


class InvalidTypeError(TallaxError, TypeError):
    """A value has a type or dtype that is not accepted."""


class InvalidValueError(TallaxError, ValueError):
    """A value has the right type, but its value or shape is not accepted."""


class ReplacedVariableError(TallaxError, TypeError):
    """An assignment was about to replace a Variable by a value that is not a Variable."""


class TraceError(TallaxError, flax.errors.TraceContextError):
    """A variable was written from a trace that it does not belong to, so the write would be lost."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.args


class TracedReadError(TallaxError, TypeError):
    """A host value was requested, but the value exists only when the compiled program runs."""


class ReplicasError(TallaxError, ValueError):
    """The replicas to sum over are unknown, per-replica state is not combined, or copies of one value differ."""


class StateOwnedByStepError(TallaxError, RuntimeError):
    """A value was read or written while a compiled step owns it, between its calls."""


class StructureChangedError(TallaxError, ValueError):
    """The objects of a compiled step have changed, or contain values that it cannot accept."""


class CheckpointError(TallaxError, OSError):
    """The checkpoint does not exist or cannot be read: it is damaged, of another kind, or of a later version."""


class RestoreError(TallaxError, ValueError):
    """A checkpoint differs from the objects to restore.

    Attributes:
        report: A `RestoreReport` of all differences, or None.
    """

    report: Any = None


class StatecheckError(TallaxError, ValueError):
    """`statecheck` did not get a module, or a plain call of the module raises."""


class CheckFailedError(TallaxError, AssertionError):
    """`statecheck` found a fault in a module."""


class SinkError(TallaxError, RuntimeError):
    """A sink of a Logger raised: it could not write or close."""


class RunLockedError(TallaxError, RuntimeError):
    """Another program is writing to a run."""


# Tracebacks show these classes under the names by which users import them.
for _error in TallaxError.__subclasses__():
    _error.__module__ = "tallax"


def compose(subject: object, rule: str, *, got: str | None = None, expected: str | None = None, fix: str) -> str:
    """Returns the text of an error, with the arguments of `TallaxError`, for warnings and reports."""
    return str(TallaxError(subject, rule, got=got, expected=expected, fix=fix))


def describe(value: object) -> str:
    """Describes a value for an error: `float32[] (0.5)`, `int32[8] (traced)`, `str ('a')`."""
    if is_traced(value):
        return f"{_array_type(value)} (traced)"
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        small = value.size <= 4 and getattr(value, "is_fully_addressable", True)
        small = small and not jnp.issubdtype(value.dtype, jax.dtypes.extended)  # a random key, which NumPy cannot read
        return f"{_array_type(value)} ({np.asarray(value).tolist()})" if small else _array_type(value)
    if isinstance(value, nnx.Variable):
        return f"a {type(value).__name__}"
    text = repr(value)
    return f"{type(value).__name__} ({text if len(text) <= 60 else text[:57] + '...'})"


def _array_type(value: Any) -> str:
    return f"{value.dtype}[{','.join(map(str, value.shape))}]"


@subject_name.register(nnx.Pytree)
@subject_name.register(nnx.Variable)
def name_of(item: object) -> str:
    """Returns the path under which the running program knows `item`, such as `model.moe.step`.

    It searches the local variables of the calling frames from the innermost to the outermost, and prefers the outermost
    match, because only a path from the outside distinguishes two layers of a model. Frames of libraries are skipped.
    Under a Flax transformation the objects are copies, so the path starts at the argument of the traced function, which
    has the user's name.
    """
    found = None
    frame = sys._getframe(1)
    while frame is not None:
        if not frame.f_code.co_filename.startswith(_LIBRARIES):
            for local, value in list(frame.f_locals.items()):
                path = _path_to(item, value)
                if path is not None:
                    found = local + path
                    break
        frame = frame.f_back
    return found or f"unnamed {type(item).__name__}"


def _path_to(item: object, root: object, limit: int = 20_000) -> str | None:
    """Returns the path from `root` to `item`, such as `.layers[3].step`, or None. Visits at most `limit` nodes."""
    queue: list[tuple[str, object]] = [("", root)]
    seen: set[int] = set()
    for path, node in queue:  # grows while it is walked: breadth first, so the shortest path wins
        if node is item:
            return path
        if id(node) in seen or len(seen) >= limit:
            continue
        seen.add(id(node))
        queue.extend((path + step, child) for step, child in _children(node, is_root=path == ""))
    return None


def _children(node: object, *, is_root: bool) -> Iterator[tuple[str, object]]:
    if isinstance(node, nnx.Pytree):
        for name, child in vars(node).items():
            # nnx.List and nnx.Dict keep their entries as attributes named by the index or key.
            yield (f"[{name}]" if name.isdigit() else f".{name}"), child
    elif is_root:
        return  # a local list or dict may be large, so from a frame only modules are searched
    elif isinstance(node, list | tuple):
        yield from ((f"[{i}]", child) for i, child in enumerate(node))
    elif isinstance(node, dict):
        yield from ((f"[{key!r}]", child) for key, child in node.items())
