# SPDX-License-Identifier: Apache-2.0
"""`value_and_grad` and `grad`: Flax's own gradients, and all other state as one call of the function leaves it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import tallax
from tests.cases import MODES, STATE_CASES, Everything, Model, assert_same_state, batch
from tests.quick import by_turns, cell

# Flax's gradients are compiled in the same way; tests/test_laws.py compiles every type of state as users do.
pytestmark = pytest.mark.usefixtures("drops_programs")


def _eager(f):
    return f


def _eager_tree(f):
    def call(*args):
        with nnx.set_graph_mode(False):
            return f(*args)

    return call


EVERYWHERE = {"eager": _eager, "eager-tree": _eager_tree, **MODES}
everywhere = pytest.mark.parametrize("mode", EVERYWHERE)
# Every mode is in the tests of training, of threaded state and of float state; others have these, as each is a program.
in_two_modes = pytest.mark.parametrize("mode", [cell(mode, quick=mode in ("graph", "tree")) for mode in EVERYWHERE])


in_graph_mode = functools.partial(nnx.value_and_grad, graph=True, graph_updates=True)  # what Flax itself gets right


class Net(nnx.Module):
    """State of every kind: parameters, batch statistics, random streams, exact counts, a float that is no parameter."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.first = nnx.Linear(3, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.second = nnx.Linear(8, 2, rngs=rngs)
        self.step = tallax.StepCounter(rngs)
        self.scale = nnx.Variable(jnp.ones(2))

    def __call__(self, x):
        self.step()
        y = self.second(self.dropout(nnx.relu(self.norm(self.first(x)))))
        self.scale[...] = 0.5 * self.scale[...] + 0.5 * jnp.abs(y).mean(0)
        return y / jnp.broadcast_to(self.scale[...], y.shape)


def loss_fn(model, x):
    return (model(x) ** 2).mean()


def reference_mode(mode):
    """Returns how the program to compare with is compiled, so that XLA rounds both alike."""
    return _eager if mode.startswith("eager") else nnx.jit


def arrays(tree):
    """Returns every array of a tree on the host, random keys as their data."""
    leaves = jax.tree.leaves(nnx.as_pure(tree))
    keys = [jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves]
    return [np.asarray(jax.random.key_data(x) if is_key else x) for x, is_key in zip(leaves, keys, strict=True)]


def assert_same(left, right):
    """Asserts that two trees have one structure and the same bits."""
    assert jax.tree.structure(left) == jax.tree.structure(right)
    pairs = list(zip(arrays(left), arrays(right), strict=True))
    assert pairs
    for a, b in pairs:
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert a.tobytes() == b.tobytes(), (a, b)


# --- The gradients are Flax's, in every mode --------------------------------------------------------------------------


def trained(differentiate, compiled):
    """Returns the losses and gradients of three steps, and the state after them."""
    model = Net()
    both = nnx.Dict(model=model, optimizer=nnx.Optimizer(model, optax.sgd(0.1, momentum=0.9), wrt=nnx.Param))

    def step(both, x):
        loss, grads = differentiate(loss_fn)(both.model, x)
        with jax.numpy_dtype_promotion("standard"):  # optax itself mixes dtypes
            both.optimizer.update(both.model, grads)
        return loss, grads

    step = compiled(step)
    return [step(both, batch(k)) for k in range(3)], nnx.state(both)


trained_by_flax = functools.cache(functools.partial(trained, in_graph_mode))


@everywhere
def test_three_steps_of_training_are_those_of_flax(mode):
    """Losses, gradients, parameters and all other state are those of Flax's graph mode, to the bit."""
    expected = trained_by_flax(reference_mode(mode))
    got = trained(tallax.value_and_grad, EVERYWHERE[mode])
    assert_same(got, expected)
    assert type(got[0][0][1]) is nnx.State
    assert len({loss.item() for loss, _ in got[0]}) == 3
    assert any(x.any() for x in arrays(got[0][0][1]))
    assert int(got[1]["model"]["step"]["step"]) == 3


