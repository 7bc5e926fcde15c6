# SPDX-License-Identifier: Apache-2.0
"""`Contents`: the state in a run or a checkpoint, for a table, a notebook, or JSON."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tallax.runs._history import History
from tallax.runs._jsonl_format import plain
from tallax.runs._keys import is_entry, is_selected, matches, owner_of, site_key
from tallax.runs._number_format import ago, number
from tallax.runs._record import Bins, StateInfo
from tallax.runs._site_table import Sites, sites_of

_ENTRIES = 8  # entries of an array that are shown; `--json` has all


@dataclass(frozen=True)
class Contents:
    """The latest values of a run, or the values of a checkpoint.

    Attributes:
        kind: "run" or "checkpoint".
        path: Its path.
        about: The rest of the title.
        facts: Further fields for `--json`, such as the step.
        state: A description of each variable and statistic, by name.
        scalars: The latest number of each name: `name` or `name/field` of the state, and others.
        histograms: The latest bins of each name.
        places: The step of each value that is older than the last record.
    """

    kind: str
    path: str
    about: str
    facts: Mapping[str, Any]
    state: Mapping[str, StateInfo]
    scalars: Mapping[str, int | float]
    histograms: Mapping[str, Bins]
    places: Mapping[str, int]

    def of(self, name: str) -> tuple[dict[str, int | float], dict[str, Bins]]:
        """Returns the numbers and the bins of a variable or statistic, by the rest of their names."""
        below = f"{name}/"
        numbers = {key[len(name) + 1 :]: value for key, value in self.scalars.items() if key.startswith(below)}
        bins = {key[len(name) + 1 :]: value for key, value in self.histograms.items() if key.startswith(below)}
        if name in self.scalars:
            numbers[""] = self.scalars[name]
        if name in self.histograms:
            bins[""] = self.histograms[name]
        return numbers, bins

    def parts(self, name: str) -> list[tuple[str, str | Bins]]:
        """Returns the parts of a value with their names: its number or entries, its bins, and its fields."""
        numbers, histograms = self.of(name)
        found: list[tuple[str, str | Bins]] = []
        if "" in numbers:
            found.append(("", number(numbers.pop(""))))
        found += histograms.items()
        fields: dict[str, list[str]] = {}
        for field, value in numbers.items():
            parent, _, last = field.rpartition("/")
            fields.setdefault(parent if is_entry(last) else field, []).append(number(value))
        for field, values in fields.items():
            rest = f", ... {len(values)} in all" if len(values) > _ENTRIES else ""
            alone = len(values) == 1 and field
            found.append((field, values[0] if alone else f"[{', '.join(values[:_ENTRIES])}{rest}]"))
        return found

    def only(self, patterns: Sequence[str]) -> Contents:
        """Returns the contents whose names match the patterns, or all contents if there are no patterns."""
        state = {name: info for name, info in self.state.items() if matches(name, patterns)}

        def wanted(name: str) -> bool:
            return not patterns or bool(owner_of(name, state)) or is_selected(name, patterns)

        scalars = {name: value for name, value in self.scalars.items() if wanted(name)}
        histograms = {name: bins for name, bins in self.histograms.items() if wanted(name)}
        return replace(self, state=state, scalars=scalars, histograms=histograms)

    @property
    def sites(self) -> Sites:
        """The sites of `tallax.watch` whose numbers are known."""
        return sites_of(
            {name: value for name, value in self.scalars.items() if self.site_of(name)},
            {name: bins for name, bins in self.histograms.items() if self.site_of(name)},
        )

    @property
    def own_state(self) -> dict[str, StateInfo]:
        """The state other than these sites."""
        sites = {self.site_of(name) for name in (*self.scalars, *self.histograms)}
        return {name: info for name, info in self.state.items() if name not in sites}

    def site_of(self, name: str) -> str:
        """Returns the site that a number belongs to, or "" if it belongs to none."""
        key = site_key(name)
        return key.site if key is not None and key.site in self.state else ""

    @property
    def others(self) -> dict[str, int | float | Bins]:
        """The numbers and the bins that do not belong to the state."""
        everything: dict[str, int | float | Bins] = {**self.scalars, **self.histograms}
        return {name: value for name, value in everything.items() if not owner_of(name, self.state)}


def of_run(history: History, path: str) -> Contents:
    """Returns the latest values of a run."""
    last = history.steps[-1] if history.steps else None
    about = "no records yet"
    if last is not None:
        about = f"step {last:,}, {ago(time.time() - history.times[-1])} ago"
    series: dict[str, Any] = {**history.scalars, **history.histograms}
    return Contents(
        "run",
        path,
        about,
        {"step": last, "time": history.times[-1]} if last is not None else {},
        history.state,
        {name: series.values[-1] for name, series in history.scalars.items()},
        {name: series.values[-1] for name, series in history.histograms.items()},
        {name: entry.steps[-1] for name, entry in series.items() if entry.steps[-1] != last},
    )


def as_json(shown: Contents) -> dict[str, Any]:
    state = {}
    for name, info in shown.state.items():
        numbers, histograms = shown.of(name)
        entry: dict[str, Any] = asdict(info)
        if "" in numbers:
            entry["value"] = plain(numbers.pop(""))
        if numbers:
            entry["fields"] = {field: plain(value) for field, value in numbers.items()}
        if histograms:
            entry["histograms"] = {
                field: {"edges": [plain(edge) for edge in bins.edges.tolist()], "counts": bins.counts.tolist()}
                for field, bins in histograms.items()
            }
        state[name] = entry
    return {
        shown.kind: shown.path,
        **shown.facts,
        "state": state,
        "scalars": {name: plain(value) for name, value in shown.others.items() if not isinstance(value, Bins)},
    }
