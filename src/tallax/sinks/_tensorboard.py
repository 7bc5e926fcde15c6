# SPDX-License-Identifier: Apache-2.0
"""`TensorBoard`: an event file."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from tallax._errors import MissingExtraError
from tallax.runs import Bins, Record
from tallax.sinks._append_file import GrowingFile
from tallax.sinks._local_path import place
from tallax.sinks._partial_writes import encoded

try:
    from tensorboardX.proto import event_pb2, summary_pb2, tensor_pb2
    from tensorboardX.record_writer import masked_crc32c
    from tensorboardX.summary import histogram_raw
except ModuleNotFoundError:
    raise MissingExtraError.of("sinks.TensorBoard", "tensorboard", "tensorboardX") from None

# Classes that protobuf makes when it is imported, which type checkers don't see.
Event: Any = vars(event_pb2)["Event"]
SessionLog: Any = vars(event_pb2)["SessionLog"]
Summary: Any = vars(summary_pb2)["Summary"]
SummaryMetadata: Any = vars(summary_pb2)["SummaryMetadata"]
TensorProto: Any = vars(tensor_pb2)["TensorProto"]

_EXACT = 2**24  # the largest integer up to which single precision holds all
_DOUBLE = 2  # DT_DOUBLE among TensorFlow's numbers for dtypes
_SUMMARY = bytes([Event.DESCRIPTOR.fields_by_name["summary"].number << 3 | 2])  # begins the event's field
_NO_CURVE = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="tallax"))  # no dashboard of that name


class TensorBoard:
    """Writes an event file for TensorBoard: curves, and histograms with the bins that were counted.

    A record is one event, handed to the operating system whole: it outlasts the program however that ends. The curves
    of TensorBoard are single precision (so is all that its data server reads), which holds integers up to 2**24. From
    the first count on that it can't hold, `<name>/exact` has them too, in double precision: no curve, but a tensor for
    `EventAccumulator.Tensors`, exact below 2**53. Counts of bins are in double precision.

    Resuming: TensorBoard is told to hide what is there of the first record's step and later ones, by `purge_step`'s
    event.

    Args:
        logdir: the folder of the run, which is made where it is missing. Further processes write to `process-1` and so
            on in it.

    Raises:
        InvalidValueError: it is the address of a store elsewhere, such as `gs://...`.
        MissingExtraError: tensorboardX is not installed.
    """

    def __init__(self, logdir: str | os.PathLike[str]):
        self._logdir = place("sinks.TensorBoard", logdir)
        self._file: GrowingFile | None = None
        self._form = _Form((), frozenset())

    def write(self, record: Record) -> dict[str, Exception]:
        if self._file is None:
            self._file = self._open(record)
        event, errors = encoded(record, self._event)
        self._file.append(_framed(event))
        return errors

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def __repr__(self) -> str:
        return f"TensorBoard({str(self._logdir)!r})"

    def _open(self, record: Record) -> GrowingFile:
        folder = self._logdir / f"process-{record.process}" if record.process else self._logdir
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files of a run in the order of their names.
        path = folder / f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        file = GrowingFile(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        version = Event(wall_time=record.time, file_version="brain.Event:2")
        start = Event(wall_time=record.time, step=record.step, session_log=SessionLog(status=SessionLog.START))
        try:
            file.append(b"".join(_framed(event.SerializeToString()) for event in (version, start)))
        except BaseException:
            file.close()
            path.unlink()  # the next record begins another
            raise
        return file

    def _event(self, record: Record) -> bytes:
        with np.errstate(all="ignore"):  # single precision has what is out of its range as an infinity
            numbers = np.array([*record.scalars.values()], np.float64)
            return self._form_for(record.scalars, numbers).filled_in(record, numbers)

    def _form_for(self, scalars: Mapping[str, int | float], numbers: np.ndarray) -> _Form:
        """Returns the form for these scalars: mostly the one of those before, for their names are the same."""
        form, new = self._form, set[str]()
        if (np.abs(numbers) > _EXACT).any():
            counts = ((name, value) for name, value in scalars.items() if isinstance(value, int))
            new = {name for name, value in counts if float(np.float32(value)) != value} - form.large
        if new or form.names != (*scalars,):
            self._form = form = _Form((*scalars,), form.large | new)
        return form


class _Form:
    """The event of a record, to be filled in: to make the protocol buffers anew would take five times as long.

    Args:
        names: of the scalars.
        large: those that single precision has been found not to hold, of which there may be more than are in `names`.
    """

    def __init__(self, names: tuple[str, ...], large: frozenset[str]):
        self.names, self.large = names, large
        curves = [Summary(value=[Summary.Value(tag=name, simple_value=0.0)]).SerializeToString() for name in names]
        self._curves = np.frombuffer(bytearray().join(curves), np.uint8)
        # Fields are written in the order of their numbers, so that each ends with its number: four bytes.
        ends = np.cumsum([len(curve) for curve in curves], dtype=np.intp)
        self._places = (ends[:, None] + np.arange(-4, 0)).ravel()

    def filled_in(self, record: Record, numbers: np.ndarray) -> bytes:
        """Returns the event of a record, serialized."""
        self._curves[self._places] = numbers.astype("<f4").view(np.uint8)
        others = [
            Summary.Value(
                tag=f"{name}/exact",
                tensor=TensorProto(dtype=_DOUBLE, double_val=[float(record.scalars[name])]),
                metadata=_NO_CURVE,
            )
            for name in self.names
            if name in self.large
        ]
        for name, bins in record.histograms.items():
            others += _histogram(name, bins).value
        summary = self._curves.tobytes() + Summary(value=others).SerializeToString()
        event = Event(wall_time=record.time, step=record.step).SerializeToString()
        return b"".join([event, _SUMMARY, _varint(len(summary)), summary])


def _varint(number: int) -> bytes:
    """Returns a length as protocol buffers have it: seven bits a byte, the lowest first."""
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def _framed(data: bytes) -> bytes:
    """Returns an event as it is in a file: its length and its bytes, each followed by its checksum."""
    length = struct.pack("<Q", len(data))
    return b"".join([length, _checksum(length), data, _checksum(data)])


def _checksum(data: bytes) -> bytes:
    return struct.pack("<I", masked_crc32c(data))


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
