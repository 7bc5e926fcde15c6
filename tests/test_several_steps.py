# SPDX-License-Identifier: Apache-2.0
"""Several compiled steps over the same objects: in any order and overlap they are the same calls of `nnx.jit`."""

import gc
import signal
import threading
import time
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import tallax
from tests.meshes import AXES, P, mesh_of, placed
from tests.quick import cell

pytestmark = pytest.mark.slow


class Net(nnx.Module):
    """State of every kind: parameters, batch statistics, random streams, counts, small and large buffers."""

    def __init__(self, seed):
        rngs = nnx.Rngs(seed)
        self.first = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.second = nnx.Linear(4, 3, rngs=rngs)
        self.step = tallax.Counter(2**32 - 5)
        self.pair = tallax.Counter(shape=2)
        self.rate = tallax.statistics.Rate(4)
        self.moments = tallax.statistics.Moments()
        self.last = tallax.Buffer(jnp.zeros(()))
        self.large = tallax.Buffer(jnp.zeros(2**15))

    def __call__(self, x):
        hidden = nnx.relu(self.norm(self.first(x)))
        self.rate.update(hidden > 0)
        self.moments.update(hidden)
        return self.second(self.dropout(hidden))


def optimizer(model):
    return nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)


def update(optimizer, model, grads):
    with jax.numpy_dtype_promotion("standard"):  # optax itself mixes dtypes
        optimizer.update(model, grads)


def d_step(g, d, d_opt, x):
    def loss_fn(d, fake):
        return (d(x) ** 2).mean() - (d(fake) ** 2).mean()

    loss, grads = tallax.value_and_grad(loss_fn)(d, g(x))
    update(d_opt, d, grads)
    d.step += 1
    d.last[...] = loss
    d.large[...] = d.large[...] + loss
    return loss


def g_step(g, d, g_opt, x):
    loss, grads = tallax.value_and_grad(lambda g, d: (d(g(x)) ** 2).mean())(g, d)
    update(g_opt, g, grads)
    g.step += 1
    g.pair += jnp.stack([g.step.value, jnp.int32(1)])
    g.large[...] = g.large[...] - loss
    return loss


def layer_step(layer, norm, x):
    """Binds parts of what other steps bind."""
    layer.kernel[...] = layer.kernel[...] * 0.5
    return norm(layer(x)).sum()


def eval_step(d, g, x):
    """Reads, and changes nothing."""
    return (d.second(nnx.relu(d.first(x))) ** 2).mean() + g.step.value.astype(jnp.float32), d.pair.value


class Loop:
    """A loop that has a generator, a discriminator, two optimizers, and four steps, compiled or by `nnx.jit`."""

    def __init__(self, donate=None, graph=True):
        self.donate, self.graph = donate, graph
        self.g, self.d = Net(0), Net(1)
        self.g_opt, self.d_opt = optimizer(self.g), optimizer(self.d)
        self.bound = {
            d_step: (self.g, self.d, self.d_opt),
            g_step: (self.g, self.d, self.g_opt),
            layer_step: (self.g.first, self.g.norm),
            eval_step: (self.d, self.g),
        }
        self.steps = {}
        for function in self.bound:
            self.make(function)

    def make(self, function):
        if self.donate is None:
            jitted = nnx.jit(function)
            self.steps[function] = lambda x: jitted(*self.bound[function], x)
        else:
            donate = self.donate[list(self.bound).index(function)]
            step = tallax.compile_step(function, *self.bound[function], donate=donate, graph=self.graph)
            self.steps[function] = step

    def sync(self, *functions):
        if self.donate is not None:
            for function in functions:
                self.steps[function].sync()

    def objects(self):
        return self.g, self.d, self.g_opt, self.d_opt


def bits(objects):
    """Returns the bytes of all state; those of keys too."""
    arrays = jax.tree.leaves(nnx.state(tuple(objects)))
    keys = [jnp.issubdtype(array.dtype, jax.dtypes.prng_key) for array in arrays]
    return [
        np.asarray(jax.random.key_data(array) if is_key else array).tobytes()
        for array, is_key in zip(arrays, keys, strict=True)
    ]


