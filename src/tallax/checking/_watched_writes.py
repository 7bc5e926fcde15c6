# SPDX-License-Identifier: Apache-2.0
"""Records the writes to a model's Variables while it runs, and finds those that went to a copy and were lost.

A plain `jax.*` transformation passes a copy of every Variable to the function. Values written to the copy are lost when
the function returns, and the model shows no trace of it: its value is unchanged. So the writes themselves are watched.
For the time of the check, each Variable has its path in its metadata, which copies inherit.
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
    """The writes that were seen.

    Attributes:
        lost: The paths of copies that were written, although the model's own Variable was not changed, each with the
            source line.
        once: The paths of copies that were written within `nnx.vmap` with an integer that is the same in every lane,
            each with the source line.
        writers: For each path that was written, the kinds of code that wrote it: `forward` for a module's `__call__`,
            `method` for another method of a module, `call` for any other code, such as an optimizer or a training step.
    """

    lost: dict[str, str] = field(default_factory=dict)
    once: dict[str, str] = field(default_factory=dict)
    writers: dict[str, set[str]] = field(default_factory=dict)

    def add(self, later: Writes) -> None:
        """Adds the writes of a later call."""
        self.lost.update(later.lost)
        self.once.update(later.once)
        for path, kinds in later.writers.items():
            self.writers.setdefault(path, set()).update(kinds)


@contextlib.contextmanager
def watched(model: Any) -> Iterator[Writes]:
    """Watches the writes to a model's Variables and to their copies within the block.

    After the block, `lost` has the paths at which a copy was written, but the model's own Variable still has the same
    array object.
    """
    variables = variables_of(model)
    before = {path: variable.get_raw_value() for path, variable in variables.items()}
    for path, variable in variables.items():
        variable.set_metadata(_TAG, path)
    writes = Writes()
    own: set[str] = set()
    copies: dict[str, str] = {}

    def noting(method: Any) -> Any:
        def write(variable: nnx.Variable[Any], *args: Any, **kwargs: Any) -> Any:
            path = variable.get_metadata(_TAG) if variable.has_metadata(_TAG) else None
            changes = not (
                args and args[0] is variable.get_raw_value()
            )  # some code writes the current value back, to find out if it may write
            if path is not None and changes:
                frame = sys._getframe(1)
                writes.writers.setdefault(path, set()).add(_writer(frame))
                if variable is variables.get(path):
                    own.add(path)
                else:
                    line = users_line(frame)
                    copies.setdefault(path, line)
                    if args and _is_concrete_integer(args[0]) and _is_within_vmap(frame):
                        writes.once.setdefault(path, line)
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
        now = variables_of(model)
        for variable in (*variables.values(), *now.values()):  # a call may keep a copy, with its metadata
            with contextlib.suppress(AttributeError):  # Flax's HijaxVariable cannot remove metadata
                if variable.has_metadata(_TAG):
                    variable.del_metadata(_TAG)
    for path, place in copies.items():
        if path in now and path in before and now[path].get_raw_value() is before[path] and path not in own:
            writes.lost[path] = place


def _is_concrete_integer(value: Any) -> bool:
    return (
        isinstance(value, jax.Array | np.ndarray) and not is_traced(value) and jnp.issubdtype(value.dtype, jnp.integer)
    )


def _is_within_vmap(frame: FrameType | None) -> bool:
    """Returns whether a wrapper that Flax makes for a mapped function is on the stack, the only sign of a vmap axis."""
    while frame is not None:
        if "Vmap" in type(frame.f_locals.get("self")).__name__:
            return True
        frame = frame.f_back
    return False


def _writer(frame: FrameType | None) -> str:
    """Returns the kind of code that a write belongs to: `forward`, `method` or `call`; see `Writes.writers`."""
    found = "call"
    while frame is not None:
        if isinstance(frame.f_locals.get("self"), nnx.Module):
            if frame.f_code.co_name == "__call__":
                return "forward"
            found = "method"
        frame = frame.f_back
    return found
