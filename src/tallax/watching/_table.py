# SPDX-License-Identifier: Apache-2.0
"""The table that `print(watch)` shows."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np

from tallax.watching._summary import SummaryResult

_COLUMNS = ("site", "rms", "mean", "largest", "at", "zeros", "non-finite")
_MOST = 40


def table(
    results: Mapping[str, SummaryResult], others: Mapping[str, Any], unseen: Mapping[str, str], sites: int
) -> str:
    """Returns a table of summaries, the most unusual first, the other results, and the sites that were not seen."""
    rows = [row for name, result in results.items() for row in rows_of(name, result)]
    usual = _usual_sizes(rows)
    rows.sort(key=lambda row: _unusual(row, usual), reverse=True)
    shown = [_COLUMNS, *(_words(row) for row in rows[:_MOST])]
    widths = [max(len(row[k]) for row in shown) for k in range(len(_COLUMNS))]
    seen = [name for name in others if name not in unseen]
    others = {name: others[name] for name in sorted(seen, key=lambda name: name.rpartition(":")[2])}
    is_seen = "the most unusual first" if rows else "none seen" if not others else "by presets and other statistics"
    lines = [f"watching {sites} tensors, {is_seen}"]
    if rows:
        for row in shown:
            numbers = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
            cells = [row[0].ljust(widths[0]), *numbers]
            lines.append("  ".join(cells).rstrip())
        if len(rows) > _MOST:
            lines.append(f"... and {len(rows) - _MOST} more in watch.result()")
    width = max(map(len, others), default=0)
    lines += [f"{name.ljust(width)}  {_in_short(result)}" for name, result in list(others.items())[:_MOST]]
    if len(others) > _MOST:
        lines.append(f"... and {len(others) - _MOST} more in watch.result()")
    if unseen:
        lines.append(f"not seen: {len(unseen)}")
        lines += [f"  {name}: {reason}" for name, reason in list(unseen.items())[:_MOST]]
    return "\n".join(lines)


def _in_short(result: Any) -> str:
    """Returns the numbers of a result, and of each array its least and its largest number."""
    if not dataclasses.is_dataclass(result):
        return _range(result)
    parts = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
    return ", ".join(f"{name} {_range(value)}" for name, value in parts.items() if np.size(value))


def _range(value: Any) -> str:
    ends = (np.min(value).item(), np.max(value).item())
    least, most = (f"{end:,}" if isinstance(end, int) else f"{end:.4g}" for end in ends)
    return most if least == most else f"{least} to {most}"


def rows_of(name: str, result: SummaryResult) -> list[tuple[str, SummaryResult]]:
    """Returns a row for each layer of a stack that was seen."""
    if not np.ndim(result.size):
        return [(name, result)] if result.size else []
    head, _, role = name.rpartition(":")
    found = []
    for place in np.ndindex(np.shape(result.size)):
        fields = {field: getattr(result, field)[place].item() for field in result.__dataclass_fields__}
        if fields["size"]:
            found.append((f"{head}[{','.join(map(str, place))}]:{role}", SummaryResult(**fields)))
    return found


def _kind(name: str) -> str:
    """Returns a name without numbers, so that equal parts of different layers are compared with each other."""
    return re.sub(r"\d+", "*", name)


def _usual_sizes(rows: list[tuple[str, SummaryResult]]) -> dict[str, float]:
    """Returns the median logarithm of the RMS of each kind."""
    sizes: dict[str, list[float]] = defaultdict(list)
    for name, result in rows:
        if result.rms:
            sizes[_kind(name)].append(math.log(result.rms))
    return {kind: float(np.median(values)) for kind, values in sizes.items()}


def _unusual(row: tuple[str, SummaryResult], usual: Mapping[str, float]) -> tuple[Any, ...]:
    """Returns a key: entries that are not finite, then a spike, and a size unlike that of the other layers."""
    name, result = row
    spike = result.largest / result.rms if result.rms else 0.0
    apart = abs(math.log(result.rms) - usual[_kind(name)]) if result.rms else 0.0
    dead = result.zeros / result.size
    return bool(result.nonfinite), math.log1p(spike) + apart + dead


def _words(row: tuple[str, SummaryResult]) -> tuple[str, ...]:
    name, result = row
    seen = max(result.size - result.nonfinite, 1)
    return (
        name,
        f"{result.rms:.3g}",
        f"{result.mean:.3g}",
        f"{result.largest:.3g}",
        f"{result.largest_at:,}",
        f"{result.zeros / seen:.1%}" if result.zeros else "0",
        f"{result.nonfinite:,}",
    )
