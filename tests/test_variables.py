# SPDX-License-Identifier: Apache-2.0
"""Counters and Buffers under Flax's own ways to write, convert and describe a Variable."""

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tallax
from tests.cases import STATE_CASES, assert_same_state

# --- other kinds of Variables -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["hijax", "ref"])
@pytest.mark.parametrize("name", STATE_CASES)
def test_other_kinds_are_refused(name, kind):
    """nnx.with_vars raises as the constructor does, for every type, and leaves the model as it was."""
    item, alone = nnx.Dict(item=STATE_CASES[name].make(), w=nnx.Param(jnp.ones(2))), STATE_CASES[name].make()
    with pytest.raises(
        tallax.InvalidValueError,
        match=f"got:  {kind}=True\n  fix:  omit {kind}; to set it for parameters, nnx.with_vars",
    ):
        nnx.with_vars(item, **{kind: True})
    assert_same_state(item.item, alone)
    others = nnx.with_vars(item, only=nnx.Param, **{kind: True})  # what the error says
    assert getattr(others.w, kind)
    assert_same_state(others.item, alone)
    assert_same_state(nnx.with_vars(item, **{kind: False}).item, alone)


@pytest.mark.parametrize("kind", ["hijax", "ref"])
def test_defaults_of_another_kind(kind):
    """Within nnx.var_defaults a tallax variable stays a plain Variable; a copy of the other kind raises."""
    with nnx.var_defaults(**{kind: True}):
        counter, buffer = tallax.Counter(), tallax.Buffer(0.0)
    for item in (counter, buffer):
        assert not getattr(item, kind)
        with pytest.raises(tallax.InvalidValueError):
            item.copy(**{kind: True})
    step = nnx.jit(lambda c: c.increment(2))
    step(counter)
    assert int(counter) == 2


# --- metadata ---------------------------------------------------------------------------------------------------------

OPERATIONS = {
    "to_checkpoint": tallax.to_checkpoint,
    "collect": lambda m: tallax.collect(m).result(),
    "write": lambda m: (m.b.set_value(1.0), m.c.set(3)),
    "nnx.jit": nnx.jit(lambda m: (m.c.increment(1), m.b.set_value(m.b * 2.0), None)[-1]),
    "split and merge": lambda m: nnx.merge(*nnx.split(m)),
    "increment by a traced array": lambda m: nnx.jit(lambda c, x: c.increment(x))(m.c, jnp.int32(1)),
    "per_replica": lambda m: tallax.per_replica(m, jax.make_mesh((1,), ("d",)), "d"),
    "repr": repr,
}


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_a_dict_of_metadata_keeps_declarations(operation):
    """set_metadata({...}) replaces the labels and keeps the declarations, so all goes on working."""
    model = nnx.Dict(b=tallax.Buffer(0.5, reduce="max", persistent=False, old=1), c=tallax.Counter(reduce="replicated"))
    for item in (model.b, model.c):
        item.set_metadata({"label": "a"})
    declared = [(item.get_metadata("reduce"), item.get_metadata("persistent")) for item in (model.b, model.c)]
    assert declared == [("max", False), ("replicated", True)]
    assert model.b.get_metadata("label") == "a"
    assert not model.b.has_metadata("old")
    operation(model)


def test_declarations_are_checked():
    """Metadata may be changed by name to values that the constructor accepts; an error changes nothing."""
    buffer = tallax.Buffer(0.0)
    buffer.set_metadata(reduce="sum")
    buffer.set_metadata("persistent", False)
    buffer.set_metadata({"reduce": "min", "label": "b"})
    before = buffer.get_metadata()
    assert (before["reduce"], before["persistent"], before["label"]) == ("min", False, "b")
    for wrong in ({"reduce": "mean"}, {"persistant": True}, {"ref": True}, {"dtype": "int8"}):
        with pytest.raises(tallax.TallaxError):
            buffer.set_metadata(**wrong)
        with pytest.raises(tallax.TallaxError):
            buffer.set_metadata(wrong)
        with pytest.raises(tallax.TallaxError):
            buffer.set_metadata(*next(iter(wrong.items())))
    for name in ("reduce", "persistent"):
        with pytest.raises(tallax.InvalidValueError):
            buffer.del_metadata(name)
    assert buffer.get_metadata() == before
    buffer.del_metadata("label")
    assert not buffer.has_metadata("label")


