# SPDX-License-Identifier: Apache-2.0
"""Preemption: SIGTERM becomes a request that the next `Checkpoints.save` obeys, between two steps.

A handler that saved by itself would run in the middle of a step, where the state is half donated. With several
processes JAX catches SIGTERM itself, and tells all processes of one step at which they all save; a second handler would
take the signal from it.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

from tallax._errors import InvalidValueError


class Preemption:
    """A request to stop, by SIGTERM.

    Raises:
        InvalidValueError: Outside of the main thread, where Python sets no signal handlers.
    """

    def __init__(self):
        self._requested = False
        self._before: Any = None
        self._is_installed = False
        if jax.distributed.is_initialized():
            return
        if threading.current_thread() is not threading.main_thread():
            raise InvalidValueError(
                "preemption_exit_code",
                "a signal handler can only be set in the main thread.",
                got=f"the thread {threading.current_thread().name!r}",
                fix="make tallax.Checkpoints in the main thread, or leave preemption_exit_code out",
            )
        self._before = signal.signal(signal.SIGTERM, self._request)
        self._is_installed = True

    def is_requested(self, step: int) -> bool:
        """Returns whether to save and stop now; all processes get the same answer for one step."""
        if jax.distributed.is_initialized():
            return bool(multihost_utils.reached_preemption_sync_point(step))
        return self._requested

    def close(self) -> None:
        """Puts the handler from before back."""
        if self._is_installed and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._before)
            self._is_installed = False

    def _request(self, number: int, frame: FrameType | None) -> None:
        self._requested = True
        signal.signal(signal.SIGTERM, self._before)  # a second SIGTERM ends the program as it would have before
        self._is_installed = False
