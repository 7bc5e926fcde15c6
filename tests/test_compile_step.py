# SPDX-License-Identifier: Apache-2.0
"""`compile_step`: what `nnx.jit` would do to the objects, to the bit; and between the calls, fresh or loud."""

import copy
import gc
import pickle
import re
import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import tallax
from tallax.checking import _transformations as package
from tests.cases import STATE_CASES, TRANSFORMATIONS, Everything, Model, assert_same_state, batch, call, leaves
from tests.meshes import AXES, P, mesh_of, placed
from tests.quick import cell

pytestmark = pytest.mark.slow


# `Moments` alone is half of the time that XLA takes for all of them; every type by itself is in the test of each type.
FEW = {
    "rate": lambda: tallax.statistics.Rate(8),
    "histogram": lambda: tallax.statistics.Histogram(-1, 1, bins=5),
    "ema": lambda: tallax.statistics.Ema(0.9),
}
ALL = FEW | {
    "log-histogram": lambda: tallax.statistics.LogHistogram(0.5),
    "extrema": tallax.statistics.Extrema,
    "moments": tallax.statistics.Moments,
    "activity": lambda: tallax.statistics.Activity(8),
}


class Net(nnx.Module):
    """State of every kind, Flax's and tallax's."""

    def __init__(self, rngs, statistics):
        self.first = nnx.Linear(3, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.second = nnx.Linear(8, 2, rngs=rngs)
        self.clock = tallax.StepCounter(rngs)
        self.temperature = tallax.ScheduledValue(optax.linear_schedule(5.0, 1.0, 500))
        self.seen = tallax.Counter(2**32 - 3000)
        self.items = nnx.Dict({name: make() for name, make in statistics.items()})

    def __call__(self, x):
        self.clock()
        self.seen.count(jnp.isfinite(x))
        hidden = nnx.relu(self.norm(self.first(x)))
        for item in self.items.values():
            item.update(hidden)
        return self.second(self.dropout(hidden)) / self.temperature(self.clock.step)


def train_step(model, optimizer, x):
    loss, grads = tallax.value_and_grad(lambda model, x: (model(x) ** 2).mean())(model, x)
    with jax.numpy_dtype_promotion("standard"):  # optax itself mixes dtypes
        optimizer.update(model, grads)
    return loss


def made(statistics=FEW):
    model = Net(nnx.Rngs(0), statistics)
    return model, nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)


def small():
    """Returns a model of one parameter and one count, and a step of it."""
    model = nnx.Dict(weight=nnx.Param(jnp.ones(3)), step=tallax.Counter())

    def step(model, x):
        model.step += 1
        model.weight[...] = model.weight[...] * 0.5 + x
        return model.weight[...].sum()

    return model, step


def bits(objects):
    """Returns the bytes of all state; those of keys too."""
    arrays = jax.tree.leaves(nnx.state(tuple(objects)))
    keys = [jnp.issubdtype(array.dtype, jax.dtypes.prng_key) for array in arrays]
    return [
        np.asarray(jax.random.key_data(array) if is_key else array).tobytes()
        for array, is_key in zip(arrays, keys, strict=True)
    ]


def assert_all_same(left, right):
    assert bits(left) == bits(right)


# --- the same as nnx.jit ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("graph", "donate"),
    [
        (True, True),
        (False, True),
        (True, False),
    ],
    ids=["graph", "tree", "kept"],
)
@pytest.mark.thorough
def test_a_thousand_random_steps_are_those_of_nnx_jit(graph, donate):
    """Losses and all state, to the bit, with batches of two sizes in random order; read and written in between."""
    random = np.random.default_rng(0)
    (model, optimizer), (other, its_optimizer) = made(ALL), made(ALL)
    with nnx.set_graph_mode(graph):
        step = tallax.compile_step(train_step, model, optimizer, donate=donate)
        expected = nnx.jit(train_step)
        for k in range(1000):
            x = random.normal(size=(random.choice([4, 6]), 3)).astype(np.float32)
            assert np.array_equal(step(x), expected(other, its_optimizer, x))
            if k % 100 == 50:
                assert int(model.seen) == int(other.seen)
                assert (
                    model.items.histogram.compute().counts.tolist() == other.items.histogram.compute().counts.tolist()
                )
            if k % 300 == 250:
                model.seen += 2**40
                other.seen += 2**40
            if k == 500:
                step.sync()
                assert_all_same((model, optimizer), (other, its_optimizer))
        assert step.traces == 2
        step.sync()
    assert_all_same((model, optimizer), (other, its_optimizer))
    assert int(model.seen) > 2**41


@pytest.mark.parametrize("item", STATE_CASES.values(), ids=STATE_CASES)
def test_every_type_of_state(item):
    """Three compiled steps equal three plain calls, and the state is readable after each."""
    model, other = Model(item.make), Model(item.make)
    plain = nnx.jit(item.touch)
    with tallax.compile_step(lambda model, x: (item.touch(model, x), None)[1], model) as step:
        for k in range(3):
            step(batch(k))
            plain(other, batch(k))
            jax.tree.map(np.testing.assert_array_equal, item.read(model.item), item.read(other.item))
    assert_same_state(model, other)
    assert step.traces == 1


