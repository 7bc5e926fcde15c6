# SPDX-License-Identifier: Apache-2.0
"""The output formats of a report: one function for each, from a report to text."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

from tallax.lint._finding import Finding
from tallax.lint._lint import Report
from tallax.lint._source import Problem
from tallax.lint.rules import RULES

_SARIF = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def text(report: Report, *, coloured: bool = False) -> str:
    """Returns a line for each finding, `path:line:column: TLX002 [replaced-variable] message`."""
    lines = []
    for finding in report.findings:
        cell, line = _place(report, finding)
        path, code = finding.path, finding.code
        if coloured:
            path, code = f"\x1b[1m{path}\x1b[0m", f"\x1b[1;31m{code}\x1b[0m"
        where = f"{path}:cell {cell}" if cell else path
        lines.append(f"{where}:{line}:{finding.column}: {code} [{finding.slug}] {finding.message}\n")
    return "".join(lines)


def as_json(report: Report) -> str:
    """Returns one object: the findings, the problems, and how many files were read, and how many of them skipped."""
    urls = _urls()
    found = []
    for finding in report.findings:
        cell, line = _place(report, finding)
        found.append(
            {
                "path": finding.path,
                **({} if cell is None else {"cell": cell}),
                "line": line,
                "column": finding.column,
                "end_line": line + _height(finding),
                "end_column": finding.end_column or finding.column,
                "code": finding.code,
                "slug": finding.slug,
                "message": finding.message,
                "fixable": finding.fixable,
                # Without an address, the page in tallax's repository. SARIF takes only absolute ones.
                "url": urls.get(finding.code, f"docs/lint/{finding.code}.md"),
            }
        )
    problems = [
        {key: value for key, value in problem._asdict().items() if value is not None and key != "status"}
        for problem in report.problems
    ]
    skipped = {problem.path for problem in report.problems if problem.cell is None and problem.path in report.sources}
    whole = {"files": len(report.sources), "skipped": len(skipped), "findings": found, "problems": problems}
    return json.dumps(whole, indent=2) + "\n"


def github(report: Report) -> str:
    """Returns workflow commands, which GitHub shows as annotations at the lines."""
    lines = []
    for finding in report.findings:
        cell, line = _place(report, finding)
        title = f"{finding.code} [{finding.slug}]"
        if cell is None:
            lines.append(_command("warning", finding.message, finding.path, title, line, finding.column))
        else:  # lines of a cell are not lines of the file
            lines.append(_command("warning", f"cell {cell}, line {line}: {finding.message}", finding.path, title))
    for problem in report.problems:
        where = f"cell {problem.cell}: " if problem.cell else ""
        line = None if problem.cell else problem.line
        lines.append(_command("error", where + problem.message, problem.path, "tallax lint", line))
    return "".join(lines)


def sarif(report: Report) -> str:
    """Returns a log in SARIF 2.1.0, which code scanning takes."""
    from tallax.lint._explain import page

    urls = _urls()
    numbers = {rule.code: k for k, rule in enumerate(RULES)}
    results = [
        {
            "ruleId": finding.code,
            "ruleIndex": numbers.get(finding.code, -1),
            "level": "warning",
            **_message_and_location(report, finding),
        }
        for finding in report.findings
    ]
    run = {
        "tool": {
            "driver": {
                "name": "tallax lint",
                "rules": [
                    {
                        "id": rule.code,
                        "name": rule.slug,
                        "shortDescription": {"text": rule.title},
                        "fullDescription": {"text": rule.reports.strip()},
                        "help": {"text": f"tallax lint --explain {rule.code}", "markdown": page(rule)},
                        **({"helpUri": urls[rule.code]} if rule.code in urls else {}),
                    }
                    for rule in RULES
                ],
            }
        },
        "columnKind": "unicodeCodePoints",
        "results": results,
        "invocations": [
            {
                "executionSuccessful": report.status < 2,
                "toolExecutionNotifications": [_notification(problem) for problem in report.problems],
            }
        ],
    }
    return json.dumps({"$schema": _SARIF, "version": "2.1.0", "runs": [run]}, indent=2) + "\n"


FORMATS: dict[str, Callable[[Report], str]] = {"text": text, "json": as_json, "github": github, "sarif": sarif}
WITH_PROBLEMS = ("github", "json", "sarif")  # the others leave them to the error stream


def statistics(report: Report) -> str:
    """Returns a line for each rule with findings: their number, code and slug."""
    counts = Counter((finding.code, finding.slug) for finding in report.findings)
    width = len(str(max(counts.values(), default=0)))
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return "".join(f"{count:>{width}}  {code}  {slug}\n" for (code, slug), count in ordered)


def _place(report: Report, finding: Finding) -> tuple[int | None, int]:
    source = report.sources.get(finding.path)
    return (None, finding.line) if source is None else source.place(finding.line)


def _command(kind: str, message: str, path: str, title: str, line: int | None = None, column: int | None = None) -> str:
    def escaped(value: object, further: str = "") -> str:
        return "".join(f"%{ord(sign):02X}" if sign in f"%\r\n{further}" else sign for sign in str(value))

    properties = {"file": path, "line": line, "col": column, "title": title}
    written = ",".join(f"{key}={escaped(value, ':,')}" for key, value in properties.items() if value is not None)
    return f"::{kind} {written}::{escaped(message)}\n"


def _message_and_location(report: Report, finding: Finding) -> dict[str, Any]:
    cell, line = _place(report, finding)
    if cell is not None:  # lines of a cell are not lines of the file
        return {
            "message": {"text": f"cell {cell}, line {line}: {finding.message}"},
            "locations": [_location(finding.path)],
        }
    region = {"startLine": line, "startColumn": _characters(report, finding.path, finding.line, finding.column)}
    if finding.end_line:
        region["endLine"] = line + _height(finding)
        region["endColumn"] = _characters(report, finding.path, finding.end_line, finding.end_column)
    return {"message": {"text": finding.message}, "locations": [_location(finding.path, region)]}


def _height(finding: Finding) -> int:
    """Returns how many lines below its first line a finding ends."""
    return max(finding.end_line - finding.line, 0)


def _characters(report: Report, path: str, line: int, column: int) -> int:
    """Returns a column counted in characters, as SARIF does."""
    source = report.sources.get(path)
    if source is None or source.text.isascii():
        return column
    lines = source.lines()[line - 1 : line]
    return len("".join(lines).encode()[: column - 1].decode(errors="replace")) + 1


def _urls() -> dict[str, str]:
    """Returns the address of each rule's page, by code, if the package names the address of its documentation."""
    from importlib.metadata import PackageNotFoundError, metadata

    try:
        links = metadata("tallax").get_all("Project-URL") or []
    except PackageNotFoundError:
        return {}
    homes = [link.partition(",")[2].strip() for link in links if link.lower().startswith("documentation,")]
    return {rule.code: f"{homes[0].rstrip('/')}/lint/{rule.code}.html" for rule in RULES} if homes else {}


def _location(path: str, region: dict[str, int] | None = None) -> dict[str, Any]:
    from urllib.parse import quote

    physical: dict[str, Any] = {"artifactLocation": {"uri": quote(path, errors="surrogateescape")}}
    if region is not None:
        physical["region"] = region
    return {"physicalLocation": physical}


def _notification(problem: Problem) -> dict[str, Any]:
    return {"level": "error", "message": {"text": str(problem)}, "locations": [_location(problem.path)]}
