# SPDX-License-Identifier: Apache-2.0
"""Finds lines in the user's source: of a call, of an error, and of an attribute's assignment."""

from __future__ import annotations

import inspect
import linecache
import os
import re
import sysconfig
from types import FrameType, TracebackType
from typing import Any

import flax
import jax
from flax import nnx

_PACKAGES = tuple(os.path.dirname(os.path.dirname(str(module.__file__))) + os.sep for module in (jax, flax))
_OWN = os.path.dirname(os.path.dirname(__file__)) + os.sep
_LIBRARIES = (*_PACKAGES, _OWN, sysconfig.get_paths()["stdlib"] + os.sep, "<frozen", "<string>")


def is_users(filename: str) -> bool:
    """Returns whether a file is neither installed nor part of Python or tallax."""
    return not filename.startswith(_LIBRARIES)


def users_line(frame: FrameType | None) -> str:
    """Returns the innermost line on the stack that users wrote, like `file.py:12: self.n += 1`, or an empty string."""
    while frame is not None:
        if is_users(frame.f_code.co_filename):
            return place(frame.f_code.co_filename, frame.f_lineno)
        frame = frame.f_back
    return ""


def line_of_error(error: BaseException) -> str:
    """Returns the innermost line of the user's in the traceback of an error, or an empty string."""
    found = ""
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        if is_users(trace.tb_frame.f_code.co_filename):
            found = place(trace.tb_frame.f_code.co_filename, trace.tb_lineno)
        trace = trace.tb_next
    return found


def line_of_assignment(model: Any, path: str) -> str:
    """Returns the line at which a method other than `__init__` assigns the attribute at `path`, or an empty string."""
    *parents, name = path.split("/")
    owner = model
    for part in parents:
        owner = getattr(owner, part, None) if not part.isdigit() else _item(owner, int(part))
    written = re.compile(rf"\bself\.{re.escape(name)}\s*(?:,.*)?(?:[-+*/]|//|\*\*|@|%|\||&)?=(?!=)")
    for cls in type(owner).__mro__ if isinstance(owner, nnx.Module) else ():
        for method in vars(cls).values():
            if not inspect.isfunction(method) or method.__name__ == "__init__":
                continue
            if not is_users(method.__code__.co_filename):
                continue
            try:
                lines, first = inspect.getsourcelines(method)
            except (OSError, TypeError):
                continue
            for number, line in enumerate(lines, first):
                if written.search(line):
                    return place(method.__code__.co_filename, number)
    return ""


def _item(owner: Any, index: int) -> Any:
    try:
        return owner[index]
    except (TypeError, KeyError, IndexError):
        return None


def place(filename: str, line: int) -> str:
    """Returns a line of a file with its place, such as `file.py:12: self.count[...] += 1`."""
    return f"{os.path.basename(filename)}:{line}: {linecache.getline(filename, line).strip()}".rstrip(": ")
