# SPDX-License-Identifier: Apache-2.0
"""Comments for `--add-noqa`: each finding gets one on its line, or at the end of its statement."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Mapping

from tallax.lint import _fixes
from tallax.lint._finding import Edit, Finding
from tallax.lint._fixes import Change
from tallax.lint._lint import Report
from tallax.lint._noqa import Comments
from tallax.lint._source import Problem, Source


def silenced(report: Report) -> tuple[dict[str, Change], list[Problem]]:
    """Returns the files that change, by path, and the files in which a comment cannot be placed; writes nothing."""
    by_path: dict[str, list[Finding]] = {}
    for finding in report.findings:
        by_path.setdefault(finding.path, []).append(finding)
    changes: dict[str, Change] = {}
    problems: list[Problem] = []
    for path, findings in by_path.items():
        source = report.sources[path]
        commented = [f._replace(edits=(edit,)) for f, edit in _comments(source, findings).items()]
        try:
            after, count = _fixes.edited(source, commented)
        except ValueError as error:
            problems.append(Problem(path, f"no comment added: {error}"))
            continue
        if count:
            changes[path] = Change(_fixes.bytes_of(source), _fixes.bytes_of(after), count)
    return changes, problems


def _comments(source: Source, findings: list[Finding]) -> Mapping[Finding, Edit]:
    """Returns an edit for the first finding of each line: one comment names all rules that are reported there."""
    comments = Comments(source.text)
    closed = _lines_without_room(source.text)
    by_line: dict[int, list[Finding]] = {}
    for finding in findings:
        own, last = comments.lines_of(finding)
        by_line.setdefault(last if own in closed else own, []).append(finding)
    lines = source.lines()
    return {
        some[0]: _edit(line, lines[line - 1].rstrip("\r\n"), sorted({f.code for f in some}), comments)
        for line, some in by_line.items()
    }


def _edit(line: int, text: str, codes: list[str], comments: Comments) -> Edit:
    column, comment = comments.texts.get(line, (0, ""))
    found = re.search(r"#\s*noqa\s*:[^#]*", comment, re.IGNORECASE)
    if found is not None:  # codes of other tools, or of other rules
        end = column + len(comment[: found.end()].rstrip().encode())
        return Edit(line, end, line, end, f", {', '.join(codes)}")
    end = len(text.encode())
    return Edit(line, len(text.rstrip().encode()), line, end, f"  # noqa: {', '.join(codes)}")


def _lines_without_room(text: str) -> set[int]:
    """Returns the lines behind which no comment can stand: those that end in a string, or with a backslash."""
    found = {number for number, line in enumerate(text.splitlines(), 1) if line.endswith("\\")}
    lines = io.StringIO(text.replace("\r\n", "\n").replace("\r", "\n"))
    try:
        for token in tokenize.generate_tokens(lines.readline):
            found |= set(range(token.start[0], token.end[0])) if token.string.strip() else set()
    except (tokenize.TokenError, SyntaxError):
        pass  # what was seen so far counts
    return found