def same(one, other):
    left, right = jax.tree.leaves(one), jax.tree.leaves(other)
    return [np.asarray(x).tobytes() for x in left] == [np.asarray(x).tobytes() for x in right]


FUNCTIONS = (d_step, g_step, layer_step, eval_step)


def read_all(loop):
    g, d = loop.g, loop.d
    counts = [int(g.step), int(d.step), np.asarray(g.pair), np.asarray(d.pair)]
    buffers = [np.asarray(d.last[...]), np.asarray(g.large[...])[:2], np.asarray(d.large[...])[:2]]
    return counts, buffers, g.rate.compute(), d.moments.compute()


def write(loop, value):
    loop.g.step.set(value)
    loop.d.pair.reset()
    loop.d.rate.reset()
    loop.d.last[...] = jnp.float32(value)
    loop.g.large[...] = jnp.full(2**15, value, jnp.float32)


WAYS = {
    "graph": ((True,) * 4, True),
    "tree": ((True,) * 4, False),
    "kept": ((False,) * 4, True),
    "mixed": ((True, False, True, False), True),
}


@pytest.mark.parametrize("way", [cell(way, quick=way == "mixed") for way in WAYS])
def test_any_order_of_steps_is_that_of_nnx_jit(way):
    """Four steps in random order, with reads, writes, syncs, readings and dropped steps between: equal to the bit."""
    donate, graph = WAYS[way]
    random = np.random.default_rng(0)
    loop, other = Loop(donate, graph), Loop()
    batches = jax.random.normal(jax.random.key(0), (20, 5, 3))
    kept = []
    for k in range(120):
        function = FUNCTIONS[random.integers(4)]
        x = batches[random.integers(20)]
        out, expected = loop.steps[function](x), other.steps[function](x)
        kept.append((out, expected))
        action = random.integers(12)
        if action < 3:
            assert same(read_all(loop), read_all(other)), k
        elif action == 3:
            write(loop, k)
            write(other, k)
        elif action == 4:
            which = FUNCTIONS[random.integers(4)]
            loop.sync(which)
            assert bits(loop.bound[which]) == bits(other.bound[which]), k
        elif action == 5:
            which = FUNCTIONS[random.integers(4)]
            del loop.steps[which]
            loop.make(which)
        elif action == 6:
            which = FUNCTIONS[random.integers(4)]
            result = loop.steps[which].collect().result()
            counts = {name: value for name, value in result.items() if name.endswith("step")}
            expected_counts = tallax.collect(*other.bound[which]).result()
            assert sorted(counts.values()) == sorted(v for n, v in expected_counts.items() if n.endswith("step")), k
        elif action == 7:
            assert same(tallax.collect(loop.g, loop.d).result(), tallax.collect(other.g, other.d).result()), k
    loop.sync(*FUNCTIONS)
    assert bits(loop.objects()) == bits(other.objects())
    assert all(same(out, expected) for out, expected in kept)  # donation has left every result alone


def test_a_gan():
    """Two steps by turns: each is compiled once, and nothing goes to the host or from it in between."""
    loop, other = Loop((True,) * 4), Loop()
    x = jax.random.normal(jax.random.key(0), (5, 3))
    for k in range(6):
        with jax.transfer_guard("disallow" if k > 1 else "allow"):
            losses = loop.steps[d_step](x), loop.steps[g_step](x)
        assert same(losses, (other.steps[d_step](x), other.steps[g_step](x)))
    assert loop.steps[d_step].traces == loop.steps[g_step].traces == 1
    loop.sync(d_step, g_step)
    assert bits(loop.objects()) == bits(other.objects())


def test_nothing_is_written_back_between_steps(monkeypatch):
    """By turns, no value of a Variable is set, and no program is traced or compiled."""
    loop = Loop((True,) * 4)
    x = jnp.ones((5, 3))
    for _ in range(2):
        for function in FUNCTIONS:
            loop.steps[function](x)
    before = [loop.steps[function].traces for function in FUNCTIONS]
    written = []
    monkeypatch.setattr(nnx.Variable, "set_raw_value", lambda self, *_, **__: written.append(self))
    for function in (*FUNCTIONS, *reversed(FUNCTIONS)):
        loop.steps[function](x)
    monkeypatch.undo()
    assert not written
    assert [loop.steps[function].traces for function in FUNCTIONS] == before == [1] * 4


