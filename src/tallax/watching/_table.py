# SPDX-License-Identifier: Apache-2.0
"""The text of `print(watch)`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from tallax.runs import Bins
from tallax.runs._bars import bars_of
from tallax.runs._site_table import SiteRow, ends_of, layer_name, most_unusual_first, other_lines, summary_lines
from tallax.watching._summary import SummaryResult

_MOST = 40
_BARS = 24  # characters of a histogram


def table(results: Mapping[str, Any], histograms: Mapping[str, Bins], unseen: Mapping[str, str], sites: int) -> str:
    """Returns a table of summaries, the most unusual first, the other results, and the sites that were not seen."""
    rows = most_unusual_first([row for name, result in results.items() for row in rows_of(name, result)])
    others = [
        SiteRow(name, {}, _in_short(result, histograms.get(name)))
        for name, result in sorted(results.items(), key=lambda pair: pair[0].rpartition(":")[2])
        if not isinstance(result, SummaryResult) and name not in unseen
    ]
    is_seen = "the most unusual first" if rows else "none seen" if not others else "by presets and other statistics"
    lines = [f"watching {sites} tensors, {is_seen}"]
    for each, lines_of in ((rows, summary_lines), (others, other_lines)):
        if each:
            lines += lines_of(each[:_MOST])
        if len(each) > _MOST:
            lines.append(f"... and {len(each) - _MOST} more in watch.result()")
    if unseen:
        lines.append(f"not seen: {len(unseen)}")
        lines += _reasons(unseen)
    return "\n".join(lines)


def _reasons(unseen: Mapping[str, str]) -> list[str]:
    """Returns a line for each reason and kind of site; equal parts of different layers are one kind."""
    alike: dict[tuple[str, str], list[str]] = {}
    for name, reason in unseen.items():
        alike.setdefault((re.sub(r"\d+", "*", name), reason), []).append(name)
    lines = [
        f"  {kind} ({len(names)} times): {reason}" if len(names) > 1 else f"  {names[0] or 'the model'}: {reason}"
        for (kind, reason), names in alike.items()
    ]
    rest = len(lines) - _MOST
    return [*lines[:_MOST], *([f"... and {rest} more in watch.unseen"] if rest > 0 else [])]


def _in_short(result: Any, bins: Bins | None) -> str:
    """Returns the numbers of a result, and of each array its least and its largest number; a histogram as bars."""
    if bins is not None:
        return f"{bars_of(bins, _BARS)}  {bins.total:,}"
    if not dataclasses.is_dataclass(result):
        return _range(result)
    parts = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
    return ", ".join(f"{name} {_range(value)}" for name, value in parts.items() if np.size(value))


def _range(value: Any) -> str:
    return ends_of([np.min(value).item(), np.max(value).item()])


def rows_of(name: str, result: Any) -> list[SiteRow]:
    """Returns a row for each layer of a stack that was seen; no rows if the result is not that of a summary."""
    if not isinstance(result, SummaryResult):
        return []
    rows = []
    for place in np.ndindex(np.shape(result.size)):
        numbers = {field: np.asarray(getattr(result, field))[place].item() for field in result.__dataclass_fields__}
        if numbers["size"]:
            rows.append(SiteRow(layer_name(name, ",".join(map(str, place))), numbers))
    return rows
