# SPDX-License-Identifier: Apache-2.0
"""`tallax show`: what a run or a checkpoint holds, item by item."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

try:
    from rich import box
    from rich.console import Console, Group, RenderableType
    from rich.table import Table
    from rich.text import Text
except ModuleNotFoundError:
    from tallax_runs._errors import MissingExtraError

    raise MissingExtraError.of("tallax show", "cli", "rich") from None

from tallax_runs._errors import RunError, laid_out
from tallax_runs._format import plain
from tallax_runs._history import History
from tallax_runs._names import is_entry, matches
from tallax_runs._record import Bins, Item
from tallax_runs._run import FILE, Run, is_run
from tallax_runs._table import bars_of
from tallax_runs._wording import ago, number, short, size

_BARS = 16  # characters of a histogram
_NARROW = 100  # columns
_SHOWN = 8  # entries of an array; `--json` has all that there are


@dataclass(frozen=True)
class Shown:
    """What is shown of a run's last record, or of a checkpoint.

    Attributes:
        kind: run, or checkpoint.
        path: where it is.
        about: the rest of the first line.
        facts: about it, for `--json`.
        items: what the items are, by name.
        scalars: the latest number of each name: of an item, `name` or `name/field`, and others.
        histograms: likewise, bins.
        places: at which step those were recorded that the last record is without.
    """

    kind: str
    path: str
    about: str
    facts: Mapping[str, Any]
    items: Mapping[str, Item]
    scalars: Mapping[str, int | float]
    histograms: Mapping[str, Bins]
    places: Mapping[str, int]

    def of(self, name: str) -> tuple[dict[str, int | float], dict[str, Bins]]:
        """Returns the numbers and the bins of an item, by what follows its name."""
        below = f"{name}/"
        numbers = {key[len(name) + 1 :]: value for key, value in self.scalars.items() if key.startswith(below)}
        bins = {key[len(name) + 1 :]: value for key, value in self.histograms.items() if key.startswith(below)}
        if name in self.scalars:
            numbers[""] = self.scalars[name]
        if name in self.histograms:
            bins[""] = self.histograms[name]
        return numbers, bins

    @property
    def others(self) -> dict[str, int | float]:
        """The scalars that are of no item."""
        return {name: value for name, value in self.scalars.items() if not _owner(name, self.items)}


def show(path: str, items: Sequence[str], *, as_json: bool) -> None:
    """Prints every item of a run or a checkpoint: path, kind, value, shape, bytes, and whether checkpoints keep it.

    Args:
        path: of the run or the checkpoint.
        items: patterns of names; all without any.
        as_json: print JSON instead, in which integers are exact and nothing is left out.

    Raises:
        RunError: it is neither, or has been damaged.
    """
    shown = read(path)
    if items:
        shown = Shown(
            shown.kind,
            shown.path,
            shown.about,
            shown.facts,
            {name: item for name, item in shown.items.items() if matches(name, items)},
            {name: value for name, value in shown.scalars.items() if _is_wanted(name, shown.items, items)},
            {name: bins for name, bins in shown.histograms.items() if _is_wanted(name, shown.items, items)},
            shown.places,
        )
    if as_json:
        print(json.dumps(_as_json(shown), allow_nan=False))
    else:
        console = Console(highlight=False)
        if not sys.stdout.isatty() and "COLUMNS" not in os.environ:
            console = Console(highlight=False, width=120)
        console.print(rendered(shown, console.width))


def read(path: str | os.PathLike[str]) -> Shown:
    """Returns what there is to show at a path.

    Raises:
        RunError: it is neither a run nor a checkpoint, or has been damaged.
    """
    if is_run(path):
        return of_run(Run(path, keep=1), str(path))
    raise RunError(
        laid_out(
            str(path),
            "is neither a run nor a checkpoint." if Path(path).exists() else "does not exist.",
            expected=f"a folder with a file {FILE}, as tallax.sinks.Jsonl writes it, or one that tallax.save wrote",
            fix="name the folder of one run, or of one checkpoint",
        )
    )


def of_run(history: History, path: str) -> Shown:
    """Returns what a run says by now."""
    last = history.steps[-1] if history.steps else None
    about = "no records yet"
    if last is not None:
        about = f"step {last:,}, {ago(time.time() - history.times[-1])} ago"
    series: dict[str, Any] = {**history.scalars, **history.histograms}
    return Shown(
        "run",
        path,
        about,
        {"step": last, "time": history.times[-1]} if last is not None else {},
        history.items,
        {name: series.values[-1] for name, series in history.scalars.items()},
        {name: series.values[-1] for name, series in history.histograms.items()},
        {name: entry.steps[-1] for name, entry in series.items() if entry.steps[-1] != last},
    )


def rendered(shown: Shown, width: int) -> RenderableType:
    """Returns the tables."""
    parts: list[RenderableType] = [
        Text.assemble((f"{shown.kind} {shown.path}", "bold cyan"), f"  {shown.about}"),
        Text(),
    ]
    if shown.items:
        parts += [_items(shown, width), Text()]
    others = _others(shown)
    if others is not None:
        parts += [others, Text()]
    if shown.items:
        kept = sum(item.nbytes for item in shown.items.values() if item.persistent)
        total = sum(item.nbytes for item in shown.items.values())
        count = f"{len(shown.items):,} items" if len(shown.items) != 1 else "1 item"
        parts.append(Text(f"{count}, {size(total)}; {size(kept)} of it in checkpoints", "dim"))
    return Group(*parts)


def _items(shown: Shown, width: int) -> Table:
    """Returns the table of items; in a narrow terminal, what an item is stands in one column."""
    body = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    body.add_column("item", overflow="fold", min_width=min(16, width // 4))
    narrow = width < _NARROW
    if narrow:
        body.add_column("what", no_wrap=True)
        body.add_column("value", overflow="fold", ratio=1)
    else:
        body.add_column("kind", no_wrap=True)
        body.add_column("value", overflow="fold", ratio=1)
        body.add_column("shape", no_wrap=True)
        body.add_column("size", justify="right", no_wrap=True)
        body.add_column("kept", no_wrap=True)
    for name, item in shown.items.items():
        kind, kept = Text(item.kind, "cyan"), Text("yes", "green") if item.persistent else Text("no", "yellow")
        shape = Text(f"{item.dtype}[{','.join(map(str, item.shape))}]", "dim")
        value = _value(name, shown, _BARS if narrow else 2 * _BARS)
        if narrow:
            said = Text("kept", "green") if item.persistent else Text("not kept", "yellow")
            what = Text("\n").join([kind, shape, Text.assemble(size(item.nbytes), ", ", said)])
            body.add_row(Text(name), what, value)
        else:
            body.add_row(Text(name), kind, value, shape, size(item.nbytes), kept)
    return body


def _value(name: str, shown: Shown, bars: int) -> Text:
    """Returns an item's value: a number, the fields of a record, entries, bins in a line."""
    numbers, histograms = shown.of(name)
    text = Text()
    if "" in numbers:
        text.append(number(numbers.pop("")), "bold")
    for field, bins in histograms.items():
        named = f"{field}=" if field else ""
        text.append("  " if text else "").append(f"{named}{bars_of(bins, bars)}", "magenta")
        text.append(f" {number(bins.total)}")
    entries = {field: value for field, value in numbers.items() if is_entry(field)}
    if entries:
        listed = ", ".join(number(value) for value in list(entries.values())[:_SHOWN])
        rest = f", ... {len(entries)} in all" if len(entries) > _SHOWN else ""
        text.append("  " if text else "").append(f"[{listed}{rest}]", "bold")
    grouped: dict[str, list[str]] = {}
    for field, value in numbers.items():
        if not is_entry(field):
            parent, _, entry = field.rpartition("/")
            key, said = (parent, number(value)) if is_entry(entry) and parent else (field, number(value))
            grouped.setdefault(key, []).append(said)
    for field, values in grouped.items():
        rest = f", ... {len(values)} in all" if len(values) > _SHOWN else ""
        said = values[0] if len(values) == 1 else f"[{', '.join(values[:_SHOWN])}{rest}]"
        text.append("  " if text else "").append(f"{field}=", "dim").append(said)
    if name in shown.places:
        text.append(f"  (at step {shown.places[name]:,})", "dim")
    return text if text else Text("-", "dim")