def counting(*models):
    for model in models:
        model.step += 1
        model.weight[...] = model.weight[...] + 1.0


def small(start=0):
    return nnx.Dict(step=tallax.Counter(start), weight=nnx.Param(jnp.full(3, float(start))))


def values(*models):
    return [(int(model.step), model.weight[...].tolist()[0]) for model in models]


def test_three_steps_in_a_ring():
    """Each step shares one object with each of the others, so a value may come from a third step."""
    a, b, c = small(0), small(10), small(20)
    steps = [tallax.compile_step(counting, *pair) for pair in ((a, b), (b, c), (c, a))]
    order = [0, 1, 2, 0, 2, 1, 1, 0, 2, 2, 0, 1]
    for k in order:
        steps[k]()
    assert [int(model.step) for model in (a, b, c)] == [8, 18, 28]
    for step in steps:
        step.sync()
    assert values(a, b, c) == [(8, 8.0), (18, 18.0), (28, 28.0)]


def test_objects_in_containers_and_parts_of_them():
    """A list of models, a dictionary and a part of a model share state by their Variables."""
    a, b = small(), small()
    inside = nnx.Dict(models=nnx.List([a, b]))
    first = tallax.compile_step(lambda models: counting(*models), nnx.List([b, a]))
    second = tallax.compile_step(lambda inside: counting(inside.models[0]), inside)
    third = tallax.compile_step(counting, b)
    for step in (first, second, third, second, first, third):
        step()
    with first, second, third:
        pass
    assert values(a, b) == [(4, 4.0), (4, 4.0)]


def test_sync_of_one_step_gives_back_its_objects():
    """The other step keeps the rest, which is loud, and takes the others over again at its next call."""
    a, b, c = small(), small(), small()
    ab, bc = tallax.compile_step(counting, a, b), tallax.compile_step(counting, b, c)
    ab()
    bc()
    ab.sync()
    assert values(a, b) == [(1, 1.0), (2, 2.0)]
    assert int(c.step) == 1
    with pytest.raises(tallax.StateOwnedByStepError, match="sync"):
        _ = c.weight[...] + 1
    assert bc.collect().result()["step"] == 2
    b.weight[...] = jnp.full(3, 7.0)
    b.step.set(70)
    bc()
    assert int(b.step) == 71
    bc.sync()
    assert values(a, b, c) == [(1, 1.0), (71, 8.0), (2, 2.0)]
    ab.sync()
    assert values(a, b, c) == [(1, 1.0), (71, 8.0), (2, 2.0)]


def test_sync_of_the_step_that_ran_first():
    """Its objects have the values of the step that ran last."""
    a, b = small(), small()
    ab, only = tallax.compile_step(counting, a, b), tallax.compile_step(counting, b)
    ab()
    for _ in range(3):
        only()
    ab.sync()
    assert values(a, b) == [(1, 1.0), (4, 4.0)]
    only.sync()
    ab()
    only()
    only.sync()
    assert values(b) == [(6, 6.0)]
    ab.sync()
    assert values(a, b) == [(2, 2.0), (6, 6.0)]


def test_blocks_within_blocks():
    """Each block restores the objects that it binds, also after an error in the inner block."""
    a, b, c = small(), small(), small()
    ab, bc = tallax.compile_step(counting, a, b), tallax.compile_step(counting, b, c)
    with pytest.raises(KeyError), ab, bc:  # noqa: PT012
        for _ in range(2):
            ab()
            bc()
        raise KeyError
    assert values(a, b, c) == [(2, 2.0), (4, 4.0), (2, 2.0)]


