# SPDX-License-Identifier: Apache-2.0
"""Tables and histograms as HTML for notebooks, without scripts or style sheets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

import numpy as np

from tallax.runs._contents import Contents
from tallax.runs._histogram_axis import Axis
from tallax.runs._number_format import number, short, size
from tallax.runs._record import Bins, StateInfo

_ROWS = 200
_SHORT = 12  # cells of at most this many characters are not wrapped
_BARS, _WIDTH, _HEIGHT = 40, 160, 28  # the number of bars; pixels
_CELL = 'style="text-align:left;vertical-align:top;font-family:monospace"'


class Markup(str):
    """Text that is already HTML. All other text is escaped."""

    __slots__ = ()


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
            "<tr>" + "".join(f"<td {_CELL}>{_marked(cell)}</td>" for cell in row) + "</tr>" for row in shown[:_ROWS]
        ]
        parts.append("</table>")
    if left_out > 0:
        parts.append(f"<div>... and {left_out:,} more</div>")
    return "".join(parts) + "</div>"


def bars(bins: Bins) -> Markup:
    """Returns a histogram as a small picture between its lower and its upper end."""
    axis = Axis.of([bins])
    n = min(_BARS, len(bins.counts)) if axis.threshold is None else _BARS
    heights = axis.spread(bins, n)
    highest = heights.max() or 1.0
    step = _WIDTH / n
    drawn = "".join(
        f'<rect x="{k * step:.1f}" y="{_HEIGHT - height:.1f}" width="{step - 0.5:.1f}" height="{height:.1f}"/>'
        for k, height in enumerate(np.where(heights > 0, np.maximum(heights / highest * _HEIGHT, 1.0), 0.0).tolist())
        if height
    )
    low, high = (0, len(bins.counts) - 1) if bins.are_entries else (axis.low, axis.high)
    label = f"{bins.total:,} values from {short(low)} to {short(high)}"
    return Markup(
        f'{escape(short(low))} <svg width="{_WIDTH}" height="{_HEIGHT}" role="img" fill="#4c78a8" '
        f'style="vertical-align:middle;border-bottom:1px solid #999"><title>{label}</title>{drawn}</svg> '
        f"{escape(short(high))}"
    )


def state_table(title: str, rows: Iterable[tuple[str, StateInfo, str]]) -> str:
    """Returns the table of a model's state: of a reading, a run or a checkpoint.

    The rows have a name, a description and a value, which may be `Markup`.
    """
    cells = [
        (name, info.kind, value, info.type_text, size(info.nbytes), "yes" if info.persistent else "no")
        for name, info, value in rows
    ]
    return table(title, ("name", "kind", "value", "shape", "size", "kept"), cells)


def contents_html(contents: Contents) -> str:
    """Returns the tables of a run or a checkpoint: the state, then the other scalars."""
    rows = []
    for name, info in contents.state.items():
        parts = []
        for field, part in contents.parts(name):
            text = f"{bars(part)} {number(part.total)}" if isinstance(part, Bins) else escape(part)
            parts.append(f"{escape(field)}={text}" if field else text)
        rows.append((name, info, Markup("&ensp;".join(parts))))
    others = [
        (name, bars(value) if isinstance(value, Bins) else number(value)) for name, value in contents.others.items()
    ]
    tables = [state_table(f"{contents.kind} {contents.path}, {contents.about}", rows)]
    if others:
        tables.append(table("", ("scalar", "value"), others))
    return "".join(tables)


def _marked(cell: str) -> str:
    if isinstance(cell, Markup):
        return cell
    return escape(cell) if len(cell) > _SHORT else escape(cell).replace(" ", "&nbsp;")
