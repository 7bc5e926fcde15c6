# SPDX-License-Identifier: Apache-2.0
"""A report on a terminal, with rich."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:  # a report imports this to draw itself
    from tallax.checking._report import Finding, Outcome, Report

_STYLES = {"PASSED": "green", "FAILED": "bold red", "WARNED": "yellow", "SKIPPED": "dim"}


def rendered(report: Report) -> Group:
    """Returns the matrix, the other checks, the findings, and a last line with the result."""
    parts: list[RenderableType] = []
    modes, rows = report.matrix()
    if rows:
        matrix = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        matrix.add_column(report.name, min_width=24)
        for mode in modes:
            matrix.add_column(mode, justify="center")
        for check, cells in rows.items():
            matrix.add_row(check, *(_mark(cell.outcome) if cell else Text() for cell in cells))
        parts.append(matrix)
    others = Table.grid(padding=(0, 2))
    for cell in report.cells:
        if not cell.mode:
            others.add_row(_mark(cell.outcome), cell.check, Text(cell.note, "dim"))
    parts.append(others)
    for finding in report.findings:
        parts += [Text(), *_finding(finding)]
    return Group(*parts, Text(), Text(report.summary(), "bold green" if report.passed else "bold red"))


def _mark(outcome: Outcome) -> Text:
    return Text(outcome.value, _STYLES[outcome.name])


def _finding(finding: Finding) -> tuple[RenderableType, RenderableType]:
    title = Text("WARNING " if finding.is_warning else "FAILED  ", "yellow" if finding.is_warning else "bold red")
    details = Table.grid(padding=(0, 1))
    details.add_column(min_width=7)
    details.add_column(style="dim")
    for label, text in finding.details():
        details.add_row("", f"{label}:", Text(text))
    return title.append(finding.headline(), "bold"), details