def test_a_step_first_called_after_the_other_was_synced():
    """A step called after another one was synced takes over its state, and the first one joins."""
    a, b = small(), small()
    first, second = tallax.compile_step(counting, a, b), tallax.compile_step(counting, b)
    first()
    first.sync()
    second()
    first()
    second()
    assert (int(a.step), int(b.step)) == (2, 4)
    second.sync()
    first.sync()
    assert values(a, b) == [(2, 2.0), (4, 4.0)]


@pytest.mark.parametrize("donate", [True, False])
def test_a_dropped_step_loses_nothing(donate):
    """Its values go back on the objects at once, or to the other step that binds them."""
    a, b, c = small(), small(), small()
    ab, bc = (tallax.compile_step(counting, *pair, donate=donate) for pair in ((a, b), (b, c)))
    ab()
    bc()
    ab()
    gone = weakref.ref(ab)
    del ab
    assert gone() is None
    assert values(a) == [(2, 2.0)]
    assert int(b.step) == 3
    bc()
    del bc
    assert values(a, b, c) == [(2, 2.0), (4, 4.0), (2, 2.0)]


def test_a_step_for_each_epoch():
    """Steps that are created again and dropped without a `sync()` leave nothing behind."""
    model, other = small(), small()
    kept = tallax.compile_step(counting, model, other)
    for _ in range(5):
        step = tallax.compile_step(counting, model)
        step()
        kept()
    assert len(kept._holding.neighbours) == 1  # no other way to see a leak
    kept.sync()
    step.sync()
    assert values(model, other) == [(10, 10.0), (5, 5.0)]


def test_an_exception_while_another_step_is_traced():
    """The state is that before the call, for both steps, and both go on."""
    model = small()

    def failing(model, fails):
        counting(model)
        if fails:
            raise RuntimeError("while tracing")

    good = tallax.compile_step(counting, model)
    bad = tallax.compile_step(failing, model, static_argnames="fails")
    good()
    with pytest.raises(RuntimeError, match="while tracing"):
        bad(fails=True)
    assert int(model.step) == 1
    good()
    bad(fails=False)
    with pytest.raises(RuntimeError, match="while tracing"):
        bad(fails=True)
    good()
    bad.sync()
    good.sync()
    assert values(model) == [(4, 4.0)]


def test_a_step_reads_state_of_another_step():
    """A closed-over object is not an argument, so its value would be a constant in the program."""
    model, other = small(), small()
    first = tallax.compile_step(counting, other)
    first()
    second = tallax.compile_step(lambda model: other.step.value, model)
    with pytest.raises(tallax.TraceError, match=r"step: is owned by a compiled step, so a trace cannot use it"):
        second()
    second.sync()
    assert (int(model.step), int(other.step)) == (0, 1)


def test_a_step_that_fails_on_the_device():
    """Both steps report that shared state is lost; state that only the other step binds remains."""

    def refuse(x):
        if x[0] > 5.0:
            raise ValueError("on the host")
        return x

    def run(model, x):
        new = model.weight[...] + x
        model.weight[...] = jax.pure_callback(refuse, jax.ShapeDtypeStruct((3,), jnp.float32), new)

    a, b = small(), small()
    both, one = tallax.compile_step(counting, a, b), tallax.compile_step(run, a)
    both()
    one(jnp.float32(1.0))
    with pytest.raises(Exception, match="on the host"):
        one(jnp.float32(9.0))
    for use in (lambda: one(jnp.float32(1.0)), one.sync, both, both.sync, both.collect):
        with pytest.raises(tallax.StateOwnedByStepError, match="failed while it ran"):
            use()
    rest = tallax.compile_step(counting, b)
    rest()
    rest.sync()
    assert values(b) == [(2, 2.0)]


