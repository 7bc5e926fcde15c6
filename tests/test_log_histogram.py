# SPDX-License-Identifier: Apache-2.0
"""LogHistogram: every float32 in its bucket, and quantiles within the promised error."""

import functools
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import tallax
from tallax.runs._bars import one_line
from tallax.statistics import Activity, Histogram, LogHistogram, Rate, _bincount

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)  # subnormal numbers included


def nearest(values, q):
    """Returns the entry that the quantile is an estimate of."""
    ordered = np.sort(np.asarray(values, np.float64))
    return ordered[int(np.floor(q * (len(ordered) - 1)))]


@given(hnp.arrays(np.float32, 50, elements=FLOATS), st.sampled_from([0.5, 0.05, 0.01, 0.001]))
def test_quantiles_are_within_the_promised_error(x, relative_error):
    """At every rank the estimate is within the relative error of the entry there, from the least subnormal on."""
    histogram = LogHistogram(relative_error)
    histogram.update(x)
    result = histogram.compute()
    assert (result.count, result.zero, result.nan) == (50, (x == 0).sum(), 0)
    for q in np.linspace(0, 1, 50):
        true = nearest(x, q)
        assert abs(result.quantile(q) - true) <= relative_error * abs(true) * (1 + 1e-12)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_exponent_has_its_bucket(dtype):
    """For every exponent, and its first, middle and last mantissas, the bucket contains exactly that number."""
    info = ml_dtypes.finfo(dtype)
    bits, mantissa = info.bits, info.nmant
    patterns = [
        (e << mantissa) | m
        for e in range((1 << (bits - 1 - mantissa)) - 1)
        for m in sorted({0, 1, 1 << (mantissa - 1), (1 << mantissa) - 1})
    ]
    x = np.array(patterns, f"uint{bits}").view(dtype)
    x = np.concatenate([x, -x])
    exact = x.astype(np.float64)
    assert (exact != 0).sum() == len(x) - 2
    histogram = LogHistogram(0.02)
    histogram.update(x)
    result = histogram.compute()
    assert result.zero == 2
    assert result.count == len(x)
    seen = np.flatnonzero(result.buckets)
    bounds = result.bounds
    # Every number's own bucket, found by bisection in float64, has been counted, as often as numbers fall there.
    expected = np.zeros(len(result.buckets), int)
    away = np.where(exact < 0, np.searchsorted(bounds, exact, "left"), np.searchsorted(bounds, exact, "right")) - 1
    np.add.at(expected, np.where(exact == 0, len(expected) // 2, away), 1)
    assert result.buckets.tolist() == expected.tolist()
    assert seen.size > 20


def test_the_bound_is_tight():
    """The worst number of a bucket misses by no more than the promise, and some bucket comes close to it."""
    for relative_error in (0.5, 0.1, 0.05, 0.01, 1e-3, 1e-4):
        histogram = LogHistogram(relative_error)
        bound = 1 / (2 ** (histogram.mantissa_bits + 1) + 1)
        assert bound <= relative_error
        assert histogram.mantissa_bits == 0 or 1 / (2**histogram.mantissa_bits + 1) > relative_error


def test_special_values_are_counted_apart():
    """Zeros, NaN and infinities have counts of their own, and order with the rest."""
    histogram = LogHistogram()
    x = np.array([np.nan, -np.inf, -1.0, -0.0, 0.0, 1.0, np.inf, np.inf, -np.nan], np.float32)
    histogram.update(x)
    result = histogram.compute()
    assert (result.count, result.zero, result.nan) == (7, 2, 2)
    assert [result.quantile(q) for q in (0, 0.4, 1)] == [-np.inf, 0.0, np.inf]
    assert result.quantile(1 / 6 + 1e-9) == pytest.approx(-1, rel=0.05)
    assert np.isnan(LogHistogram().compute().quantile(0.5))
    assert np.isnan(LogHistogram().compute().quantile([0.1, 0.5])).tolist() == [True, True]


# The place of the cut is one of few, since each length is a program.
@given(
    hnp.arrays(np.float32, 30, elements=st.floats(width=32)), hnp.arrays(np.bool_, 30), st.sampled_from([0, 1, 15, 30])
)
def test_counts_add_up_split_and_merge(x, mask, cut):
    """Every entry under the mask is counted once; parts, merged in any order, equal the whole to the bit."""
    whole, left, right = LogHistogram(0.1), LogHistogram(0.1), LogHistogram(0.1)
    whole.update(x, where=mask)
    left.update(x[:cut], where=mask[:cut])
    right.update(x[cut:], where=mask[cut:])
    result = whole.compute()
    assert result.count + result.nan == mask.sum()
    merged = nnx.clone(left)
    merged.merge(right)
    right.merge(left)
    for made in (merged, right):
        assert np.array_equal(made.counts, whole.counts)


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint32", "int32"])
def test_integers_are_taken(dtype):
    """Booleans and integers are counted as the numbers that they are."""
    histogram = LogHistogram(0.01)
    histogram.update(jnp.array([0, 1, 1, 100], dtype))
    top = 1 if dtype == "bool" else 100
    assert histogram.compute().zero == 1
    assert histogram.compute().quantile(1.0) == pytest.approx(top, rel=0.01)


def test_in_a_trace():
    """Inside jit the record has traced arrays, and quantiles agree with those on the host."""
    histogram = LogHistogram(0.01)
    x = np.random.default_rng(0).lognormal(0, 3, 1000)
    q = np.array([0.0, 0.1, 0.5, 0.99, 1.0])
    nnx.jit(lambda h, x: h.update(x))(histogram, x)
    traced = nnx.jit(lambda h: (h.compute(), h.compute().quantile(q), h.compute().quantile(0.5)))(histogram)
    host = histogram.compute()
    np.testing.assert_allclose(traced[1], host.quantile(q), rtol=1e-6)
    assert (int(traced[0].count), traced[2].shape, traced[2].dtype) == (1000, (), jnp.float32)
    histogram.counts.set(2**31 - 1)
    assert int(nnx.jit(lambda h: h.compute().count)(histogram)) == 2**31 - 1
    empty = nnx.jit(lambda h: h.compute().quantile(0.5))(LogHistogram())
    assert np.isnan(empty)


@pytest.mark.parametrize("relative_error", [0, -1, 0.6, 1e-5, float("nan")])
def test_impossible_errors_raise(relative_error):
    """The relative error lies between 1e-4 and a half."""
    with pytest.raises(tallax.InvalidValueError, match="LogHistogram: the relative error must be in"):
        LogHistogram(relative_error)


@pytest.mark.parametrize("q", [-0.1, 1.1, float("nan"), [0.5, 2.0]])
def test_impossible_quantiles_raise(q):
    """A quantile lies in [0, 1]."""
    histogram = LogHistogram()
    histogram.update(1.0)
    with pytest.raises(tallax.InvalidValueError, match="q: a quantile must be in"):
        histogram.compute().quantile(q)


# --- counting slots ---------------------------------------------------------------------------------------------------


LENGTHS, SIZES = (1, 7, 69, 127, 128, 1000), (0, 1, 2, 63, 1001, 5001)
FORMS = {form.__name__: form for form in (_bincount.in_order, _bincount.in_pairs, _bincount.in_groups)}
FORMS |= {"in_parts": functools.partial(_bincount.in_parts, devices=6), "count_slots": _bincount.count_slots}
# Each is a program of its own. Half of them are quick: every form with every length, and with every size.
COUNTED = [
    pytest.param(form, length, size, marks=[pytest.mark.thorough] if (f + k + s) % 2 else [])
    for f, form in enumerate(FORMS)
    for k, length in enumerate(LENGTHS)
    for s, size in enumerate(SIZES)
]


@pytest.mark.parametrize(("form", "length", "size"), COUNTED)
def test_every_form_counts_alike(form, length, size):
    """All forms of the inner loop count what NumPy counts, and drop masked entries."""
    x = np.random.default_rng(0).integers(0, length, size).astype(np.int32)
    mask = np.random.default_rng(1).random(size) < 0.7
    count = functools.partial(FORMS[form], lambda x: x, length=length)
    all_counts = jax.jit(lambda x, mask: (count(x, None), count(x, mask)))(x, mask)
    for counts, expected in zip(all_counts, (x, x[mask]), strict=True):
        assert counts.dtype == jnp.uint32
        assert counts.tolist() == np.bincount(expected, minlength=length).tolist()


@pytest.mark.parametrize("form", ["in_order", "in_pairs", "in_groups", "in_parts"])
@pytest.mark.parametrize("shape", [(7, 9), (65, 3), (2, 0), (3, 2, 129)])
def test_every_form_takes_any_shape(form, shape):
    """Values of any shape are counted, with axes even, odd, long or empty."""
    x = np.random.default_rng(0).integers(0, 7, shape).astype(np.int32)
    mask = np.random.default_rng(1).random(shape) < 0.7
    counts = jax.jit(lambda x, where: FORMS[form](lambda x: x, x, where, length=7))(x, mask)
    assert counts.tolist() == np.bincount(x[mask], minlength=7).tolist()


# --- looks ------------------------------------------------------------------------------------------------------------


def test_the_shape_in_one_line():
    """The text has a bar for every part, a visible one for anything counted, and none for nothing."""
    assert one_line(np.array([0, 0, 1, 8, 4, 0])) == "▁█▄"
    assert one_line(np.array([0, 10**9, 0, 1])) == "█ ▁"
    assert one_line(np.zeros(3)) == ""
    assert one_line(np.zeros(3), trim=False) == "   "
    assert len(one_line(np.ones(1000))) == 24


def test_reprs_are_one_line():
    """A statistic and its result print as one line that shows the distribution; abstract ones as their signature."""
    histogram, log, rate = Histogram(0, 4, bins=4), LogHistogram(), Rate()
    for statistic in (histogram, log, rate):
        statistic.update(jnp.array([0.5, 1.5, 1.5, 9.0]))
        assert "\n" not in repr(statistic)
        assert repr(statistic.compute()) in str(statistic)
    assert "\n" not in repr(Activity(100))
    assert "|▄█  |" in repr(histogram)
    assert "overflow=1" in repr(histogram)
    assert "4 values, median 1.5" in repr(log)
    assert repr(nnx.eval_shape(lambda: Histogram(0, 4, bins=4))) == "Histogram(low=0.0, high=4.0, bins=4)"
    assert "LogHistogram" in repr(nnx.Dict(h=log))
    assert "count=4" in repr(nnx.jit(lambda h: h.compute())(log))
    assert "counts=[1 2 0 0]" in repr(nnx.jit(lambda h: h.compute())(histogram))


@pytest.mark.parametrize("made", [False, True])
def test_plots(made, tmp_path):
    """A histogram draws itself on new or given axes, with values outside the axis in the title."""
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    x = np.random.default_rng(0).normal(size=1000)
    for statistic in (Histogram(-2, 2), LogHistogram()):
        statistic.update(x)
        given = pyplot.subplots()[1] if made else None
        axes = statistic.plot(given)
        assert given is None or axes is given
        axes.figure.savefig(tmp_path / "plot.png")
        assert (tmp_path / "plot.png").stat().st_size > 3000
        (stairs,) = axes.patches
        if isinstance(statistic, Histogram):
            assert "underflow" in axes.get_title()
            assert stairs.get_data().values.sum() == sum(abs(x) <= 2)
        else:  # as many values in a bucket as its height times its width in octaves
            values, edges = stairs.get_data()[:2]
            inside = values > 0
            octaves = np.abs(np.log2(np.abs(edges[1:] / edges[:-1])))
            assert (values * octaves)[inside].sum() == pytest.approx(1000)
        pyplot.close("all")
    assert LogHistogram().plot() is not None


def test_without_matplotlib_the_error_names_the_package(monkeypatch):
    """A missing extra names the install line."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(tallax.MissingExtraError, match=r"pip install 'tallax\[plot\]'"):
        Histogram(0, 1).plot()