# --- writes from another trace ----------------------------------------------------------------------------------------


class State(nnx.Module):
    """One of each."""

    def __init__(self):
        self.c, self.v, self.b = tallax.Counter(5), tallax.Counter(shape=3), tallax.Buffer(np.ones(3, np.float32))
        self.r, self.s = tallax.statistics.Rate(), tallax.ScheduledValue(lambda count: count.astype(jnp.float32))


WRITES = {
    "c.value =": lambda m, x: setattr(m.c, "value", 3),
    "c.value +=": lambda m, x: setattr(m.c, "value", m.c.value + 1),
    "c[...] =": lambda m, x: m.c.__setitem__(..., 3),
    "c +=": lambda m, x: m.c.__iadd__(1),
    "c += traced": lambda m, x: m.c.__iadd__((x > 0).sum()),
    "c.set": lambda m, x: m.c.set(3),
    "c.reset": lambda m, x: m.c.reset(),
    "c.increment": lambda m, x: m.c.increment(3),
    "c.set_value": lambda m, x: m.c.set_value(3),
    "c.set_raw_value": lambda m, x: m.c.set_raw_value(np.zeros(2, np.uint32)),
    "v[0] =": lambda m, x: m.v.__setitem__(0, 3),
    "v.count": lambda m, x: m.v.count(x > 0),
    "b.value =": lambda m, x: setattr(m.b, "value", x),
    "b.value +=": lambda m, x: setattr(m.b, "value", m.b.value + x),
    "b[...] =": lambda m, x: m.b.__setitem__(..., x),
    "b[0] =": lambda m, x: m.b.__setitem__(0, 1.0),
    "b *=": lambda m, x: m.b.__imul__(2.0),
    "b.set_value": lambda m, x: m.b.set_value(x, index=...),
    "b.set_raw_value": lambda m, x: m.b.set_raw_value(x),
    "b.set_metadata": lambda m, x: m.b.set_metadata(label=1),
    "c.set_metadata": lambda m, x: m.c.set_metadata({"label": 1}),
    "r.update": lambda m, x: m.r.update(x > 0),
    "r.reset": lambda m, x: m.r.reset(),
    "s()": lambda m, x: m.s(3),
    "s.pin": lambda m, x: m.s.pin(3.0),
    "s.release": lambda m, x: m.s.release(),
}
X = jnp.array([1.0, -1.0, 2.0])
TRACES = {
    "jax.jit": lambda f: jax.jit(f)(X),
    "nnx.jit": lambda f: nnx.jit(f)(X),
    "jax.grad": lambda f: jax.grad(lambda x: f(x).sum())(X),
    "jax.vmap": lambda f: jax.vmap(f)(X[None]),
    "lax.scan": lambda f: jax.lax.scan(lambda carry, x: (carry, f(x)), 0, X[None]),
    "nnx.scan": lambda f: nnx.scan(lambda carry, x: (carry, f(x)), in_axes=(nnx.Carry, 0))(0, X[None]),
    "lax.cond": lambda f: jax.lax.cond(True, f, lambda x: x, X),
    "lax.while_loop": lambda f: jax.lax.while_loop(lambda x: x[0] < 2, f, X),
    "jax.checkpoint": lambda f: jax.checkpoint(f)(X),
    "eval_shape": lambda f: jax.eval_shape(f, X),
}


@pytest.mark.parametrize("trace", TRACES.values(), ids=TRACES)
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_every_late_write_is_named(write, trace):
    """A late write raises TraceError with the variable's name; state and metadata do not change."""
    model, alone = State(), State()

    def f(x):
        write(model, x)
        return x

    with pytest.raises(
        tallax.TraceError, match=r"^model\.\w+(\.\w+)?: a (Counter|Buffer) was written from a different"
    ) as e:
        trace(f)
    assert isinstance(e.value, flax.errors.TraceContextError)
    assert_same_state(model, alone)
    assert model.b.get_metadata() == alone.b.get_metadata()


# --- what is no count -------------------------------------------------------------------------------------------------

