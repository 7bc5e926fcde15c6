# SPDX-License-Identifier: Apache-2.0
"""Who writes what: the writes to a model's Variables while it runs, and those that went to a copy and never arrived.

A raw `jax.*` transformation hands the function a copy of every Variable. What is written to the copy is gone when the
function returns, and nothing in the model tells: the value is simply as it was. So the writes themselves are watched.
Each Variable carries its path in its metadata, which copies inherit.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tallax._arrays import is_traced
from tallax.checking._snapshot import variables_of
from tallax.checking._source_lines import users_line

_TAG = "tallax_statecheck_path"


@dataclass
class Writes:
    """What was seen.

    Attributes:
        own: paths of the model's own Variables that were written, with the place in the source.
        copies: the same for copies of them.
        lost: of those, the ones whose own Variable was left as it was.
        once: of copies, the ones written within `nnx.vmap` with an integer that is the same in every lane.
        writers: for each path that was written, the kinds of code that did: `forward` within a module's `__call__`,
            `method` within another method of a module, `call` anywhere else, as in an optimizer or in a training step.
    """

    own: dict[str, str] = field(default_factory=dict)
    copies: dict[str, str] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    once: dict[str, str] = field(default_factory=dict)
    writers: dict[str, set[str]] = field(default_factory=dict)


@contextlib.contextmanager
def watched(model: Any) -> Iterator[Writes]:
    """Watches the writes to a model's Variables, and to their copies, within the block.

    At its end, `lost` has the paths where a copy was written while the model's own Variable was left holding the very
    array it held before.
    """
    variables = variables_of(model)
    before = {path: variable.get_raw_value() for path, variable in variables.items()}
    for path, variable in variables.items():
        variable.set_metadata(_TAG, path)
    writes = Writes()

    def noting(method: Any) -> Any:
        def write(variable: nnx.Variable[Any], *args: Any, **kwargs: Any) -> Any:
            path = variable.get_metadata(_TAG) if variable.has_metadata(_TAG) else None
            changes = not (
                args and args[0] is variable.get_raw_value()
            )  # some write back what is there, to see if they may
            if path is not None and changes:
                frame = sys._getframe(1)
                kind = writes.own if variable is variables.get(path) else writes.copies
                kind.setdefault(path, users_line(frame))
                writes.writers.setdefault(path, set()).add(_writer(frame))
                if kind is writes.copies and args and _is_concrete_integer(args[0]) and _is_within_vmap(frame):
                    writes.once.setdefault(path, users_line(frame))
            return method(variable, *args, **kwargs)

        return write

    # The methods of the class are replaced for the time of the check, because Flax calls no hook on a write, and a
    # copy that a raw transformation makes is unknown until it is written. Every write goes through one of these two
    # public methods, and a class that overrides them calls these. tallax's own variables must look up
    # `nnx.Variable.set_raw_value` at each write: a method that is bound at import is not the one replaced here, so the
    # write would be missed.
    methods = {name: getattr(nnx.Variable, name) for name in ("set_value", "set_raw_value")}
    try:
        for name, method in methods.items():
            setattr(nnx.Variable, name, noting(method))
        yield writes
    finally:
        for name, method in methods.items():
            setattr(nnx.Variable, name, method)
        for variable in variables.values():
            if variable.has_metadata(_TAG):
                variable.del_metadata(_TAG)
    now = variables_of(model)
    for path, place in writes.copies.items():
        if path in now and path in before and now[path].get_raw_value() is before[path] and path not in writes.own:
            writes.lost[path] = place


def _is_concrete_integer(value: Any) -> bool:
    return (
        isinstance(value, jax.Array | np.ndarray) and not is_traced(value) and jnp.issubdtype(value.dtype, jnp.integer)
    )


def _is_within_vmap(frame: FrameType | None) -> bool:
    """Whether one of Flax's wrappers of a mapped function is on the stack: an axis of vmap leaves no other trace."""
    while frame is not None:
        if "Vmap" in type(frame.f_locals.get("self")).__name__:
            return True
        frame = frame.f_back
    return False


def _writer(frame: FrameType | None) -> str:
    """Returns `forward`, `method` or `call`: the code that a write belongs to, as in `Writes.writers`."""
    found = "call"
    while frame is not None:
        if isinstance(frame.f_locals.get("self"), nnx.Module):
            if frame.f_code.co_name == "__call__":
                return "forward"
            found = "method"
        frame = frame.f_back
    return found
