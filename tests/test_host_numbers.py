# SPDX-License-Identifier: Apache-2.0
"""Numbers from the host that 32 bits do not hold: rounded, saturated or refused by name, never wrapped."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tallax
from tallax.statistics import Activity, Ema, Extrema, Histogram, LogHistogram, Moments, Rate
from tests.quick import cell

BIG = 3_000_000_000
MAKERS = (Extrema, Moments, LogHistogram, lambda: Ema(0.0), lambda: Histogram(0.0, 1e10, bins=4), Rate)

SPELLINGS = {
    "int64": lambda n: np.array([n, n]),
    "uint64": lambda n: np.array([n, n], np.uint64),
    "scalars": lambda n: [np.int64(n), np.int64(n)],
    "list": lambda n: [n, n],
    "nested": lambda n: [[n], [n]],
    "tuple": lambda n: (n, n),
    "object": lambda n: np.array([n, n], object),
    "float64": lambda n: np.array([n, n], np.float64),
}


def seen(x):
    """Returns what one of each statistic makes of values, as numbers."""
    extrema, moments, logarithmic, ema, histogram, rate = (make() for make in MAKERS)
    for statistic in (extrema, moments, logarithmic, ema, histogram, rate):
        statistic.update(x)
    return (
        extrema.compute().min,
        extrema.compute().max,
        moments.compute().mean,
        ema.compute().value,
        round(logarithmic.compute().quantile(0.5) / 1e8),
        histogram.compute().counts.tolist(),
        rate.compute().fired,
    )


# With x64 every program is compiled anew: int64 and float64, which x64 alone has, are quick.
SPELLED = [
    cell(name, x64, quick=not x64 or name in ("int64", "float64")) for name in SPELLINGS for x64 in (False, True)
]


@pytest.mark.parametrize(("name", "x64"), SPELLED)
def test_integers_beyond_32_bits_are_themselves(name, x64):
    """3e9 is 3e9 in every statistic, however it is spelled, with x64 and without."""
    with jax.enable_x64(x64):
        assert seen(SPELLINGS[name](BIG)) == (BIG, BIG, BIG, BIG, 30, [0, 2, 0, 0], 2)


@pytest.mark.parametrize("number", [BIG, np.int64(BIG), np.uint32(BIG), np.array(BIG), 2**63, np.uint64(2**63), 2**70])
def test_single_numbers(number):
    """A Python integer of any size and NumPy's scalars are rounded to float32."""
    extrema = Extrema()
    extrema.update(number)
    assert extrema.compute().max == float(np.float32(int(number)))


def test_negative_integers_and_those_that_fit():
    """Integers below -2**31 keep their sign; integers that fit 32 bits are exact."""
    extrema = Extrema()
    extrema.update(np.array([-(2**40), 2**31 - 1, -(2**31), 7]))
    assert (extrema.compute().min, extrema.compute().max) == (-(2.0**40), 2.0**31)
    for small in (np.array([1, 2]), [1, 2], np.array([1, 2], np.uint64), np.array([True, True])):
        moments = Moments()
        moments.update(small)
        assert moments.compute().count == 2


def test_low_words_of_zero_fire():
    """2**40, whose low 32 bits are zero, fires, and so does a float64 too small for float32."""
    for x, fired in ([2**40, 1], 2), (np.array([2**40, 0]), 1), (np.array([1e-300, 0.0]), 1), (np.array([np.nan]), 1):
        rate, activity = Rate(), Activity(1)
        rate.update(x)
        activity.update(np.reshape(x, (-1, 1)))
        assert rate.compute().fired == np.asarray(activity.counts)[0, 0] == fired


def test_a_count_is_fed_whole():
    """A Counter beyond 2**31 - 1 is passed to a statistic as its exact count, on the host and traced."""
    counter, extrema = tallax.Counter(2**40), Extrema()
    extrema.update(counter)
    nnx.jit(lambda e, c: e.update(c))(extrema, tallax.Counter(2**41))
    assert (extrema.compute().min, extrema.compute().max) == (2.0**40, 2.0**41)


def test_float64_beyond_float32():
    """It is infinite, as on the device, but for a Histogram, in which it lies outside of the edges."""
    x = np.array([1e300, -1e300, np.inf, 1.0])
    moments, extrema, histogram = Moments(), Extrema(), Histogram(0.0, 2.0, bins=1)
    for statistic in (moments, extrema, histogram):
        statistic.update(x)
    result = histogram.compute()
    assert (moments.compute().count, moments.compute().nonfinite) == (1, 3)
    assert (extrema.compute().min, extrema.compute().max) == (-np.inf, np.inf)
    assert (result.overflow, result.underflow, result.posinf, result.neginf, result.counts.tolist()) == (
        1,
        1,
        1,
        0,
        [1],
    )


BAD = (
    "a",
    None,
    [1, None],
    1 + 2j,
    np.array([1 + 2j]),
    np.datetime64("now"),
    2**2000,
    [[1], [2, 3]],
    {"a": 1},
    object(),
)


