# SPDX-License-Identifier: Apache-2.0
"""The plots of `digits_moe.py`: what its items did over the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tallax import ClipCounts
from tallax.statistics import HistogramResult

BLUE, RED, GREY = "#3b6ea8", "#c0504d", "#8a8a8a"
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "font.size": 10,
}


def write(folder: Path, steps: Sequence[dict[str, Any]], clips: Sequence[ClipCounts], gate: HistogramResult) -> None:
    """Writes one PNG for each plot into `folder`, which is made."""
    series = {name: np.stack([step[name] for step in steps]) for name in steps[0]}
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        _save(folder / "temperature.png", 1, lambda axes: _line(axes, series["temperature"], "Gate temperature"))
        _save(folder / "learning_rate.png", 1, lambda axes: _line(axes, series["learning_rate"], "Learning rate"))
        _save(folder / "clipping.png", 2, lambda top, bottom: _clipping(top, bottom, series, clips))
        _save(folder / "expert_load.png", 2, lambda top, bottom: _experts(top, bottom, series, len(clips)))
        _save(folder / "gate_logits.png", 1, lambda axes: _gate_logits(axes, gate))


def _save(path: Path, rows: int, draw: Callable[..., None]) -> None:
    # A Figure of its own, and not pyplot's: nothing asks for a display, and nothing has to be closed.
    figure = Figure(figsize=(8.0, 1.0 + 3.2 * rows), layout="constrained")
    draw(*np.atleast_1d(figure.subplots(rows, 1, sharex=True)))
    figure.savefig(path, dpi=130)


def _line(axes: Axes, values: np.ndarray, title: str) -> None:
    axes.plot(np.arange(1, len(values) + 1), values, color=BLUE, linewidth=2)
    axes.set(title=title, xlabel="step", ylabel=title.lower(), xlim=(0, len(values)), ylim=(0, values.max() * 1.08))


def _clipping(top: Axes, bottom: Axes, series: dict[str, np.ndarray], clips: Sequence[ClipCounts]) -> None:
    norms, limits = series["gradient_norm"], series["clip_threshold"]
    x = np.arange(1, len(norms) + 1)
    clipped = norms > limits
    top.scatter(x[~clipped], norms[~clipped], s=7, color=GREY, label="gradient norm")
    top.scatter(x[clipped], norms[clipped], s=9, color=RED, label="clipped")
    top.plot(x, limits, color=BLUE, linewidth=2, label="clip threshold")
    top.set(title="Clip threshold", ylabel="global norm", yscale="log", xlim=(0, len(x)))
    top.legend(loc="upper right")
    ends = np.array([0, *(count.updates for count in clips)])
    rates = np.diff([0, *(count.clipped for count in clips)]) / np.diff(ends)
    bottom.stairs(100 * rates, ends, fill=True, color=RED, alpha=0.45, label="within an epoch")
    overall = 100 * clips[-1].rate
    bottom.axhline(overall, color=RED, linestyle="--", linewidth=1.2, label=f"whole run, {overall:.1f}%")
    bottom.set(title="Clip rate", xlabel="step", ylabel="updates clipped (%)", ylim=(0, 105))
    bottom.legend(loc="upper right")


def _experts(top: Axes, bottom: Axes, series: dict[str, np.ndarray], epochs: int) -> None:
    load, bias = series["expert_load"], series["routing_bias"]
    ends = np.linspace(0, len(load), epochs + 1)
    colors = mpl.colormaps["tab10"].colors  # pyright: ignore[reportAttributeAccessIssue]
    by_epoch = 100 * load.reshape(epochs, -1, load.shape[-1]).mean(1)
    for expert in range(load.shape[-1]):
        top.plot((ends[1:] + ends[:-1]) / 2, by_epoch[:, expert], color=colors[expert], marker=".", linewidth=1.2)
        bottom.plot(np.arange(1, len(bias) + 1), bias[:, expert], color=colors[expert], linewidth=1.4, label=expert)
    top.axhline(100 / load.shape[-1], color="black", linestyle="--", linewidth=1, label="even load")
    top.set(title="Expert load, mean of each epoch", ylabel="share of tokens (%)", xlim=(0, len(load)))
    top.set_ylim(0, max(2.2 * 100 / load.shape[-1], 1.1 * by_epoch.max()))
    top.legend(loc="upper right")
    bottom.set(title="Routing bias", xlabel="step", ylabel="bias added for the choice")
    bottom.legend(title="expert", ncols=load.shape[-1], loc="upper center", bbox_to_anchor=(0.5, -0.2))


def _gate_logits(axes: Axes, gate: HistogramResult) -> None:
    axes.stairs(gate.counts, gate.edges, fill=True, color=BLUE, alpha=0.8)
    outside = gate.underflow + gate.overflow + gate.neginf + gate.posinf
    text = f"{int(gate.counts.sum()):,} in range\n{outside:,} outside\n{gate.nan:,} NaN"
    axes.text(0.98, 0.95, text, transform=axes.transAxes, ha="right", va="top")
    axes.set(title="Gate logits over the whole run", xlabel="logit", ylabel="count")
    axes.set_xlim(gate.edges[0], gate.edges[-1])
