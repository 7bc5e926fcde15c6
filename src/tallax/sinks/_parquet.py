# SPDX-License-Identifier: Apache-2.0
"""`Parquet`: a sink that writes a table of all numbers, for data frames and SQL."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tallax._errors import MissingExtraError
from tallax.runs import Record, RunError
from tallax.sinks._local_files import local_path, lock
from tallax.sinks._partial_writes import encode_or_omit

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ModuleNotFoundError:
    raise MissingExtraError.of("sinks.Parquet", "parquet", "pyarrow") from None

FOLDER = "records.parquet"
# The time of a write grows with the size of the part. With 200 scalars and 20 histograms, in parts of 1, 50, 100 and
# 500 records, it is 2, 6, 11 and 50 ms on average. Reading 500 such records back takes 410, 62, 70 and 140 ms.
_RECORDS = 50  # the most records in a part
_BYTES = 2**24  # if records are large, a part ends here
_LARGEST = 2**64 - 1

SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("time", pa.timestamp("us", tz="UTC")),
        ("process", pa.int32()),
        ("name", pa.string()),
        ("value", pa.float64()),
        ("count", pa.uint64()),
        ("edges", pa.list_(pa.float64())),
        ("counts", pa.list_(pa.uint64())),
    ]
)


class Parquet:
    """Writes a folder of Parquet files that pandas, Polars, DuckDB and Spark read as one table, while the run goes on.

    | column | content |
    |---|---|
    | `step` int64, `time` UTC, `process` int32, `name` | the number that this row contains |
    | `value` float64 | a scalar, rounded if it is an integer beyond 2**53; null for a histogram |
    | `count` uint64 | a non-negative integer scalar, exact to 2**64 - 1; the total of a histogram; else null |
    | `edges` list of float64, `counts` list of uint64 | a histogram, exact; null for a scalar |

    A row is a scalar or a histogram, so the columns do not depend on the names. A record is on disk before `write`
    returns: its part of the table, of up to 50 records, is written again and replaces the old file atomically. Readers
    see a complete table at any time.

    When a run resumes, existing rows of the first record's step and of later steps move to a folder of the same name
    with the suffix `.dropped`.

    Args:
        path: A folder, which gets the folder `records.parquet`, or a folder whose name ends in `.parquet`. It is
            created if it does not exist. Put no other files there. Processes other than 0 add their number to the
            names of the files.

    Raises:
        InvalidValueError: `path` is the address of a remote store, such as `gs://...`.
        MissingExtraError: Pyarrow is not installed.
        RunError: A part was not written by this class, or is damaged. It is left unchanged.
        RunLockedError: Another program or another Logger is writing to the table.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self._path = local_path("sinks.Parquet", path)
        self._lock: int | None = None
        self._process = 0
        self._part = 0  # the number of the part that is being filled
        self._tables: list[pa.Table] = []  # the records of that part

    def write(self, record: Record) -> dict[str, Exception]:
        if self._lock is None:
            self._lock = self._open(record)
        rows, errors = encode_or_omit(record, _table)
        tables = [*self._tables, rows]
        _replace(self._file(self._part), pa.concat_tables(tables))
        if len(tables) >= _RECORDS or sum(table.nbytes for table in tables) >= _BYTES:
            self._part, tables = self._part + 1, []
        self._tables = tables
        return errors

    def close(self) -> None:
        held, self._lock, self._tables = self._lock, None, []
        if held is not None:
            os.close(held)

    def __repr__(self) -> str:
        return f"Parquet({str(self._path)!r})"

    @property
    def _folder(self) -> Path:
        return self._path if self._path.suffix == ".parquet" else self._path / FOLDER

    def _file(self, part: int) -> Path:
        return self._folder / _name(part, self._process)

    def _open(self, record: Record) -> int:
        self._process = record.process
        self._folder.mkdir(parents=True, exist_ok=True)
        held = os.open(self._folder / f".{_name('lock', record.process)}", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            lock(held, self._folder)
            self._part = self._cut(record.step)
        except BaseException:
            os.close(held)
            raise
        return held

    def _cut(self, step: int) -> int:
        """Removes the rows from a step on. Returns the number of the next part."""
        known = re.compile(re.escape(_name("#", self._process)).replace(r"\#", r"(\d+)"))
        found = (known.fullmatch(file.name) for file in self._folder.iterdir())
        parts = sorted(int(match[1]) for match in found if match)
        # Backwards: if this is interrupted, the table still ends at some step, without a gap.
        while parts:
            file = self._file(parts[-1])
            table = _read(file)
            later = table["step"].to_numpy() >= step
            if not later.any():
                break
            self._keep(table.filter(pa.array(later)))
            rest = table.filter(pa.array(~later))
            if rest.num_rows:
                _replace(file, rest)
                break
            file.unlink()
            parts.pop()
        return parts[-1] + 1 if parts else 0

    def _keep(self, dropped: pa.Table) -> None:
        """Writes rows to the `.dropped` folder."""
        folder = Path(os.path.abspath(self._folder) + ".dropped")
        folder.mkdir(exist_ok=True)
        part = 0
        while (folder / _name(part, self._process)).exists():
            part += 1
        _replace(folder / _name(part, self._process), dropped)


def _name(part: int | str, process: int) -> str:
    number = part if isinstance(part, str) else f"{part:06}"
    return f"part-{number}.process-{process}.parquet" if process else f"part-{number}.parquet"


def _table(record: Record) -> pa.Table:
    """Returns a record as rows: scalars, then histograms."""
    scalars, histograms = list(record.scalars.values()), list(record.histograms.values())
    rows = len(scalars) + len(histograms)
    columns: Sequence[Any] = (
        np.full(rows, record.step, np.int64),
        np.full(rows, round(record.time * 1e6), np.int64),
        np.full(rows, record.process, np.int32),
        [*record.scalars, *record.histograms],
        [*map(float, scalars), *(None for _ in histograms)],
        [*map(_count, scalars), *(_count(bins.total) for bins in histograms)],
        [*(None for _ in scalars), *(bins.edges for bins in histograms)],
        [*(None for _ in scalars), *(bins.counts for bins in histograms)],
    )
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)], SCHEMA)


def _count(value: int | float) -> int | None:
    return int(value) if isinstance(value, int) and 0 <= value <= _LARGEST else None


def _replace(path: Path, table: pa.Table) -> None:
    """Replaces a file atomically. If that fails, the file is unchanged."""
    draft = path.with_name(f".{path.name}.draft")  # readers ignore names that begin with a dot
    try:
        with draft.open("wb") as file:
            pq.write_table(table, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())  # the name must not reach the disk before the content
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def _read(path: Path) -> pa.Table:
    try:
        table = pq.ParquetFile(path).read()
        if table.schema.equals(SCHEMA):
            return table
        got = f"columns {', '.join(table.schema.names)}"
    except pa.ArrowInvalid as error:
        got = str(error)
    raise RunError(
        str(path),
        "is not a part of a run's table, or is damaged.",
        got=got,
        fix="move it out of the folder, which must contain only the parts; the others can still be read",
    )
