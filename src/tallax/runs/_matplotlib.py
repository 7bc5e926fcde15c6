# SPDX-License-Identifier: Apache-2.0
"""Draws panels on matplotlib axes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import ListedColormap, LogNorm, Normalize, PowerNorm
from matplotlib.ticker import (
    EngFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
    ScalarFormatter,
    SymmetricalLogLocator,
)

from tallax.runs._number_format import cut, number
from tallax.runs._panels import Heat, Panel, SiteMap

_TOLD_APART = 10  # the most curves that a legend distinguishes by color
_COLORS = "viridis"
_SHARES = "YlGnBu"  # small fractions are light, and empty bins are white
_LARGEST = 1e300
_SPIKE = 4.0  # if the fraction in the bin of zeros exceeds all others by this factor, the bin is not drawn to scale
_TITLE = 42  # characters
_LABELS = 12  # the most labels of layers
_DECADES = 7  # labels of a logarithmic axis
_DECADE = 10.0  # positive numbers that differ by more are drawn on a logarithmic scale


def draw_curves(axes: Any, panel: Panel, first: int, last: int) -> None:
    """Draws the curves of a panel, from step to step. NaN and infinities are gaps with a red mark below."""
    axes.set_title(cut(panel.title, _TITLE))
    curves = panel.curves
    exact = all(isinstance(value, int) for curve in curves for value in curve.series.values)
    offset = _offset([value for curve in curves for value in curve.series.values] if exact else [])
    many = len(curves) > _TOLD_APART
    colors = colormaps[_COLORS](np.linspace(0, 0.95, len(curves))) if many else [f"C{k}" for k in range(len(curves))]
    said: Counter[str] = Counter()
    handles, all_finite = [], []
    for curve, color in zip(curves, colors, strict=True):
        steps = np.array(curve.series.steps, np.float64)
        values = np.array([_drawable(value - offset) for value in curve.series.values])
        finite = np.isfinite(values)
        shown = np.where(finite, values, math.nan)
        handles += axes.plot(steps, shown, color=color, marker="o" if _has_lone_points(finite) else "", markersize=2.5)
        all_finite.append(values[finite])
        if not finite.all():
            axes.plot(steps[~finite], np.zeros(sum(~finite)), "x", color="tab:red", markersize=4,
                      transform=axes.get_xaxis_transform(), clip_on=False, zorder=5)  # fmt: skip
            said.update(_kind(curve.series.values[k]) for k in np.flatnonzero(~finite))
    _scale(axes, np.concatenate(all_finite), exact=exact)
    if offset:
        axes.set_ylabel(f"less {number(offset)}", fontsize=7)
    if said:
        axes.text(1.0, 1.0, ", ".join(f"{count:,} {kind}" for kind, count in said.items()), color="tab:red",
                  ha="right", va="bottom", fontsize=7, transform=axes.transAxes)  # fmt: skip
    _legend(axes, handles, [curve.label for curve in curves])
    _step_axis(axes, first, last)


def draw_heat_map(axes: Any, title: str, heat: Heat, first: int, last: int) -> None:
    """Draws a histogram over the steps: a column for each record, colored by the fraction of its values in each bin."""
    axes.set_title(cut(title, _TITLE))
    axes.grid(False)
    shares = np.ma.masked_where(~(heat.shares > 0), heat.shares)
    edges = heat.edges
    if not shares.count():
        axes.text(0.5, 0.5, "no values", ha="center", color="0.5", transform=axes.transAxes)
    norm = PowerNorm(0.5, vmin=0, vmax=_highest(heat))
    mesh = axes.pcolormesh(_between(heat.steps), edges, shares.T, cmap=_SHARES, norm=norm, rasterized=True)
    _value_axis(axes, heat)
    axes.set_ylim(edges[0], edges[-1])
    beyond = "max" if shares.count() and shares.max() > _highest(heat) else "neither"
    bar = _color_bar(axes, mesh, MaxNLocator(3), extend=beyond)
    bar.set_label("share of new values" if heat.new else "share of values", fontsize=7)
    axes.set_ylabel("entry" if heat.entries else "value")
    _step_axis(axes, first, last)


def draw_layers(axes: Any, title: str, layers: SiteMap, first: int, last: int) -> None:
    """Draws a number of several layers over the steps: a row for each layer. Cells that are not finite are red."""
    axes.set_title(cut(title, _TITLE))
    axes.grid(False)
    finite = layers.values[np.isfinite(layers.values)]
    norm: Any = Normalize()
    if finite.size and finite.min() > 0 and finite.max() > _DECADE * finite.min():
        norm = LogNorm(finite.min(), finite.max())
    elif finite.size:
        room = 0.0 if finite.max() > finite.min() else 0.5 * abs(finite.max()) or 0.5
        norm = Normalize(finite.min() - room, finite.max() + room)
    edges = np.arange(len(layers.labels) + 1) - 0.5
    unfinite = np.where(np.isinf(layers.values), 1.0, math.nan)
    columns = _between(layers.steps)
    values = np.ma.masked_invalid(layers.values)
    mesh = axes.pcolormesh(columns, edges, values, cmap=_COLORS, norm=norm, rasterized=True)
    axes.pcolormesh(columns, edges, np.ma.masked_invalid(unfinite), cmap=ListedColormap(["red"]), rasterized=True)
    every = -(-len(layers.labels) // _LABELS)
    axes.set_yticks(range(0, len(layers.labels), every), layers.labels[::every])
    axes.tick_params(axis="y", length=0)
    if isinstance(norm, LogNorm):
        _color_bar(axes, mesh, LogLocator(numticks=5), format=_power).minorticks_off()
    else:
        _color_bar(axes, mesh, MaxNLocator(4))
    axes.set_ylabel("layer, entry" if "," in layers.labels[0] else "layer")
    _step_axis(axes, first, last)


def _color_bar(axes: Any, mesh: Any, ticks: Any, **options: Any) -> Any:
    bar = axes.figure.colorbar(mesh, ax=axes, pad=0.01, aspect=30, ticks=ticks, **options)
    bar.ax.tick_params(labelsize=6)
    bar.outline.set_visible(False)
    return bar


def _value_axis(axes: Any, heat: Heat) -> None:
    """Sets the scale of the axis of values: linear, logarithmic, or both if there are values around zero."""
    axis = axes.yaxis
    threshold = heat.axis.threshold
    if heat.entries:
        axis.set_major_locator(MaxNLocator(8, integer=True))
    elif threshold is None:
        axis.set_major_locator(MaxNLocator(5))
    else:
        locator: Any = LogLocator(numticks=_DECADES)
        if heat.axis.low >= threshold:
            axes.set_yscale("log")
        else:
            axes.set_yscale("symlog", linthresh=threshold, linscale=1.0)
            locator = SymmetricalLogLocator(base=10, linthresh=threshold)
            locator.set_params(numticks=_DECADES)
        axis.set_major_locator(locator)
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(_power)
        axis.set_minor_formatter(NullFormatter())


def _highest(heat: Heat) -> float:
    """Returns the largest fraction, except for zeros: the zeros of a ReLU would hide differences of all other bins."""
    shares = np.nan_to_num(heat.shares)
    around = (heat.edges[:-1] <= 0) & (heat.edges[1:] > 0)
    most, others = shares.max(initial=0.0), shares[:, ~around].max(initial=0.0)
    spiked = not heat.entries and others and (heat.axis.threshold is not None or most > _SPIKE * others)
    return float((others if spiked else most) or 1.0)


def _power(value: float, _: Any = None) -> str:
    if value == 0 or not math.isclose(abs(value), 10.0 ** round(math.log10(abs(value)))):
        return f"{value:.3g}"
    exponent = round(math.log10(abs(value)))
    return f"{value:g}" if -3 <= exponent <= 3 else f"{'-' if value < 0 else ''}1e{exponent}"


def _scale(axes: Any, values: np.ndarray, *, exact: bool) -> None:
    """Makes the vertical axis logarithmic for positive floats of several magnitudes, and formats its ticks."""
    if not values.size:
        axes.set_ylim(0, 1)
        axes.set_yticks([])
        axes.text(0.5, 0.5, "no finite values", ha="center", color="0.5", transform=axes.transAxes)
        return
    if not exact and values.min() > 0 and values.max() > 1e3 * values.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(numticks=6))
        axes.yaxis.set_major_formatter(_power)
        axes.yaxis.set_minor_locator(NullLocator())
        return
    middle, spread = abs(values).max(), values.max() - values.min()
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=exact))
    if exact:
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    else:
        formatter = ScalarFormatter(useOffset=False)
        formatter.set_powerlimits((-3, 4))
        axes.yaxis.set_major_formatter(formatter)
    if spread <= 1e-9 * middle:  # constant, or nearly constant
        room = 0.1 * middle or 1.0
        axes.set_ylim(values.min() - room, values.max() + room)
        axes.set_yticks([values[0]], [number(values[0].item())])


def _legend(axes: Any, handles: Sequence[Any], labels: Sequence[str]) -> None:
    if not any(labels):
        return
    if len(labels) > _TOLD_APART:  # the colors are in order, so the legend needs only the first and the last
        handles, labels = [handles[0], handles[-1]], [labels[0], labels[-1]]
    # matplotlib hides labels that begin with an underscore.
    named = [f" {label}" if label.startswith("_") else label for label in labels]
    axes.legend(handles, named, ncols=2 if len(named) > 4 else 1, handlelength=1.2, columnspacing=1.0, labelspacing=0.2)


def _step_axis(axes: Any, first: int, last: int) -> None:
    room = 0.02 * (last - first) or 1.0
    axes.set_xlim(first - room, last + room)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("step")


def _between(steps: Sequence[int]) -> np.ndarray:
    """Returns the borders of columns around the steps."""
    places = np.array(steps, np.float64)
    if len(places) == 1:
        return np.array([places[0] - 0.5, places[0] + 0.5])
    middles = (places[1:] + places[:-1]) / 2
    return np.concatenate([[2 * places[0] - middles[0]], middles, [2 * places[-1] - middles[-1]]])


def _offset(values: Sequence[int | float]) -> int:
    """Returns the offset to subtract from large and nearly equal counts, so that their differences are visible."""
    whole = [value for value in values if isinstance(value, int)]
    if not whole or max(whole) < 100_000 or max(whole) - min(whole) > min(whole) // 100:
        return 0
    return min(whole) if max(whole) > min(whole) else 0


def _has_lone_points(finite: np.ndarray) -> bool:
    """Returns whether a value has no neighbor to connect it to by a line."""
    padded = np.concatenate([[False], finite, [False]])
    return bool((padded[1:-1] & ~padded[:-2] & ~padded[2:]).any())


def _drawable(value: int | float) -> float:
    """Returns a number as a float, or infinity if it is too large for a scale of matplotlib."""
    return float(value) if abs(value) < _LARGEST else math.inf


def _kind(value: int | float) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return number(value)
    return f"beyond {_LARGEST:g}"
