# SPDX-License-Identifier: Apache-2.0
"""`tallax plot`: which curves share axes, what a heat map shows, and the files."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from tallax.runs import Bins, History, Record, RunError
from tallax.runs._panels import heat_of, panels_of, panels_over_each_other, site_map
from tallax.runs._plot import draw, plot
from tests.runs import EDGES, odd_records, record, write


def history(records):
    found = History()
    for each in records:
        found.add(each)
    return found


def series_of(*counts, edges=EDGES):
    """Returns the series of a histogram with these counts at steps 10, 20, ..."""
    found = history(
        Record(10 * k, float(k), 0, {}, {"h": Bins(edges, np.array(each, np.uint64))})
        for k, each in enumerate(counts, 1)
    )
    return found.histograms["h"]


def test_plots_that_share_axes():
    """The entries of an array do, and fields of one unit; a few entries are curves and many a histogram."""
    titles = [panel.title for panel in panels_of(history([record(1), record(2)]), ())]
    assert titles == [
        "loss",
        "gate/fired/fired",
        "gate/fired/rate",
        "gate/fired/total",
        "gate/load",
        "gate/logits",
        "scratch: max, mean, min",
        "seen",
    ]
    panels = {panel.title: panel for panel in panels_of(history([record(1), record(2)]), ())}
    assert [curve.label for curve in panels["gate/load"].curves] == ["0", "1", "2", "3"]
    assert [curve.label for curve in panels["scratch: max, mean, min"].curves] == ["max", "mean", "min"]
    assert panels["gate/logits"].histogram is not None
    (experts,) = panels_of(history(odd_records()), ["experts"])
    assert experts.histogram is not None


def watched_record(step, layers=5):
    """Returns a record as a Logger writes it for a watched model."""
    scalars = {"loss": 1.0 / step}
    for k in range(layers):
        scalars |= {
            f"layers/{k}/up:output/rms": 10.0**k * step,
            f"layers/{k}/up:output/zeros": 0,
            f"layers/{k}/up:output/largest_at": step,
            f"layers/{k}/up/kernel:update_ratio": math.inf if step == 1 else 0.5,
            f"layers/{k}/attention:attention/entropy/0": 1.0,
            f"layers/{k}/attention:attention/entropy/1": 2.0 + k,
        }
    scalars["head:output/rms"] = 3.0
    return Record(step, 0.0, scalars=scalars)


def test_a_number_of_all_layers_is_one_map():
    """A site's number of four layers or more is a map with a row for each layer, and of fewer layers, curves."""
    panels = {panel.title: panel for panel in panels_of(history([watched_record(1), watched_record(2)]), ())}
    assert list(panels) == [
        "loss",
        "layers/*/up:output/rms",
        "layers/*/up/kernel:update_ratio",
        "layers/*/attention:attention/entropy",
        "head:output/rms",
    ]
    layers = panels["layers/*/up:output/rms"].layers
    assert (layers.labels, layers.steps) == (["0", "1", "2", "3", "4"], [1, 2])
    np.testing.assert_array_equal(layers.values, 10.0 ** np.arange(5)[:, None] * [[1, 2]])
    assert panels["layers/*/attention:attention/entropy"].layers.labels[:3] == ["0,0", "0,1", "1,0"]
    few = {panel.title: panel for panel in panels_of(history([watched_record(1, layers=2)]), ())}
    assert [curve.label for curve in few["layers/*/up:output/rms"].curves] == ["0", "1"]
    asked = panels_of(history([watched_record(1)]), ["*/up:output/largest_at", "*/up:output/zeros"])
    assert sorted(panel.title for panel in asked) == ["layers/*/up:output/largest_at", "layers/*/up:output/zeros"]
    every = panels_of(history([watched_record(1)]), ["*"])
    assert "layers/*/up:output/rms" in [panel.title for panel in every]
    assert not any("largest_at" in panel.title or "zeros" in panel.title for panel in every)