NOT_IN_A_STEP = (
    "pickle", "jit_partial", "cached_partial", "jit, donated", "plain calls", "compile_step", "compile_step of cond",
)  # fmt: skip
CELLS = {
    f"{t.name}-{mode.name}": (t, mode)
    for t in TRANSFORMATIONS
    for mode in (package.GRAPH, package.TREE)
    if t.run_in(mode) and t.name not in NOT_IN_A_STEP
}


IN_A_STEP = [cell(name, quick=name in ("scan of grad of remat-tree", "cond-graph")) for name in CELLS]


# What floats add up to depends on how XLA fuses a program, so `nnx.jit` of two calls is not two calls, either.
EXACT = [name for name in STATE_CASES if name not in ("buffer", "ema", "moments")]


@pytest.mark.parametrize("cell", IN_A_STEP)
def test_every_transformation_within_a_step(cell):
    """The matrix, inside a compiled step: two calls leave what two plain calls leave, to the bit."""
    transformation, mode = CELLS[cell]
    batches = [(batch(k),) for k in range(2)]
    model, other = Everything(), Everything()
    with mode.active():
        run = transformation.run_in(mode)

        def several(model):
            run(call, model, batches)  # what it returns may be no arrays, as that of eval_shape

        with tallax.compile_step(several, model) as step:
            step()
    for inputs in batches if transformation.executes else []:
        call(other, inputs)
    for name in EXACT:
        part = other.parts[name]
        assert [x.tobytes() for x in leaves(part)] == [x.tobytes() for x in leaves(model.parts[name])], name


@pytest.mark.parametrize(
    "outer", [nnx.jit, lambda f: lambda model, x: tallax.compile_step(f, model)(x)], ids=["jit", "step"]
)
@pytest.mark.parametrize(
    "made",
    [lambda: nnx.Dict(n=nnx.Variable(jnp.zeros(2))), lambda: nnx.Dict(n=tallax.Counter())],
    ids=["Variable", "Counter"],
)
def test_a_step_made_inside_another_one_raises(outer, made):
    """A step called inside another trace raises TraceError, and leaves the objects usable."""
    model = made()

    def inner(model, x):
        model.n[...] += 1
        return x

    def run(model, x):
        return tallax.compile_step(inner, model)(x)

    with pytest.raises(tallax.TraceError, match="call the step outside"):
        outer(run)(model, jnp.ones(2))
    nnx.jit(inner)(model, jnp.ones(2))
    assert np.asarray(model.n[...]).max() == 1


def test_several_steps_in_one_program():
    """`scan` takes as many steps as there are batches, and they count the same."""
    (model, optimizer), (other, its_optimizer) = made(), made()
    xs = jnp.stack([batch(k) for k in range(5)])
    with tallax.compile_step(train_step, model, optimizer) as step:
        losses = step.scan(xs)
        assert int(model.clock.step) == 5
        again = step.scan(xs)
        step(xs[0])
    plain = nnx.jit(train_step)
    expected = [plain(other, its_optimizer, x) for x in [*xs, *xs, xs[0]]]
    np.testing.assert_array_equal([*losses, *again], expected[:-1])
    assert_all_same((model, optimizer), (other, its_optimizer))
    assert step.traces == 2


def test_options_and_results_of_any_structure():
    """Batches by name, and nested results, are as for `nnx.jit`."""
    model, _ = small()

    def run(model, x, *, scale, extra=None):
        model.step += 1
        return {"y": (x["a"] * scale, extra), "n": model.step.value}

    step = tallax.compile_step(run, model)
    out = step({"a": jnp.ones(2)}, scale=jnp.float32(3.0))
    assert out["n"] == 1
    assert out["y"][0].tolist() == [3.0, 3.0]
    assert out["y"][1] is None


# --- how a count is kept ----------------------------------------------------------------------------------------------


def program_of(step, *args):
    """Returns the text of a step's program, as it goes to XLA."""
    step(*args)
    holding = step._holding
    return step._program.once.lower(*holding.latest[0][:3], holding.constants, *args).as_text()


def test_only_the_count_that_is_read_is_sliced_out():
    """Of a hundred counts, only the count that is read is sliced out of the packed array."""
    model = nnx.Dict(counts=nnx.List([tallax.Counter() for _ in range(100)]))

    def run(model, mask, reads):
        for counter in model.counts:
            counter.count(mask)
        return model.counts[40].value if reads else 0

    slices = []
    for reads in (False, True):
        step = tallax.compile_step(lambda model, mask, reads=reads: run(model, mask, reads), model)
        text = program_of(step, np.ones(3, bool))
        slices.append(len(re.findall(r"stablehlo\.(?:dynamic_)?slice .*tensor<2x100xui32>\) -> tensor<2x1x", text)))
        step.sync()
    assert slices == [0, 1]
    assert [int(counter) for counter in model.counts] == [6] * 100