@everywhere
def test_state_is_threaded_and_has_no_gradient(mode):
    """Only the layer has gradients; every type of state is bit-equal to a run without differentiation."""
    model, alone = Everything(), Everything()
    run = EVERYWHERE[mode](tallax.grad(lambda model, x: model(x).sum()))
    for k in range(2):
        grads = run(model, batch(k))
        alone(batch(k))
        assert set(grads) == {"layer"}
        np.testing.assert_allclose(grads["layer"]["kernel"][...], np.repeat(batch(k).sum(0)[:, None], 2, 1), rtol=1e-5)
    for name in STATE_CASES:
        assert_same_state(model.parts[name], alone.parts[name])


def test_grad_is_value_and_grad_without_the_value():
    """Gradients and aux are those of value_and_grad, and state is threaded alike."""
    model, other = Net(), Net()

    def loss(model, x):
        return loss_fn(model, x), x.sum()

    (value, aux), grads = tallax.value_and_grad(loss, has_aux=True)(model, batch())
    assert_same(tallax.grad(loss, has_aux=True)(other, batch()), (grads, aux))
    assert_same(nnx.state(model), nnx.state(other))
    assert_same(tallax.grad(loss_fn)(Net(), batch()), grads)
    assert_same(tallax.value_and_grad(loss_fn)(Net(), batch()), (value, grads))


FILTERS = {
    "type": nnx.Variable,
    "two-types": (nnx.Param, nnx.BatchStat),
    "any": nnx.Any(nnx.BatchStat, nnx.PathContains("second")),
    "all-and-not": nnx.All(nnx.Param, nnx.Not(nnx.PathContains("kernel"))),
    "path": nnx.PathContains("first"),
    "callable": lambda path, _: path[0] == "norm" and path[-1] in ("scale", "mean"),
    "everything": ...,
}


class Floats(nnx.Module):
    def __init__(self):
        self.first, self.second = (nnx.Linear(3, 3, rngs=nnx.Rngs(k)) for k in range(2))
        self.norm = nnx.BatchNorm(3, rngs=nnx.Rngs(0), use_running_average=True)

    def __call__(self, x):
        return self.second(self.norm(self.first(x)))


@functools.cache
def filtered_by_flax(name, compiled):
    return compiled(in_graph_mode(loss_fn, argnums=nnx.DiffState(0, FILTERS[name])))(Floats(), batch())


@pytest.mark.parametrize(("name", "mode"), by_turns(FILTERS, EVERYWHERE))
def test_any_filter(name, mode):
    """Only state that the filter matches has a gradient, equal to Flax's gradient in graph mode."""
    model, wrt = Floats(), FILTERS[name]
    got = EVERYWHERE[mode](tallax.value_and_grad(loss_fn, wrt=wrt))(model, batch())
    assert_same(got, filtered_by_flax(name, reference_mode(mode)))
    assert set(nnx.to_flat_state(got[1]).paths) == set(nnx.to_flat_state(nnx.state(model, wrt)).paths)
    assert 1 <= len(jax.tree.leaves(got[1])) <= 8


@everywhere
def test_float_state_is_never_differentiated(mode):
    """A float that the loss depends on, and that changes, has no gradient; outside graph mode, Flax gives it one."""
    model = nnx.Dict(w=nnx.Param(jnp.float32(3.0)), scale=nnx.Variable(jnp.float32(2.0)))

    def loss(model):
        value = model.w[...] * model.scale[...]
        model.scale[...] += model.w[...]
        return value

    value, grads = EVERYWHERE[mode](tallax.value_and_grad(loss))(model)
    assert (value, set(grads), grads["w"][...], model.scale[...]) == (6, {"w"}, 2, 5)


# --- What may be differentiated ---------------------------------------------------------------------------------------


def _total(tree):
    return sum((jnp.asarray(x) ** 2).sum() for x in jax.tree.leaves(nnx.as_pure(nnx.state((tree,)))))


def _linear():
    return nnx.Linear(2, 3, rngs=nnx.Rngs(0))