def test_a_map_of_many_records_keeps_every_spike():
    """If records are left out, a column has the largest magnitude of those that it stands for."""
    records = []
    for step in range(1, 2001):
        record = watched_record(step)
        record.scalars["layers/2/up:output/rms"] = -99.0 if step == 777 else 1.0
        records.append(record)
    scalars = history(records).scalars
    layers = site_map({str(k): scalars[f"layers/{k}/up:output/rms"] for k in range(5)})
    assert layers.values.shape == (5, 300)
    assert layers.steps[-1] == 2000
    (column,) = np.flatnonzero(layers.values[2] == -99.0)
    assert layers.steps[column - 1] < 777 <= layers.steps[column]


def test_maps_are_drawn():
    """Small numbers of several magnitudes have a logarithmic scale; infinite ones are red cells."""
    figure = draw(panels_of(history([watched_record(1), watched_record(2)]), ()), "", 1, 2)
    figure.draw_without_rendering()
    axes = {each.get_title(): each for each in figure.axes}
    assert [
        type(axes[f"layers/*/{name}"].collections[0].norm).__name__
        for name in ("up:output/rms", "up/kernel:update_ratio")
    ] == [
        "LogNorm",
        "Normalize",
    ]
    assert axes["layers/*/up/kernel:update_ratio"].collections[1].get_array().count() == 5
    assert [label.get_text() for label in axes["layers/*/up:output/rms"].get_yticklabels()] == list("01234")


def test_several_runs_lie_over_each_other():
    """Each number has axes with a curve for each run that has it; each histogram its own for each run."""
    runs = {"a": history([record(1), record(2)]), "b": history([record(1, extra=1.0)])}
    panels = {panel.title: panel for panel in panels_over_each_other(runs, ())}
    assert [curve.label for curve in panels["loss"].curves] == ["a", "b"]
    assert [curve.label for curve in panels["extra"].curves] == ["b"]
    assert {"gate/logits: a", "gate/logits: b"} <= set(panels)


