# SPDX-License-Identifier: Apache-2.0
"""`MLflow`: a run of MLflow."""

from __future__ import annotations

import json
import re
from typing import Any

from tallax._errors import InvalidValueError, MissingExtraError, compose
from tallax.runs import Bins, Record

try:
    from mlflow.entities import Metric, RunTag
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient
except ModuleNotFoundError:
    raise MissingExtraError.of("sinks.MLflow", "mlflow", "mlflow-skinny") from None

_AT_ONCE = 1000  # MLflow takes no more metrics in one request
_REFUSED = re.compile(r"[^\w\-. /]")  # in the name of a metric
_FIRST, _RESUMED = "tallax.first_step", "tallax.resumed"  # tags


class MLflow:
    """Logs records to a run of MLflow: scalars as metrics, the histograms of a step as `histograms/<step>.json`.

    Metrics are double precision, so integers are exact below 2**53; histograms are exact. Names keep letters, digits
    and `_-. /`; for other characters, such as the comma of `load/0,1`, there is a dot. A name that MLflow refuses, or
    that is another's for MLflow, is left out.

    Resuming: MLflow can't take back a value, and would show both where a step is logged twice. So values that a metric
    has from before the crash stay, and those of later records are left out until it is past the last; the tag
    `tallax.resumed` says so. Histograms of such steps are replaced. A run that starts no later than the one of that
    name did is a new one.

    The store is opened at the first record. Where it can't be reached, MLflow tries for minutes before it raises:
    `MLFLOW_HTTP_REQUEST_MAX_RETRIES` in the environment says how often. The run's status is RUNNING until `close`, then
    FINISHED.

    Args:
        experiment: its name. It is created where there is none. MLflow's default experiment, if there is no name.
        run_name: the run's. The latest of that name in the experiment is resumed, unless this one starts anew.
            Further processes have runs of their own, with their number behind the name.
        run_id: of a run to log to, whatever it has already. Names of further processes' metrics begin with
            `process-1/` and so on.
        tracking_uri: of the store, such as `sqlite:///runs.db`; as MLflow's environment has it, if it is not said.

    Raises:
        MissingExtraError: mlflow is not installed.
        MlflowException: the store can't be opened or refuses the record. The next record tries again.
    """

    def __init__(
        self,
        *,
        experiment: str | None = None,
        run_name: str | None = None,
        run_id: str | None = None,
        tracking_uri: str | None = None,
    ):
        self._experiment, self._run_name, self._run_id, self._uri = experiment, run_name, run_id, tracking_uri
        self._client: Any = None
        self._run = ""  # its id
        self._before: dict[str, int] = {}  # the last step that each metric has from before
        self._names: dict[str, str] = {}  # by what MLflow calls them
        self._refused: dict[str, Exception] = {}  # by name, the errors of numbers that MLflow does not take
        self._step: int | None = None  # the step of the last histograms,
        self._drawn: dict[str, Any] = {}  # and what there is of them

    def write(self, record: Record) -> dict[str, Exception]:
        if self._client is None:
            self._client = self._open(record)
        prefix = f"process-{record.process}/" if record.process and self._run_id else ""
        time, step = round(record.time * 1000), record.step
        metrics, errors = [], dict[str, Exception]()
        for own, value in record.scalars.items():
            try:
                name = self._name(prefix + own)
                if step > self._before.get(name, step - 1):
                    metrics.append((own, Metric(name, float(value), time, step)))
            except Exception as error:
                errors[own] = error
        if errors and len(errors) == len(record.scalars) and not record.histograms:
            raise next(iter(errors.values()))
        metrics = [(own, metric) for own, metric in metrics if own not in self._refused]
        for start in range(0, len(metrics), _AT_ONCE):
            self._log(metrics[start : start + _AT_ONCE])
        if record.histograms:
            drawn = self._drawn if step == self._step else {}
            drawn = {**drawn, **{name: _plain(bins) for name, bins in record.histograms.items()}}
            self._client.log_text(self._run, json.dumps(drawn), f"histograms/{prefix}{step}.json")
            self._step, self._drawn = step, drawn
        return {**errors, **{own: error for own, error in self._refused.items() if own in record.scalars}}

    def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.set_terminated(self._run, "FINISHED")

    def __repr__(self) -> str:
        told = {"experiment": self._experiment, "run_name": self._run_name, "run_id": self._run_id}
        return f"MLflow({', '.join(f'{name}={value!r}' for name, value in told.items() if value is not None)})"

    def _log(self, metrics: list[tuple[str, Any]]) -> None:
        """Logs metrics, or of those that MLflow refuses for their names the others; further records leave these out."""
        try:
            self._client.log_batch(self._run, metrics=[metric for _, metric in metrics], synchronous=True)
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":  # the store can't be reached, for one
                raise
            if len(metrics) == 1:
                self._refused[metrics[0][0]] = error
                return
            half = len(metrics) // 2
            self._log(metrics[:half])
            self._log(metrics[half:])

    def _open(self, record: Record) -> Any:
        client = MlflowClient(tracking_uri=self._uri)
        if self._run_id:
            run = client.get_run(self._run_id)
        else:
            experiment = self._found_or_made(client)
            name = self._run_name
            if name and record.process:
                name += f"-process-{record.process}"
            run = _latest(client, experiment, name, record.step) if name else None
            if run is None:
                tags = {_FIRST: str(record.step)}
                self._run = client.create_run(experiment, run_name=name, tags=tags).info.run_id
                return client
        self._run = run.info.run_id
        self._before = {metric.key: metric.step for metric in run.data.to_proto().metrics}
        last = max(self._before.values(), default=record.step - 1)
        client.update_run(self._run, status="RUNNING")
        if last >= record.step:
            said = f"at step {record.step}; values of steps up to {last} are from before"
            client.log_batch(self._run, tags=[RunTag(_RESUMED, said)], synchronous=True)
        return client

    def _found_or_made(self, client: Any) -> str:
        name = self._experiment or "Default"
        found = client.get_experiment_by_name(name)
        return found.experiment_id if found else client.create_experiment(name)

    def _name(self, name: str) -> str:
        """Returns what MLflow is to call a number."""
        taken = _REFUSED.sub(".", name)
        if self._names.setdefault(taken, name) != name:
            raise InvalidValueError(
                compose(
                    "sinks.MLflow",
                    "two names are one where only letters, digits and _-. / are told apart.",
                    got=f"{self._names[taken]!r} and {name!r}, both {taken!r}",
                    fix="another name for one of the two",
                )
            )
        return taken


def _plain(bins: Bins) -> dict[str, Any]:
    return {"edges": bins.edges.tolist(), "counts": bins.counts.tolist()}


def _latest(client: Any, experiment: str, name: str, step: int) -> Any | None:
    """Returns the latest run of a name that can go on at a step."""
    quote = '"' if "'" in name else "'"
    found = client.search_runs(
        [experiment],
        filter_string=f"attributes.run_name = {quote}{name}{quote}",
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )
    for run in found:
        if step > int(run.data.tags.get(_FIRST, step - 1)):
            return run
    return None
