# SPDX-License-Identifier: Apache-2.0
"""`Run`: reads the records of a run from its folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from tallax.runs._errors import RunError
from tallax.runs._history import History
from tallax.runs._jsonl_format import Decoder
from tallax.runs._record import Record

FILE = "records.jsonl"
_NUMBERED = re.compile(r"records\.process-(\d+)\.jsonl")


def file_of(path: str | os.PathLike[str], process: int) -> Path:
    """Returns the file of a process. `path` is the folder of the run, or the file of process 0."""
    path = Path(path)
    if path.suffix != ".jsonl":
        path /= FILE
    return path.with_name(f"{path.stem}.process-{process}.jsonl") if process else path


def is_run(path: str | os.PathLike[str]) -> bool:
    """Returns whether a path is a folder with records, or a file."""
    path = Path(path)
    if path.is_dir():
        return any(file.name == FILE or _NUMBERED.fullmatch(file.name) for file in path.iterdir())
    return path.is_file()


class Run(History):
    """The records of a run so far. `refresh` reads the records that were written since.

    It has the attributes of a history: `scalars` and `histograms` by name, each a series with `steps` and `values`;
    `state`, which describes the variables and statistics; and the `steps` and `times` of all records of process 0.

    Args:
        path: The folder or file that was passed to `tallax.sinks.Jsonl`. If several processes wrote to a folder, the
            names of process k > 0 begin with `process-k/`.
        keep: The minimum number of values to keep for each name, the last ones. None keeps all.

    Raises:
        RunError: The run does not exist, is damaged, or was written by a later version of tallax. An incomplete last
            line is not an error, because the run may still be writing it.

    Example:
        >>> import tempfile, tallax
        >>> folder = tempfile.mkdtemp()
        >>> with tallax.Logger(tallax.sinks.Jsonl(folder), every=10) as log:
        ...     for step in range(1, 31):
        ...         log(step=step, loss=1 / step)
        >>> run = tallax.Run(folder)
        >>> run.scalars["loss"].steps
        [1, 10, 20, 30]
        >>> run.scalars["loss"].values[1]
        0.1
    """

    def __init__(self, path: str | os.PathLike[str], *, keep: int | None = None):
        super().__init__(keep)
        self.path: Path = Path(path)
        self._files: dict[Path, _Tail] = {}
        self._find()
        if not self._files:
            raise RunError(
                str(path),
                "is not a run: it contains no records." if self.path.exists() else "does not exist.",
                expected=f"a folder with a file {FILE}, as tallax.sinks.Jsonl(folder) writes it",
                fix=_instead_of(self.path),
            )
        self.refresh()

    def refresh(self) -> bool:
        """Reads new records, and returns whether there were any.

        If the run was resumed from an earlier step, all records are read again.

        Raises:
            RunError: A new line is not a record.
        """
        self._find()
        try:
            return self._read_on()
        except _RewrittenError:
            super().__init__(self.keep)
            self._files = {}
            self._find()
            self._read_on()
            return True

    def __repr__(self) -> str:
        last = f"step {self.steps[-1]:,}" if self.steps else "no records yet"
        return f"<Run {str(self.path)!r}: {last}, {len(self.scalars)} scalars, {len(self.histograms)} histograms>"

    def _repr_html_(self) -> str:
        from tallax.runs._contents import of_run
        from tallax.runs._html import contents_html

        return contents_html(of_run(self, str(self.path)))

    def _find(self) -> None:
        folder = self.path
        if folder.is_file():
            self._files.setdefault(folder, _Tail(folder, ""))
        elif folder.is_dir():
            for file in sorted(folder.iterdir()):
                numbered = _NUMBERED.fullmatch(file.name)
                if file.name == FILE or numbered:
                    prefix = f"process-{numbered[1]}/" if numbered else ""
                    self._files.setdefault(file, _Tail(file, prefix))

    def _read_on(self) -> bool:
        found = False
        for tail in self._files.values():
            for record in tail.records():
                found = True
                self.add(record, tail.prefix)
        return found


class _RewrittenError(Exception):
    """The part of the file that was read before has changed."""


class _Tail:
    """Reads the records of a file as it grows."""

    def __init__(self, path: Path, prefix: str):
        self._path, self.prefix = path, prefix
        self._decoder = Decoder(str(path))
        self._end = 0  # the end of the last complete line that was read
        self._last = b""  # that line; if it has changed, the file was cut and has grown again

    def records(self) -> Iterator[Record]:
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            raise _RewrittenError from None
        with file:
            file.seek(self._end - len(self._last))
            if file.read(len(self._last)) != self._last:
                raise _RewrittenError
            for line in file:
                if not line.endswith(b"\n"):
                    return  # the line is still being written
                record = self._decoder.record(line)
                self._end += len(line)
                self._last = line
                if record is not None:
                    yield record


def _instead_of(path: Path) -> str:
    """Returns the fix for a path without a run, with the runs in its subfolders if it has any."""
    start = path if path.is_dir() else path.parent
    near = sorted(found.parent for found in start.glob(f"*/{FILE}"))[:3] if start.is_dir() else []
    if near:
        return "name a run: " + ", ".join(map(str, near))
    return "log with tallax.Logger(tallax.sinks.Jsonl(folder)), and name that folder"
