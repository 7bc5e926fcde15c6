# SPDX-License-Identifier: Apache-2.0
"""`TensorBoard`: an event file."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tallax._errors import MissingExtraError
from tallax_runs import Bins, Record

try:
    from tensorboardX import RecordWriter
    from tensorboardX.proto import event_pb2, summary_pb2, tensor_pb2
    from tensorboardX.summary import histogram_raw
except ModuleNotFoundError:
    raise MissingExtraError.of("sinks.TensorBoard", "tensorboard", "tensorboardX") from None

# Classes that protobuf makes when it is imported, which type checkers don't see.
Event: Any = vars(event_pb2)["Event"]
SessionLog: Any = vars(event_pb2)["SessionLog"]
Summary: Any = vars(summary_pb2)["Summary"]
SummaryMetadata: Any = vars(summary_pb2)["SummaryMetadata"]
TensorProto: Any = vars(tensor_pb2)["TensorProto"]

_DOUBLE = 2  # DT_DOUBLE among TensorFlow's numbers for dtypes
_NO_CURVE = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="tallax"))  # no dashboard of that name


class TensorBoard:
    """Writes an event file for TensorBoard: curves, and histograms with the bins that were counted.

    A record is one event, written and synchronised before `write` returns. TensorBoard's curves are single precision
    (so is all that its data server reads), which holds integers up to 2**24. From the first count on that it can't
    hold, `<name>/exact` has them too, in double precision: no curve, but a tensor for `EventAccumulator.Tensors`, exact
    below 2**53. Counts of bins are in double precision.

    Resuming: TensorBoard is told to hide what is there of the first record's step and later ones, by `purge_step`'s
    event.

    Args:
        logdir: the folder of the run, which is made where it is missing. Further processes write to `process-1` and so
            on in it.

    Raises:
        MissingExtraError: tensorboardX is not installed.
    """

    def __init__(self, logdir: str | os.PathLike[str]):
        self._logdir = Path(logdir)
        self._writer: Any = None
        self._large: set[str] = set()  # names of counts beyond single precision

    def write(self, record: Record) -> None:
        if self._writer is None:
            self._writer = self._open(record)
        values = [Summary.Value(tag=name, simple_value=value) for name, value in record.scalars.items()]
        values += self._exact(record.scalars)
        for name, bins in record.histograms.items():
            values += _histogram(name, bins).value
        event = Event(wall_time=record.time, step=record.step, summary=Summary(value=values))
        self._writer.write(event.SerializeToString())
        self._writer.flush()

    def close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def __repr__(self) -> str:
        return f"TensorBoard({str(self._logdir)!r})"

    def _open(self, record: Record) -> Any:
        folder = self._logdir / f"process-{record.process}" if record.process else self._logdir
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files of a run in the order of their names.
        writer = RecordWriter(
            str(folder / f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}")
        )
        writer.write(Event(wall_time=record.time, file_version="brain.Event:2").SerializeToString())
        start = SessionLog(status=SessionLog.START)
        writer.write(Event(wall_time=record.time, step=record.step, session_log=start).SerializeToString())
        return writer

    def _exact(self, scalars: Mapping[str, int | float]) -> list[Any]:
        """Returns in double precision what single precision has been found not to hold."""
        counts = {name: value for name, value in scalars.items() if isinstance(value, int)}
        self._large |= {name for name, value in counts.items() if float(np.float32(value)) != value}
        return [
            Summary.Value(
                tag=f"{name}/exact",
                tensor=TensorProto(dtype=_DOUBLE, double_val=[float(counts[name])]),
                metadata=_NO_CURVE,
            )
            for name in counts.keys() & self._large
        ]


def _histogram(name: str, bins: Bins) -> Any:
    """Returns the summary of a histogram, whose first bin TensorBoard takes to begin at `min`; sums are of middles."""
    counts, middles = bins.counts.astype(np.float64), bins.middles
    return histogram_raw(
        name,
        min=bins.edges[0].item(),
        max=bins.edges[-1].item(),
        num=float(bins.total),
        sum=float(counts @ middles),
        sum_squares=float(counts @ middles**2),
        bucket_limits=bins.edges[1:].tolist(),
        bucket_counts=counts.tolist(),
    )
