# SPDX-License-Identifier: Apache-2.0
"""Activity: rates per unit, and which units are dead, over all updates or a window of them."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import tallax
from tallax.statistics import Activity
from tests.cases import assert_same_state

FIRES = hnp.arrays(np.bool_, st.tuples(st.integers(0, 8), st.just(2), st.just(3)), elements=st.integers(0, 4).map(bool))
RARE = hnp.arrays(np.bool_, st.tuples(st.integers(0, 8), st.just(2), st.just(3)), elements=st.integers(0, 9).map(bool))
X = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32) > 0
X[:, 1] = False
X[:, 2] = np.arange(64) == 13  # fires on one replica only


def fed(updates, units=3, masks=None, **how):
    activity = Activity(units, **how)
    for k, x in enumerate(updates):
        activity.update(x, where=None if masks is None else masks[k])
    return activity


def reference(updates, masks, window):
    """Returns rates, dead units and the window's length, from the whole stream."""
    fired = [(x & mask).reshape(-1, x.shape[-1]) for x, mask in zip(updates, masks, strict=True)]
    total = sum(mask.reshape(-1, mask.shape[-1]).sum(0) for mask in masks)
    rates = sum(x.sum(0) for x in fired) / np.maximum(total, 1)
    recent = fired if window is None else fired[-window:]
    return rates.tolist(), (~np.any([x.any(0) for x in recent], 0)).tolist(), len(recent)


def values_of(result):
    return np.asarray(result.rates).tolist(), np.asarray(result.dead).tolist(), int(result.updates)


def words(number):
    return np.array([number & (2**32 - 1), number >> 32], np.uint32)


# --- laws -------------------------------------------------------------------------------------------------------------


@given(FIRES.filter(len), st.data(), st.sampled_from([None, 1, 2, 5]))
def test_rates_and_dead_units_are_those_of_the_stream(updates, data, window):
    """Rates are over all entries under the masks, and the dead are those that did not fire in the last updates."""
    updates = ~updates if data.draw(st.booleans()) else updates
    masks = data.draw(hnp.arrays(np.bool_, updates.shape))
    result = fed(updates, masks=masks, window=window).compute()
    assert values_of(result) == reference(updates, masks, window)
    everything = np.ones_like(updates)
    assert values_of(fed(updates, window=window).compute()) == reference(updates, everything, window)


@given(RARE, RARE, RARE, st.sampled_from([None, 2]))
def test_merge_is_associative_commutative_and_exact(x, y, z, window):
    """Merged in any order, parts agree to the bit; their counts add, and the latest firing counts."""
    a, b, c = (fed(~part, window=window) for part in (x, y, z))
    left, right = nnx.clone(a), nnx.clone(c)
    left.merge(b)
    left.merge(c)
    right.merge(b)
    right.merge(a)
    assert_same_state(left, right)
    parts = [part.compute() for part in (a, b, c)]
    merged, whole = left.compute(), fed([*~x, *~y, *~z]).compute()
    assert merged.rates.tolist() == whole.rates.tolist()
    total = len(x) + len(y) + len(z)
    assert merged.updates == (total if window is None else min(total, window))
    assert merged.dead.tolist() == np.all([part.dead for part in parts], 0).tolist()


# --- dead units -------------------------------------------------------------------------------------------------------


def test_dead_relus_of_a_model():
    """Units of a hidden layer whose bias keeps them off are found, in a compiled step, and are seen to come back."""

    class Mlp(nnx.Module):
        def __init__(self, rngs):
            self.hidden, self.out = nnx.Linear(3, 6, rngs=rngs), nnx.Linear(6, 1, rngs=rngs)
            self.active = Activity(6, window=2)

        def __call__(self, x):
            h = nnx.relu(self.hidden(x))
            self.active.update(h)
            return self.out(h)

    model = Mlp(nnx.Rngs(0))
    model.hidden.bias[...] = jnp.array([0.0, -50.0, 0.0, 0.0, -50.0, 50.0])
    step = nnx.jit(lambda model, x: nnx.grad(lambda model: model(x).sum())(model))
    x = jnp.asarray(np.random.default_rng(1).normal(size=(32, 3)), jnp.float32)
    for _ in range(3):
        grads = step(model, x)
    result = model.active.compute()
    assert result.dead.tolist() == [False, True, False, False, True, False]
    assert (result.rates[1], result.rates[5], result.updates) == (0.0, 1.0, 2)
    assert not np.asarray(grads["hidden"]["kernel"][...])[:, result.dead].any()
    model.hidden.bias[...] = jnp.array([0.0, 50.0, 0.0, 0.0, -50.0, -50.0])
    step(model, x)
    assert model.active.compute().dead.tolist() == [False, False, False, False, True, False]
    step(model, x)
    assert model.active.compute().dead.tolist() == [False, False, False, False, True, True]


