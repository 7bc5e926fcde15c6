# SPDX-License-Identifier: Apache-2.0
"""Values that a Buffer accepts, returns and refuses, outside transformations."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tallax


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (5.0, "float32"),
        (5, "int32"),
        (True, "bool"),
        ([1.0, 2.0], "float32"),
        (np.zeros(3), "float32"),
        (np.arange(3), "int32"),
        (jnp.asarray(5.0), "float32"),
        (jnp.zeros(2, jnp.bfloat16), "bfloat16"),
        (np.zeros(2, jnp.bfloat16), "bfloat16"),
    ],
)
def test_it_is_strongly_typed(value, dtype):
    """A buffer stores a strongly typed array with JAX's default dtype for every kind of value."""
    buffer = tallax.Buffer(value)
    assert isinstance(buffer[...], jax.Array)
    assert buffer[...].dtype == dtype
    assert not buffer[...].weak_type
    assert buffer[...].tolist() == np.asarray(value).tolist()


def test_no_array_is_made_on_the_device_at_construction():
    """A buffer of host values stays on the host, so that a model can be built before distributed initialisation."""
    assert type(tallax.Buffer(np.zeros(3)).get_raw_value()) is np.ndarray
    assert type(tallax.Buffer(0.0).get_raw_value()) is np.ndarray


WRITES = {
    "scalar": (2, [2, 2, 2]),
    "float": (2.5, [2.5, 2.5, 2.5]),
    "numpy": (np.array([1, 2, 3], np.float32), [1, 2, 3]),
    "numpy64": (np.array([1.0, 2.0, 3.0]), [1, 2, 3]),
    "jax": (jnp.array([1.0, 2.0, 3.0]), [1, 2, 3]),
    "weak": (jnp.asarray(1.0) * jnp.ones(3), [1, 1, 1]),
    "variable": (nnx.Variable(jnp.ones(3)), [1, 1, 1]),
}


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("spelling", ["ellipsis", "value", "set_value", "jit"])
def test_writes_keep_shape_dtype_and_weak_type(name, spelling):
    """Every accepted write leaves the same shape and dtype, strongly typed."""
    value, expected = WRITES[name]
    buffer = tallax.Buffer(jnp.zeros(3))
    if spelling == "ellipsis":
        buffer[...] = value
    elif spelling == "value":
        buffer.value = value
    elif spelling == "set_value":
        buffer.set_value(value)
    else:
        nnx.jit(lambda b: b.set_value(value))(buffer)
    assert buffer.value.tolist() == expected
    raw = buffer.get_raw_value()
    assert (raw.dtype, raw.shape, getattr(raw, "weak_type", False)) == (np.float32, (3,), False)


def test_parts_are_written_and_read():
    """Indices read and write parts; a written value broadcasts to the part."""
    buffer = tallax.Buffer(np.zeros((2, 3)))
    buffer[0] = 1.0
    buffer[1, 1:] = jnp.array([5.0, 6.0])
    assert buffer[...].tolist() == [[1, 1, 1], [0, 5, 6]]
    assert buffer[1, 2] == 6
    assert buffer[..., 0].tolist() == [1, 0]


def test_in_place_operators():
    """buffer += x and its kin write into the buffer, as on a PyTorch buffer."""
    model = nnx.Dict(b=tallax.Buffer(jnp.array([1.0, 2.0])))
    kept = model.b
    model.b += 1
    model.b *= jnp.array([2.0, 3.0])
    model.b -= 1
    model.b /= 2
    model.b **= 2
    model.b //= 2
    model.b %= 3
    assert model.b is kept
    assert model.b[...].tolist() == [1.0, 2.0]
    flags = tallax.Buffer(np.array([True, False]))
    flags |= np.array([False, True])
    flags &= np.array([True, False])
    flags ^= np.array([False, True])
    assert flags[...].tolist() == [True, True]


def test_nothing_is_mutated_in_place():
    """A write changes neither the array that created the buffer nor an array that was read or shared."""
    given = np.zeros(2, np.float32)
    buffer = tallax.Buffer(given)
    shared = buffer.get_raw_value()
    read = buffer[...]
    buffer[0] = 1.0
    buffer += 1
    given[:] = 9
    assert (shared.tolist(), read.tolist(), buffer[...].tolist()) == ([0, 0], [0, 0], [2, 1])
    written = np.ones(2, np.float32)
    buffer[...] = written
    written[:] = 7
    assert buffer[...].tolist() == [1, 1]


def test_random_keys_are_arrays_too():
    """A buffer accepts a random key, and other keys can be written to it."""
    buffer = tallax.Buffer(jax.random.key(0))
    buffer[...] = jax.random.key(1)
    assert jnp.array_equal(jax.random.key_data(buffer[...]), jax.random.key_data(jax.random.key(1)))
    with pytest.raises(tallax.InvalidTypeError):
        buffer[...] = jnp.zeros((), jnp.uint32)


