# SPDX-License-Identifier: Apache-2.0
"""`WandB`: a sink that logs to a run of Weights & Biases."""

from __future__ import annotations

from typing import Any

from tallax._errors import InvalidTypeError, InvalidValueError, MissingExtraError
from tallax.runs import Record
from tallax.sinks._partial_writes import write_one_by_one

try:
    import wandb
except ModuleNotFoundError:
    raise MissingExtraError.of("sinks.WandB", "wandb", "wandb") from None

_BINS = 512  # the most bins that W&B accepts in a histogram


class WandB:
    """Logs records to a run of Weights & Biases: curves, and histograms with the bins that were counted.

    The steps of the run are those of the records. Integers are exact below 2**53. W&B's own file of the run, which
    `wandb sync` sends, has them exact below 2**63, and as doubles beyond. Histograms have at most 512 bins, which is
    W&B's limit: neighbouring bins are merged, so counts stay exact.

    W&B keeps a step open for other values of the same step, and passes it on when the next step begins. W&B's own
    process writes or sends it within 15 seconds, so a program that is killed may lose that much. From wandb 0.31 on,
    you can shorten this: `settings=wandb.Settings(x_transaction_log_flush_interval=1)`.

    To resume a run, pass `WandB(id="...", resume="allow")`. W&B accepts each step once, so the steps from before stay,
    and records of them are left out. The terminal reports this once, and the summary of the run contains the last such
    step as `logger/steps_kept_from_before`. To replace them, if W&B offers that for your account, pass
    `WandB(resume_from="ID?_step=1000")` with the step of the checkpoint. Offline, the steps that W&B already has are
    unknown, and `wandb sync` replaces an earlier run of the same id or renumbers its steps. If you work offline, give
    each start its own id and a common `group=`.

    Args:
        run: A run that the program has started and finishes itself. The program must not log a later step to it before
            the record of a step.
        **init: Arguments of `wandb.init`, which is called at the first record: `project="..."`, `id="..."`,
            `mode="offline"`. Processes other than 0 have their own runs, with their number appended to `id` and `name`.

    Raises:
        MissingExtraError: Wandb is not installed.
        InvalidTypeError: Both `run` and arguments of `wandb.init` were passed.
        InvalidValueError: The run has already logged a later step, so W&B would leave out this one.
        wandb.Error: `wandb.init` failed. The next record tries again.
    """

    def __init__(self, *, run: Any = None, **init: Any):
        if run is not None and init:
            raise InvalidTypeError(
                "sinks.WandB",
                "accepts a run or the arguments of wandb.init, not both.",
                got=f"run= and {', '.join(f'{name}=' for name in init)}",
                fix="WandB(run=run); or WandB(project=...)",
            )
        self._init, self._run, self._is_ours = init, run, run is None
        self._kept = -1  # the last step from before this run resumed
        self._has_warned = False

    def write(self, record: Record) -> dict[str, Exception]:
        run = self._run
        if run is None:
            run = self._run = self._begin(record.process)
        if record.step <= self._kept:
            self._warn_kept(run)
            return {}
        if record.step < run.step:
            raise InvalidValueError(
                repr(self),
                "W&B accepts the steps of a run in order, and would leave this one out.",
                got=f"a record of step {record.step}, after step {run.step} was started",
                fix="run.log(..., step=step) with the same steps; or one run for each: WandB(project=...)",
            )
        try:
            _log(run, record)
        except Exception:  # some of its values cannot be logged, or none
            return write_one_by_one(record, lambda part: _log(run, part))  # W&B merges these into one step
        return {}

    def close(self) -> None:
        if not self._is_ours:
            return
        run, self._run = self._run, None
        if run is not None:
            run.finish()

    def __repr__(self) -> str:
        told = {"run": self._run.id} if self._run is not None else self._init
        return f"WandB({', '.join(f'{name}={value!r}' for name, value in told.items() if name != 'config')})"

    def _begin(self, process: int) -> Any:
        init = dict(self._init)
        if process:
            init |= {name: f"{init[name]}-process-{process}" for name in ("id", "name") if name in init}
        run = wandb.init(**init)
        if run.resumed:
            self._kept = run.starting_step - 1
        return run

    def _warn_kept(self, run: Any) -> None:
        if not self._has_warned:
            self._has_warned = True
            wandb.termwarn(f"tallax: run {run.id} keeps the steps up to {self._kept} that it has from before.")
            run.summary["logger/steps_kept_from_before"] = self._kept


def _log(run: Any, record: Record) -> None:
    prefix = f"process-{record.process}/" if record.process else ""
    values: dict[str, Any] = {prefix + name: value for name, value in record.scalars.items()}
    for name, bins in record.histograms.items():
        few = bins.at_most(_BINS)
        values[prefix + name] = wandb.Histogram(np_histogram=(few.counts, few.edges))
    run.log(values, step=record.step)
