# SPDX-License-Identifier: Apache-2.0
"""`Checkpoints`: a series of checkpoints for a training loop."""

from __future__ import annotations

import atexit
import concurrent.futures
import dataclasses
import operator
import os
import shutil
import sys
import warnings
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Self, SupportsIndex

import jax

from tallax._errors import CheckpointError, InvalidTypeError, InvalidValueError, describe
from tallax.checkpoints._collect import named_objects
from tallax.checkpoints._cross_check import disagreements
from tallax.checkpoints._locate import UNFINISHED, orbax, orbax_errors, path_of
from tallax.checkpoints._plan import RestoreReport
from tallax.checkpoints._policy import Missing, Policy, Rename, Unexpected
from tallax.checkpoints._preemption import Preemption
from tallax.checkpoints._restore import restore_from
from tallax.checkpoints._save import SplitState, arguments
from tallax.compiling import CompiledStep


class Checkpoints:
    """The checkpoints of one training run: a folder with numbered checkpoints.

    An `orbax.checkpoint.CheckpointManager` can read the folder. If the program is killed, each checkpoint is either
    complete or absent; the next save removes the unfinished files of a killed program.

    Args:
        folder: Is made when something is saved.
        keep: The number of checkpoints that stay, the latest ones; None for all.
        every: `save` does something for multiples of this number.
        batch_size: The examples of a step. If the counters in the objects, such as `examples` and `step`, or the
            position of a data iterator disagree with it, `save` and `restore` warn, by name.
        preemption_exit_code: If it is given, SIGTERM lets the running step end; then the next `save` saves at any step,
            waits for the write, and ends the program with this code. With several processes, all save at the same step,
            as `jax.experimental.multihost_utils.reached_preemption_sync_point` arranges.
        async_: Whether `save` returns once the state is copied on its devices, and writes it in the background. With
            several processes Orbax copies it to the host first.

    Raises:
        InvalidTypeError: `folder` is not a path.
        InvalidValueError: `keep`, `every` or `batch_size` is not a positive integer; `folder` is an address, such as
            `gs://...`; or `preemption_exit_code` is given outside of the main thread.

    Example:
        >>> import tempfile, jax.numpy as jnp, tallax
        >>> from flax import nnx
        >>> def train(steps, folder):
        ...     model = nnx.Dict(seen=tallax.Counter())
        ...     with tallax.Checkpoints(folder, keep=2, every=10) as checkpoints:
        ...         start = checkpoints.latest() or 0
        ...         if start:
        ...             checkpoints.restore(model)
        ...         for n in range(start, steps):
        ...             model.seen.increment(n)
        ...             checkpoints.save(n + 1, model)
        ...     return start, int(model.seen)
        >>> folder = tempfile.mkdtemp()
        >>> train(35, folder)  # the last one is that of step 30
        (0, 595)
        >>> train(100, folder)
        (30, 4950)
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        keep: int | None = 3,
        every: int = 1,
        batch_size: int | None = None,
        preemption_exit_code: int | None = None,
        async_: bool = True,
    ):
        for name, value in (("keep", keep), ("every", every), ("batch_size", batch_size)):
            if not (isinstance(value, int) and value > 0) and not (name != "every" and value is None):
                raise InvalidValueError(
                    name, "must be a positive integer.", got=describe(value), fix="keep=3, every=1000"
                )
        self._name, self._folder = str(folder), path_of(folder, "tallax.Checkpoints(folder)").absolute()
        self._keep, self._every, self._async = keep, every, async_
        self._batch_size, self._exit_code = batch_size, preemption_exit_code
        self._preemption = None if preemption_exit_code is None else Preemption()
        self._is_checked = False
        self._disagreements: list[str] = []  # found by the writer, told by the caller's thread
        self._manager: Any = None
        self._writer: concurrent.futures.ThreadPoolExecutor | None = None
        self._writing: concurrent.futures.Future[None] | None = None
        atexit.register(_tell_of_what_is_lost, weakref.ref(self))

    def save(self, step: SupportsIndex, *objects: Any, extra: Any = None, force: bool = False, **named: Any) -> bool:
        """Saves objects under a number, if it is one of those to save at.

        If the previous checkpoint is still being written, it waits.

        Args:
            step: The number, larger than that of any checkpoint in the folder; a `Counter` is one.
            *objects: See `to_checkpoint`. Iterators over the data with `get_state` and `set_state` are saved too.
            extra: See `to_checkpoint`.
            force: Whether to save at any number, as after the last step.
            **named: See `to_checkpoint`.

        Returns:
            True if it is saved or being saved. False if the number is not a multiple of `every`, or is that of the
            latest checkpoint.

        Raises:
            CheckpointError: This one, or the one before, could not be written.
            InvalidTypeError: `step` is not an integer.
            InvalidValueError: There is a checkpoint of a larger number, or `step` is below 0.
            SystemExit: SIGTERM came, and everything is saved; see `preemption_exit_code`.
            TallaxError: As `tallax.save` does.
        """
        if not hasattr(step, "__index__"):
            raise InvalidTypeError(
                "step",
                "must be the number of the checkpoint, as the first argument.",
                got=f"a {type(step).__name__}",
                fix="checkpoints.save(n, model, optimizer)",
            )
        step = operator.index(step)  # also a Counter
        if step < 0:
            raise InvalidValueError(
                "step", "checkpoints are numbered from 0.", got=str(step), fix="checkpoints.save(n, model)"
            )
        is_last = self._preemption is not None and self._preemption.is_requested(step)
        if step % self._every and not (force or is_last):
            return False
        saved = self._save(step, objects, extra, named)
        if is_last:
            self.close()
            raise SystemExit(self._exit_code)
        return saved

    def _save(self, step: int, objects: Sequence[Any], extra: Any, named: Mapping[str, Any]) -> bool:
        """Saves, unless the number is that of the latest checkpoint."""
        latest = self.latest()
        if latest is not None and step <= latest:
            if step == latest:
                return False
            raise InvalidValueError(
                "step",
                "checkpoints are numbered upwards.",
                got=f"{step}, with {latest} in {self._name}",
                fix="restore the latest one first; or another folder",
            )
        state = SplitState.of(named_objects(objects, named), extra)
        if not self._async or jax.process_count() > 1:
            self._write(step, state)
            return True
        # A compiled step does not donate these arrays, because it copies the state that it takes over.
        if not all(isinstance(thing, CompiledStep) for thing in (*objects, *named.values())):
            state = state.copied()
        if self._writer is None:
            self._writer = concurrent.futures.ThreadPoolExecutor(1, "tallax-checkpoints")
        self._writing = self._writer.submit(self._write, step, state)
        return True

    def latest(self) -> int | None:
        """Returns the number of the latest checkpoint, or None. Waits for a checkpoint that is being written."""
        return max(self.steps(), default=None)

    def steps(self) -> list[int]:
        """Returns the numbers of all checkpoints, the oldest first. Waits for a checkpoint that is being written."""
        self.wait()
        if not self._folder.is_dir():
            return []
        return sorted(int(path.name) for path in self._folder.iterdir() if path.name.isdecimal() and path.is_dir())

    def restore(
        self,
        *objects: Any,
        step: int | None = None,
        missing: Missing = "error",
        unexpected: Unexpected = "error",
        rename: Rename = None,
        **named: Any,
    ) -> RestoreReport:
        """Restores objects from a checkpoint; see `tallax.restore`. If it raises, the objects do not change.

        Args:
            *objects: See `from_checkpoint`.
            step: The number of the checkpoint, by default the latest.
            missing: See `from_checkpoint`.
            unexpected: See `from_checkpoint`.
            rename: See `from_checkpoint`.
            **named: See `from_checkpoint`.

        Returns:
            The report, whose `step` is the number.

        Raises:
            CheckpointError: There is no checkpoint, or none of that number; or as `tallax.restore` does.
            RestoreError: As `tallax.restore` does.
            TallaxError: As `tallax.restore` does.
        """
        steps = self.steps()
        number = max(steps, default=None) if step is None else step
        if number not in steps:
            raise CheckpointError(
                self._name,
                "has no such checkpoint." if steps else "has no checkpoint.",
                got=f"step={step}" if steps else None,
                expected=f"one of {steps}" if steps else None,
                fix="checkpoints.latest(), which returns None without a checkpoint"
                if not steps
                else f"step={steps[-1]}",
            )
        policy = Policy(missing, unexpected, rename)
        report, manifest = restore_from(self._folder / str(number), objects, named, policy)
        found = disagreements(manifest, self._batch_size)
        self._disagreements += found
        self._warn()
        return dataclasses.replace(report, warnings=(*report.warnings, *found))

    def wait(self) -> None:
        """Waits for the checkpoint that is being written.

        Raises:
            CheckpointError: The checkpoint could not be written.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()
        if self._manager is not None:
            self._manager.wait_until_finished()
        self._warn()

    def _warn(self) -> None:
        messages, self._disagreements = self._disagreements, []
        for message in messages:
            warnings.warn(message, stacklevel=3)

    def close(self) -> None:
        """Waits, and releases the folder. Raises the same errors as `wait`."""
        try:
            self.wait()
        finally:
            writer, self._writer = self._writer, None
            if writer is not None:
                writer.shutdown()
            manager, self._manager = self._manager, None
            if manager is not None:
                manager.close()
            if self._preemption is not None:
                self._preemption.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Checkpoints({self._name!r}, keep={self._keep}, every={self._every}, async_={self._async})"

    def lost(self) -> BaseException | None:
        """Returns the reason why the last background write failed, or None."""
        writing = self._writing
        return writing.exception() if writing is not None and writing.done() else None

    def _write(self, step: int, state: SplitState) -> None:
        with orbax_errors(self._name, "a checkpoint cannot be written to it."):
            if self._manager is None:
                self._manager = self._opened()
            manifest = state.manifest(step)
            self._manager.save(step, args=arguments(state, manifest), force=True)
            # Once for each program: a batch size that was changed on purpose disagrees at every save.
            if not self._is_checked:
                self._disagreements += disagreements(manifest, self._batch_size)
                self._is_checked = bool(self._disagreements)

    def _opened(self) -> Any:
        ocp = orbax()
        if jax.process_index() == 0 and self._folder.is_dir():
            for path in self._folder.iterdir():
                if UNFINISHED in path.name:
                    shutil.rmtree(path, ignore_errors=True)
        background = self._async and jax.process_count() > 1
        options = ocp.CheckpointManagerOptions(max_to_keep=self._keep, enable_async_checkpointing=background)
        return ocp.CheckpointManager(self._folder, options=options)


def _tell_of_what_is_lost(reference: weakref.ref[Checkpoints]) -> None:
    """Prints the error of a write that failed after the last call, if the program ends without `close()`."""
    checkpoints = reference()
    error = None if checkpoints is None else checkpoints.lost()
    if error is not None:
        print(f"{error}\nThe program ended without checkpoints.close().", file=sys.stderr)