KINDS_OF_NUMBERS = ("uint32", "int32", "bool", "uint8", "int8", "int16")


@pytest.mark.parametrize("within", ["step", "grad", "jit"])
def test_increments_of_every_kind(within):
    """Scalars cut out of vectors, masks, arrays of a shape; a negative one adds nothing."""
    vectors = {name: np.array([3, 0, 1], name) for name in KINDS_OF_NUMBERS}
    for name in ("int32", "int8", "int16"):
        vectors[name][1] = -7

    def make():
        counters = {f"{name}-{k}": tallax.Counter(2**32 - 2) for name in KINDS_OF_NUMBERS for k in range(3)}
        shaped = {f"{name}-shaped": tallax.Counter(5, shape=(2, 3)) for name in KINDS_OF_NUMBERS}
        return nnx.Dict(**counters, **shaped, twice=tallax.Counter(), read=tallax.Counter(), reset=tallax.Counter())

    def count(model, vectors):
        for name, vector in vectors.items():
            for k in range(3):
                model[f"{name}-{k}"] += vector[k]
            model[f"{name}-shaped"] += vector
        model.twice += vectors["int32"][0]
        model.twice += vectors["int32"][1]
        model.read += vectors["int32"][1]
        seen = model.read.value
        model.reset += vectors["int32"][0]
        model.reset.reset()
        model.reset += vectors["int32"][2]
        return seen.astype(jnp.float32)

    def run(model, vectors):
        if within == "grad":
            return tallax.value_and_grad(lambda x, model: count(model, vectors) * x)(jnp.float32(2.0), model)[0]
        return nnx.jit(count)(model, vectors) if within == "jit" else count(model, vectors)

    one, other = make(), make()
    plain = nnx.jit(run)
    with tallax.compile_step(run, one) as step:
        for _ in range(2):
            assert step(vectors) == plain(other, vectors)
    assert_same_state(one, other)
    assert int(one["int32-1"]) == 2**32 - 2
    assert int(one["int32-0"]) == 2**32 + 4


def test_increments_cut_out_of_a_vector_are_the_vector():
    """A hundred uint32 increments from one vector are added as one vector."""
    model = nnx.Dict(counts=nnx.List([tallax.Counter() for _ in range(100)]))

    def run(model, vector):
        for k, counter in enumerate(model.counts):
            counter += vector[k]

    step = tallax.compile_step(run, model)
    vector = np.arange(100, dtype=np.uint32)
    step(vector)
    holding = step._holding
    lowered = step._program.once.lower(*holding.latest[0][:3], holding.constants, vector)
    assert len(re.findall(r"s32\[\] maximum|u32\[\] convert|u32\[1\]\S* convert", lowered.compile().as_text())) == 0
    step(vector)
    step.sync()
    assert [int(counter) for counter in model.counts] == [*range(0, 200, 2)]


@pytest.mark.parametrize("start", [0, 2**32 - 2, 2**53, 2**64 - 4])
def test_carries_and_saturation(start):
    """Counts carry past 32 bits and stay at 2**64 - 1, whether they go in two parts or whole."""
    model = nnx.Dict(
        small=tallax.Counter(start),
        large=tallax.Counter(start),
        pair=tallax.Counter(start, shape=2),
        same=tallax.Counter(7),
    )

    def run(model, xs):
        model.small.count(xs > 0)
        model.large.count(xs)
        model.pair.increment(xs[:2])

    xs = np.array([3, 2**31 - 1, 2**31 - 1, 2**31 - 1, -5], np.int32)
    with tallax.compile_step(run, model) as step:
        for _ in range(3):
            step(xs)
    most = 2**64 - 1
    assert int(model.small) == min(start + 3 * 4, most)
    assert int(model.large) == min(start + 3 * (3 + 3 * (2**31 - 1)), most)
    assert np.asarray(model.pair).tolist() == [min(start + 9, most), min(start + 3 * (2**31 - 1), most)]
    assert int(model.same) == 7
    assert step.traces == 1


@pytest.mark.parametrize("times", [4, 2**13])
def test_a_loop_that_adds_more_than_a_word_holds(times):
    """If a loop may add more than 32 bits hold, the count is still exact."""
    model = nnx.Dict(count=tallax.Counter())

    def body(_, model):
        model.count += 2**20
        return model

    def run(model):
        nnx.update(model, nnx.state(nnx.fori_loop(0, times, body, model)))

    with tallax.compile_step(run, model) as step:
        step()
    assert int(model.count) == times * 2**20


def test_writes_within_a_step():
    """`set`, `reset`, `.value += n` and assignments behave as under nnx.jit."""

    def make():
        return nnx.Dict(
            a=tallax.Counter(5),
            b=tallax.Counter(6),
            c=tallax.Counter(2**31 - 2),
            d=tallax.Counter(shape=3),
            e=tallax.Counter(),
        )

    traces = []

    def run(model, n):
        traces.append(n)
        model.a.set(n)
        model.b += n
        model.b.reset()
        model.b += 1
        model.c.value += n
        model.d[1] = n
        model.d += model.a
        model.e += 3
        nnx.update(model, {"e": jnp.array([n.astype(jnp.uint32), 1])})  # what a restored state looks like
        model.e += 2

    one, other = make(), make()
    plain = nnx.jit(run)
    with tallax.compile_step(run, one) as step:
        for k in range(4):
            step(np.int32(k + 1))
            plain(other, np.int32(k + 1))
    assert_same_state(one, other)
    assert len(traces) == 2 + 1  # of compile_step, once more with whole counts, and of nnx.jit


