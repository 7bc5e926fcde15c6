# SPDX-License-Identifier: Apache-2.0
"""The limb arithmetic against Python's integers, on the host and on the device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallax import _uint64

MAX = 2**64 - 1
EDGES = [0, 1, 2**16 - 1, 2**16, 2**24, 2**31 - 2, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**33 + 5, 2**63, MAX - 1, MAX]
COUNTS = st.one_of(st.sampled_from(EDGES), st.integers(0, MAX))
VECTORS = st.lists(COUNTS, min_size=6, max_size=6)

add = jax.jit(_uint64.add)
to_int32 = jax.jit(_uint64.to_int32)
assign = jax.jit(_uint64.assign)
divisible = jax.jit(_uint64.divisible, static_argnums=1)


def limbs(values: list[int]) -> np.ndarray:
    return np.stack([_uint64.from_int(value) for value in values])


def ints(array: jax.Array | np.ndarray) -> list[int]:
    return [int(value) for value in np.atleast_1d(_uint64.to_uint64(np.asarray(array)))]


@given(VECTORS)
def test_limbs_hold_every_count(values):
    """A count goes to limbs and back, as a Python integer and as uint64."""
    assert ints(limbs(values)) == values
    assert np.array_equal(_uint64.from_uint64(np.array(values, np.uint64)), limbs(values))


@given(VECTORS, VECTORS)
def test_sums_saturate(left, right):
    """The sum of two counts is exact, or 2**64 - 1, on the device and on the host."""
    expected = [min(a + b, MAX) for a, b in zip(left, right, strict=True)]
    assert ints(add(limbs(left), limbs(right))) == expected
    host = _uint64.add_uint64(np.array(left, np.uint64), np.array(right, np.uint64))
    assert host.tolist() == expected


@given(VECTORS)
def test_reading_saturates_in_int32(values):
    """A read is exact below 2**31 - 1 and stays there above, alike on host and device."""
    expected = [min(value, 2**31 - 1) for value in values]
    assert to_int32(limbs(values)).tolist() == expected
    assert _uint64.to_int32_on_host(limbs(values)).tolist() == expected
    assert to_int32(limbs(values)).dtype == jnp.int32


@given(VECTORS)
def test_float32_rounds_the_whole_count(values):
    """The float is within two roundings of the count."""
    np.testing.assert_allclose(_uint64.to_float32(jnp.asarray(limbs(values))), np.array(values, float), rtol=2**-22)


@given(VECTORS, st.one_of(st.sampled_from([1, 2, 3, 2**16, 2**16 + 1, 2**24, 2**31 - 1]), st.integers(1, 2**31 - 1)))
def test_divisibility_is_exact(values, divisor):
    """Divisibility is exact for every digit width."""
    values = [*values[:3], *(value // divisor * divisor for value in values[3:])]
    expected = [value % divisor == 0 for value in values]
    with jax.disable_jit():  # a fresh divisor would compile a fresh program
        assert _uint64.divisible(jnp.asarray(limbs(values)), divisor).tolist() == expected


@pytest.mark.parametrize("divisor", [1, 100, 2**16, 2**16 + 1, 2**20, 2**24 + 1, 2**28 + 1, 2**31 - 1])
def test_divisibility_compiles(divisor):
    """The compiled division agrees with Python's at the edges."""
    assert divisible(limbs(EDGES), divisor).tolist() == [value % divisor == 0 for value in EDGES]


def test_division_drops_the_axis_of_limbs_last():
    """XLA moves a reshape past one operation in each round of its passes, and this division has two dozen."""
    names = [each.primitive.name for each in jax.make_jaxpr(lambda x: _uint64.divisible(x, 10))(limbs(EDGES)).eqns]
    assert [k for k, name in enumerate(names) if name in ("squeeze", "reshape")] == [len(names) - 1], names


