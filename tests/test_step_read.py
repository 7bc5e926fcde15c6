# SPDX-License-Identifier: Apache-2.0
"""`step.read` computes with the current state, compiles once, and changes nothing."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import tallax


@pytest.fixture(autouse=True)
def promotion_as_flax_needs_it():
    """`nnx.metrics.Average` adds integers to floats."""
    with jax.numpy_dtype_promotion("standard"):
        yield


class Net(tallax.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(3, 3, rngs=rngs) for _ in range(2)])
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.step = tallax.StepCounter(rngs)
        self.active = tallax.statistics.Rate(shape=3)
        self.scale = tallax.Buffer(jnp.ones(3))
        self.mean = nnx.metrics.Average()

    def __call__(self, x):
        self.step()
        for layer in self.layers:
            x = nnx.relu(layer(x))
        x = self.dropout(self.norm(x)) * self.scale.value[None]
        self.active.update(x > 0)
        return x


def train(model, optimizer, x):
    def loss_of(model):
        return (model(x) ** 2).mean()

    loss, grads = tallax.value_and_grad(loss_of)(model)
    optimizer.update(model, grads)
    model.mean.update(values=loss)
    return loss


def made(**options):
    model = Net(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    return model, optimizer, tallax.compile_step(train, model, optimizer, **options)


X = np.linspace(-1.0, 1.0, 12, dtype=np.float32).reshape(4, 3)


def evaluate(model, optimizer, x):
    return nnx.view(model, deterministic=True, use_running_average=True)(x)


def quiet(model, x):
    return (nnx.view(model, deterministic=True, use_running_average=True)(x) ** 2).sum()


def branching(model, optimizer, x):
    return nnx.cond(x.sum() > 0, lambda model: model.scale.value, lambda model: -model.scale.value, model)


def looping(model, optimizer, x):
    return nnx.fori_loop(0, 3, lambda _, pair: (pair[0], pair[1] + pair[0].scale.value), (model, jnp.zeros(3)))[1]


# Transformations of Flax return all state of the model, so it looks written to.
READS = {
    "norm": lambda model, optimizer, x: optax.tree.norm(nnx.state(model, nnx.Param)),
    "all-state": lambda model, optimizer, x: optax.tree.norm(nnx.state(optimizer, nnx.OptState)),
    "metric": lambda model, optimizer, x: model.mean.compute(),
    "counts": lambda model, optimizer, x: (model.step.step.value, model.active.compute()),
    "evaluate": evaluate,
    "grad-norm": lambda model, optimizer, x: optax.tree.norm(nnx.grad(quiet)(model, x)),
    "our-grad-norm": lambda model, optimizer, x: optax.tree.norm(tallax.grad(quiet)(model, x)),
    "jit": lambda model, optimizer, x: nnx.jit(quiet)(model, x),
    "remat": lambda model, optimizer, x: nnx.remat(quiet)(model, x),
    "cond": branching,
    "loop": looping,
    "clone-that-trains": lambda model, optimizer, x: nnx.clone(model)(x),
    "pure": lambda model, optimizer, x: nnx.to_pure_dict(nnx.state(model, nnx.Param)),
    "array": lambda model, optimizer, x: model.layers[0].kernel[...],
    "argument": lambda model, optimizer, x: x,
    "number": lambda model, optimizer, x: 3.0,
}


def bits(result):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(result)]


@pytest.mark.parametrize("graph", [True, False], ids=["graph", "tree"])
def test_a_read_is_the_function_of_the_synced_objects(graph):
    """The same results, to the bit, before the first step, between steps, and after `sync`; nothing is given back."""
    model, optimizer, step = made(graph=graph)
    plain = {name: nnx.jit(run, graph=True, graph_updates=True) for name, run in READS.items()}
    read = {}
    for moment in ("before", "during", "after"):
        if moment == "during":
            for _ in range(2):
                step(X)
        read[moment] = {name: jax.tree.map(jnp.copy, step.read(run, X)) for name, run in READS.items()}
        if moment == "during":
            with pytest.raises(tallax.StateOwnedByStepError):
                model.layers[0].kernel[...]
            step.sync()
        for name, run in plain.items():
            other_model, other_optimizer = nnx.clone((model, optimizer))  # the objects have their values
            assert bits(read[moment][name]) == bits(run(other_model, other_optimizer, X)), (moment, name)
    assert step.traces == 1


def test_results_outlive_the_next_steps():
    """Arrays, Variables and modules in a result are copies, although steps donate the state."""
    model, _, step = made()
    step(X)

    def parts(model, optimizer):
        return nnx.clone(model), model, nnx.state(model, nnx.Param), model.layers[0].kernel, model.layers[0].kernel[...]

    clone, same, params, variable, array = step.read(parts)
    step(X)
    step(X)
    assert same is not model
    assert int(clone.step.step) == int(same.step.step) == 1
    assert int(model.step.step) == 3
    for other in (clone.layers[0].kernel, same.layers[0].kernel, params["layers"][0]["kernel"], variable):
        np.testing.assert_array_equal(other[...], array)
    clone.layers[0].kernel[...] = jnp.zeros((3, 3))
    step.sync()
    assert not np.array_equal(model.layers[0].kernel[...], array)


def test_reads_change_no_training():
    """A run with reads between all steps is the run without, to the bit."""
    model, _, step = made()
    other, _, plain = made()
    for _ in range(3):
        step(X)
        plain(X)
        for run in READS.values():
            step.read(run, X)
    step.sync()
    plain.sync()
    got, expected = (bits(nnx.state(each, nnx.Not(nnx.RngKey))) for each in (model, other))
    assert got == expected
    assert step.traces == plain.traces == 1


WRITES = {
    "train-mode": (lambda model, optimizer, x: model(x), r"^model/active/counts.*model/dropout/rngs/count.*norm/mean"),
    "counter": (lambda model, optimizer, x: model.step(), r"^model/step/step: was changed"),
    "parameter": (lambda model, optimizer, x: model.layers[0].bias.set_value(x[0]), r"^model/layers/0/bias: was"),
    "to-its-double": (
        lambda model, optimizer, x: nnx.jit(lambda m: m.layers[0].bias.set_value(m.layers[0].bias[...] * 1.0))(model),
        r"^model/layers/0/bias: was changed",
    ),
    "in-a-branch": (
        lambda model, optimizer, x: nnx.cond(
            x.sum() > 9, lambda m: m.scale.set_value(2 * m.scale.value), lambda m: None, model
        ),
        r"^model/scale: was changed",
    ),
    "in-a-loop": (
        lambda model, optimizer, x: nnx.fori_loop(
            0, 2, lambda _, m: [m.scale.set_value(2 * m.scale.value), m][1], model
        ),
        r"^model/scale: was changed",
    ),
    "swapped": (
        lambda model, optimizer, x: nnx.update(
            model.layers[0], nnx.as_pure(nnx.state(nnx.clone(model.layers[1]), nnx.Param))
        ),
        r"^model/layers/0/bias, model/layers/0/kernel: was changed",
    ),
}  # fmt: skip


def test_a_function_that_writes_is_refused():
    """The change would be lost, so the error names each Variable; the state stays, and the next read works."""
    model, _, step = made()
    step(X)
    for name, (run, message) in WRITES.items():
        with pytest.raises(tallax.InvalidTypeError, match=message):
            pytest.fail(f"{name}: {step.read(run, X)}")
        assert step.read(lambda model, optimizer: model.step.step.value) == 1
    step(X)
    step.sync()
    assert int(model.step.step) == 2


def test_stacks_that_a_scan_passes_on():
    """A scan over layers returns the layers' state, which is no change of it."""

    @nnx.vmap(in_axes=0, out_axes=0)
    def create(rngs):
        return nnx.Linear(3, 3, rngs=rngs)

    model = nnx.Dict(stack=create(nnx.Rngs(0).split(4)), seen=tallax.Counter())

    def run(model, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def forward(x, layer):
            return layer(x)

        return forward(x, model.stack)

    def bump(model, x):
        model.seen += 1

    expected = run(model, X)
    step = tallax.compile_step(bump, model)
    step(X)
    np.testing.assert_allclose(step.read(run, X), expected, rtol=1e-6)


def test_a_function_that_changes_the_structure_is_refused():
    """An attribute or a sown value would be lost too."""
    model, _, step = made()
    step(X)
    with pytest.raises(tallax.StructureChangedError, match="note"):
        step.read(lambda model, optimizer: setattr(model, "note", 3))
    step.sync()
    assert not hasattr(model, "note")


def test_each_function_is_traced_once():
    """Also a lambda in a loop, unless it closes over another object; a new shape or mode traces once more."""
    model, _, step = made()
    traced = []
    step(X)
    for number in (1, 1, 2):
        for x in (X, X[:2], X):
            step.read(lambda model, optimizer, x: [traced.append(number), x * number][1], x)  # noqa: B023
            step(X)
    assert traced == [1, 1, 2, 2]
    for mode in ("eval", "train", "eval"):
        getattr(model, mode)()
        out = step.read(lambda model, optimizer: [traced.append(mode), model.dropout.deterministic][1])  # noqa: B023
        assert bool(out) == (mode == "eval")
    assert traced[4:] == ["eval", "train"]


def test_a_read_is_of_the_objects_as_they_are():
    """A read starts with the program for the objects at the last call, but its result or error is for those of now."""
    model, _, step = made()

    def doubled(model, optimizer, x):
        if not model.dropout.deterministic:
            raise RuntimeError("in training mode")
        return x * 2

    model.eval()
    step(X)
    assert step.read(doubled, X).shape == (4, 3)
    model.train()
    with pytest.raises(RuntimeError, match="in training mode"):
        step.read(doubled, X)
    step(X)
    model.eval()
    assert step.read(doubled, X[:2]).shape == (2, 3)

    def rate(model, optimizer):
        return jnp.float32(model.dropout.rate)

    for value in (0.5, 0.25, 0.5):
        model.dropout.rate = value
        assert step.read(rate) == value
    model.layers[0].kernel.set_raw_value(jnp.ones((3, 3)))

    def read_often():
        for _ in range(20):
            step.read(doubled, X)

    with pytest.raises(tallax.StateOwnedByStepError, match="was written while"):
        read_often()


def test_lambdas_of_one_name_are_distinguished():
    """Functions of one line share a program only if their defaults and closures are the same objects."""
    _, _, step = made()
    results = [step.read(lambda model, optimizer, k=k: k) for k in (1.0, 2.0)]
    results += [step.read((lambda scale: lambda model, optimizer: scale)(k)) for k in (3.0, 4.0)]
    gc.collect()
    assert list(map(float, results)) == [1.0, 2.0, 3.0, 4.0]


def test_reads_of_state_that_another_step_changed():
    """The values are those of the step that ran last."""
    model = nnx.Dict(total=nnx.Variable(jnp.float32(0.0)), seen=tallax.Counter())

    def add(model, x):
        model.total[...] += x
        model.seen += 1

    one, other = tallax.compile_step(add, model), tallax.compile_step(add, model)
    both = lambda model: (model.total[...], model.seen.value)  # noqa: E731
    for number, step in enumerate((one, other, other, one), start=1):
        step(1.0)
        for reader in (one, other):
            assert list(map(float, reader.read(both))) == [number, number]
    one.sync()
    other.sync()
    assert (float(model.total[...]), int(model.seen)) == (4.0, 4)


def test_a_read_within_a_trace():
    """It would make the state a constant of the trace around."""
    _, _, step = made()
    step(X)
    with pytest.raises(tallax.TraceError):
        jax.jit(lambda x: step.read(lambda model, optimizer: model.scale.value) + x)(1.0)


def test_objects_among_the_arguments():
    """They are refused, as they are by a step."""
    _, _, step = made()
    with pytest.raises(tallax.InvalidTypeError, match="accepts only arrays"):
        step.read(lambda model, optimizer, other: None, nnx.Linear(2, 2, rngs=nnx.Rngs(0)))


def test_sharded_objects():
    """Parameters on a mesh keep their sharding in a read."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    model = nnx.Dict(weight=nnx.Param(jax.device_put(jnp.arange(8.0), jax.NamedSharding(mesh, jax.P("data")))),
                     seen=tallax.Counter())  # fmt: skip

    def add(model):
        model.weight[...] = model.weight[...] + 1.0
        model.seen += 1

    step = tallax.compile_step(add, model)
    step()
    weight, seen = step.read(lambda model: (model.weight[...], model.seen.value))
    assert (weight.sum(), int(seen)) == (36.0, 1)
    assert weight.sharding.spec == jax.P("data")


def test_errors_name_the_argument():
    """A value that Python needs, or one that is no array, is named as the user names it, with a remedy that works."""

    def pick(model, optimizer, flag):
        return 1.0 if flag else 2.0

    _, _, step = made()
    for value in (True, "text"):
        with pytest.raises(tallax.InvalidTypeError, match=r"^flag: (.|\n)*step\.read\(lambda \*objects") as caught:
            step.read(pick, value)
        assert not any(word in str(caught.value) for word in ("pure", "args[", "_run"))
    assert step.read(lambda *objects: pick(*objects, True)) == 1.0