def test_a_growing_histogram_is_drawn_by_its_increments():
    """Each column is the values since the record before; after a reset, those since then. Shares add up to 1."""
    one, two = [0, 1, 2, 5, 0, 0, 0, 0], [0, 1, 2, 5, 0, 4, 4, 0]
    heat = heat_of(series_of(one, two, [1, 0, 0, 0, 0, 0, 0, 0]))
    assert heat.new
    np.testing.assert_allclose(heat.shares[1], [0, 0, 0, 0, 0, 0.5, 0.5, 0])
    np.testing.assert_allclose(heat.shares[2], [1, 0, 0, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(heat.shares.sum(1), 1.0)


def test_one_that_does_not_grow_is_drawn_as_it_is():
    """A Buffer's values are of the step alone. No values are no column."""
    heat = heat_of(series_of([8, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 4, 4]))
    assert not heat.new
    np.testing.assert_allclose(heat.shares[1, 6:], 0.5)
    assert np.isnan(heat_of(series_of([0] * 8)).shares).all()


def test_edges_may_move():
    """Records with other edges share one axis, and no value is lost."""
    heat = heat_of(history(odd_records()).histograms["moving"])
    np.testing.assert_allclose(heat.shares.sum(1), 1.0)
    assert heat.edges[0] == -12.0
    assert heat.edges[-1] == 12.0


def test_a_thousand_entries_are_all_seen():
    """There are no more rows than can be drawn: neighbours share one, on edges of their own, and none is lost."""
    counts = np.zeros(1001, np.uint64)
    counts[::97] = 5
    heat = heat_of(series_of(counts, edges=np.arange(1002) - 0.5))
    assert heat.entries
    assert heat.edges.tolist() == [*(np.arange(126) * 8 - 0.5), 1000.5]
    np.testing.assert_allclose(heat.shares[heat.shares > 0], 1 / 11)


def test_the_zeros_of_a_rectifier_leave_the_rest_its_colors():
    """If nine in ten values are 0, colors tell the others apart, and the color bar says that there is more."""

    def highest(edges, *counts):
        bins = Bins(np.array(edges), np.array(counts, np.uint64))
        figure = draw(panels_of(history([Record(1, 0.0, histograms={"acts": bins})]), ()), "", 1, 2)
        return figure.axes[0].collections[0].norm.vmax

    assert highest([-1.0, 0.0, 1.0, 2.0, 3.0, 4.0], 0, 900, 50, 30, 20) == 0.05
    assert highest([-1.0, 0.0, 1.0, 2.0, 3.0, 4.0], 0, 500, 300, 100, 100) == 0.5
    assert highest([-0.5, 0.5, 1.5, 2.5], 900, 50, 50) == 0.9  # the first entry of an array is as good as the others


def test_records_that_are_left_out_are_part_of_the_next():
    """Of more records than there are columns, the last is among those shown; of two of one step, the later one."""
    heat = heat_of(series_of(*([k, 0, 0, 0, 0, 0, 0, 0] for k in range(1, 1000))), records=10)
    assert len(heat.steps) == 10
    assert heat.steps[-1] == 9990
    series = series_of([1] * 8, [2] * 8)
    series.add(20, Bins(EDGES, np.full(8, 9, np.uint64)))
    assert heat_of(series).steps == [10, 20]


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_values_that_are_hard_to_draw(tmp_path, suffix):
    """NaN, infinities, lone points, constants, huge numbers, names with markup: all are drawn, without a warning."""
    run = write(tmp_path / "run", odd_records())
    files = list(plot([str(run)], tmp_path / f"out.{suffix}", ()))
    assert [file.name for file in files] == [f"out.{suffix}"]
    start = files[0].read_bytes()[:500]
    assert start.startswith(b"\x89PNG") if suffix == "png" else b"<svg" in start


def test_marks_stand_for_values_that_are_not_numbers():
    """NaN and infinity are counted in the corner, and a red mark stands at its step."""
    figure = draw(panels_of(history(odd_records()), ["sometimes"]), "", 1, 1101)
    (axes,) = figure.axes
    assert "3 NaN, 1 inf, 1 -inf" in [text.get_text() for text in axes.texts]
    marks = next(line for line in axes.lines if line.get_color() == "tab:red")
    assert marks.get_xdata().tolist() == [101, 501, 601, 701, 901]


def test_counts_that_hardly_differ_are_told_apart():
    """Beyond 2**53 a float could not; the axis says what was taken from them."""
    figure = draw(panels_of(history(odd_records()), ["huge"]), "", 1, 1101)
    (axes,) = figure.axes
    assert axes.get_ylabel() == "less 18,446,744,073,709,551,604"
    assert axes.lines[0].get_ydata().tolist() == list(range(11, -1, -1))


def test_more_panels_than_a_page_holds(tmp_path):
    """They go to further files, each with its number and that of all."""
    numbers = {f"layer{k}": float(k) for k in range(20)}
    run = write(tmp_path / "run", [Record(step, 0.0, 0, numbers) for step in (1, 2)])
    assert [file.name for file in plot([str(run)], None, ())] == ["plot.png", "plot-2.png"]
    assert (run / "plot-2.png").exists()


def test_the_command(tmp_path):
    """It prints the files that it wrote."""
    runs = [str(write(tmp_path / name, [record(1), record(2)])) for name in "ab"]
    command = [sys.executable, "-W", "error", "-c", "import tallax.cli; tallax.cli.main()", "plot", *runs]
    output = tmp_path / "new" / "both.svg"
    done = subprocess.run([*command, "-o", output, "--names", "loss"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{output}\n", "")
    assert list(output.parent.iterdir()) == [output]


@pytest.mark.parametrize(
    ("output", "patterns", "says"),
    [
        ("plot.gif", (), "the suffix of the file"),
        ("plot.png", ("nope",), "no name that matches nope"),
    ],
)
def test_arguments_that_plot_refuses(tmp_path, output, patterns, says):
    """An unknown kind of file, and nothing to draw, are errors; nothing is written."""
    run = write(tmp_path / "run", [record(1)])
    with pytest.raises(RunError, match=says):
        list(plot([str(run)], tmp_path / output, patterns))
    assert not (tmp_path / output).exists()
