# SPDX-License-Identifier: Apache-2.0
"""`WandB`: a run of Weights & Biases."""

from __future__ import annotations

from typing import Any

from tallax._errors import InvalidTypeError, InvalidValueError, MissingExtraError, compose
from tallax.runs import Record
from tallax.sinks._partial_writes import write_one_by_one

try:
    import wandb
except ModuleNotFoundError:
    raise MissingExtraError.of("sinks.WandB", "wandb", "wandb") from None

_BINS = 512  # W&B takes no more in a histogram


class WandB:
    """Logs records to a run of Weights & Biases: curves, and histograms with the bins that were counted.

    The run's steps are the records'. Integers are exact below 2**53; W&B's own file of the run, which `wandb sync`
    sends, has them exact below 2**63, and a double beyond. Histograms have at most 512 bins, W&B's limit: neighbours
    are put together, so counts stay exact.

    A step stays open for what else is logged of it, and is passed on with the next one. W&B's process beside this one
    writes or sends it within 15 seconds, so a program that is killed may lose that much. (wandb has a setting for that
    from 0.31 on: `settings=wandb.Settings(x_transaction_log_flush_interval=1)`.)

    Resuming, `WandB(id="...", resume="allow")`: W&B takes no step twice. Those that it has from before the crash stay;
    records of them are left out, which the terminal says once and the run's summary in
    `logger/steps_kept_from_before`: up to which step. To replace them, where W&B offers that for the account:
    `WandB(resume_from="ID?_step=1000")`, with the step of the checkpoint.
    Offline nobody knows what W&B has, and `wandb sync` replaces an earlier run of that id, or renumbers steps that it
    has: there give each start an id of its own, and a common `group=`.

    Args:
        run: one that the program has begun, which it also finishes. It logs no later step before the record of a step.
        **init: what `wandb.init` takes, at the first record: `project="..."`, `id="..."`, `mode="offline"`. Further
            processes have runs of their own, with their number behind `id` and `name`.

    Raises:
        MissingExtraError: wandb is not installed.
        InvalidTypeError: `run` came with what `wandb.init` takes.
        InvalidValueError: the run has logged a later step already, so W&B would leave out this one.
        wandb.Error: `wandb.init` failed. The next record tries again.
    """

    def __init__(self, *, run: Any = None, **init: Any):
        if run is not None and init:
            raise InvalidTypeError(
                compose(
                    "sinks.WandB",
                    "takes a run, or what wandb.init takes to begin one.",
                    got=f"run= and {', '.join(f'{name}=' for name in init)}",
                    fix="WandB(run=run); or WandB(project=...)",
                )
            )
        self._init, self._run, self._is_ours = init, run, run is None
        self._kept = -1  # the last step that is there from before
        self._said = False

    def write(self, record: Record) -> dict[str, Exception]:
        run = self._run
        if run is None:
            run = self._run = self._begin(record.process)
        if record.step <= self._kept:
            self._say(run)
            return {}
        if record.step < run.step:
            raise InvalidValueError(
                compose(
                    repr(self),
                    "W&B takes the steps of a run in order, and would leave this one out.",
                    got=f"a record of step {record.step}, after step {run.step} was begun",
                    fix="run.log(..., step=step) beside it, with the same steps; or a run for each: WandB(project=...)",
                )
            )
        try:
            _log(run, record)
        except Exception:  # of some of its values, or of all
            return write_one_by_one(record, lambda part: _log(run, part))  # which W&B puts together as one step
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

    def _say(self, run: Any) -> None:
        if not self._said:
            self._said = True
            wandb.termwarn(f"tallax: run {run.id} keeps the steps up to {self._kept} that it has from before.")
            run.summary["logger/steps_kept_from_before"] = self._kept


def _log(run: Any, record: Record) -> None:
    prefix = f"process-{record.process}/" if record.process else ""
    values: dict[str, Any] = {prefix + name: value for name, value in record.scalars.items()}
    for name, bins in record.histograms.items():
        few = bins.at_most(_BINS)
        values[prefix + name] = wandb.Histogram(np_histogram=(few.counts, few.edges))
    run.log(values, step=record.step)
