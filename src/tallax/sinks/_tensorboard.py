# SPDX-License-Identifier: Apache-2.0
"""`TensorBoard`: a sink that writes an event file."""

from __future__ import annotations

import os
import socket
import struct
import time
from typing import Any

import numpy as np

from tallax._errors import MissingExtraError
from tallax.runs import Bins, Record
from tallax.sinks._local_files import AppendFile, FileSink
from tallax.sinks._partial_writes import encode_or_omit

try:
    from tensorboardX.proto import event_pb2, summary_pb2, tensor_pb2
    from tensorboardX.record_writer import masked_crc32c
    from tensorboardX.summary import histogram_raw
except ModuleNotFoundError:
    raise MissingExtraError.of("sinks.TensorBoard", "tensorboard", "tensorboardX") from None

# protobuf makes these classes when it is imported, so type checkers do not see them.
Event: Any = vars(event_pb2)["Event"]
SessionLog: Any = vars(event_pb2)["SessionLog"]
Summary: Any = vars(summary_pb2)["Summary"]
SummaryMetadata: Any = vars(summary_pb2)["SummaryMetadata"]
TensorProto: Any = vars(tensor_pb2)["TensorProto"]

_EXACT = 2**24  # single precision represents every integer up to this one
_DOUBLE = 2  # TensorFlow's number for the dtype DT_DOUBLE
_NO_CURVE = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="tallax"))  # no dashboard has this name


class TensorBoard(FileSink):
    """Writes an event file for TensorBoard: curves, and histograms with the bins that were counted.

    A record is one event. The operating system receives it whole, so it survives if the program is killed.

    TensorBoard stores curves in single precision, which represents integers up to 2**24, and its data server reads
    nothing else. If a count exceeds that, later records also have it as `<name>/exact` in double precision, exact below
    2**53. This is a tensor for `EventAccumulator.Tensors`, not a curve. The counts of bins are in double precision.

    When a run resumes, an event with `purge_step`'s effect makes TensorBoard hide the first record's step and all later
    steps of the earlier files.

    Args:
        logdir: The folder of the run. It is created if it does not exist. Process k > 0 writes to `process-k` in it.

    Raises:
        InvalidValueError: `logdir` is the address of a remote store, such as `gs://...`.
        MissingExtraError: TensorboardX is not installed.
    """

    def __init__(self, logdir: str | os.PathLike[str]):
        super().__init__(logdir)
        self._names: tuple[str, ...] = ()
        self._event: Any = Event()
        self._large: set[str] = set()  # counts that single precision could not represent

    def write(self, record: Record) -> dict[str, Exception]:
        if self._file is None:
            self._file = self._open(record)
        event, errors = encode_or_omit(record, self._encoded)
        self._file.append(_framed(event))
        return errors

    def _open(self, record: Record) -> AppendFile:
        folder = self._path / f"process-{record.process}" if record.process else self._path
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files of a run in the order of their names, so the time comes first.
        path = folder / f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        file = AppendFile(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        version = Event(wall_time=record.time, file_version="brain.Event:2")
        start = Event(wall_time=record.time, step=record.step, session_log=SessionLog(status=SessionLog.START))
        try:
            file.append(b"".join(_framed(event.SerializeToString()) for event in (version, start)))
        except BaseException:
            file.close()
            path.unlink()  # the next record begins another file
            raise
        return file

    @np.errstate(all="ignore")  # a number beyond the range of its precision becomes an infinity
    def _encoded(self, record: Record) -> bytes:
        """Returns the serialized event of a record.

        The message of the last record is used again while the names are the same: 200 scalars then take 50 to 70 us to
        encode and append, instead of 140 us with a new message.
        """
        names = (*record.scalars,)
        if names != self._names:
            summary = Summary(value=[Summary.Value(tag=name) for name in names])
            self._names, self._event = names, Event(summary=summary)
        values = self._event.summary.value
        del values[len(names) :]
        for value, number in zip(values, record.scalars.values(), strict=True):
            value.simple_value = float(number)
        counts = ((name, n) for name, n in record.scalars.items() if n.__class__ is int and not -_EXACT < n < _EXACT)
        self._large |= {name for name, count in counts if float(np.float32(count)) != count}
        for name in names if self._large else ():
            if name in self._large:
                tensor = TensorProto(dtype=_DOUBLE, double_val=[float(record.scalars[name])])
                values.add(tag=f"{name}/exact", tensor=tensor, metadata=_NO_CURVE)
        for name, bins in record.histograms.items():
            values.extend(_histogram(name, bins).value)
        # Serialized messages can be concatenated: their fields are joined.
        head = Event(wall_time=record.time, step=record.step)
        return head.SerializeToString() + self._event.SerializeToString()


def _framed(data: bytes) -> bytes:
    """Returns an event in the format of the file: its length and its bytes, each followed by a checksum."""
    length = struct.pack("<Q", len(data))
    return b"".join([length, _checksum(length), data, _checksum(data)])


def _checksum(data: bytes) -> bytes:
    return struct.pack("<I", masked_crc32c(data))


def _histogram(name: str, bins: Bins) -> Any:
    """Returns the summary of a histogram. Its first bin begins at `min`; sums use middles."""
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