def test_copies_keep_the_value():
    """pickle, deepcopy, clone and a stacked construction keep value and declarations."""
    buffer = tallax.Buffer(np.array([1.5, 2.5]), persistent=False, reduce="max")
    for made in (pickle.loads(pickle.dumps(buffer)), copy.deepcopy(buffer), nnx.clone(nnx.Dict(b=buffer)).b):
        assert made[...].tolist() == [1.5, 2.5]
        assert (made.persistent, made.reduce) == (False, "max")
    stacked = nnx.vmap(tallax.Buffer, in_axes=0, out_axes=0)(jnp.arange(3.0))
    assert stacked[...].tolist() == [0, 1, 2]


def test_an_unknown_attribute_is_reported_for_the_buffer():
    """An unknown attribute is reported for the buffer, not for its array, with Python's suggestion."""
    buffer = tallax.Buffer(1.0)
    with pytest.raises(AttributeError, match="'Buffer' object has no attribute 'set_valeu'") as raised:
        buffer.set_valeu(2.0)
    assert (raised.value.name, raised.value.obj is buffer) == ("set_valeu", True)


def test_one_that_is_half_made_has_no_attributes():
    """A lookup on an object whose `__init__` has not run raises AttributeError and does not recurse."""
    with pytest.raises(AttributeError, match="'Buffer' object has no attribute"):
        repr(tallax.Buffer.__new__(tallax.Buffer))


BAD = {
    "shape": (lambda b: b.set_value(jnp.zeros(4)), tallax.InvalidValueError),
    "shape-scalar-array": (lambda b: b.set_value(jnp.zeros(())), tallax.InvalidValueError),
    "shape-broadcastable": (lambda b: b.set_value(np.zeros(1, np.float32)), tallax.InvalidValueError),
    "dtype": (lambda b: b.set_value(jnp.zeros(3, jnp.int32)), tallax.InvalidTypeError),
    "dtype-numpy": (lambda b: b.set_value(np.zeros(3, np.int64)), tallax.InvalidTypeError),
    "dtype-narrow": (lambda b: b.set_value(jnp.zeros(3, jnp.bfloat16)), tallax.InvalidTypeError),
    "complex": (lambda b: b.set_value(1j), tallax.InvalidTypeError),
    "part-dtype": (lambda b: b.set_value(jnp.int32(1), index=0), tallax.InvalidTypeError),
    "text": (lambda b: b.set_value("x"), tallax.InvalidTypeError),
    "none": (lambda b: b.set_value(None), tallax.InvalidTypeError),
    "list": (lambda b: b.set_value([1.0, 2.0, 3.0]), tallax.InvalidTypeError),
    "in-place-shape": (lambda b: b.__iadd__(jnp.zeros((1, 3))), tallax.InvalidValueError),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("compiled", [False, True])
def test_bad_writes_leave_the_value(name, compiled):
    """A bad write raises, names the buffer and the fix, and changes nothing; the same in a trace."""
    act, error = BAD[name]
    model = nnx.Dict(bias=tallax.Buffer(jnp.array([1.0, 2.0, 3.0])))
    if name == "in-place-shape":
        jax.config.update("jax_numpy_rank_promotion", "allow")
    try:
        with pytest.raises(error, match=r"\.bias: (.|\n)*fix:"):
            (nnx.jit(lambda model: act(model.bias)) if compiled else lambda model: act(model.bias))(model)
    finally:
        jax.config.update("jax_numpy_rank_promotion", "raise")
    assert model.bias[...].tolist() == [1, 2, 3]


@pytest.mark.parametrize("value", [2**40, -(2**31) - 1, 300])
def test_integers_that_do_not_fit_raise(value):
    """An integer is never wrapped into a narrower dtype."""
    buffer = tallax.Buffer(np.zeros(2, np.uint8 if value == 300 else np.int32))
    with pytest.raises(tallax.InvalidValueError, match="does not fit"):
        buffer[...] = value


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: tallax.Buffer(None), tallax.InvalidTypeError),
        (lambda: tallax.Buffer("x"), tallax.InvalidTypeError),
        (lambda: tallax.Buffer({"a": 1}), tallax.InvalidTypeError),
        (lambda: tallax.Buffer([[1], [1, 2]]), tallax.InvalidTypeError),
        (lambda: tallax.Buffer(2**40), tallax.InvalidValueError),
        (lambda: tallax.Buffer(0.0, reduce="mean"), tallax.InvalidValueError),
        (lambda: tallax.Buffer(0.0, ref=True), tallax.InvalidValueError),
    ],
)
def test_bad_construction(make, error):
    """A buffer of something that is not one array is not made."""
    with pytest.raises(error, match="fix:"):
        make()


def test_a_deliberate_placement_is_kept():
    """Eager writes leave a buffer on the devices it was put on."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.NamedSharding(mesh, jax.P("data"))
    buffer = tallax.Buffer(jax.device_put(jnp.zeros(8), split))
    buffer[...] = 1.0
    assert buffer[...].sharding.is_equivalent_to(split, 1)
    buffer[...] = np.arange(8.0)
    assert buffer[...].sharding.is_equivalent_to(split, 1)
    assert buffer[...].tolist() == list(range(8))