@pytest.mark.parametrize("donate", [(True, False), (False, True)], ids=["donate-first", "keep-first"])
def test_results_and_reads_outlive_donation(donate):
    """Results, readings, and the original arrays are not overwritten by the other step."""
    large = jnp.zeros(2**15)
    model = nnx.Dict(large=tallax.Buffer(large), weight=nnx.Param(jnp.ones(2**15)))
    clone, weight = nnx.clone(model), model.weight[...]

    def passing(model):
        return model.large.value, model.weight[...]

    def adding(model):
        model.large[...] = model.large[...] + 1.0
        model.weight[...] = model.weight[...] + 1.0
        return model.weight[...], model.large.value

    steps = [tallax.compile_step(f, model, donate=d) for f, d in zip((passing, adding), donate, strict=True)]
    kept = []
    for k in range(3):
        for step in steps:
            kept.append((k, step(), model.large.value))
            written = jnp.full(2**15, float(k))
            model.large[...] = written
            kept.append((k, written, model.large.value))
    assert all(np.isfinite(np.asarray(x)).all() for entry in kept for x in jax.tree.leaves(entry))
    assert (weight[0], clone.weight[...][0], large[0], clone.large.value[0]) == (1.0, 1.0, 0.0, 0.0)
    assert model.large.value[0] == 2.0


def test_reads_and_writes_come_through_from_any_step():
    """Each read between the calls is current, and each write is seen by the next call, whichever step it is."""
    shared, a, b = small(), small(), small()
    first, second = tallax.compile_step(counting, a, shared), tallax.compile_step(counting, shared, b)
    expected = 0
    for k in range(8):
        (first if k % 3 else second)()
        expected += 1
        assert int(shared.step) == expected
        assert shared.step.value == min(expected, 2**31 - 1)
        if k % 2:
            shared.step += 5
            expected += 5
        if k == 4:
            shared.step.set(2**40)
            expected = 2**40
    first.sync()
    assert int(shared.step) == expected


def test_writes_past_several_steps_are_found():
    """A plain Variable that is replaced between the calls is an error in both steps, and stays as written."""
    model, other = small(), small()
    one, both = tallax.compile_step(counting, model), tallax.compile_step(counting, model, other)
    one()
    both()
    nnx.update(model, {"weight": jnp.zeros(3)})
    for step in (one, both):
        with pytest.raises(tallax.StateOwnedByStepError, match="was written while a compiled step owned it"):
            step()
    with pytest.raises(tallax.StateOwnedByStepError, match="weight"):
        one.sync()
    both()
    both.sync()
    assert values(model, other) == [(3, 1.0), (2, 2.0)]


@pytest.mark.parametrize("name", ["clone", "merge"])
def test_copies_of_owned_state_are_refused(name):
    """A step over copies of owned state raises, because they have no value."""
    model = small()
    step = tallax.compile_step(counting, model)
    step()
    copy = nnx.clone(model) if name == "clone" else nnx.merge(*nnx.split(model), copy=True)
    with pytest.raises(tallax.StateOwnedByStepError, match=r"is a copy of a Variable(.|\n)*step\.sync\(\)"):
        tallax.compile_step(counting, copy)()
    step()
    step.sync()
    assert values(model) == [(2, 2.0)]


def test_an_old_state_that_is_put_back():
    """A placeholder that outlived a `sync()` shows no old value."""
    model = small()
    step = tallax.compile_step(counting, model)
    step()
    raw = model.step.get_raw_value()
    step.sync()
    model.step.set_raw_value(raw)
    with pytest.raises(tallax.StateOwnedByStepError, match="is a copy of a Variable"):
        int(model.step)


def test_an_optimizer_that_two_steps_share():
    """Pretraining and finetuning in turns share an optimizer."""

    def train(model, optimizer, x, scale):
        grads = tallax.grad(lambda model: scale * (model.first(x) ** 2).mean())(model)
        update(optimizer, model, grads)
        model.rate.update(model.first(x) > 0)

    one, other = Net(0), Net(0)
    its = [optimizer(one), optimizer(other)]
    plain = nnx.jit(train, static_argnames="scale")
    steps = [tallax.compile_step(train, one, its[0], static_argnames="scale") for _ in range(2)]
    x = jax.random.normal(jax.random.key(0), (5, 3))
    for k in range(6):
        steps[k % 2](x, scale=1.0 + k % 2)
        plain(other, its[1], x, scale=1.0 + k % 2)
    for step in steps:
        step.sync()
    assert bits((one, its[0])) == bits((other, its[1]))


