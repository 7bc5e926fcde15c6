# SPDX-License-Identifier: Apache-2.0
"""Watches a job while it runs: how often each line of the user's files ran, and the local variables at its end.

The counts tell whether a second run continued or started again: a training loop has lines that run once a step, in any
job and without its help. The local variables tell of state that the job keeps and does not return, such as a generator
of random numbers. `sys.settrace` is the one way to both that works on every Python; frames of libraries are not
traced, so that the tracing of JAX's own code costs one call for each of its functions.
"""

from __future__ import annotations

import functools
import inspect
import sys
import sysconfig
from collections import Counter
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

from tallax.checking._source_lines import is_users

_INSTALLED = tuple(sysconfig.get_paths()[name] for name in ("purelib", "platlib", "stdlib"))
_MOST_LOCALS = 200  # functions whose local variables are kept


@functools.cache
def _is_traced(file: str) -> bool:
    return is_users(file) and not file.startswith(_INSTALLED) and "<" not in file


class JobTrace:
    """The lines and local variables of one call of a job.

    Attributes:
        lines: how often each line ran, by `file:line`.
        locals_of: the local variables of functions that were called once, at their return, by the function's name.
        own_locals: those of the job itself.
    """

    def __init__(self):
        self.lines: Counter[tuple[str, int]] = Counter()
        self.locals_of: dict[str, dict[str, Any]] = {}
        self.own_locals: dict[str, Any] = {}
        self._calls: Counter[CodeType] = Counter()

    def run(self, job: Callable[..., Any], *arguments: Any) -> Any:
        """Calls a job, and returns what it returns."""
        before = sys.gettrace()
        sys.settrace(self._on_call)
        try:
            return job(*arguments)
        finally:
            sys.settrace(before)

    def _on_call(self, frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        if not _is_traced(code.co_filename):
            return None
        self._calls[code] += not code.co_flags & inspect.CO_GENERATOR  # whose frame returns at each of its values
        return self._on_line

    def _on_line(self, frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        if event == "line":
            self.lines[code.co_filename, frame.f_lineno] += 1
        elif event == "return" and not code.co_flags & inspect.CO_GENERATOR:
            name = code.co_qualname if sys.version_info >= (3, 11) else code.co_name
            if self._calls[code] > 1:  # the function of a step, not the one with the loop
                self.locals_of.pop(name, None)
            elif len(self.locals_of) < _MOST_LOCALS:
                self.locals_of[name] = dict(frame.f_locals)
                self.own_locals = self.locals_of[name]  # the last that returns is the job
        return self._on_line