NO_COUNTS = {
    "complex": 3 + 0j,
    "numpy complex": np.complex64(3),
    "numpy complex array": np.array([3 + 0j] * 3),
    "jax complex": jnp.array(3 + 0j),
    "text": "3",
    "bytes": b"3",
    "numpy text": np.array("3"),
    "numpy text scalar": np.str_("3"),
    "numpy bytes": np.bytes_(b"3"),
    "objects": np.array([1, "a", None], object),
    "a date": np.datetime64("2020-01-01"),
    "a record": np.zeros((), [("a", np.int32)]),
    "a list": [1, 2, 3],
    "ragged": [[1], [1, 2]],
    "None": None,
    "a float": 3.0,
    "NaN": float("nan"),
}
COUNTS = {
    "set": lambda c, x: c.set(x),
    "increment": lambda c, x: c.increment(x),
    "+=": lambda c, x: c.__iadd__(x),
    "count": lambda c, x: c.count(x),
    "value =": lambda c, x: setattr(c, "value", x),
    "[...] =": lambda c, x: c.__setitem__(..., x),
    "start": lambda c, x: tallax.Counter(x),
}


@pytest.mark.parametrize("count", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("value", [*NO_COUNTS.values(), pytest.param("key", id="a key")], ids=[*NO_COUNTS, "a key"])
def test_no_count(value, count):
    """Complex numbers, text and other non-integers raise an error of tallax, and the counts do not change."""
    value = jax.random.key(0) if isinstance(value, str) and value == "key" else value
    for counter in (tallax.Counter(7), tallax.Counter(7, shape=3)):
        with pytest.raises((tallax.InvalidTypeError, tallax.InvalidValueError), match=r"(?s)got:.*fix:"):
            count(counter, value)
        assert np.asarray(counter).tolist() == np.full(counter.shape, 7).tolist()


@pytest.mark.parametrize("dtype", ["complex64", "float32"])
def test_no_count_in_a_trace(dtype):
    """A traced array that is not an integer array raises too."""
    for name in ("set", "increment", "count"):
        with pytest.raises(tallax.InvalidTypeError, match="traced"):
            nnx.jit(lambda c, x: getattr(c, name)(x))(tallax.Counter(), jnp.zeros((), dtype))  # noqa: B023


def test_comparisons():
    """Numbers of any kind can be compared; other arrays and collections raise."""
    counter = tallax.Counter(3)
    for equal in (3, np.int64(3), np.uint8(3), jnp.int32(3), tallax.Counter(3)):
        assert counter == equal
        assert not (counter != equal)  # noqa: SIM202 - its own method
    with jax.numpy_dtype_promotion("standard"):
        for other in (3.5, 3 + 1j, np.complex64(3 + 1j), jnp.array(3 + 1j), np.float64("nan")):
            assert counter != other
            assert not (counter == other)  # noqa: SIM201 - its own method
    for other in ("3", b"3", None, object()):
        assert counter != other
        assert not (counter == other)  # noqa: SIM201 - its own method
    wrong = [NO_COUNTS[n] for n in ("numpy text", "numpy text scalar", "numpy bytes", "objects", "a date", "a record")]
    for other in (*wrong, [1, 2], (1,), {1}, {}, jax.random.key(0)):
        for compare in (lambda a, b: a == b, lambda a, b: a != b):
            with pytest.raises(tallax.InvalidTypeError, match="can only be compared with numbers"):
                compare(counter, other)
        with pytest.raises(tallax.InvalidTypeError):
            _ = counter < other


def test_a_raw_value_that_is_no_count():
    """An invalid raw value from a tree.map raises when the count is read."""
    for value in (np.complex64(3), np.array("x")):
        counter = tallax.Counter()
        counter.set_raw_value(np.asarray(value))
        for use in (int, lambda c: c.increment(1), lambda c: c.every(2), lambda c: c == 3):
            with pytest.raises(tallax.InvalidTypeError):
                use(counter)


def test_a_buffer_is_as_true_as_its_array():
    """Not as it is long."""
    assert not tallax.Buffer(False)
    assert tallax.Buffer(2.0)
    assert not tallax.Buffer(np.zeros(1))
    with pytest.raises(ValueError, match="ambiguous"):
        bool(tallax.Buffer(np.ones(2)))