ARGUMENTS = {
    "array": lambda: jnp.arange(3.0),
    "numpy": lambda: np.arange(3, dtype=np.float32),
    "number": lambda: jnp.float32(3.0),
    "pytree": lambda: {"a": (jnp.arange(3.0), jnp.float32(2.0)), "b": [jnp.ones((2, 2))]},
    "module": _linear,
    "nnx-dict": lambda: nnx.Dict(a=_linear(), b=nnx.List([_linear()])),
    "tuple-of-modules": lambda: (_linear(), {"a": _linear()}),
    "modules-and-arrays": lambda: (_linear(), jnp.arange(3.0)),
    "state": lambda: nnx.state(_linear()),
    "pure-state": lambda: nnx.as_pure(nnx.state(_linear())),
    "variable": lambda: nnx.Param(jnp.arange(3.0)),
    "variables": lambda: [nnx.Param(jnp.arange(3.0)), {"a": nnx.Param(jnp.ones(2))}],
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_that_may_be_differentiated(name):
    """The gradients of an argument have the structure that Flax gives them: here, they are twice the values."""
    argument = ARGUMENTS[name]()
    expected = in_graph_mode(_total)(ARGUMENTS[name]())
    assert_same(tallax.value_and_grad(_total)(argument), expected)

    def loss(x, it, *, n):
        return _total(it) * x * n

    _, (by_x, by_it) = tallax.value_and_grad(loss, argnums=(0, 1))(2.0, argument, n=1.0)
    assert by_x == expected[0]
    assert jax.tree.structure(by_it) == jax.tree.structure(expected[1])
    for gradient, value in zip(arrays(by_it), arrays(expected[1]), strict=True):
        assert np.array_equal(gradient, 2 * value)
        assert value.any() or value.ndim == 1  # a bias starts at zero


def test_other_state_beside_parameters():
    """State that the filter does not match has no gradient, also within a State, a tuple or a dict."""
    model = Net()
    state = nnx.state(model)
    grads = tallax.grad(lambda state: _total(nnx.filter_state(state, nnx.Param)))(state)
    assert_same(grads, in_graph_mode(_total)(nnx.state(model, nnx.Param))[1])
    linear, counter, param = _linear(), tallax.Counter(), nnx.Param(jnp.ones(2))

    def loss(models):
        models["counter"] += 1
        return _total(models["both"][0]) + _total(models["both"][1])

    grads = tallax.grad(loss)({"both": (linear, param), "counter": counter})
    assert (int(counter), list(grads["counter"])) == (1, [])
    assert_same(grads["both"][0], in_graph_mode(_total)(linear)[1])
    assert_same(grads["both"][1][...], 2 * jnp.ones(2))


def test_argnums():
    """Integers in any order, negative ones too; a sequence gives a tuple."""
    a, b, c = jnp.float32(2.0), jnp.float32(3.0), jnp.float32(5.0)

    def loss(a, b, c):
        return a * a + b * 10 + c * 100

    assert tallax.grad(loss)(a, b, c) == 4
    assert tallax.grad(loss, argnums=-1)(a, b, c) == 100
    assert tallax.grad(loss, argnums=[1])(a, b, c) == (10,)
    assert tallax.grad(loss, argnums=(2, 0))(a, b, c) == (100, 4)
    assert tallax.value_and_grad(loss, argnums=(-1, 0))(a, b, c) == (534, (100, 4))


@pytest.mark.parametrize("mode", ["eager", "eager-tree", "graph"])
def test_shared_variables_are_there_once(mode):
    """Shared layers and modules given twice are one object within, count once, and have one, total, gradient."""

    class Shared(nnx.Module):
        def __init__(self):
            self.a = self.b = Net()
            self.tied = self.a.first.kernel

    def loss(left, right, x):
        assert left.a is left.b is right.a
        assert left.tied is right.b.first.kernel
        return loss_fn(left.a, x) + 3 * loss_fn(right.b, x)

    expected_model, model = Shared(), Shared()
    compiled = reference_mode(mode)
    expected = compiled(lambda m, x: in_graph_mode(loss, argnums=(0, 1))(m, m, x))(expected_model, batch())
    run = EVERYWHERE[mode](lambda m, x: tallax.value_and_grad(loss, argnums=(1, 0))(m, m, x))
    value, (second, first) = run(model, batch())
    assert_same((value, (first, second)), expected)
    assert_same(nnx.state(model, graph=True), nnx.state(expected_model, graph=True))
    assert (list(first), list(second)) == (["a"], [])
    assert int(model.b.step.step) == 2
    for argnums in (0, 1):  # where Flax raises for inconsistent aliasing
        run = EVERYWHERE[mode](lambda m, x, argnums=argnums: tallax.grad(loss, argnums=argnums)(m, m, x))
        assert_same(run(Shared(), batch()), first)
    in_a = EVERYWHERE[mode](
        lambda m, x: tallax.grad(loss, wrt=lambda path, v: path[0] == "a" and isinstance(v, nnx.Param), argnums=(0, 1))(
            m, m, x
        )
    )
    assert_same(in_a(Shared(), batch())[0], first)


def test_a_filter_by_path_picks_what_the_optimizer_picks():
    """Paths start at the argument, also where it is a dict of modules."""
    models = {"encoder": _linear(), "decoder": _linear()}
    encoder = nnx.PathContains("encoder")
    grads = tallax.grad(_total, wrt=encoder)(models)
    assert [len(jax.tree.leaves(grads[name])) for name in ("encoder", "decoder")] == [2, 0]
    optimizer = nnx.Optimizer(models, optax.sgd(0.5), wrt=encoder)
    with jax.numpy_dtype_promotion("standard"):
        optimizer.update(models, grads)
    assert not models["encoder"].kernel[...].any()
    assert models["decoder"].kernel[...].any()


# --- All other state goes its way -------------------------------------------------------------------------------------


@in_two_modes
def test_other_arguments_are_updated(mode):
    """A teacher, random streams, an optimizer and keyword arguments are updated once, as by a plain call."""

    class Distilling(nnx.Module):
        def __init__(self):
            self.student, self.teacher, self.rngs, self.extra = Net(), Net(), nnx.Rngs(3), tallax.Counter()
            self.optimizer = nnx.Optimizer(self.student, optax.adam(0.1), wrt=nnx.Param)

    def loss(rngs, student, x, others, *, optimizer, extra):
        extra.increment()
        optimizer.step[...] += jnp.uint32(5)
        noise = jax.random.normal(rngs.params(), x.shape)
        return ((student(x) - others["teacher"](x + noise)) ** 2).mean(), noise

    def step(m, x):
        differentiated = tallax.value_and_grad(loss, argnums=1, has_aux=True)
        others = {"teacher": m.teacher, "name": "any", "none": None}
        return differentiated(m.rngs, m.student, x, others, optimizer=m.optimizer, extra=m.extra)

    m, alone = Distilling(), Distilling()
    (_, noise), grads = EVERYWHERE[mode](step)(m, batch())
    plain = {"optimizer": alone.optimizer, "extra": alone.extra}
    _, expected = loss(alone.rngs, alone.student, batch(), {"teacher": alone.teacher}, **plain)
    assert set(grads) == {"first", "norm", "second"}
    np.testing.assert_allclose(noise, expected, rtol=1e-6)
    assert (int(m.extra), int(m.optimizer.step[...])) == (1, 5)
    assert int(m.rngs.default.count[...]) == int(alone.rngs.default.count[...]) == 1
    for net, other in ((m.student, alone.student), (m.teacher, alone.teacher)):
        assert int(net.step.step) == 1
        for a, b in zip(arrays(nnx.state(net)), arrays(nnx.state(other)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        assert net.norm.mean[...].all()


@in_two_modes
def test_objects_types_and_traces_stay(mode):
    """Modules and Variables stay the same objects, shapes, dtypes and weak types stay, and many calls trace once."""
    model = Net()
    held = nnx.Dict(model=model, weak=nnx.Variable(jnp.asarray(2.0)), half=nnx.Variable(jnp.float16(1.0)))
    assert held.weak[...].weak_type

    def objects():
        return [(path, x) for path, x in nnx.iter_graph(held) if isinstance(x, nnx.Variable | nnx.Module)]

    def types():
        return [(x.shape, x.dtype, getattr(x, "weak_type", False)) for x in jax.tree.leaves(nnx.state(held))]

    before, types_before, traces = objects(), types(), []

    def loss(held, x):
        traces.append(1)
        held.half[...] += jnp.float16(1.0)
        held.weak[...] = held.weak[...] * 2.0
        return loss_fn(held.model, x)

    run = EVERYWHERE[mode](tallax.value_and_grad(loss))
    for k in range(4):
        run(held, batch(k))
    assert len(traces) == (4 if mode.startswith("eager") else 1)
    assert len(before) == len(objects()) > 20
    assert all(a[0] == b[0] and a[1] is b[1] for a, b in zip(before, objects(), strict=True))
    assert types() == types_before
    assert (int(model.step.step), float(held.half[...]), float(held.weak[...])) == (4, 5, 32)


@pytest.mark.parametrize("mode", ["eager", "eager-tree", "graph"])
def test_changes_of_structure_come_back(mode):
    """New Variables, replaced layers, and new and changed attributes are the caller's, as in Flax's graph mode."""

    class Changing(Net):
        calls = 0

        def __call__(self, x):
            self.calls += 1
            self.seen = nnx.Variable(x.sum())
            self.first = nnx.Linear(3, 8, rngs=nnx.Rngs(7)) if self.calls == 1 else self.first
            self.alias = self.second
            return super().__call__(x)

    compiled = reference_mode(mode)
    expected, model = Changing(), Changing()
    first, second = model.first, model.second
    for k in range(2):
        value = compiled(in_graph_mode(loss_fn))(expected, batch(k))
        assert_same(EVERYWHERE[mode](tallax.value_and_grad(loss_fn))(model, batch(k)), value)
        assert_same(nnx.state(model, graph=True), nnx.state(expected, graph=True))
    assert model.calls == expected.calls == 2
    assert float(model.seen[...]) == pytest.approx(float(batch(1).sum()))
    assert model.alias is model.second is second
    assert model.first is not first


def test_sown_values_come_back():
    """Sown values are collected, and pass gradients on."""

    class Sowing(nnx.Module):
        def __init__(self):
            self.layer = nnx.Linear(3, 2, rngs=nnx.Rngs(0))

        def __call__(self, x):
            y = self.layer(x)
            self.sow(nnx.Intermediate, "y", y)
            return y

    model = Sowing()

    def loss(model, x):
        _, sown = nnx.capture(model, nnx.Intermediate)(x)
        return _total(sown["y"]), sown

    (value, sown), grads = tallax.value_and_grad(loss, has_aux=True)(model, batch())
    np.testing.assert_array_equal(sown["y"][0], model.layer(batch()))
    assert value == pytest.approx(float((model.layer(batch()) ** 2).sum()))
    assert grads["layer"]["kernel"][...].any()


class Normed(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.spectral = nnx.SpectralNorm(nnx.Linear(3, 4, rngs=rngs), rngs=rngs)
        self.weight = nnx.WeightNorm(nnx.Linear(4, 2, rngs=rngs), use_scale=False, rngs=rngs)

    def __call__(self, x):
        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):  # Flax's own layers need it
            return self.weight(self.spectral(x))


def normed(differentiate, compiled):
    """Returns the losses and gradients of two calls, and the model after them."""
    model, run = Normed(), compiled(differentiate(loss_fn))
    return [run(model, batch(k)) for k in range(2)], model


normed_by_flax = functools.cache(functools.partial(normed, in_graph_mode))


@in_two_modes
def test_parameters_that_the_forward_pass_writes(mode):
    """SpectralNorm and WeightNorm write parameters, which reach the caller as in Flax's graph mode."""
    got, model = normed(tallax.value_and_grad, EVERYWHERE[mode])
    expected, expected_model = normed_by_flax(reference_mode(mode))
    assert_same(got, expected)
    assert_same(nnx.state(model), nnx.state(expected_model))
    kernel = np.asarray(model.weight.layer_instance.kernel[...])  # a value, not a tracer that leaked
    assert not np.allclose(kernel, Normed().weight.layer_instance.kernel[...])
    np.testing.assert_allclose((kernel**2).sum(0), 1, rtol=1e-5)


@pytest.mark.parametrize(("failing", "mode"), by_turns(["raise", "loss"], EVERYWHERE))
def test_a_failing_call_changes_nothing(failing, mode):
    """If the function raises, or returns no loss, state and attributes are as they were, and the next call works."""
    model, fresh = Net(), Net()

    def loss(model, x):
        model.new = nnx.Variable(model(x))
        if failing == "raise":
            raise RuntimeError("in the loss")
        return model.new[...]

    with pytest.raises((RuntimeError, tallax.InvalidTypeError)):
        EVERYWHERE[mode](tallax.value_and_grad(loss))(model, batch())
    assert_same(nnx.state(model), nnx.state(fresh))
    assert not hasattr(model, "new")
    EVERYWHERE[mode](tallax.value_and_grad(loss_fn))(model, batch())
    assert int(model.step.step) == 1


def test_eager_state_stays_on_the_host():
    """In eager code a counter counts in NumPy without a dispatch, also inside a gradient."""
    model = Model(tallax.Counter)
    tallax.grad(lambda model, x: (STATE_CASES["counter"].touch(model, x), model(x).sum())[1])(model, batch())
    assert isinstance(model.item.get_raw_value(), np.ndarray)


def test_aux_may_hold_anything():
    """Modules and Variables in aux are the caller's own; all else is as it was returned."""
    model, x, rngs = Net(), batch(), nnx.Rngs(0)

    def loss(model, x, rngs):
        objects = {"model": model, "param": [model.first.kernel], "rngs": rngs}
        return loss_fn(model, x), {**objects, "text": "a", "x": x, "none": None}

    (_, aux), _ = tallax.value_and_grad(loss, has_aux=True)(model, x, rngs)
    assert aux["model"] is model
    assert aux["rngs"] is rngs
    assert aux["param"][0] is model.first.kernel
    assert (aux["text"], aux["none"]) == ("a", None)
    assert aux["x"] is x


# --- Under transformations --------------------------------------------------------------------------------------------


def _scan(model, x):
    def body(model, row):
        return model, model(row)

    return nnx.scan(body, in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))(model, x[:, None])[1]


INSIDE = {
    "remat": nnx.remat(lambda model, x: model(x)),
    "scan": _scan,
    "cond": lambda model, x: nnx.cond(x.sum() > -1e9, lambda m, x: m(x), lambda m, x: m(x) * 2, model, x),
    "jit": nnx.jit(lambda model, x: model(x)),
}


def inside_loss(differentiate, name, compiled):
    """Returns the loss and the gradients by a transformed forward pass, and the model after it."""
    model = Net()
    run = compiled(differentiate(lambda model, x: (INSIDE[name](model, x) ** 2).mean()))
    return run(model, batch()), model


inside_loss_by_flax = functools.cache(functools.partial(inside_loss, in_graph_mode))


@pytest.mark.parametrize("mode", ["eager", "graph", "tree"])
@pytest.mark.parametrize("name", INSIDE)
def test_transformations_within_the_loss(name, mode):
    """State is counted once per execution, and gradients are Flax's, if the forward pass itself is transformed."""
    expected, expected_model = inside_loss_by_flax(name, reference_mode(mode))
    with nnx.set_graph_mode(mode != "tree"):
        got, model = inside_loss(tallax.value_and_grad, name, nnx.jit if mode == "tree" else EVERYWHERE[mode])
    assert_same(got, expected)
    assert_same(nnx.state(model), nnx.state(expected_model))
    assert int(model.step.step) == (8 if name == "scan" else 1)


@everywhere
def test_a_gradient_of_a_gradient(mode):
    """A gradient penalty: each level runs the pass once, and counts it once."""

    def inner(model, x):
        model.item += 1
        return (model.layer(x) ** 3).sum()

    def outer(model, x):
        model.item += 10
        return _total(tallax.grad(inner)(model, x))

    def pure(w, b, x):
        grads = jax.grad(lambda w, b: ((x @ w + b[None]) ** 3).sum(), argnums=(0, 1))(w, b)
        return sum((part**2).sum() for part in grads)

    model = Model(tallax.Counter)
    by_w, by_b = jax.grad(pure, argnums=(0, 1))(model.layer.kernel[...], model.layer.bias[...], batch())
    grads = EVERYWHERE[mode](tallax.grad(outer))(model, batch())
    np.testing.assert_allclose(grads["layer"]["kernel"][...], by_w, rtol=1e-4)
    np.testing.assert_allclose(grads["layer"]["bias"][...], by_b, rtol=1e-4)
    assert int(model.item) == 11


@in_two_modes
def test_training_in_a_scan(mode):
    """A scan whose body takes a step on the carried model is as the same steps one by one."""

    def step(both, x):
        loss, grads = tallax.value_and_grad(loss_fn)(both.model, x)
        with jax.numpy_dtype_promotion("standard"):
            both.optimizer.update(both.model, grads)
        return both, loss

    def run(both, xs):
        return nnx.scan(step, in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))(both, xs)[1]

    model = Net()
    both = nnx.Dict(model=model, optimizer=nnx.Optimizer(model, optax.sgd(0.1, momentum=0.9), wrt=nnx.Param))
    with nnx.set_graph_mode(mode not in ("eager-tree", "tree")):
        losses = EVERYWHERE[mode](run)(both, jnp.stack([batch(k) for k in range(3)]))
    steps, state = trained_by_flax(nnx.jit)
    np.testing.assert_allclose(losses, [loss for loss, _ in steps], rtol=1e-4)
    assert int(both.model.step.step) == 3
    for a, b in zip(arrays(nnx.state(both)), arrays(state), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_stacked_models():
    """Under vmap, each of the stacked models has its gradients and its counts."""

    @nnx.vmap(in_axes=0, out_axes=0)
    def make(key):
        return Model(tallax.Counter)

    stacked, alone = make(jnp.arange(2)), Model(tallax.Counter)
    xs = jnp.stack([batch(0), batch(1)])

    def loss(model, x):
        model.item.count(x > 0)
        return (model(x) ** 2).sum()

    grads = nnx.vmap(tallax.grad(loss), in_axes=(0, 0))(stacked, xs)
    assert np.asarray(stacked.item).tolist() == [int((x > 0).sum()) for x in xs]
    expected = tallax.grad(loss)(alone, xs[1])
    np.testing.assert_allclose(grads["layer"]["kernel"][...][1], expected["layer"]["kernel"][...], rtol=1e-5)


def test_shards_of_a_batch():
    """In shard_map, the gradient of replicated parameters is that of the whole batch, and a count is of all shards."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    model, alone = Model(tallax.Counter), Model(tallax.Counter)
    x = batch(size=16)
    graphdef, state = nnx.split(model)

    def loss(model, x):
        model.item.count(x > 0)
        return (model(x) ** 2).sum()

    def body(state, x):
        inner = nnx.merge(graphdef, state)
        value, grads = tallax.value_and_grad(loss)(inner, x)
        return jax.lax.psum(value, "data"), grads, nnx.state(inner)

    sharded = jax.shard_map(body, mesh=mesh, in_specs=(jax.P(), jax.P("data")), out_specs=jax.P())
    value, grads, state = jax.jit(sharded)(state, x)
    nnx.update(model, state)
    expected_value, expected = tallax.value_and_grad(loss)(alone, x)
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    for a, b in zip(arrays(grads), arrays(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    assert int(model.item) == int(alone.item) == int((x > 0).sum())


jitted_by_flax = nnx.jit(in_graph_mode(loss_fn))
HELD = {
    "donated": lambda f, model: functools.partial(nnx.jit(f, donate_argnums=0), model),
    "donated-tree": lambda f, model: functools.partial(nnx.jit(f, donate_argnums=0, graph=False), model),
    "cached_partial": lambda f, model: nnx.cached_partial(nnx.jit(f), model),
    "jit_partial": lambda f, model: nnx.jit_partial(f, model, graph=False),
}


@pytest.mark.parametrize("held", HELD.values(), ids=HELD)
def test_steps_that_hold_a_model(held):
    """A step that donates its model, or that Flax keeps flat between calls, is as any other."""
    model, alone = Net(), Net()
    step = held(tallax.value_and_grad(loss_fn), model)
    for k in range(3):
        assert_same(step(batch(k)), jitted_by_flax(alone, batch(k)))
    assert_same(nnx.state(model), nnx.state(alone))


# --- What it costs ----------------------------------------------------------------------------------------------------


def test_the_compiled_program_is_that_of_flax():
    """Under jit it costs nothing over Flax's graph mode: both lower to the same program, text for text."""
    graphdef, state = nnx.split(Net())

    def lowered(differentiate):
        def pure(state, x):
            model = nnx.merge(graphdef, state)
            return differentiate(loss_fn)(model, x), nnx.state(model)

        return jax.jit(pure).lower(state, batch()).as_text()

    assert lowered(tallax.value_and_grad) == lowered(in_graph_mode)