def test_layers_that_were_made_by_vmap():
    """A Counter with a leading axis, of scanned layers, is packed like any other."""

    class Layer(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(3, 3, rngs=rngs)
            self.fired = tallax.statistics.Rate()

        def __call__(self, x):
            x = self.linear(x)
            self.fired.update(x > 0)
            return x

    def make():
        return nnx.vmap(lambda key: Layer(nnx.Rngs(key)))(jax.random.split(jax.random.key(0), 4))

    def run(layers, x):
        return nnx.scan(lambda x, layer: layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, layers)

    one, other = make(), make()
    with tallax.compile_step(run, one) as step:
        for k in range(2):
            np.testing.assert_array_equal(step(batch(k)), nnx.jit(run)(other, batch(k)))
    assert_same_state(one, other)


# --- between the calls ------------------------------------------------------------------------------------------------


def test_items_are_fresh():
    """Between the calls, reading, printing and writing a tallax variable uses the value in the step."""
    (model, optimizer), (other, its_optimizer) = made(), made()
    step, plain = tallax.compile_step(train_step, model, optimizer), nnx.jit(train_step)
    for k in range(6):
        step(batch(k))
        plain(other, its_optimizer, batch(k))
        assert (int(model.clock.step), int(model.clock), model.clock.step.value) == (k + 1 + 10 * (k > 2),) * 2 + (
            other.clock.step.value,
        )
        assert repr(model.items.rate) == repr(other.items.rate)
        assert model.temperature.value == other.temperature.value
        assert str(model.seen).count(str(int(other.seen))) == 1
        assert bool(model.seen.every(7)) == bool(other.seen.every(7))
        for each in (model, other):
            if k == 2:
                each.clock.step += 10
            if k == 3:
                each.temperature.pin(2.0)
                each.items.rate.reset()
                each.items.ema.reset()
            if k == 4:
                each.temperature.release()
                each.seen.set(2**50)
    step.sync()
    assert_all_same((model, optimizer), (other, its_optimizer))


LOUD = {
    "read": lambda model: model.weight[...],
    "value": lambda model: model.weight.get_value() + 1,
    "arithmetic": lambda model: model.weight * 2,
    "compare": lambda model: model.weight[...] > 0,
    "write-part": lambda model: model.weight.__setitem__(0, 1.0),
    "numpy": lambda model: np.asarray(model.weight),
    "jnp": lambda model: jnp.sum(model.weight),
    "nnx.jit": nnx.jit(lambda model: model.weight[...] * 2),
    "jax.jit": jax.jit(lambda model: model.weight[...] * 2),
    "state": lambda model: jax.tree.map(lambda x: x * 2, nnx.state(model)),
    "state-to-jax": lambda model: jax.device_put(nnx.state(model)),
    "device_get": lambda model: jax.device_get(nnx.state(model)),
    "item-in-clone": lambda model: int(nnx.clone(model).step),
    "item-in-clone-written": lambda model: nnx.clone(model).step.set(3),
    "pickle": pickle.dumps,
    "deepcopy": copy.deepcopy,
    "grad": nnx.grad(lambda model: model.weight[...].sum()),
}


def test_a_model_can_be_printed_within_a_step():
    """Flax then puts shapes in place of arrays, also within a count that is only added to."""
    printed = []

    class Model(nnx.Module):
        def __init__(self):
            self.seen = tallax.Counter(shape=3)
            self.rate = tallax.statistics.Rate()

    def step(model):
        model.seen += 1
        printed.append(repr(model))

    model = Model()
    with tallax.compile_step(step, model) as compiled:
        compiled()
        assert "owned by a compiled step" in repr(model)
    assert "value=Array(shape=(3,), dtype=dtype('uint64'))" in printed[0]
    assert model.seen.__array__().tolist() == [1, 1, 1]


@pytest.mark.parametrize("name", LOUD)
def test_everything_else_is_loud(name):
    """No use of the model sees an old value: each raises, names the value and `step.sync()`, and changes nothing."""
    model, run = small()
    step = tallax.compile_step(run, model)
    step(jnp.float32(1.0))
    use = LOUD[name]
    with pytest.raises(Exception, match=r"sync\(\)") as caught:
        use(model)
    assert re.search(r"weight|step: |step held", str(caught.value)), caught.value
    step(jnp.float32(1.0))
    step.sync()
    assert model.weight[...].tolist() == [1.75] * 3
    assert int(model.step) == 2


def test_shapes_can_always_be_asked_for():
    """A table of parameters needs no values."""
    model, run = small()
    step = tallax.compile_step(run, model)
    step(jnp.float32(1.0))
    assert (model.weight.shape, model.weight.dtype, model.weight.ndim, model.weight.size) == ((3,), jnp.float32, 1, 3)
    assert "owned by a compiled step" in str(model)
    assert "value=1" in str(model)  # the count is an item, so it is there


def test_writes_past_the_step_are_found():
    """A value that is replaced while the step owns it is an error at the next call, and kept by `sync`."""
    model, run = small()
    step = tallax.compile_step(run, model)
    step(jnp.float32(1.0))
    nnx.update(model, {"weight": jnp.zeros(3)})
    with pytest.raises(tallax.StateOwnedByStepError, match=r"model/weight: was written while a compiled step owned it"):
        step(jnp.float32(1.0))
    with pytest.raises(tallax.StateOwnedByStepError, match=r"model/weight"):
        step.sync()
    assert model.weight[...].tolist() == [0.0] * 3
    assert int(model.step) == 1
    step(jnp.float32(1.0))
    step.sync()
    assert model.weight[...].tolist() == [1.0] * 3


def test_writes_after_sync_are_kept():
    """After `sync`, every change of the objects is visible to the next call."""
    model, run = small()
    step = tallax.compile_step(run, model)
    step(jnp.float32(1.0))
    step.sync()
    step.sync()  # does nothing
    model.weight[...] = jnp.zeros(3)
    model.step = tallax.Counter(2**40)
    step(jnp.float32(1.0))
    assert int(model.step) == 2**40 + 1
    step.sync()
    assert model.weight[...].tolist() == [1.0] * 3
    assert step.traces == 1


def test_donation_leaves_others_their_arrays():
    """Arrays that the objects had at the first call are not overwritten: a clone, an old state, a checkpoint."""
    model, run = small()
    clone, state, weight = nnx.clone(model), nnx.as_pure(nnx.state(model)), model.weight[...]
    step = tallax.compile_step(run, model)
    step(jnp.float32(1.0))
    step.sync()
    between = nnx.as_pure(nnx.state(model))
    step(jnp.float32(1.0))
    step.sync()
    assert weight.tolist() == clone.weight[...].tolist() == state["weight"].tolist() == [1.0] * 3
    assert between["weight"].tolist() == [1.5] * 3


def test_an_array_that_two_variables_share():
    """Two Variables may have the same array, although JAX refuses to donate it twice."""
    shared = jnp.ones(3)
    model = nnx.Dict(a=nnx.Param(shared), b=nnx.Param(shared))

    def run(model):
        model.a[...] = model.a[...] + 1.0

    with tallax.compile_step(run, model) as step:
        step()
    assert (model.a[...].tolist(), model.b[...].tolist()) == ([2.0] * 3, [1.0] * 3)


# --- exceptions -------------------------------------------------------------------------------------------------------


def test_the_block_ends_with_the_last_completed_step():
    """The block restores the last completed step, also after an error between or within the calls."""
    model, run = small()

    def failing(model, x):
        run(model, x)
        if x.shape:
            raise RuntimeError("while tracing")

    with pytest.raises(RuntimeError, match="while tracing"), tallax.compile_step(failing, model) as step:  # noqa: PT012
        step(jnp.float32(1.0))
        step(jnp.ones(3))
    assert int(model.step) == 1
    with pytest.raises(KeyError), tallax.compile_step(run, model) as step:  # noqa: PT012
        step(jnp.float32(1.0))
        raise KeyError
    assert int(model.step) == 2
    assert model.weight[...].tolist() == [1.75] * 3


@pytest.mark.parametrize("donate", [True, False], ids=["donated", "kept"])
def test_a_step_that_fails_on_the_device(donate):
    """With donation, the error reports that the previous state is lost; without donation, that state remains."""

    def refuse(x):
        if x[0] > 5.0:
            raise ValueError("on the host")
        return x

    def run(model, x):
        model.step += 1
        new = model.weight[...] + x
        model.weight[...] = jax.pure_callback(refuse, jax.ShapeDtypeStruct((3,), jnp.float32), new)

    model, _ = small()
    step = tallax.compile_step(run, model, donate=donate)
    step(jnp.float32(1.0))
    with pytest.raises(Exception, match="on the host"):
        step(jnp.float32(9.0))
    if donate:
        for use in (lambda: step(jnp.float32(1.0)), step.sync, lambda: int(model.step), step.collect):
            with pytest.raises(tallax.StateOwnedByStepError, match="failed while it ran"):
                use()
    else:
        step(jnp.float32(1.0))
        step.sync()
        assert (int(model.step), model.weight[...].tolist()) == (2, [3.0] * 3)


def test_ctrl_c_loses_no_step():
    """Interrupted at any moment, the objects have the state of a whole number of steps, all parts of it alike."""
    model = nnx.Dict(total=nnx.Variable(jnp.zeros(64)), count=tallax.Counter(), last=tallax.Buffer(0.0))

    def run(model):
        model.total[...] = model.total[...] + 1.0
        model.count += 1
        model.last[...] = model.total[...][0]

    step = tallax.compile_step(run, model)
    step()
    interrupts, dropped, calls = 0, 0, 1

    def run_on(given_up):
        # In a function of its own: Python 3.13 has a jump of a loop within `try` that the `try` does not cover.
        nonlocal calls
        while time.monotonic() < given_up:
            step()
            calls += 1

    gc.disable()  # JAX has a function called at each collection, and Python drops what is raised in it
    try:
        while interrupts < 100:
            timer = threading.Timer(0.002 + 0.00003 * interrupts, signal.raise_signal, [signal.SIGINT])
            given_up = time.monotonic() + 10.0
            try:
                timer.start()
                run_on(given_up)
                dropped += 1
                assert dropped < 3
            except KeyboardInterrupt:
                interrupts += 1
            finally:
                timer.join()
    finally:
        gc.enable()
    step.sync()
    count = int(model.count)
    assert calls <= count <= calls + interrupts
    assert model.total[...].tolist() == [count] * 64
    assert float(model.last[...]) == count


def test_within_another_trace():
    """A step that is called inside a compiled function would leave its state there."""
    model, run = small()
    step = tallax.compile_step(run, model)
    for calls in range(2):
        with pytest.raises(tallax.TraceError, match=r"step\.scan"):
            jax.jit(step)(jnp.float32(1.0))
        if calls:  # by now the step holds the count
            with pytest.raises(tallax.TraceError, match=r"model/step: is owned"):
                jax.jit(lambda n: model.step.increment(n))(jnp.uint32(1))  # noqa: PLW0108
        step(jnp.float32(1.0))
        assert int(model.step) == calls + 1


# --- structure --------------------------------------------------------------------------------------------------------


def test_a_variable_passed_twice_is_an_error():
    """Under two names, or in two objects."""
    count = tallax.Counter()
    model = nnx.Dict(a=nnx.Dict(step=count), b=nnx.Dict(step=count))
    with pytest.raises(tallax.StructureChangedError, match=r"model/b/step: is the same Counter as model/a/step"):
        tallax.compile_step(lambda model: None, model)
    with pytest.raises(tallax.StructureChangedError, match=r"other/step: is the same Counter as model/step"):
        tallax.compile_step(lambda model, other: None, model.a, model.b)


def test_shared_variables_of_flax():
    """Tied weights are one in graph mode, as Flax has them there; tree mode knows no sharing."""
    weight = nnx.Param(jnp.ones(3))
    model = nnx.Dict(a=nnx.Dict(w=weight), b=nnx.Dict(w=weight))

    def run(model):
        model.a.w[...] = model.a.w[...] + 1.0
        return model.b.w[...]

    with tallax.compile_step(run, model, graph=True) as step:
        assert step().tolist() == [2.0] * 3
    assert model.b.w is model.a.w
    assert weight[...].tolist() == [2.0] * 3
    with pytest.raises(tallax.StructureChangedError, match=r"model/b/w: is the same Param as model/a/w"):
        tallax.compile_step(run, model, graph=False)


def sow(model, x):
    model.sown = nnx.Intermediate(x)


def switch(model, x):
    model.deterministic = True


def replace(model, x):
    model.first = nnx.Linear(3, 8, rngs=nnx.Rngs(1), use_bias=False)


def count_in_python(model, x):
    model.dropout.calls = getattr(model.dropout, "calls", 0) + 1


CHANGES = {
    sow: r"model: .*\n.*sown is new: Intermediate",
    switch: r"model: .*\n.*deterministic is new: bool \(True\)",
    replace: r"model: .*\n.*first is Linear; it was Linear",
    count_in_python: r"model/dropout: .*\n.*calls is new: int \(1\)",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_step_that_changes_the_structure(change):
    """The error names the change, and the state before the step remains."""
    model, _ = made()
    step = tallax.compile_step(change, model)
    with pytest.raises(tallax.StructureChangedError, match=CHANGES[change]):
        step(batch())
    step.sync()
    assert int(model.clock.step) == 0
    assert not hasattr(model, "sown")


def test_each_structure_is_traced_once():
    """`eval`, `train` and a replaced layer take effect in the next call, and a structure seen before is not traced."""
    model, optimizer = made()
    step = tallax.compile_step(train_step, model, optimizer)
    for change, traces in [(model.train, 1), (model.eval, 2), (model.train, 2), (step.sync, 2), (model.eval, 2)]:
        change()
        step(batch())
        assert step.traces == traces
    old = model.second
    model.second = nnx.Linear(8, 2, rngs=nnx.Rngs(1))
    step(batch())
    assert step.traces == 2
    assert jnp.isfinite(old.kernel[...]).all()  # a layer that was taken out has its values again


def test_a_change_in_a_large_model_is_found_in_the_next_call():
    """All modules are looked at, as the call must run the program of the structure that the model has."""
    model = nnx.Dict(parts=nnx.List([tallax.StepCounter(nnx.Rngs(0)) for _ in range(200)]))
    step = tallax.compile_step(lambda model: str(model.parts[150].deterministic) == "True", model)
    assert not step()
    model.parts[150].deterministic = True
    assert step()


def test_counters_that_swap_their_shapes():
    """Counters that swap their shapes cause a new trace, although the shapes of the program's arrays do not change."""
    model = nnx.Dict(a=tallax.Counter(shape=2), b=tallax.Counter(shape=3))

    def run(model):
        model.a += 1

    with tallax.compile_step(run, model) as step:
        step()
        model.a, model.b = tallax.Counter(shape=3), tallax.Counter(shape=2)
        step()
    np.testing.assert_array_equal(np.asarray(model.a), [1, 1, 1])
    np.testing.assert_array_equal(np.asarray(model.b), [0, 0])


def test_arrays_in_no_variable():
    """Arrays outside of Variables can be read; a step that replaces one raises and suggests a Variable."""
    model = nnx.Dict(table=nnx.data(jnp.arange(3.0)), total=nnx.Variable(jnp.float32(0.0)))

    def run(model):
        model.total[...] = model.total[...] + model.table.sum()

    with tallax.compile_step(run, model) as step:
        step()
        step()
    assert float(model.total[...]) == 6.0
    assert model.table.tolist() == [0.0, 1.0, 2.0]

    def replacing(model):
        model.table = model.table + 1.0

    with pytest.raises(tallax.StructureChangedError, match=r"model/table: is an array outside of Variables"):
        tallax.compile_step(replacing, model)()


def test_nothing_to_bind():
    """The objects come first, the batch with the calls."""
    with pytest.raises(tallax.InvalidTypeError, match="none"):
        tallax.compile_step(lambda: None)
    with pytest.raises(tallax.InvalidTypeError, match="ArrayImpl"):
        tallax.compile_step(lambda model, x: None, nnx.Dict(), jnp.ones(3))


def test_an_object_without_state():
    """It is a step like any other."""
    step = tallax.compile_step(lambda model, x: x + 1, nnx.Dict())
    assert step(1) == 2
    assert step.collect().result() == {}


# --- meshes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "split"),
    [("auto", True), ("explicit", True), *(cell(kind, False, quick=False) for kind in AXES)],
)
def test_sharded_objects(kind, split, caplog):
    """Batches on a mesh count whole, parameters keep their sharding, and one program serves all steps."""
    mesh = mesh_of(kind)
    (model, optimizer), (other, its_optimizer) = made(), made()
    plain = nnx.jit(train_step)
    if split:
        for _, variable in nnx.iter_graph((model, optimizer)):
            if isinstance(variable, nnx.Variable) and not isinstance(variable, tallax.Counter | tallax.Buffer):
                raw = variable.get_raw_value()
                spec = (None, "model") if raw.shape == (8, 2) else ()
                variable.set_raw_value(placed(raw, mesh, *spec))
    with jax.set_mesh(mesh):
        step = tallax.compile_step(train_step, model, optimizer)
        for k in range(3):
            with jax.log_compiles():
                jax.block_until_ready(step(placed(batch(k), mesh, "data")))
            plain(other, its_optimizer, batch(k))
        reading = step.collect()
        step.sync()
    assert step.traces == 1
    assert caplog.text.count("Finished XLA compilation of jit(train_step)") == 1
    assert int(model.seen) == int(other.seen) == reading.result()["seen"]
    assert model.items.histogram.compute().counts.tolist() == other.items.histogram.compute().counts.tolist()
    sharding = model.second.kernel[...].sharding
    assert sharding.spec == (P(None, "model") if split else P())
    np.testing.assert_allclose(model.first.kernel[...], other.first.kernel[...], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", AXES)
def test_shard_map_within_a_step(kind):
    """An increment is summed over the axes that it varies over, in one word if that is seen to fit."""
    mesh = mesh_of(kind)
    model = nnx.Dict(rate=tallax.statistics.Rate(), seen=tallax.Counter())

    def run(model, x):
        def local(model, x):
            model.rate.update(x > 0)
            model.seen.count(jnp.isfinite(x))
            return x * 1.0

        specs = tallax.replica_specs(model)
        return nnx.shard_map(local, mesh=mesh, in_specs=(specs, P("data")), out_specs=P("data"))(model, x)

    x = batch(0)
    with jax.set_mesh(mesh), tallax.compile_step(run, model) as step:
        for _ in range(2):
            jax.block_until_ready(step(placed(x, mesh, "data")))
    assert int(model.seen) == 2 * x.size
    assert model.rate.compute().fired == 2 * int((x > 0).sum())


def test_per_replica_state_stays_per_replica():
    """Per-replica state is not packed, and keeps counting."""
    mesh = mesh_of("auto")
    model = nnx.Dict(rate=tallax.statistics.Rate())
    model = tallax.per_replica(model, mesh, "data")
    specs = tallax.replica_specs(model)

    def run(model, x):
        def local(model, x):
            model.rate.update(x > 0)
            return x * 1.0

        return nnx.shard_map(local, mesh=mesh, in_specs=(specs, P("data")), out_specs=P("data"))(model, x)

    x = batch(0)
    with jax.set_mesh(mesh), tallax.compile_step(run, model) as step:
        for _ in range(2):
            jax.block_until_ready(step(placed(x, mesh, "data")))
        with pytest.raises(tallax.ReplicasError, match="combine_replicas"):
            step.collect()
    model = tallax.combine_replicas(model)
    assert model.rate.compute().fired == 2 * int((x > 0).sum())


def test_a_call_waits_for_nothing():
    """The call of a step returns before the device is done, and so does `collect`."""
    model, _ = small()

    def run(model, x):
        model.step += 1
        return jax.lax.fori_loop(0, 3000, lambda _, y: jnp.tanh(y @ y), x).sum() + model.step.value.astype(jnp.float32)

    step = tallax.compile_step(run, model)
    x = jnp.ones((256, 256))
    jax.block_until_ready(step(x))
    result = step(x)
    reading = step.collect()
    assert not result.is_ready()
    assert not reading.done()
    assert reading.result() == {"step": 2}
    assert reading.done()
    step.sync()


def test_under_a_transfer_guard():
    """A first call, a call after `sync()`, reads and writes move values by explicit transfers only."""
    model = nnx.Dict(
        count=tallax.Counter(5),
        vector=tallax.Counter(shape=3),
        small=tallax.Buffer(np.float32(1.0)),
        large=tallax.Buffer(np.zeros(2**15, np.float32)),
        rate=tallax.statistics.Rate(),
        array=nnx.Variable(np.ones(2, np.float32)),
        number=nnx.Variable(3.0),
    )

    def run(model, x):
        model.count += 1
        model.vector += 1
        model.small[...] = model.small[...] + x
        model.rate.update(x > 0)
        return model.array[...] * model.number[...]

    x = jnp.float32(1.0)
    step, second = tallax.compile_step(run, model), tallax.compile_step(run, model)
    with jax.transfer_guard("disallow"):
        for each in (step, second, step):
            assert each(x).dtype == jnp.float32
        assert (int(model.count), np.asarray(model.vector).tolist()) == (8, [3] * 3)
        assert (float(model.small[...]), model.large.value.shape, model.rate.compute().fired) == (4.0, (2**15,), 3)
        model.count.set(7)
        model.vector.reset()
        step(x)
        step.sync()
        step(x)
        step.sync()
    assert (int(model.count), np.asarray(model.vector).tolist()) == (9, [2] * 3)


def _restored(model, x):
    """Restores a count in one branch of two."""

    def restore(model):
        nnx.update(model, {"a": jnp.array([7, 1], jnp.uint32)})

    model.a += 1
    nnx.cond(x > 1, restore, lambda model: None, model)
    return model.a.value


def _undone(model, x):
    """Keeps what a part of the step did only if it went well, as optax's `apply_if_finite` does."""
    before = nnx.as_pure(nnx.state(model))
    model.a += 3
    model.b.reset()
    after = nnx.as_pure(nnx.state(model))
    nnx.update(model, jax.tree.map(lambda old, new: jnp.where(x > 1, new, old), before, after))


RAW_STATE = {
    "returned": lambda model, x: (model.a.increment(x), nnx.as_pure(nnx.state(model)))[1],
    "returned-leaves": lambda model, x: (model.a.increment(x), jax.tree.leaves(nnx.state(model)))[1][0],
    "computed-with": lambda model, x: (model.a.increment(x), jax.tree.leaves(nnx.state(model))[0] * np.uint32(3))[1],
    "words": lambda model, x: (model.a.increment(x), nnx.as_pure(nnx.state(model))["a"][..., 0])[1],
    "restored-in-a-branch": _restored,
    "undone": _undone,
}


@pytest.mark.parametrize("run", RAW_STATE.values(), ids=RAW_STATE)
@pytest.mark.parametrize("graph", [True, False])
def test_raw_state_within_a_step(run, graph):
    """The raw state of a Counter within a step is its two words, as it is under nnx.jit."""
    one, other = (nnx.Dict(a=tallax.Counter(2**32 - 2), b=tallax.Counter(5, shape=2)) for _ in range(2))
    plain = nnx.jit(run, graph=graph)
    with tallax.compile_step(run, one, graph=graph) as step:
        for x in (1, 2, 1, 0):
            got, expected = step(np.int32(x)), plain(other, np.int32(x))
            assert jax.tree.structure(got) == jax.tree.structure(expected)
            for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
                assert np.array_equal(a, b)
    assert_same_state(one, other)


def test_an_error_of_the_function_is_raised_as_it_is():
    """A step that raises is not compiled, and raises again, also if another call would be right."""
    model = nnx.Dict(a=tallax.Counter())

    def run(model, x):
        model.a += 1
        if x.shape != (3,):
            raise ValueError("three of them")
        return x.sum()

    with tallax.compile_step(run, model) as step:
        with pytest.raises(ValueError, match="three of them") as error:
            step(np.ones(2, np.float32))
        assert error.value.__context__ is None
        assert step(np.ones(3, np.float32)) == 3
        assert int(model.a) == 1
