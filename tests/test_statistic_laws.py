# SPDX-License-Identifier: Apache-2.0
"""The laws that every statistic obeys. Each is stated once, and applied to all types from one registry."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tallax
from tests.cases import MODES, assert_same_state, leaves
from tests.meshes import STATISTICS
from tests.quick import cell

every_statistic = pytest.mark.parametrize("make", STATISTICS.values(), ids=STATISTICS)
every_mode = pytest.mark.parametrize("compiled", MODES.values(), ids=MODES)

X = np.random.default_rng(0).normal(size=(16, 2)).astype(np.float32)
NOT_FINITE = np.tile(np.array([[np.nan, np.inf], [-np.inf, 1.0]], np.float32), (8, 1))
STREAMS = {  # of one shape, which is one program for each type
    "usual": [X, 3 * X + 1, X[::-1]],
    "not-finite": [X, NOT_FINITE],
    "nan-only": [np.full_like(X, np.nan)],
    "nothing": [np.zeros((0, 2), np.float32)],
}


# One jitted function for all tests, so that they share its programs.
update = nnx.jit(lambda statistic, x: statistic.update(x))
computed = nnx.jit(lambda statistic: statistic.compute())


def fed(make, *parts):
    """Returns a statistic that was updated with each part."""
    statistic = make()
    for part in parts:
        statistic.update(part)
    return statistic


def counter_of(statistic):
    """Returns the one Counter of a statistic."""
    (counter,) = (variable for variable in statistic.variables.values() if isinstance(variable, tallax.Counter))
    return counter


def fields_of(result):
    """Returns the numbers of a result by field, as arrays on the host; its configuration is no part of its tree."""
    return {path[0].name: np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(result)}


# --- merging and resetting --------------------------------------------------------------------------------------------


@every_statistic
@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
def test_reset_is_the_identity_of_merge(make, stream):
    """A statistic that was reset equals a new one, and merging it with another changes nothing, on either side."""
    statistic, other = fed(make, *stream), fed(make, -X)
    before = nnx.clone(statistic)
    other.reset()
    assert_same_state(other, make())
    statistic.merge(other)
    assert_same_state(statistic, before)
    other.merge(statistic)
    assert_same_state(other, before)


@pytest.mark.parametrize("name", STATISTICS)
def test_only_equals_merge(name):
    """Another type, another configuration and other objects are refused; the state does not change."""
    statistic = fed(STATISTICS[name], X)
    others = [make() for other, make in STATISTICS.items() if other != name]
    for other in (*others, None, 3):
        with pytest.raises(tallax.InvalidValueError, match="same type and configuration"):
            statistic.merge(other)
    assert_same_state(statistic, fed(STATISTICS[name], X))


# --- values -----------------------------------------------------------------------------------------------------------


# Every type takes its values through one function: so all dtypes of one type, and two of the others, are quick.
DTYPES = ("bool", "bfloat16", "uint8", "int8", "int32", "uint32", "float16")
TAKEN = [cell(name, dtype, quick=name == "extrema" or dtype in DTYPES[:2]) for name in STATISTICS for dtype in DTYPES]


@pytest.mark.parametrize(("name", "dtype"), TAKEN)
def test_every_dtype_is_taken(name, dtype):
    """Booleans, integers and narrow floats are taken as the numbers that they are, to the bit."""
    x = (X > 0).astype(np.float32)
    assert_same_state(fed(STATISTICS[name], jnp.asarray(x, dtype)), fed(STATISTICS[name], x))


# The results of a statistic that saw nothing are zeros, but for these.
OF_NOTHING = {"min": np.inf, "max": -np.inf, "dead": True}


@every_statistic
def test_one_that_saw_nothing_reports_it(make):
    """Without any entry all counts and floats are 0, never NaN; the same inside a trace, and after a reset."""
    used = fed(make, X)
    used.reset()
    for statistic in (make(), used):
        for result in (statistic.compute(), computed(statistic)):
            for name, value in fields_of(result).items():
                if name != "edges":
                    assert (value == OF_NOTHING.get(name, 0)).all(), name


@pytest.mark.parametrize("name", sorted(STATISTICS.keys() - {"activity", "activity-window"}))
def test_no_entries_change_nothing(name):
    """Empty input and a mask without a true entry leave the state to the bit. (An `Activity` counts each update.)"""
    statistic = fed(STATISTICS[name], X)
    statistic.update(np.zeros((0, 2)))
    statistic.update(np.zeros((3, 0, 2)))
    statistic.update(X * np.nan, where=False)
    assert_same_state(statistic, fed(STATISTICS[name], X))


# --- exact ------------------------------------------------------------------------------------------------------------


@every_statistic
@pytest.mark.parametrize("start", [2**16 - 1, 2**24, 2**32 - 1, 2**48 - 1, 2**64 - 2])
def test_counts_are_exact_and_saturate(make, start):
    """Counts carry through both words and stay at 2**64 - 1; the record inside a trace saturates at 2**31 - 1."""
    x = X.copy()
    x[3, 0], x[4, 1] = np.nan, np.inf
    added = np.asarray(counter_of(fed(make, x)))
    statistic = make()
    counter_of(statistic).set(np.full(added.shape, start, np.uint64))
    update(statistic, x)
    expected = [min(start + int(n), 2**64 - 1) for n in added.ravel()]
    assert np.asarray(counter_of(statistic)).ravel().tolist() == expected
    host, traced = (fields_of(read(statistic)) for read in (lambda s: s.compute(), computed))
    for name, value in host.items():
        if value.dtype.kind in "iu":
            assert traced[name].dtype == np.int32
            assert traced[name].tolist() == np.minimum(value, 2**31 - 1).tolist(), name


# --- not trainable ----------------------------------------------------------------------------------------------------


@every_mode
def test_no_gradient_flows_in_or_out(compiled):
    """Neither the inputs of an update nor the state nor a result of any type has a gradient, and none is NaN."""
    statistics = nnx.Dict({name: fed(make, X) for name, make in STATISTICS.items()})
    model = nnx.Dict(w=nnx.Param(jnp.float32(2.0)), statistics=statistics)

    def floats(statistics):
        parts = jax.tree.leaves([statistic.compute() for statistic in statistics.values()])
        return sum(part.sum() for part in parts if jnp.issubdtype(part.dtype, jnp.floating))

    def grads(model):
        graphdef, params, rest = nnx.split(model, nnx.Param, ...)

        def loss(params, rest):
            model = nnx.merge(graphdef, params, rest)
            before = floats(model.statistics)
            for statistic in model.statistics.values():
                statistic.update(model.w * jnp.ones((3, 2)))
            return before + model.w[...] ** 2 + floats(model.statistics)

        by_params, by_rest = jax.grad(loss, argnums=(0, 1), allow_int=True)(params, rest)
        by_floats = [leaf for leaf in jax.tree.leaves(by_rest) if leaf.dtype != jax.dtypes.float0]
        return by_params, by_floats

    by_params, by_floats = compiled(grads)(model)
    assert jax.tree.leaves(by_params)[0] == 4.0
    assert len(by_floats) == sum(leaf.dtype.kind == "f" for leaf in leaves(statistics)) > 0
    assert not any(np.asarray(leaf).any() for leaf in by_floats)


# --- stacks -----------------------------------------------------------------------------------------------------------


@every_statistic
def test_a_stack_has_a_row_for_each_lane(make):
    """Statistics stacked by vmap hold what each lane holds by itself, and are reset together."""
    lanes = np.stack([X, 2 * X])
    stack = nnx.vmap(lambda _: make(), in_axes=0, out_axes=0)(jnp.arange(2))
    nnx.vmap(lambda s, x: s.update(x), in_axes=(0, 0), out_axes=0)(stack, lanes)
    for lane in range(2):
        for one, rows in zip(leaves(fed(make, lanes[lane])), leaves(stack), strict=True):
            if one.dtype.kind == "f":
                np.testing.assert_allclose(rows[lane], one, rtol=1e-5, atol=1e-6)
            else:
                assert rows[lane].tolist() == one.tolist()
    stack.reset()
    for one, rows in zip(leaves(make()), leaves(stack), strict=True):
        assert rows.tolist() == [one.tolist()] * 2


# --- bad input --------------------------------------------------------------------------------------------------------

BAD_UPDATES = {
    "complex": ({"x": np.ones(2, complex)}, tallax.InvalidTypeError, "real array"),
    "text": ({"x": "abc"}, tallax.InvalidTypeError, "real array"),
    "none": ({"x": None}, tallax.InvalidTypeError, "real array"),
    "float-mask": ({"x": np.ones((2, 2)), "where": np.ones((2, 2))}, tallax.InvalidTypeError, "boolean"),
    "mask-shape": ({"x": np.ones((2, 2)), "where": np.ones(3, bool)}, tallax.InvalidValueError, "broadcasts"),
}


@every_statistic
@pytest.mark.parametrize("name", BAD_UPDATES)
def test_bad_updates_change_nothing(make, name):
    """Values that cannot be counted raise, name the statistic and the remedy, and leave the state as it was."""
    arguments, error, text = BAD_UPDATES[name]
    model = nnx.Dict(seen=fed(make, X))
    with pytest.raises(error, match=rf"model\.seen: (.|\n)*{text}(.|\n)*fix:"):
        model.seen.update(**arguments)
    assert_same_state(model.seen, fed(make, X))


@pytest.mark.parametrize("name", sorted(name for name, make in STATISTICS.items() if getattr(make(), "shape", ())))
@pytest.mark.parametrize("x", [np.ones(3), np.ones((2, 4)), np.ones(())])
def test_a_statistic_of_a_shape_refuses_another(name, x):
    """The last axes must be the declared ones; the state does not change."""
    model = nnx.Dict(heads=fed(STATISTICS[name], X))
    with pytest.raises(tallax.InvalidValueError, match=r"model\.heads: a statistic of shape \(2,\)(.|\n)*or declare"):
        model.heads.update(x)
    assert_same_state(model.heads, fed(STATISTICS[name], X))
