# SPDX-License-Identifier: Apache-2.0
"""Values that a Counter accepts, returns and refuses, outside transformations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

import tallax

MAX = 2**64 - 1


@given(st.lists(st.one_of(st.integers(0, 5), st.integers(0, 2**65)), max_size=8), st.integers(0, MAX))
def test_counts_add_up_like_integers(increments, start):
    """Python increments of any size add exactly, and saturate at 2**64 - 1."""
    counter = tallax.Counter(start)
    for n in increments:
        counter += n
    assert int(counter) == min(start + sum(increments), MAX)


@pytest.mark.parametrize("start", [2**24, 2**31, 2**32, 2**63])
def test_counts_pass_every_edge(start):
    """The count is right just below, at and past each power where other counters stick or wrap."""
    counter = tallax.Counter(start - 2)
    assert [int(counter) for _ in range(5) if counter.increment() is None] == [start - 1 + k for k in range(5)]


@pytest.mark.parametrize("dtype", [np.bool_, np.int8, np.uint8, np.int32, np.uint32, np.int64, np.uint64])
def test_increments_of_any_integer_dtype(dtype):
    """NumPy scalars and arrays of every integer dtype are taken, and broadcast."""
    counter = tallax.Counter(shape=(2, 3))
    counter.increment(dtype(1))
    counter.increment(np.array([[1], [0]], dtype))
    assert np.asarray(counter).tolist() == [[2, 2, 2], [1, 1, 1]]


@pytest.mark.parametrize("dtype", ["bool", "int32", "uint32", "uint8"])
def test_jax_increments_outside_a_trace(dtype):
    """jax.Array increments add, whether or not they are ready."""
    counter = tallax.Counter(2**32 - 1)
    counter += jnp.array(1, dtype)
    counter += jax.jit(lambda x: x)(jnp.array(1, dtype))
    assert int(counter) == 2**32 + 1


def test_another_counter_is_added_exactly():
    """A Counter adds to a Counter exactly, also beyond int32."""
    total = tallax.Counter(5)
    total += tallax.Counter(2**40)
    assert int(total) == 2**40 + 5


def test_eager_increments_stay_on_the_host():
    """An eager increment makes a new NumPy array: no dispatch, and nothing that was shared is changed."""
    counter = tallax.Counter(7)
    shared = nnx.as_pure(nnx.state(nnx.Dict(c=counter)))
    before = counter.get_raw_value()
    counter += 1
    assert type(counter.get_raw_value()) is np.ndarray
    assert counter.get_raw_value() is not before
    assert shared["c"] is before
    assert before.tolist() == [7, 0]


def test_a_value_from_a_compiled_program_comes_back_to_the_host():
    """An increment after a compiled step continues on the host once the step is done."""
    counter = tallax.Counter()
    nnx.jit(lambda c: c.increment(3))(counter)
    assert isinstance(jax.block_until_ready(counter.get_raw_value()), jax.Array)
    counter += 1
    assert type(counter.get_raw_value()) is np.ndarray
    assert int(counter) == 4


def test_a_deliberate_placement_is_kept():
    """A counter that was put on devices stays there through eager increments, sets and resets."""
    mesh = jax.make_mesh((8,), ("data",))
    replicated = jax.NamedSharding(mesh, jax.P())
    counter = tallax.Counter(2**32 - 1)
    counter.set_raw_value(jax.device_put(counter.get_raw_value(), replicated))
    counter += 2
    assert counter.get_raw_value().sharding.is_equivalent_to(replicated, 1)
    assert int(counter) == 2**32 + 1
    counter.reset()
    assert counter.get_raw_value().sharding.is_equivalent_to(replicated, 1)
    assert int(counter) == 0


def test_count_sums_the_axes_that_the_shape_does_not_have():
    """A mask's true entries, or an integer array's entries, are counted per entry of the shape."""
    mask = np.array([[True, False, True], [True, False, False]])
    for events in (mask, jnp.asarray(mask), mask.astype(np.int8), jnp.asarray(mask, jnp.uint32)):
        whole, each = tallax.Counter(), tallax.Counter(shape=3)
        whole.count(events)
        each.count(events)
        assert int(whole) == 3
        assert np.asarray(each).tolist() == [2, 0, 1]
    exact = tallax.Counter(shape=2)
    exact.count(np.full((3, 2), MAX // 2, np.uint64))
    assert np.asarray(exact).tolist() == [MAX, MAX]


def test_reads():
    """int() is exact, the array reads saturate in int32, NumPy sees uint64, and no warning is given."""
    counter = tallax.Counter(2**40 + 1)
    assert int(counter) == 2**40 + 1
    assert float(counter) == 2.0**40 + 1
    assert f"{counter:,}" == "1,099,511,627,777"
    assert list(range(10))[tallax.Counter(3)] == 3
    assert counter
    assert not tallax.Counter()
    for value in (counter[...], counter.value, counter.get_value(), jnp.asarray(counter)):
        assert isinstance(value, jax.Array)
        assert (value.dtype, value.shape, int(value)) == (jnp.int32, (), 2**31 - 1)
        assert not value.weak_type
    assert np.asarray(counter).dtype == np.uint64
    assert np.asarray(counter).tolist() == 2**40 + 1
    assert (counter.shape, counter.dtype, counter.ndim) == ((), jnp.int32, 0)
    assert int(tallax.Counter(4) + 1) == 5
    vector = tallax.Counter(2, shape=(2, 2))
    assert vector[0].tolist() == [2, 2]
    assert vector[..., 1].tolist() == [2, 2]
    assert len(vector) == 2


@pytest.mark.parametrize("shape", [3, np.int64(3), (3,), [3], np.array([3])], ids=repr)
def test_a_shape_may_be_one_number_or_any_sequence(shape):
    """A shape may be one number or any sequence, for counters and statistics."""
    assert tallax.Counter(shape=shape).shape == (3,)
    assert tallax.statistics.Rate(shape).shape == (3,)


@pytest.mark.parametrize("compiled", [False, True])
def test_equality_is_exact(compiled):
    """Beyond 2**31 - 1 as well, where reads are alike: with counters, Python's integers and NumPy's."""
    large = nnx.Dict(a=tallax.Counter(2**40), b=tallax.Counter(2**41), c=tallax.Counter(2**40))

    def compared(model):
        a = model.a
        reflected = 2**40 == a  # noqa: SIM300
        return [a == model.b, a == model.c, a != model.b, a != model.c, a == 2**40, a == 2**41, reflected, a != 2**40]

    answers = (nnx.jit(compared) if compiled else compared)(large)
    assert list(map(bool, answers)) == [False, True, True, False, True, False, True, False]
    assert [bool(large.a == n) for n in (-1, 2**31 - 1, 2**64, np.uint64(2**40))] == [False, False, False, True]


def test_equality_goes_count_by_count():
    """Equality is per count, as with arrays; a device array is compared with the int32 value, as in Flax."""
    counter = tallax.Counter(shape=3)
    counter += jnp.array([1, 2, 3])
    assert (counter == 2).tolist() == [False, True, False]
    assert (counter != np.array([1, 2, 4])).tolist() == [False, False, True]
    assert (counter == np.array([1, -2, 3])).tolist() == [True, False, True]
    assert (counter == jnp.array([1, 2, 4])).tolist() == [True, True, False]
    assert counter != None  # noqa: E711
    assert tallax.Counter(1) in [tallax.Counter(0), tallax.Counter(1)]


def test_the_limbs_do_not_show():
    """Neither attributes nor printing reveal the limbs, and a mapped state can still be printed."""
    counter = tallax.Counter(2**33, shape=2)
    assert not hasattr(counter, "__array_interface__")
    assert "8589934592" in repr(tallax.Counter(2**33))
    assert "uint64" in repr(counter)
    held = nnx.Module()
    held.count = counter
    assert "value=Array(shape=(2,), dtype=dtype('uint64'))" in repr(held)
    assert "ShapeDtypeStruct" in repr(nnx.eval_shape(lambda: tallax.StepCounter(nnx.Rngs(0))).step)
    assert "(2, 2)" in repr(jax.tree.map(jnp.shape, nnx.state(nnx.Dict(c=counter))))


def test_values_are_written():
    """set, value, [...] and indices set counts; reset goes to zero."""
    counter = tallax.Counter(9, shape=3)
    counter.set(2**40)
    assert np.asarray(counter).tolist() == [2**40] * 3
    counter[1] = 5
    counter[..., 2] = jnp.int32(6)
    assert np.asarray(counter).tolist() == [2**40, 5, 6]
    counter[0] += 1  # read saturated, written back
    assert np.asarray(counter).tolist() == [2**40 + 1, 5, 6]
    counter[...] = np.array([1, 2, 3])
    counter.value = counter.value + 1
    assert np.asarray(counter).tolist() == [2, 3, 4]
    counter.reset()
    assert np.asarray(counter).tolist() == [0, 0, 0]


def test_the_seeds_spelling_stays_exact():
    """`counter.value += 1` passes 2**31 - 1, where the value it reads is saturated."""
    counter = tallax.Counter(2**31 - 3)
    for _ in range(5):
        counter.value += 1
    assert int(counter) == 2**31 + 2


@pytest.mark.parametrize("n", [1, 7, 1000, 2**20 + 7])
@pytest.mark.parametrize("start", [0, 1, 7000, 2**32 * 7, 2**40 + 1])
def test_every(n, start):
    """every(n) detects multiples exactly, on the host and on the device."""
    counter = tallax.Counter(start)
    assert bool(counter.every(n)) == (start % n == 0)
    assert bool(nnx.jit(lambda c: c.every(n))(counter)) == (start % n == 0)


def test_a_stack_made_by_vmap_counts_on():
    """A counter that is made inside `vmap` from a traced start has a count for each lane."""

    @nnx.vmap(in_axes=0, out_axes=0)
    def make(start):
        made = tallax.Counter(2**33)
        made += start
        return made

    stacked = make(jnp.arange(4, dtype=jnp.uint32))
    assert stacked.shape == (4,)
    assert np.asarray(stacked).tolist() == [2**33 + k for k in range(4)]
    stacked += 1
    assert np.asarray(stacked).tolist() == [2**33 + k + 1 for k in range(4)]


def test_it_is_declared():
    """persistent and reduce are metadata, and other metadata is kept."""
    counter = tallax.Counter(persistent=False, note="seen")
    assert (counter.persistent, counter.reduce, counter.note) == (False, "sum", "seen")
    assert (tallax.Counter().persistent, tallax.Buffer(0.0).persistent) == (True, True)
    with nnx.var_defaults(ref=True, hijax=True):
        plain = tallax.Counter()
    assert not plain.ref
    assert not plain.hijax


BAD = {
    "negative": (lambda c: c.increment(-1), tallax.InvalidValueError),
    "negative-array": (lambda c: c.increment(np.array([1, -1])), tallax.InvalidValueError),
    "negative-jax": (lambda c: c.increment(jnp.array(-1)), tallax.InvalidValueError),
    "float": (lambda c: c.increment(0.5), tallax.InvalidTypeError),
    "whole-float": (lambda c: c.increment(1.0), tallax.InvalidTypeError),
    "float-array": (lambda c: c.increment(jnp.ones(())), tallax.InvalidTypeError),
    "text": (lambda c: c.increment("1"), tallax.InvalidTypeError),
    "list": (lambda c: c.increment([1, 2]), tallax.InvalidTypeError),
    "none": (lambda c: c.increment(None), tallax.InvalidTypeError),
    "shape": (lambda c: c.increment(np.ones(3, int)), tallax.InvalidValueError),
    "shape-larger": (lambda c: c.increment(np.ones((4, 2), int)), tallax.InvalidValueError),
    "iadd-float": (lambda c: c.__iadd__(0.5), tallax.InvalidTypeError),
    "subtract": (lambda c: c.__isub__(1), tallax.InvalidTypeError),
    "multiply": (lambda c: c.__imul__(2), tallax.InvalidTypeError),
    "count-floats": (lambda c: c.count(np.ones((4, 2))), tallax.InvalidTypeError),
    "count-shape": (lambda c: c.count(np.ones((2, 4), bool)), tallax.InvalidValueError),
    "count-negative": (lambda c: c.count(np.full((4, 2), -1)), tallax.InvalidValueError),
    "set-negative": (lambda c: c.set(-1), tallax.InvalidValueError),
    "set-too-large": (lambda c: c.set(2**64), tallax.InvalidValueError),
    "set-shape": (lambda c: c.set(np.ones(3, int)), tallax.InvalidValueError),
    "value-float": (lambda c: c.set_value(1.5), tallax.InvalidTypeError),
    "value-negative": (lambda c: c.set_value(jnp.int32(-5)), tallax.InvalidValueError),
    "value-shape": (lambda c: c.set_value(jnp.ones(3, jnp.int32)), tallax.InvalidValueError),
    "index-negative": (lambda c: c.set_value(-1, index=0), tallax.InvalidValueError),
    "every-zero": (lambda c: c.every(0), tallax.InvalidValueError),
    "every-float": (lambda c: c.every(0.5), tallax.InvalidValueError),
    "every-huge": (lambda c: c.every(2**31), tallax.InvalidValueError),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("place", ["host", "device"])
def test_bad_input_leaves_the_count(name, place):
    """A bad value raises, names the counter and the fix, and changes nothing."""
    act, error = BAD[name]
    model = nnx.Dict(seen=tallax.Counter(5, shape=2))
    if place == "device":
        nnx.jit(lambda m: m.seen.increment(0))(model)
    with pytest.raises(error, match=r"model\.seen: (.|\n)*fix:"):
        act(model.seen)
    assert np.asarray(model.seen).tolist() == [5, 5]


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: tallax.Counter(-1), tallax.InvalidValueError),
        (lambda: tallax.Counter(0.5), tallax.InvalidTypeError),
        (lambda: tallax.Counter(2**64), tallax.InvalidValueError),
        (lambda: tallax.Counter(np.arange(3)), tallax.InvalidValueError),
        (lambda: tallax.Counter(reduce="max"), tallax.InvalidValueError),
        (lambda: tallax.Counter(hijax=True), tallax.InvalidValueError),
        (lambda: tallax.Counter(ref=True), tallax.InvalidValueError),
    ],
)
def test_bad_construction(make, error):
    """A Counter that could not be kept exactly is not made."""
    with pytest.raises(error, match="fix:"):
        make()


@pytest.mark.parametrize("bad", [0.5, "float32", jnp.ones((), jnp.float32), jnp.ones(3, jnp.int32)])
def test_bad_traced_increments_raise_at_trace_time(bad):
    """Kinds and shapes are known while tracing, so they raise there, and the count stays."""
    counter = tallax.Counter(3)
    with pytest.raises((tallax.InvalidTypeError, tallax.InvalidValueError), match=r"c: (.|\n)*fix:"):
        nnx.jit(lambda c: c.increment(bad * 1 if hasattr(bad, "dtype") else bad))(counter)
    assert int(counter) == 3


def test_a_traced_negative_adds_nothing():
    """A negative increment in a trace adds nothing, because a trace cannot raise for it."""
    counter = tallax.Counter(3)
    nnx.jit(lambda c, n: c.increment(n))(counter, jnp.int32(-5))
    assert int(counter) == 3
    nnx.jit(lambda c, n: c.count(n))(counter, jnp.array([-5, 4], jnp.int32))
    assert int(counter) == 7


def test_host_reads_in_a_trace_raise():
    """int(), np.asarray() and bool() inside jit name the counter and the way out."""
    counter = tallax.Counter(3)
    for read in (int, np.asarray, bool, float):
        with pytest.raises(tallax.TracedReadError, match=r"c: (.|\n)*every"):
            nnx.jit(lambda c, read=read: read(c))(counter)


def test_a_write_from_another_trace_raises():
    """A write to a model that a compiled function closes over raises."""
    model = nnx.Dict(seen=tallax.Counter(3), bias=tallax.Buffer(jnp.zeros(2)))

    @jax.jit
    def step(x):
        model.seen.increment()
        return x

    @jax.jit
    def traced_step(x):
        model.seen.increment(x.astype(jnp.uint32))
        return x

    @jax.jit
    def write(x):
        model.bias[...] = jnp.broadcast_to(x, (2,))
        return x

    for f in (step, traced_step, write):
        with pytest.raises(tallax.TraceError, match="different trace"):
            f(jnp.ones(()))
    assert int(model.seen) == 3
    assert model.bias[...].tolist() == [0, 0]


def test_int32_counts_in_place_of_words():
    """Pure dicts of `get_value()` contain int32 counts; nnx.update writes them back, and saturated ones raise."""
    model = nnx.Dict(a=tallax.Counter(2**31 - 2), b=tallax.Counter(7, shape=2), c=tallax.Counter(2**40))
    other = nnx.Dict(a=tallax.Counter(), b=tallax.Counter(shape=2), c=tallax.Counter())
    nnx.update(other, nnx.to_pure_dict(nnx.state(model), lambda variable: variable.get_value()))
    assert (other.a.shape, other.b.shape) == ((), (2,))
    other.a += 3
    nnx.jit(lambda m: m.b.increment(jnp.array([1, 2], jnp.uint32)))(other)
    assert int(other.a) == 2**31 + 1
    assert np.asarray(other.b).tolist() == [8, 9]
    with pytest.raises(tallax.InvalidValueError, match=r"other\.c: was restored from a saturated int32 value"):
        int(other.c)
    nnx.update(other, nnx.to_pure_dict(nnx.state(model)))
    assert int(other.c) == 2**40
    assert np.asarray(other.b).tolist() == [7, 7]


def test_a_donated_counter_is_loud():
    """A counter whose array was donated raises when it is read, and can be set again."""
    counter = tallax.Counter()
    nnx.jit(lambda c: c.increment())(counter)
    jax.jit(lambda x: x + 1, donate_argnums=0)(counter.get_raw_value())
    with pytest.raises(RuntimeError, match="deleted"):
        int(counter)
    counter.set(5)
    assert int(counter) == 5


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("start", [2**31 - 3, 2**31 - 2, 2**31 - 1, 2**31, 2**32 - 2])
@pytest.mark.parametrize("by", [1, 3, 2**31 - 1])
def test_the_seeds_spelling_is_exact_where_int32_wraps(start, by, compiled):
    """`counter.value += n` is exact also if it goes from below 2**31 - 1 past it."""
    model = nnx.Dict(scalar=tallax.Counter(start), vector=tallax.Counter(start, shape=2))

    def step(model):
        model.scalar.value += by
        model.vector[1] += by

    (nnx.jit(step) if compiled else step)(model)
    assert (int(model.scalar), np.asarray(model.vector).tolist()) == (start + by, [start, start + by])