@given(VECTORS, st.lists(st.integers(0, 2**31 - 1), min_size=6, max_size=6))
def test_read_add_write_is_exact(values, added):
    """Reading int32, adding in int32 and writing back adds exactly, also where the read saturates and the sum wraps."""
    with np.errstate(over="ignore"):
        written = _uint64.to_int32_on_host(limbs(values)) + np.array(added, np.int32)
    assert ints(assign(limbs(values), written)) == [min(value + n, MAX) for value, n in zip(values, added, strict=True)]


@given(VECTORS, st.lists(st.integers(1, 2**31 - 1), min_size=6, max_size=6))
def test_a_difference_below_zero_leaves_the_count(values, taken):
    """A difference that is negative, which int32 never wraps, is not taken for a sum that did."""
    written = _uint64.to_int32_on_host(limbs(values)) - np.array(taken, np.int32)
    expected = [min(value, 2**31 - 1) - n for value, n in zip(values, taken, strict=True)]
    kept = [value if left < 0 else left for value, left in zip(values, expected, strict=True)]
    assert ints(assign(limbs(values), written)) == kept


@given(VECTORS, st.lists(st.integers(0, 2**31 - 2), min_size=6, max_size=6))
def test_assignment_sets(values, written):
    """A plain non-negative number replaces the count, saturated or not."""
    assert ints(assign(limbs(values), np.array(written, np.int32))) == written


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int8", "int16", "uint16", "int32", "uint32"])
@pytest.mark.parametrize("shape", [(3,), (1000, 3), (70_000, 3), (2, 3, 4, 3), (0, 3)])
def test_totals_are_exact(dtype, shape):
    """Summing entries of any width is exact where a 32-bit sum would wrap; negative entries add nothing."""
    rng = np.random.default_rng(0)
    info = np.iinfo(dtype) if dtype != "bool" else None
    values = rng.integers(0, 2, shape) if info is None else rng.integers(info.min, int(info.max) + 1, shape)
    values = values.astype(dtype)
    axes = tuple(range(len(shape) - 1))
    expected = np.maximum(values.astype(np.int64), 0).sum(axes)
    if dtype == "uint32" and shape == (70_000, 3):
        assert (expected > 2**32).all()  # or the test would not need limbs
    assert ints(_uint64.total(jnp.asarray(values), axes)) == expected.tolist()
    assert _uint64.sum_uint64(np.maximum(values, 0).astype(np.uint64), axes).tolist() == expected.tolist()


@given(st.lists(COUNTS, min_size=4, max_size=4))
def test_sums_over_mapped_axes_carry(values):
    """Counts of replicas are summed exactly, and saturate."""
    summed = jax.vmap(lambda x: _uint64.psum(x, ("replicas",)), axis_name="replicas")(jnp.asarray(limbs(values)))
    assert ints(summed) == [min(sum(values), MAX)] * 4


def test_uint64_sums_saturate_on_the_host():
    """Sums beyond 64 bits stay at 2**64 - 1."""
    assert _uint64.sum_uint64(np.array([MAX, 1], np.uint64), (0,)) == MAX
    assert _uint64.sum_uint64(np.array([2**63, 2**63 - 1], np.uint64), (0,)) == MAX
    assert _uint64.sum_uint64(np.array([2**33, 2**32 - 1, 7], np.uint64), (0,)) == 2**33 + 2**32 + 6


def test_64_bit_arrays_are_taken_where_x64_is_enabled():
    """With x64 enabled, int64 and uint64 arrays widen and sum exactly."""
    with jax.enable_x64(True):
        values = jnp.array([[2**40, -5], [2**63 - 1, 7]], jnp.int64)
        assert ints(_uint64.widen(values[0])) == [2**40, 0]
        assert ints(_uint64.total(values, (0,))) == [2**40 + 2**63 - 1, 7]
        assert ints(_uint64.total(jnp.array([MAX, MAX], jnp.uint64), (0,))) == [MAX]
