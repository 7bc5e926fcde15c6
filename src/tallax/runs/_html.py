# SPDX-License-Identifier: Apache-2.0
"""Tables and bars for notebooks, as HTML that needs no script and no style of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

import numpy as np

from tallax.runs._axis import Axis
from tallax.runs._number_format import number, short, size
from tallax.runs._record import Bins
from tallax.runs._shown import Shown

_ROWS = 200
_SHORT = 12  # characters that stay on one line
_BARS, _WIDTH, _HEIGHT = 40, 160, 28  # how many of them, and pixels
_CELL = 'style="text-align:left;vertical-align:top;font-family:monospace"'


class Markup(str):
    """Text that is HTML already; all other text is escaped."""

    __slots__ = ()


def table(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table; of more than 200 rows, says how many there are."""
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
    """Returns a histogram as a small picture, and from where to where it goes."""
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


def of_shown(shown: Shown) -> str:
    """Returns the tables of a run or a checkpoint."""
    rows = []
    for name, item in shown.items.items():
        parts = []
        for field, part in shown.parts(name):
            text = f"{bars(part)} {number(part.total)}" if isinstance(part, Bins) else escape(part)
            parts.append(f"{escape(field)}={text}" if field else text)
        shape = f"{item.dtype}[{','.join(map(str, item.shape))}]"
        kept = "yes" if item.persistent else "no"
        rows.append((name, item.kind, Markup("&ensp;".join(parts)), shape, size(item.nbytes), kept))
    others = [(name, bars(value) if isinstance(value, Bins) else number(value)) for name, value in shown.others.items()]
    title = f"{shown.kind} {shown.path}, {shown.about}"
    tables = [table(title, ("item", "kind", "value", "shape", "size", "kept"), rows)]
    if others:
        tables.append(table("", ("scalar", "value"), others))
    return "".join(tables)


def _marked(cell: str) -> str:
    if isinstance(cell, Markup):
        return cell
    return escape(cell) if len(cell) > _SHORT else escape(cell).replace(" ", "&nbsp;")