def test_without_a_window_one_firing_is_for_ever():
    """A unit that fired once since the last reset is not dead; after the reset it is until it fires."""
    activity = fed([[True, False, False]] + [[False, False, True]] * 50)
    assert values_of(activity.compute()) == ([1 / 51, 0, 50 / 51], [False, True, False], 51)
    activity.reset()
    assert values_of(activity.compute()) == ([0, 0, 0], [True, True, True], 0)


def test_a_unit_dies_when_its_window_has_passed():
    """A unit is alive for `window` updates from the one in which it fired, that one included."""
    activity = fed([[1, 0, 1]], window=3)
    alive = []
    for _ in range(4):
        alive.append(~activity.compute().dead)
        activity.update([0, 0, 1])
    assert np.array(alive).T.tolist() == [[True, True, True, False], [False] * 4, [True] * 4]


def test_nan_fires_and_negative_zero_does_not():
    """Every nonzero entry fires, also NaN; negative zero does not."""
    assert fed([np.array([np.nan, -0.0, -np.inf])]).compute().rates.tolist() == [1, 0, 1]


def test_an_update_counts_as_one_whatever_it_holds():
    """Empty and wholly masked updates pass in the window, and add nothing to the rates."""
    activity = fed([np.ones((2, 3))], window=2)
    activity.update(np.ones((0, 3)))
    activity.update(np.ones((4, 3)), where=np.array([True, False, False]))
    assert values_of(activity.compute()) == ([1, 1, 1], [False, True, True], 2)
    assert np.asarray(activity.counts)[:, 1].tolist() == [6, 2, 2]


# --- exact counts -----------------------------------------------------------------------------------------------------


def test_counts_are_exact_beyond_32_bits():
    """All four counts pass 2**32; inside a trace rates stay right and updates saturate."""
    activity = Activity(2, window=2**31 - 1)
    activity.counts.set(np.array([2**32 - 1, 2**33 - 2, 2**32 - 1], np.uint64))
    activity.quiet[...] = np.broadcast_to(words(2**32 - 1), (2, 2))
    nnx.jit(lambda a: a.update(jnp.array([[1, 0], [0, 0]])))(activity)
    assert np.asarray(activity.counts).tolist() == [[2**32, 2**33, 2**32], [2**32 - 1, 2**33, 2**32]]
    assert np.asarray(activity.quiet).view(np.uint64)[..., 0].tolist() == [0, 2**32]
    result, traced = activity.compute(), nnx.jit(lambda a: a.compute())(activity)
    assert values_of(result) == ([0.5, (2**32 - 1) / 2**33], [False, True], 2**31 - 1)
    assert values_of(traced) == ([0.5, 0.5], [False, True], 2**31 - 1)
    assert (type(result.updates), traced.updates.dtype, result.rates.dtype) == (int, jnp.int32, np.float64)
    forever = Activity(2)
    forever.counts.set(np.array([0, 0, 2**40], np.uint64))
    assert forever.compute().updates == 2**40
    assert nnx.jit(lambda a: a.compute())(forever).updates == 2**31 - 1


def test_never_stays_never():
    """Updates without firing leave a unit that never fired at the value that means so."""
    activity = fed([[False, False, True]] * 3)
    assert np.asarray(activity.quiet).view(np.uint64)[:, 0].tolist() == [2**64 - 1, 2**64 - 1, 0]


def test_merging_compares_both_words():
    """The smaller number of updates since a unit fired is found by both words."""
    for small, large in [((5, 1), (6, 1)), ((7, 1), (2, 2)), ((9, 0), (1, 1))]:
        left, right = Activity(1), Activity(1)
        left.quiet[0], right.quiet[0] = np.array(small, np.uint32), np.array(large, np.uint32)
        for a, b in ((left, right), (right, left)):
            merged = nnx.clone(a)
            merged.merge(b)
            assert merged.quiet[0].tolist() == list(small)


# --- modes, replicas --------------------------------------------------------------------------------------------------


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [(0,), (-1,), (2.0,), ("3",), (None,), (True,), (2**31,), (3, 0), (3, -1), (3, 1.5), (3, 2**31), (3, False)],
)
def test_impossible_units_and_windows_raise(arguments):
    """Units and windows are integers in [1, 2**31 - 1]."""
    with pytest.raises(tallax.InvalidValueError, match="Activity: units and window must be"):
        Activity(arguments[0], **dict(zip(["window"], arguments[1:], strict=False)))


@pytest.mark.parametrize("x", [np.ones(4), np.ones((3, 2)), np.ones(())])
def test_another_number_of_units_raises(x):
    """The last axis must have the number of units, and merged statistics must have equal units and window."""
    activity = Activity(3)
    with pytest.raises(tallax.InvalidValueError, match=r"activity: (.|\n)*or declare Activity\((4|2|units)\)"):
        activity.update(x)
    with pytest.raises(tallax.InvalidTypeError, match="activity: a statistic requires a real array"):
        activity.update(np.ones(3, complex))
    for other in (Activity(2), Activity(3, window=9)):
        with pytest.raises(tallax.InvalidValueError, match="same type and configuration"):
            activity.merge(other)
    assert_same_state(activity, Activity(3))
