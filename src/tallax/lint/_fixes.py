# SPDX-License-Identifier: Apache-2.0
"""Fixes files: applies the edits of findings and checks the result again, until nothing changes.

Files change on disk only at the end. If the edits of a file do not apply, do not parse or never settle, the file does
not change, and a problem is reported.
"""

from __future__ import annotations

import bisect
import dataclasses
import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tallax.lint import _lint
from tallax.lint._finding import Edit, Finding
from tallax.lint._lint import Configs, Report
from tallax.lint._reading import decoded
from tallax.lint._source import Problem, Source, lines_of

_ROUNDS = 10


class Change(NamedTuple):
    """The bytes of a file before and after, and the number of fixed findings."""

    before: bytes
    after: bytes
    mended: int


def mended(report: Report, config: Configs) -> tuple[dict[str, Change], Report]:
    """Returns the files that change, by path, and what there is left to say of all; writes nothing."""
    before = report.sources
    outside = [problem for problem in report.problems if problem.path not in before]
    now, counts = dict(before), dict.fromkeys(before, 0)
    refused: dict[str, Problem] = {}
    for done in range(_ROUNDS + 1):
        changed: dict[str, Source] = {}
        for path, findings in _by_path(report.findings):
            if path in refused:
                continue
            try:
                source, count = edited(now[path], findings)
                if done == _ROUNDS and count:
                    raise ValueError("they do not settle")
            except ValueError as error:
                refused[path] = Problem(path, f"not mended: the edits can't be applied: {error}")
                changed[path] = before[path]
                continue
            if count:
                changed[path] = source
                counts[path] += count
        if not changed:
            break
        now |= changed
        report = _lint.judged(now.values(), config)
    changes = {
        path: Change(bytes_of(before[path]), bytes_of(now[path]), counts[path])
        for path in now
        if now[path] is not before[path]
    }
    return changes, dataclasses.replace(report, problems=[*outside, *report.problems, *refused.values()])


def edited(source: Source, findings: Sequence[Finding]) -> tuple[Source, int]:
    """Returns a file with the edits of its findings, and their number. Overlapping edits wait for another round.

    Raises:
        ValueError: An edit is outside of the file, or the result does not parse.
    """
    edits, count = _chosen(source, findings)
    if not count:
        return source, 0
    if source.notebook is None:
        data = applied(source.text, edits).encode(source.encoding)
    else:
        cells = {}
        for cell in source.notebook.cells:
            own = [edit for edit in edits if cell.start <= edit.line < cell.end]
            if own:
                up = cell.start - 1
                own = [edit._replace(line=edit.line - up, end_line=edit.end_line - up) for edit in own]
                cells[cell.number] = applied(cell.original, own)
        data = source.notebook.replaced(cells).encode(source.encoding)
    result = decoded(source.path, data)
    if isinstance(result, Problem):
        raise ValueError(result.message)
    if result.parse() is None or len(result.problems) > len(source.problems):
        raise ValueError(f"what they leave {result.problems[-1].message.partition(': ')[2]}")
    return result, count


def applied(text: str, edits: Iterable[Edit]) -> str:
    """Returns text with edits that do not overlap. Their line ends become those of the text.

    Raises:
        ValueError: An edit is outside of the text.
    """
    lines = lines_of(text)
    newline = lines[0][len(lines[0].rstrip("\r\n")) :] if lines else ""
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))

    def offset(line: int, column: int) -> int:
        if not 0 < line <= len(starts):
            raise ValueError(f"there is no line {line}")
        body = lines[line - 1].encode() if line <= len(lines) else b""
        if not 0 <= column <= len(body):
            raise ValueError(f"line {line} has no column {column}")
        return starts[line - 1] + len(body[:column].decode())

    pieces, done = [], 0
    for edit in sorted(edits):
        start, end = offset(edit.line, edit.column), offset(edit.end_line, edit.end_column)
        if not done <= start <= end:
            raise ValueError(f"an edit ends before it starts, or before another one, at line {edit.line}")
        pieces += [text[done:start], edit.text.replace("\n", newline or "\n")]
        done = end
    return "".join(pieces) + text[done:]


def roots_of(paths: Sequence[str]) -> list[str]:
    """Returns the real folders that may be written to: the named ones, and those of the named files."""
    return [os.path.realpath(path if os.path.isdir(path) else os.path.dirname(path) or ".") for path in paths]


def write(path: str, change: Change, roots: Sequence[str]) -> Problem | None:
    """Puts a file's new bytes in place of its old ones, all at once; returns why that cannot be done.

    Args:
        path: The file.
        change: Its bytes.
        roots: The real folders that may be written to. A link that leads out of them is left alone.
    """
    import tempfile

    real = os.path.realpath(path)  # a link stays one
    if not any(real.startswith(os.path.join(root, "")) for root in roots):
        return Problem(path, f"not changed: it is a link to {real}, which is outside of the named folders")
    temporary = None
    try:
        with open(real, "rb") as file:
            if file.read() != change.before:
                return Problem(path, "not mended: what it holds can't be kept, or has changed since it was read")
        handle, temporary = tempfile.mkstemp(prefix=".tallax-lint-", dir=os.path.dirname(real))
        with open(handle, "wb") as file:
            file.write(change.after)
        os.chmod(temporary, os.stat(real).st_mode & 0o7777)
        os.replace(temporary, real)
    except OSError as error:
        if temporary is not None:
            os.unlink(temporary)
        return Problem(path, f"not mended: can't be written: {error.strerror or error}", status=2)
    return None


def diff(path: str, change: Change) -> str:
    """Returns a unified diff."""
    import difflib

    source = decoded(path, change.before)
    encoding = source.encoding if isinstance(source, Source) else "utf-8"
    old, new = (lines_of(data.decode(encoding)) for data in change[:2])
    return "".join(
        line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"
        for line in difflib.unified_diff(old, new, path, path)
    )


def _chosen(source: Source, findings: Sequence[Finding]) -> tuple[list[Edit], int]:
    """Returns edits that do not overlap, and the number of their findings. A finding has all its edits or none."""
    taken: list[Edit] = []
    count = 0
    for finding in findings:
        edits = sorted(set(finding.edits))
        if edits and all(map(_apart, edits, edits[1:])) and all(_fits(edit, taken) for edit in edits):
            if source.notebook is None or all(source.notebook.holds(edit.line, edit.end_line) for edit in edits):
                for edit in edits:
                    if edit not in taken[(k := bisect.bisect_left(taken, edit)) : k + 1]:
                        taken.insert(k, edit)
                count += 1
    return taken, count


def _fits(edit: Edit, taken: list[Edit]) -> bool:
    """Returns whether an edit is one of those that are taken, or lies apart from them, which are in order and apart."""
    k = bisect.bisect_left(taken, edit)
    around = taken[max(0, k - 1) : k + 1]
    return edit in around or all(_apart(*sorted((edit, other))) for other in around)


def _apart(first: Edit, second: Edit) -> bool:
    return first[:2] != second[:2] and first[2:4] <= second[:2]


def bytes_of(source: Source) -> bytes:
    """Returns the bytes of a file."""
    return (source.text if source.notebook is None else source.notebook.json).encode(source.encoding)


def _by_path(findings: Iterable[Finding]) -> Iterable[tuple[str, list[Finding]]]:
    by_path: dict[str, list[Finding]] = {}
    for finding in findings:
        by_path.setdefault(finding.path, []).append(finding)
    return by_path.items()