@pytest.mark.parametrize("x", BAD, ids=lambda x: type(x).__name__)
def test_other_objects_than_real_arrays_raise(x):
    """It is refused by name, and the state is left as it was."""
    for make in MAKERS:
        statistic = make()
        before = repr(statistic)
        with pytest.raises(tallax.InvalidTypeError, match=r"statistic: a statistic requires a real array"):
            statistic.update(x)
        assert repr(statistic) == before


def test_the_edges_of_a_histogram_may_be_large():
    """Integers beyond 32 bits are edges like any other."""
    histogram = Histogram(0, 2**33, 4)
    histogram.update(np.array([2**32, 2**33, 2**34, 2**31]))
    assert (histogram.compute().counts.tolist(), histogram.compute().overflow) == ([0, 1, 1, 1], 1)


@pytest.mark.parametrize("step", [np.int64(BIG), np.uint64(2**63), np.array(BIG), np.uint32(BIG), BIG, 2**70])
def test_steps_beyond_int32_saturate(step):
    """A schedule sees 2**31 - 1."""
    seen = []
    schedule = tallax.ScheduledValue(lambda count: seen.append(count) or jnp.float32(1.0))
    schedule(step)
    assert int(seen[-1]) == 2**31 - 1


def test_buffers_refuse_or_round():
    """An integer Buffer raises for a number that does not fit; a float Buffer rounds it."""
    whole, floats = tallax.Buffer(np.zeros(2, np.int32)), tallax.Buffer(np.zeros(2, np.float32))
    for number in (BIG, 2**70, np.int64(BIG), np.array([BIG, 1]), np.uint64(2**63)):
        with pytest.raises(tallax.InvalidValueError, match=r"whole: the integer does not fit into u?int32"):
            whole += number
    assert whole[...].tolist() == [0, 0]
    for number in (BIG, np.array([BIG, BIG])):
        floats += number
    assert floats[...].tolist() == [2 * BIG, 2 * BIG]


def test_counters_take_them_exactly():
    """Every way into a Counter and every comparison is exact."""
    for number in (np.array([BIG, BIG]), np.uint64(BIG), BIG, np.array(BIG)):
        counter = tallax.Counter(shape=2)
        counter += number
        counter.increment(number)
        assert np.all(counter == 2 * BIG)
        counter.set(number)
        counter.count(np.array([[BIG, BIG]]))
        assert np.asarray(counter).tolist() == [2 * BIG, 2 * BIG]


# --- arguments --------------------------------------------------------------------------------------------------------

NAN, HUGE = float("nan"), 10**400
NO_NUMBERS = ("1", None, NAN, True, [1.0], 1j, HUGE)
NO_SIZES = ("3", None, 2.0, 2.4, NAN, -1, True, 2**40)
BAD_ARGUMENTS = [
    *((Histogram, (low, 2.0, 3)) for low in NO_NUMBERS),
    *((Histogram, (0.0, high, 3)) for high in (*NO_NUMBERS[:3], *NO_NUMBERS[4:], 0.0, -1.0)),
    *((Histogram, (0.0, 1.0, bins)) for bins in (*NO_SIZES, 0, 2**20)),
    *((LogHistogram, (error,)) for error in (*NO_NUMBERS, 0, 1, -1, 1e-9)),
    *((Ema, (decay,)) for decay in (*NO_NUMBERS, 1.0, -0.1, False)),
    *((Activity, (units,)) for units in (*NO_SIZES, 0)),
    *((kind, (shape,)) for kind in (Moments, Extrema, Rate) for shape in (*NO_SIZES, (2, -1), (True,), (2**20, 2**20))),
    *((lambda shape: Ema(0.5, shape=shape), (shape,)) for shape in NO_SIZES),
    *((lambda window: Activity(2, window=window), (window,)) for window in ("3", 2.0, NAN, -1, True, 0, 2**40)),
]


@pytest.mark.parametrize(("make", "arguments"), BAD_ARGUMENTS)
def test_bad_arguments_raise_our_errors(make, arguments):
    """A constructor rejects invalid arguments with an error of tallax."""
    with pytest.raises(tallax.InvalidValueError):
        make(*arguments)


@pytest.mark.parametrize("kind", [Rate, Moments, Extrema, lambda axis_name: Ema(0.5, axis_name=axis_name)])
@pytest.mark.parametrize("axis_name", [["data"], {"data"}, (["data"],)])
def test_bad_axis_names_raise(kind, axis_name):
    """An invalid axis name raises."""
    with pytest.raises(tallax.InvalidTypeError, match="axis_name must be the name of a mapped axis"):
        kind(axis_name=axis_name)


def test_numbers_of_other_types_are_arguments():
    """NumPy's and JAX's scalars are numbers."""
    assert Histogram(np.float32(0), jnp.float32(1), np.int64(3)) is not None
    assert Ema(np.float64(0.5)).decay == LogHistogram(jnp.float32(0.5)).relative_error == 0.5
