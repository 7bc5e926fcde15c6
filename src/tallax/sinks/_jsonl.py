# SPDX-License-Identifier: Apache-2.0
"""`Jsonl`: a line of JSON for each record."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tallax.runs import Record
from tallax.runs._jsonl_format import FIRST_LINE, Decoder, Encoder
from tallax.runs._run import file_of
from tallax.sinks._append_file import GrowingFile
from tallax.sinks._local_path import place
from tallax.sinks._locking import lock
from tallax.sinks._partial_writes import encoded


class Jsonl:
    """Appends records to a file, one line of JSON each, for `tallax tail`, `tallax plot` and `tallax.Run`.

    A line is handed to the operating system whole: it outlasts the program however that ends. Where it can't be
    written, what there is of it is taken back, so that the file stays readable.

    Resuming: records of the first record's step and later ones, from before, go to a file of the same name with
    `.dropped` behind it. So does all of an older run where a new one is begun in its folder.

    Args:
        path: a folder, which is made where it is missing and gets the file `records.jsonl`, or a file that ends in
            `.jsonl`. Further processes put their number in its name.

    Raises:
        InvalidValueError: it is the address of a store elsewhere, such as `gs://...`.
        RunError: the file holds something else, or has been damaged. It is left as it is.
        RunLockedError: another program, or another Logger, is writing to it.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self._path = place("sinks.Jsonl", path)
        self._file: GrowingFile | None = None
        self._encoder = Encoder()

    def write(self, record: Record) -> dict[str, Exception]:
        if self._file is None:
            self._file = self._open(record)
        line, errors = encoded(record, self._line, lambda part: Encoder().line(part))
        try:
            self._file.append(line)
        except BaseException:
            self._encoder = Encoder()  # the next line leans on none before it
            raise
        return errors

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def __repr__(self) -> str:
        return f"Jsonl({str(self._path)!r})"

    def _line(self, record: Record) -> bytes:
        try:
            return self._encoder.line(record)
        except BaseException:
            self._encoder = Encoder()
            raise

    def _open(self, record: Record) -> GrowingFile:
        path = file_of(self._path, record.process)
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            lock(descriptor, path)
            end = _cut(descriptor, path, record.step)
            file = GrowingFile(descriptor, end)
            if not end:
                file.append(FIRST_LINE)
        except BaseException:
            os.close(descriptor)
            raise
        return file


def _cut(file: int, path: Path, step: int) -> int:
    """Takes the records from a step on, and a torn last line, out of a file; returns how long the rest is."""
    decoder, end = Decoder(str(path)), 0
    with open(file, "rb", closefd=False) as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                if not FIRST_LINE.startswith(line) and not end:
                    decoder.record(line)  # raises: this is nobody's torn run
                break
            record = decoder.record(line)
            if record is not None and record.step >= step:
                _keep(path, file, end)
                break
            end += len(line)
    os.ftruncate(file, end)
    return end


def _keep(path: Path, file: int, start: int) -> None:
    """Appends what follows in a file to the one of what was dropped."""
    with open(file, "rb", closefd=False) as source, path.with_name(path.name + ".dropped").open("ab") as target:
        source.seek(start)
        shutil.copyfileobj(source, target)
