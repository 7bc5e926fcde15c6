# SPDX-License-Identifier: Apache-2.0
"""`MLflow`: a sink that logs to a run of MLflow."""

from __future__ import annotations

import json
import re
from typing import Any

from tallax._errors import InvalidValueError, MissingExtraError
from tallax.runs import Bins, Record

try:
    from mlflow.entities import Metric, RunTag
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient
except ModuleNotFoundError:
    raise MissingExtraError.of("sinks.MLflow", "mlflow", "mlflow-skinny") from None

_AT_ONCE = 1000  # the most metrics that MLflow accepts in one request
_REFUSED = re.compile(r"[^\w\-. /]")  # characters that MLflow does not accept in the name of a metric
_FIRST, _RESUMED = "tallax.first_step", "tallax.resumed"  # tags


class MLflow:
    """Logs records to a run of MLflow: scalars as metrics, the histograms of a step as `histograms/<step>.json`.

    Metrics are double precision, so integers are exact below 2**53. Histograms are exact. Names keep letters, digits
    and `_-. /`; other characters, such as the comma of `load/0,1`, become a dot. If MLflow rejects a name, or if two
    names become the same one, the value is left out.

    MLflow cannot remove a value, and shows both if a step is logged twice. So when a run resumes, each metric keeps the
    values from before, and new values are left out until its step is past the last of these. The tag `tallax.resumed`
    records this. Histograms of such steps are replaced. If the first step is not after the first step of the earlier
    run, a new run is created.

    The store is opened at the first record. If it cannot be reached, MLflow retries for minutes before it raises; the
    environment variable `MLFLOW_HTTP_REQUEST_MAX_RETRIES` sets the number of retries. The status of the run is RUNNING
    until `close`, then FINISHED.

    Args:
        experiment: The name of the experiment, which is created if it does not exist. If omitted, MLflow's default.
        run_name: The name of the run. The latest run of this name in the experiment is resumed, as described above.
            Processes other than 0 have their own runs, with their number appended to the name.
        run_id: The id of an existing run to log to. Names of the metrics of process k > 0 begin with `process-k/`.
        tracking_uri: The address of the store, such as `sqlite:///runs.db`. If omitted, that of MLflow's environment.

    Raises:
        MissingExtraError: Mlflow is not installed.
        MlflowException: The store cannot be opened, or rejects the record. The next record tries again.
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
        self._before: dict[str, int] = {}  # the last step of each metric, from before this run resumed
        self._names: dict[str, str] = {}  # our name by MLflow's name
        self._refused: dict[str, Exception] = {}  # the errors of numbers that MLflow rejects, by name
        self._step: int | None = None  # the step of the last histograms
        self._drawn: dict[str, Any] = {}  # the histograms of that step, by name

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
        """Logs metrics, except those that MLflow rejects, which it finds by bisection. Later records leave them out."""
        try:
            self._client.log_batch(self._run, metrics=[metric for _, metric in metrics], synchronous=True)
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":  # for example, the store cannot be reached
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
        """Returns MLflow's name of a number."""
        taken = _REFUSED.sub(".", name)
        if self._names.setdefault(taken, name) != name:
            raise InvalidValueError(
                "sinks.MLflow",
                "two names become equal, because MLflow keeps only letters, digits and _-. / in names.",
                got=f"{self._names[taken]!r} and {name!r}, both {taken!r}",
                fix="another name for one of the two",
            )
        return taken


def _plain(bins: Bins) -> dict[str, Any]:
    return {"edges": bins.edges.tolist(), "counts": bins.counts.tolist()}


def _latest(client: Any, experiment: str, name: str, step: int) -> Any | None:
    """Returns the latest run of a name that can resume at a step, or None."""
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
