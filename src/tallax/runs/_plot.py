# SPDX-License-Identifier: Apache-2.0
"""`tallax plot`: draws the curves and histograms of runs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

try:
    import matplotlib as mpl
    from matplotlib.figure import Figure
except ModuleNotFoundError:
    from tallax.runs._errors import MissingExtraError

    raise MissingExtraError.of("tallax plot", "plot", "matplotlib") from None

from tallax.runs._errors import RunError
from tallax.runs._history import History
from tallax.runs._matplotlib import draw_curves, draw_heat_map, draw_layers
from tallax.runs._panels import Panel, heat_of, panels_of, panels_over_each_other
from tallax.runs._run import Run

_COLUMNS, _ROWS = 3, 6  # the number of panels on one page
_SUFFIXES = (".png", ".svg", ".pdf")
_STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.92",
    "lines.linewidth": 1.2,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "text.parse_math": False,  # names may contain dollar signs, which are not mathematics
    "svg.hashsalt": "tallax",  # so that the same run gives the same file
}


def plot(runs: Sequence[str], output: str | os.PathLike[str] | None, patterns: Sequence[str]) -> Iterator[Path]:
    """Draws one run, or several runs on common axes, and yields each file when it is written: one for each 18 panels.

    Further pages have their number in the name. Without `output`, it is `plot.png` in the folder of the first run.

    Raises:
        RunError: A run does not exist, is damaged or has nothing to draw, or the suffix of the file is unknown.
    """
    folder = Path(runs[0])
    file = Path(output) if output is not None else (folder if folder.is_dir() else folder.parent) / "plot.png"
    _check(file)
    read = {path: Run(path) for path in runs}
    panels = _panels(read, patterns)
    if not panels:
        raise RunError(
            runs[0],
            "has nothing to draw.",
            got=f"no name that matches {' '.join(patterns)}" if patterns else "no records",
            fix="'*' for all names; `tallax show RUN` lists them" if patterns else "wait for the first record",
        )
    pages = [panels[k : k + _COLUMNS * _ROWS] for k in range(0, len(panels), _COLUMNS * _ROWS)]
    steps = [step for panel in panels for series in panel.series for step in (series.steps[0], series.steps[-1])]
    for number, page in enumerate(pages, 1):
        path = file if number == 1 else file.with_name(f"{file.stem}-{number}{file.suffix}")
        title = ", ".join(runs) + (f"  (page {number} of {len(pages)})" if len(pages) > 1 else "")
        with mpl.rc_context(_STYLE):
            figure = draw(page, title, min(steps), max(steps))
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=150, metadata={} if path.suffix == ".png" else _UNDATED[path.suffix])
        yield path


_UNDATED: dict[str, Any] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


def draw(panels: Sequence[Panel], title: str, first: int, last: int) -> Figure:
    """Returns a figure of some panels, from step to step."""
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(max(5.0, 4.0 * columns), max(3.2, 2.2 * rows + 0.4)), layout="constrained")
    figure.suptitle(title, fontsize=9, x=0.01, ha="left", color="0.35")
    for k, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, k + 1)
        if panel.layers is not None:
            draw_layers(axes, panel.title, panel.layers, first, last)
        elif panel.histogram is None:
            draw_curves(axes, panel, first, last)
        else:
            draw_heat_map(axes, panel.title, heat_of(panel.histogram), first, last)
    return figure


def _panels(runs: dict[str, Run], patterns: Sequence[str]) -> list[Panel]:
    if len(runs) == 1:
        return panels_of(next(iter(runs.values())), patterns)
    names = [Path(path).name for path in runs]
    labels = names if len(set(names)) == len(names) else list(runs)
    labelled: dict[str, History] = dict(zip(labels, runs.values(), strict=True))
    return panels_over_each_other(labelled, patterns)


def _check(file: Path) -> None:
    if file.suffix.lower() not in _SUFFIXES:
        raise RunError(
            "-o",
            "the suffix of the file must be that of an image format.",
            got=repr(str(file)),
            expected=", ".join(_SUFFIXES),
            fix=f"-o {file.stem or 'plot'}.png",
        )