def test_a_logger_between_steps(tmp_path):
    """A Logger reads the current state of each step, after changes by either step."""
    a, shared = nnx.Dict(count=tallax.Counter()), nnx.Dict(total=tallax.Counter())

    def count(*models):
        for model in models:
            for name in ("count", "total"):
                if name in model:
                    model[name] += 1

    first, second = tallax.compile_step(count, a, shared), tallax.compile_step(count, shared)
    for k in range(1, 4):
        first()
        second()
        assert first.collect().result() == {"count": k, "total": 2 * k}
        assert second.collect().result() == {"total": 2 * k}
        assert tallax.collect(a, shared).result() == {"count": k, "total": 2 * k}


def test_ctrl_c_between_steps_loses_none():
    """Interrupted at any moment, both objects have the state of a whole number of steps."""
    a, b = (nnx.Dict(total=nnx.Variable(jnp.zeros(64)), count=tallax.Counter(), last=tallax.Buffer(0.0)) for _ in "ab")

    def run(*models):
        for model in models:
            model.total[...] = model.total[...] + 1.0
            model.count += 1
            model.last[...] = model.total[...][0]

    both, one = tallax.compile_step(run, a, b), tallax.compile_step(run, b)
    both()
    one()
    interrupts, dropped, calls = 0, 0, 1
    gc.disable()  # JAX has a function called at each collection, and Python drops what is raised in it
    try:
        while interrupts < 60:
            timer = threading.Timer(0.002 + 0.00003 * interrupts, signal.raise_signal, [signal.SIGINT])
            given_up = time.monotonic() + 10.0
            try:
                timer.start()
                while time.monotonic() < given_up:
                    both()
                    one()
                    calls += 1
                dropped += 1
                assert dropped < 3
            except KeyboardInterrupt:
                interrupts += 1
            finally:
                timer.join()
    finally:
        gc.enable()
    both.sync()
    one.sync()
    for model, times in ((a, 1), (b, 2)):
        count = int(model.count)
        assert times * calls <= count <= times * (calls + interrupts)
        assert model.total[...].tolist() == [count] * 64
        assert float(model.last[...]) == count


@pytest.mark.parametrize("kind", AXES)
def test_steps_on_a_mesh(kind):
    """Parameters keep their sharding, counts are whole, and every step is compiled once."""
    mesh = mesh_of(kind)

    def made():
        model = nnx.Dict(weight=nnx.Param(jnp.ones((8, 2))), seen=tallax.Counter(), rate=tallax.statistics.Rate())
        return model, nnx.Dict(seen=tallax.Counter(), total=nnx.Variable(jnp.zeros((8, 2))))

    def train(model, other, x):
        model.seen.count(jnp.isfinite(x))
        model.rate.update(x > 0)
        model.weight[...] = model.weight[...] * 2.0
        other.total[...] = other.total[...] + model.weight[...]
        other.seen += 1

    def evaluate(model, x):
        model.seen.count(x > 0)
        return model.weight[...].sum()

    model, other = made()
    for variable in (model.weight, other.total):
        variable.set_raw_value(placed(variable.get_raw_value(), mesh, None, "model"))
    x = np.linspace(-1.0, 2.0, 24, dtype=np.float32).reshape(8, 3)
    plain, its = made()
    with jax.set_mesh(mesh):
        steps = tallax.compile_step(train, model, other), tallax.compile_step(evaluate, model)
        batch = placed(x, mesh, "data")
        for _ in range(3):
            jax.block_until_ready(steps[0](batch))
            jax.block_until_ready(steps[1](batch))
            nnx.jit(train)(plain, its, x)
            nnx.jit(evaluate)(plain, x)
            assert int(model.seen) == int(plain.seen)
        for step in steps:
            step.sync()
    assert [step.traces for step in steps] == [1, 1]
    assert model.weight[...].sharding.spec == P(None, "model")
    assert (int(other.seen), int(model.seen)) == (int(its.seen), int(plain.seen))
    np.testing.assert_array_equal(other.total[...], its.total[...])
