# SPDX-License-Identifier: Apache-2.0
"""`Jsonl`: a sink that writes a line of JSON for each record."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tallax.runs import Record
from tallax.runs._jsonl_format import FIRST_LINE, Decoder, Encoder
from tallax.runs._run import file_of
from tallax.sinks._local_files import AppendFile, FileSink, lock
from tallax.sinks._partial_writes import encode_or_omit


class Jsonl(FileSink):
    """Appends records to a file, one line of JSON each, for `tallax tail`, `tallax plot` and `tallax.Run`.

    The operating system receives each line whole, so it survives if the program is killed. If a line cannot be written
    completely, it is removed, so the file stays readable.

    When a run resumes, existing records of the first record's step and of later steps move to a file of the same name
    with the suffix `.dropped`. If a new run starts in the folder of an older one, all of the older records do.

    Args:
        path: A folder, which gets the file `records.jsonl`, or a file whose name ends in `.jsonl`. It is created if it
            does not exist. Processes other than 0 add their number to the file's name.

    Raises:
        InvalidValueError: `path` is the address of a remote store, such as `gs://...`.
        RunError: The file is not a run, or is damaged. It is left unchanged.
        RunLockedError: Another program or another Logger is writing to the file.
    """

    def __init__(self, path: str | os.PathLike[str]):
        super().__init__(path)
        self._encoder = Encoder()

    def write(self, record: Record) -> dict[str, Exception]:
        if self._file is None:
            self._file = self._open(record)
        line, errors = encode_or_omit(record, self._line, lambda part: Encoder().line(part))
        try:
            self._file.append(line)
        except BaseException:
            self._encoder = Encoder()  # the next line must not refer to the one that failed
            raise
        return errors

    def _line(self, record: Record) -> bytes:
        try:
            return self._encoder.line(record)
        except BaseException:
            self._encoder = Encoder()
            raise

    def _open(self, record: Record) -> AppendFile:
        path = file_of(self._path, record.process)
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            lock(descriptor, path)
            end = _cut(descriptor, path, record.step)
            file = AppendFile(descriptor, end)
            if not end:
                file.append(FIRST_LINE)
        except BaseException:
            os.close(descriptor)
            raise
        return file


def _cut(file: int, path: Path, step: int) -> int:
    """Removes the records from a step on, and an incomplete last line. Returns the length of the rest."""
    decoder, end = Decoder(str(path)), 0
    with open(file, "rb", closefd=False) as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                if not FIRST_LINE.startswith(line) and not end:
                    decoder.record(line)  # raises: this is not the start of a run
                break
            record = decoder.record(line)
            if record is not None and record.step >= step:
                _keep(path, file, end)
                break
            end += len(line)
    os.ftruncate(file, end)
    return end


def _keep(path: Path, file: int, start: int) -> None:
    """Appends the rest of a file to the `.dropped` file."""
    with open(file, "rb", closefd=False) as source, path.with_name(path.name + ".dropped").open("ab") as target:
        source.seek(start)
        shutil.copyfileobj(source, target)
