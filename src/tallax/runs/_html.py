# SPDX-License-Identifier: Apache-2.0
"""Tables as HTML for notebooks, without scripts or style sheets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from tallax.runs._bars import bars_of
from tallax.runs._contents import Contents
from tallax.runs._number_format import number, size
from tallax.runs._record import Bins, StateInfo
from tallax.runs._site_table import COLUMNS

_ROWS = 200
_BARS = 40  # characters of a histogram
_CELL = 'style="text-align:left;vertical-align:top;font-family:monospace;white-space:pre-wrap"'


def table(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table. If there are more than 200 rows, a line with the number of the others replaces them."""
    shown = list(rows)
    left_out = len(shown) - _ROWS
    parts = [f'<div style="overflow-x:auto"><div><b>{escape(title)}</b></div>']
    if shown:
        parts.append("<table>")
        if any(headings):
            parts.append("<tr>" + "".join(f"<th {_CELL}>{escape(heading)}</th>" for heading in headings) + "</tr>")
        parts += [
            "<tr>" + "".join(f"<td {_CELL}>{escape(cell)}</td>" for cell in row) + "</tr>" for row in shown[:_ROWS]
        ]
        parts.append("</table>")
    if left_out > 0:
        parts.append(f"<div>... and {left_out:,} more</div>")
    return "".join(parts) + "</div>"


def value_text(value: str | int | float | Bins) -> str:
    """Returns a value as text; a histogram between its lower and its upper end, with the number of values."""
    if isinstance(value, Bins):
        return f"{bars_of(value, _BARS)}  {number(value.total)}"
    return value if isinstance(value, str) else number(value)


def state_table(title: str, rows: Iterable[tuple[str, StateInfo, str]]) -> str:
    """Returns the table of a model's state: of a reading, a run or a checkpoint.

    The rows have a name, a description and a value.
    """
    cells = [
        (name, info.kind, value, info.type_text, size(info.nbytes), "yes" if info.persistent else "no")
        for name, info, value in rows
    ]
    return table(title, ("name", "kind", "value", "shape", "size", "kept"), cells)


def contents_html(contents: Contents) -> str:
    """Returns the tables of a run or a checkpoint: the state, the sites of a watch, then the other scalars."""
    rows = []
    for name, info in contents.own_state.items():
        parts = ((field, value_text(part)) for field, part in contents.parts(name))
        rows.append((name, info, "  ".join(f"{field}={text}" if field else text for field, text in parts)))
    others = [(name, value_text(value)) for name, value in contents.others.items()]
    tables = [state_table(f"{contents.kind} {contents.path}, {contents.about}", rows)]
    sites = contents.sites
    if sites.summaries:
        tables.append(table("", COLUMNS, (row.cells for row in sites.summaries)))
    if sites.others:
        tables.append(table("", ("site", ""), ((row.name, row.text) for row in sites.others)))
    if others:
        tables.append(table("", ("scalar", "value"), others))
    return "".join(tables)