def _others(shown: Shown) -> Table | None:
    others = shown.others
    loose = {name: bins for name, bins in shown.histograms.items() if not _owner(name, shown.items)}
    if not others and not loose:
        return None
    body = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    body.add_column("scalar", overflow="fold")
    body.add_column("value", justify="right", overflow="fold")
    body.add_column("", style="dim")
    for name, value in others.items():
        body.add_row(Text(name), number(value), f"at step {shown.places[name]:,}" if name in shown.places else "")
    for name, bins in loose.items():
        body.add_row(Text(name), bars_of(bins, _BARS), f"{short(bins.total)} values")
    return body


def _owner(name: str, items: Mapping[str, Item]) -> str:
    """Returns the item that a number is of; "" where it is of none."""
    while name and name not in items:
        name = name.rpartition("/")[0]
    return name


def _is_wanted(name: str, items: Mapping[str, Item], patterns: Sequence[str]) -> bool:
    return matches(_owner(name, items) or name, patterns)


def _as_json(shown: Shown) -> dict[str, Any]:
    items = {}
    for name, item in shown.items.items():
        numbers, histograms = shown.of(name)
        entry: dict[str, Any] = asdict(item)
        if "" in numbers:
            entry["value"] = plain(numbers.pop(""))
        if numbers:
            entry["fields"] = {field: plain(value) for field, value in numbers.items()}
        if histograms:
            entry["histograms"] = {
                field: {"edges": [plain(edge) for edge in bins.edges.tolist()], "counts": bins.counts.tolist()}
                for field, bins in histograms.items()
            }
        items[name] = entry
    return {
        shown.kind: shown.path,
        **shown.facts,
        "items": items,
        "scalars": {name: plain(value) for name, value in shown.others.items()},
    }
