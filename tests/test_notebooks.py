# SPDX-License-Identifier: Apache-2.0
"""Displays of state in notebooks: as trees, by treescope, and alone, as HTML."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import treescope
from flax import nnx

import tallax
from tallax.statistics import Extrema, Histogram, LogHistogram, Rate
from tests.runs import odd_records, record, write

# treescope looks at all of NumPy's names, deprecated ones too.
pytestmark = pytest.mark.filterwarnings("ignore:The chararray class:DeprecationWarning")


class Model(tallax.Module):
    def __init__(self):
        self.seen = tallax.Counter(2**53 + 1)
        self.load = tallax.Counter(shape=3)
        self.logits = Histogram(-4.0, 4.0, bins=8)
        self.sizes = LogHistogram()
        self.fired = Rate()
        self.largest = Extrema(shape=2)
        self.bias = tallax.Buffer(jnp.ones(3), persistent=False)
        self.temperature = tallax.ScheduledValue(optax.linear_schedule(5.0, 1.0, 10))


@pytest.fixture
def model():
    model = Model()
    values = np.linspace(-3, 3, 100).astype(np.float32)
    for statistic in (model.logits, model.sizes):
        statistic.update(values)
    model.fired.update(values > 0)
    model.load += np.array([1, 2, 3], np.uint32)
    return model


def html_of(thing):
    """Returns the HTML of an object shown alone; raises if that is not well-formed."""
    html = thing._repr_html_() if hasattr(type(thing), "_repr_html_") else thing._repr_mimebundle_()["text/html"]
    html = html.replace("&nbsp;", " ").replace("&ensp;", " ")  # which XML does not know
    ET.fromstring(f"<all>{html}</all>")
    return html


def test_trees_show_exact_counts_and_statistics(model):
    """A Counter's value is the exact count, not int32; a statistic's first line has its record, bars and all."""
    text = treescope.render_to_text(model)
    assert "value=9007199254740993" in text
    assert "value=np.array([1, 2, 3], dtype=uint64)" in text
    assert "RateResult(fired=50, total=100, rate=0.5)" in text
    assert "HistogramResult(-4 |" in text
    assert "ScheduledValue(/* 5 */" in text
    assert "Rich HTML representation" not in text
    assert treescope.render_to_html(model)


def test_objects_alone(model):
    """Each has a card with its exact value, and a histogram a line of bars."""
    assert "9,007,199,254,740,993" in html_of(model.seen)
    assert "[1, 2, 3]" in html_of(model.load)
    assert all(block in html_of(part) for part in (model.logits, model.sizes) for block in "▁█")
    assert "<td" in html_of(model.largest)
    assert "persistent=False" in html_of(model.bias)
    assert "polynomial_schedule" in html_of(model.temperature)


def test_readings_and_steps(model):
    """A reading and a step list all state; while the step owns it, the values are current."""
    html = html_of(tallax.collect(model))
    assert html.count("<tr>") == 9
    assert "9,007,199,254,740,993" in html

    def count(model, x):
        model.seen += 1
        model.fired.update(x > 0)

    step = tallax.compile_step(count, model)
    step(jnp.ones(4))
    assert "9,007,199,254,740,994" in html_of(step)
    assert "9,007,199,254,740,994" in html_of(model.seen)
    assert "value=9007199254740994" in treescope.render_to_text(model.seen)


def test_unreadable_values_are_left_out(model):
    """In a trace, in a copy of owned state, and with per-replica state, the display shows no value and no error."""
    texts = []

    def look(model):
        texts.append(treescope.render_to_text(model))
        texts.extend(html_of(part) for part in (model.seen, model.fired, model.temperature))

    nnx.jit(look)(model)
    assert "Rate(" in texts[0]
    assert "9007199254740993" not in "".join(texts)

    step = tallax.compile_step(lambda model: None, model)
    step()
    copy = jax.tree.map(lambda leaf: leaf, nnx.state(model))["seen"]
    treescope.render_to_text(model)
    repr(model)
    assert "owned by a compiled step" in repr(copy)
    assert "owned by a compiled step" in treescope.render_to_text(copy)
    html_of(copy)
    step.sync()


def test_shapes_alone():
    """Under nnx.eval_shape there is nothing to read, and nothing raises."""
    shapes = nnx.eval_shape(Model)
    assert "ShapeDtypeStruct" in treescope.render_to_text(shapes)
    for part in (shapes.seen, shapes.logits, shapes.temperature):
        html_of(part)


def test_runs(tmp_path):
    """A run lists its state with values, and its other scalars."""
    run = tallax.Run(write(tmp_path, [record(1), record(2)]))
    html = html_of(run)
    assert "9,007,199,254,742,273" in html
    assert html.count("█") == 2
    assert "loss" in html
    assert repr(run) == f"<Run '{tmp_path}': step 20, 12 scalars, 2 histograms>"


def test_names_are_escaped(tmp_path):
    """Names of users are escaped."""
    records = odd_records()
    records[-1].scalars["<script>alert(1)</script>&"] = 1.0
    html = html_of(tallax.Run(write(tmp_path, records)))
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "<b>" not in html_of(tallax.ScheduledValue(lambda step: 1.0, name="<b>")).replace("<b>Sched", "")
