# SPDX-License-Identifier: Apache-2.0
"""`tallax.watch`: the statistics are those of tensors captured by hand, and the model trains as without a watch."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import tallax
from tallax.checking import _transformations as package
from tallax.checking._transformations import GRAPH, NO_UPDATES, TREE
from tallax.watching._lanes import lanes_of
from tallax.watching._reduction import Layout
from tallax.watching._summary_words import folded
from tests.quick import by_turns, cell
from tests.watch_errors import MISTAKES, Block, Layer, Net

standard_promotion = pytest.mark.usefixtures("standard_promotion")
MODES = {mode.name: mode for mode in (GRAPH, NO_UPDATES, TREE)}


def stacks_of(how):
    """Returns `stacks=`, which is needed because no layer here is one of Flax's."""
    return "blocks" if how == "scan" else None


def batch(k, rows=8):
    return jax.random.normal(jax.random.key(k), (rows, 3))


def tensors(model, x):
    """Returns each tensor of a `Net` by the name of its site: what the watch should see, computed by hand."""
    found = {}

    def layer(name, layer, x):
        found[f"{name}:input"] = x
        found[f"{name}:output"] = y = x @ layer.kernel[...] + layer.bias[...][None]
        return y

    found[":input"] = x
    x = layer("first", model.first, x)
    for k, block in enumerate(model.blocks):
        name = f"blocks/{k}"
        found[f"{name}:input"] = x
        x = x + layer(f"{name}/down", block.down, nnx.relu(layer(f"{name}/up", block.up, x))) / 10
        found[f"{name}:output"] = x
    found[":output"] = x
    return found


def assert_summary(result, arrays, *, first=0, exact=False):
    """Asserts that a result is that of the arrays of successive updates."""
    arrays = [np.asarray(array, np.float64) for array in arrays]
    whole = np.concatenate([array.ravel() for array in arrays])
    finite = whole[np.isfinite(whole)]
    sizes = [np.abs(array[np.isfinite(array)]).max(initial=0) for array in arrays]
    close = {} if exact else {"rtol": 2e-5, "atol": 1e-7}
    assert result.size == whole.size
    assert result.zeros == (whole == 0).sum()
    assert result.nonfinite == whole.size - finite.size
    assert result.updates == first + len(arrays)
    np.testing.assert_allclose(result.rms, np.sqrt((finite**2).mean()), rtol=2e-5, atol=1e-7)
    np.testing.assert_allclose(result.mean, finite.mean(), rtol=2e-4, atol=1e-5 * np.abs(finite).max())
    np.testing.assert_allclose(result.largest, max(sizes), **(close or {"rtol": 0}))
    assert result.largest_at == first + 1 + int(np.argmax(sizes))


# --- what is seen in the forward pass -------------------------------------------------------------------------------

CELLS = {
    f"{each.name}-{mode.name}": (each, mode)
    for each in package.TRANSFORMATIONS
    for mode in package.MODES
    if each.run_in(mode)
}
# The rest takes a minute.
QUICK = {
    "jit-graph",
    "jit-tree",
    "jit-split/merge",
    "scan-graph_updates=False",
    "cond, not taken-graph",
    "compile_step-graph",
}


@standard_promotion
@pytest.mark.parametrize("cell", [name if name in QUICK else cell(name, quick=False) for name in CELLS])
def test_every_transformation_in_every_mode(cell):
    """Inputs and outputs under each transformation are those of plain calls, and so is what the model returns."""
    transformation, mode = CELLS[cell]
    model, plain = Net(blocks=1), Net(blocks=1)
    watch = tallax.watch(model, inputs=True)
    batches = [(batch(k),) for k in range(3)]

    def call(model, inputs):
        return (model(*inputs),)

    with mode.active():
        outputs = transformation.run_in(mode)(call, model, batches)
    if transformation.executes:
        expected = [tensors(plain, *inputs) for inputs in batches]
        for name, result in watch.result().items():
            assert_summary(result, [each[name] for each in expected])
        if outputs is not None:
            for output, each in zip(outputs, expected, strict=True):
                np.testing.assert_allclose(output[0], each[":output"], rtol=1e-5, atol=1e-5)
        assert watch.unseen == {}
    else:
        assert all(result.updates == 0 for result in watch.result().values())
        assert set(watch.unseen) == set(watch.sites)


@standard_promotion
@pytest.mark.parametrize(("how", "mode"), by_turns(["loop", "scan", "remat", "cond", "vmap"], MODES, one_in=len(MODES)))
def test_transformations_within_the_model(how, mode):
    """Blocks under scan, remat, cond and vmap are seen as in a loop, one row for each layer of a stack."""
    with MODES[mode].active():
        model = Net(how)
        watch = tallax.watch(model, stacks=stacks_of(how))
        step = nnx.jit(lambda model, x: model(x))
        for k in range(3):
            step(model, batch(k))
    looped = _as_loop(Net(how))
    expected = [tensors(looped, batch(k)) for k in range(3)]
    results = watch.result()
    seen = {}
    for name, result in results.items():
        seen.update(_by_layer(name, result) if how == "scan" and name.startswith("blocks") else {name: result})
    assert set(seen) == {name for name in expected[0] if name.endswith(":output")}
    for name, result in seen.items():
        assert_summary(result, [each[name] for each in expected])


def _as_loop(model):
    """Returns a network that runs the blocks of a stack in a loop."""
    if model.how == "scan":
        graphdef, state = nnx.split(model.blocks)
        model.blocks = nnx.List([nnx.merge(graphdef, jax.tree.map(lambda x, k=k: x[k], state)) for k in range(2)])
    return model


def _by_layer(name, result):
    """Returns the result of each layer of a stack, by the name that the layer has in a loop."""
    below = name.removeprefix("blocks")
    fields = {field: getattr(result, field) for field in result.__dataclass_fields__}
    return {
        f"blocks/{k}{below}": tallax.SummaryResult(**{field: value[k] for field, value in fields.items()})
        for k in range(2)
    }


# --- training -------------------------------------------------------------------------------------------------------


def train_step(model, optimizer, x):
    loss, grads = tallax.value_and_grad(lambda model: (model(x) ** 2).mean())(model)
    update(optimizer, model, grads)
    return loss


def update(optimizer, model, grads):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # which optax needs
        optimizer.update(model, grads)


def trained(how="loop", mode=GRAPH, steps=3, *, step=train_step, compiled=False, watched=True, **options):
    """Trains a network and returns it with its watch, and the parameters and gradients of each step."""
    model = Net(how)
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    watch = tallax.watch(model, optimizer, stacks=stacks_of(how), **options) if watched else None
    with mode.active():
        if compiled:
            with tallax.compile_step(step, model, optimizer) as run:
                for k in range(steps):
                    run(batch(k))
        else:
            run = nnx.jit(step)
            for k in range(steps):
                run(model, optimizer, batch(k))
    return model, watch


def parameters(model):
    return {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))}


ALL = {"inputs": True, "output_gradients": True, "parameters": True, "gradients": True, "updates": True}


def assert_bit_equal(left, right):
    assert left.keys() == right.keys()
    for path, value in left.items():
        assert value.tobytes() == right[path].tobytes(), path


TRAININGS = [
    ("loop", 1),
    ("scan", 2),
    *(cell(how, every, quick=False) for how in ("remat", "cond") for every in (1, 2)),
]


@standard_promotion
@pytest.mark.parametrize(("how", "every"), TRAININGS)
def test_training_is_bit_equal(how, every):
    """Training runs the same operations: compiled one by one, they give the same parameters, bit for bit."""
    watched, watch = trained(how, every=every, **ALL)
    plain, _ = trained(how, watched=False)
    assert watch.unseen == {}
    assert_bit_equal(parameters(watched), parameters(plain))


@pytest.mark.optimized
@pytest.mark.parametrize(("how", "every"), [cell("loop", 1, quick=False), *TRAININGS[1:]])
def test_training_with_fusion_differs_at_most_in_the_last_bit(how, every):
    """XLA may fuse the operations of a watched step differently: one bias of jax 0.12 differs by a unit."""
    watched, plain = parameters(trained(how, every=every, **ALL)[0]), parameters(trained(how, watched=False)[0])
    assert watched.keys() == plain.keys()
    for path, value in watched.items():
        assert np.abs(value - plain[path]).max() <= 4 * np.spacing(np.abs(plain[path]).max()), path


@standard_promotion
@pytest.mark.parametrize(
    ("how", "mode"),
    by_turns(["loop", "scan", "remat", "cond", "vmap"], [*MODES, "compile_step"], one_in=len(MODES) + 1),
)
def test_gradients_of_activations(how, mode):
    """The gradients of outputs are those of explicit perturbations of the outputs."""
    compiled = mode == "compile_step"
    _, watch = trained(how, MODES.get(mode, GRAPH), steps=1, compiled=compiled, outputs=False, output_gradients=True)
    net = _as_loop(Net(how))
    names = [name for name in tensors(net, batch(0)) if name.endswith(":output")]
    expected = _perturbed_gradients(net, batch(0), names)
    seen = {}
    for name, result in watch.result().items():
        name = name.removesuffix("_gradient")
        seen.update(_by_layer(name, result) if how == "scan" and name.startswith("blocks") else {name: result})
    assert set(seen) == set(names)
    for name, result in seen.items():
        if how == "vmap" and name.startswith("blocks"):  # one use for each lane: the largest is bounded
            largest = float(np.abs(expected[name]).max())
            assert largest * 0.999 <= result.largest <= 2 * largest
            np.testing.assert_allclose(result.rms, np.sqrt((np.asarray(expected[name]) ** 2).mean()), rtol=1e-4)
            assert result.size == expected[name].size
        else:
            assert_summary(result, [expected[name]])


def _perturbed_gradients(net, x, names):
    """Returns the gradients of the loss with respect to a zero that is added to each output."""

    def loss(zeros):
        def layer(name, layer, x):
            return x @ layer.kernel[...] + layer.bias[...][None] + zeros[f"{name}:output"]

        y = layer("first", net.first, x)
        for k, block in enumerate(net.blocks):
            name = f"blocks/{k}"
            y = y + layer(f"{name}/down", block.down, nnx.relu(layer(f"{name}/up", block.up, y))) / 10
            y = y + zeros[f"{name}:output"]
        y = y + zeros[":output"]
        return (y**2).mean()

    return jax.jit(jax.grad(loss))({name: jnp.zeros(tensors(net, x)[name].shape) for name in names})


@standard_promotion
@pytest.mark.parametrize(("how", "mode"), by_turns(["loop", "scan"], [*MODES, "compile_step"], one_in=len(MODES) + 1))
def test_parameters_gradients_and_updates(how, mode):
    """Those that the watch sees are the parameters before each update, the gradients, and the differences."""
    steps, seen = 3, []
    plain = Net(how)
    optimizer = nnx.Optimizer(plain, optax.adam(1e-2), wrt=nnx.Param)
    for k in range(steps):
        grads = nnx.jit(lambda model, x: tallax.grad(lambda model: (model(x) ** 2).mean())(model))(plain, batch(k))
        before = parameters(plain)
        nnx.jit(lambda model, optimizer, grads: update(optimizer, model, grads))(plain, optimizer, grads)
        after = parameters(plain)
        gradients = {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(grads)}
        seen.append((before, gradients, {path: after[path] - before[path] for path in before}))
    compiled = mode == "compile_step"
    _, watch = trained(
        how,
        MODES.get(mode, GRAPH),
        steps,
        compiled=compiled,
        outputs=False,
        parameters=True,
        gradients=True,
        updates=True,
    )
    results = watch.result()
    assert len(results) == 3 * len(seen[0][0])
    for path in seen[0][0]:
        for number, role in enumerate(("parameter", "gradient", "update")):
            result, arrays = results[f"{'/'.join(map(str, path))}:{role}"], [each[number][path] for each in seen]
            if how == "scan" and path[0] == "blocks":
                for k, layer in enumerate(_by_layer("blocks", result).values()):
                    assert_summary(layer, [array[k] for array in arrays])
            else:
                assert_summary(result, arrays)


@standard_promotion
def test_a_spike_in_one_backward_pass():
    """A gradient that is multiplied in one step, in one layer, is found with its step and its site."""

    @jax.custom_vjp
    def spike(x, is_due):
        return x

    spike.defvjp(lambda x, is_due: (x, is_due), lambda is_due, g: (jnp.where(is_due, g * 1e6, g), None))

    def step(model, optimizer, x):
        def loss(model):
            y = model.first(x)
            for k, block in enumerate(model.blocks):
                y = block(y)
                if k == 0:
                    y = spike(y, model.step.value == 3)
            return (y**2).mean()

        loss, grads = tallax.value_and_grad(loss)(model)
        model.step += 1
        update(optimizer, model, grads)
        return loss

    model = Net()
    model.step = tallax.Counter()
    optimizer = nnx.Optimizer(model, optax.sgd(0.0), wrt=nnx.Param)
    watch = tallax.watch(model, optimizer, output_gradients=True)
    with tallax.compile_step(step, model, optimizer) as run:
        for k in range(6):
            run(batch(k))
    results = watch.result()
    hit = {name for name, result in results.items() if result.largest > 1e3}
    assert hit == {name for name in results if name.endswith("_gradient")} - {
        ":output_gradient",
        *(name for name in results if name.startswith("blocks/1")),
    }
    assert {results[name].largest_at for name in hit} == {4}  # the fourth step, whose counter is at 3
    assert str(watch).splitlines()[2].partition(":")[2].startswith("output_gradient")


@standard_promotion
def test_gradient_accumulation():
    """Each backward pass of a step is one update, and so is each update of the optimizer."""

    def step(model, optimizer, x):
        total = None
        for part in jnp.split(x, 2):
            grads = tallax.grad(lambda model, part: (model(part) ** 2).mean())(model, part)
            total = grads if total is None else jax.tree.map(jnp.add, total, grads)
        update(optimizer, model, total)

    _, watch = trained(step=step, **ALL)
    for name, result in watch.result().items():
        assert result.updates == (6 if ":output" in name or ":input" in name else 3), name


@standard_promotion
def test_a_layer_that_is_used_several_times():
    """The numbers of all uses are together; the largest gradient of several uses is bounded within a factor of 2."""

    class Twice(nnx.Module):
        def __init__(self):
            self.layer = Layer(3, 3, nnx.Rngs(0))

        def __call__(self, x):
            return self.layer(self.layer(x))

    model = Twice()
    watch = tallax.watch(model, sites="layer", output_gradients=True)
    nnx.jit(lambda model, x: tallax.grad(lambda model: (model(x) ** 2).mean())(model))(model, batch(0))
    kernel = model.layer.kernel[...]
    last = 2 * (batch(0) @ kernel @ kernel) / 24
    both = np.stack([last @ kernel.T, last])
    result = watch.result()["layer:output_gradient"]
    assert (result.size, result.updates) == (48, 1)
    np.testing.assert_allclose(result.rms, np.sqrt((both**2).mean()), rtol=1e-5)
    assert np.abs(both).max() * 0.999 <= result.largest <= 2 * np.abs(both).max()
    assert (watch.result()["layer:output"].size, watch.result()["layer:output"].updates) == (48, 1)


@standard_promotion
def test_a_layer_that_is_used_again_by_a_compiled_function():
    """A use by an inner `jit` counts, also if JAX has traced it before and traces only the other use again."""
    model = Layer(3, 3, nnx.Rngs(0))
    watch = tallax.watch(model, sites="", output_gradients=True)
    inner = nnx.jit(lambda model, x: model(x))

    def loss_fn(model, x, factor):
        return factor * model(x).sum() + inner(model, x).sum()

    for factor in (1.0, 64.0):
        tallax.grad(loss_fn)(model, batch(0), factor)
    result = watch.result()[":output_gradient"]
    assert (result.size, result.updates) == (2 * 2 * 24, 2)
    assert 64 <= result.largest <= 128


@standard_promotion
def test_tensors_that_are_not_finite():
    """A tensor with NaN or infinity is counted, with its first step, and left out of the other numbers."""

    class Same(nnx.Module):
        def __call__(self, x):
            return x

    model = Same()
    watch = tallax.watch(model)
    good = jnp.linspace(-1.0, 2.0, 5000)
    for k, bad in enumerate([0.0, jnp.nan, jnp.inf, 0.0, 3e38]):
        model(good.at[k].set(bad))
    result = watch.result()[":output"]
    assert (result.size, result.nonfinite, result.nonfinite_at, result.updates) == (15000, 2, 2, 5)
    assert (result.largest_at, result.zeros, result.rms) == (5, 2, np.inf)
    np.testing.assert_allclose(result.largest, 3e38, rtol=1e-6)


# --- options --------------------------------------------------------------------------------------------------------


@standard_promotion
def test_every_looks_at_every_nth_step():
    """With `every=2` the first, third and fifth steps are looked at, under their own numbers."""
    model = Net(blocks=1)
    watch = tallax.watch(model, sites="first", every=2)
    plain = Net(blocks=1)
    with tallax.compile_step(lambda model, x: model(x), model) as step:
        for k in range(5):
            step(batch(k))
    result = watch.result()["first:output"]
    outputs = [np.asarray(tensors(plain, batch(k))["first:output"]) for k in (0, 2, 4)]
    assert result.updates == 5
    assert result.size == 3 * outputs[0].size
    assert result.largest_at == 1 + 2 * int(np.argmax([np.abs(output).max() for output in outputs]))


@standard_promotion
def test_window_starts_again():
    """With a window the numbers are those of the steps since the last multiple of it."""
    model, plain = Net(blocks=1), Net(blocks=1)
    watch = tallax.watch(model, sites="first", window=2, output_gradients=True)
    step = nnx.jit(lambda model, x: tallax.grad(lambda model: (model(x) ** 2).mean())(model))
    for k in range(5):
        step(model, batch(k))
    assert_summary(watch.result()["first:output"], [tensors(plain, batch(4))["first:output"]], first=4)
    assert watch.result()["first:output_gradient"].size == 32


@standard_promotion
def test_steps_go_on_from_the_model_s_counter():
    """A watch that is set up in the middle of a run counts the steps of the run."""
    model = Net(blocks=1)
    model.step = tallax.Counter(1000)
    watch = tallax.watch(model, sites="first")
    model(batch(0))
    assert watch.result()["first:output"].largest_at == 1001
    watch.remove()
    watch = tallax.watch(model, sites="first", step=7)
    model(batch(0))
    assert watch.result()["first:output"].largest_at == 8


@standard_promotion
def test_evaluation_is_not_counted():
    """In evaluation mode neither the forward pass nor the backward pass is counted."""
    model = Net(blocks=1)
    watch = tallax.watch(model, output_gradients=True)
    step = nnx.jit(lambda model, x: tallax.grad(lambda model: (model(x) ** 2).mean())(model))
    model.eval()
    step(model, batch(0))
    nnx.view(model, deterministic=True)(batch(0))
    assert {result.updates for result in watch.result().values()} == {0}
    model.train()
    step(model, batch(0))
    assert {result.updates for result in watch.result().values()} == {1}


@standard_promotion
def test_statistics_of_your_own_and_histograms():
    """`statistic=` and `histograms=` keep any statistic, also of the rows of a stack."""
    model = Net("scan")
    optimizer = nnx.Optimizer(model, optax.sgd(1e-2), wrt=nnx.Param)
    watch = tallax.watch(
        model, optimizer, statistic=tallax.statistics.Moments, histograms=True, output_gradients=True, stacks="blocks"
    )
    nnx.jit(train_step)(model, optimizer, batch(0))
    results = watch.result()
    assert results["blocks/up:output"].count.tolist() == [64] * 2
    assert results["blocks/up:output_histogram"].count.tolist() == [64] * 2
    assert results["first:output"].count == 32
    assert isinstance(results["first:output_gradient"], tallax.SummaryResult)
    assert watch.unseen == {}


def test_sites_by_glob_class_and_predicate():
    """Sites are chosen by path, by class, by a predicate, or by a list of these."""

    def chosen(sites):
        model = Net(blocks=2)
        return [name.partition(":")[0] for name in tallax.watch(model, sites=sites).sites]

    assert chosen("blocks/*") == ["blocks/0", "blocks/1"]
    assert chosen("**/up") == ["blocks/0/up", "blocks/1/up"]
    assert chosen("first") == chosen("**first") == ["first"]
    assert chosen(Block) == ["blocks/0", "blocks/1"]
    assert chosen(lambda path, module: path.endswith("down")) == ["blocks/0/down", "blocks/1/down"]
    assert chosen(["first", Net]) == ["", "first"]
    assert len(chosen("**")) == 8


@standard_promotion
def test_other_methods():
    """`method=` watches another method than `__call__`."""

    class Coder(nnx.Module):
        def encode(self, x):
            return x + 1.0

        def __call__(self, x):
            return self.encode(x) * 2.0

    model = Coder()
    watch = tallax.watch(model, method="encode")
    model(jnp.ones(3))
    assert watch.result()[":output"].rms == 2.0


# --- the model stays what it is -------------------------------------------------------------------------------------


def test_remove_leaves_the_model_as_it_was():
    """After `remove` the graph, the state and the pickle are those of a model that was never watched."""
    model, plain = Net(), Net()
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    before = nnx.split(optimizer)
    watch = tallax.watch(model, optimizer, **ALL)
    assert nnx.graphdef(model) != nnx.graphdef(plain)
    watch.remove()
    assert nnx.graphdef(model) == nnx.graphdef(plain)
    assert nnx.split(optimizer)[0] == before[0]
    assert [type(each) for each in (model, model.first, optimizer)] == [Net, Layer, nnx.Optimizer]
    assert_bit_equal(parameters(model), parameters(plain))
    assert len(pickle.dumps(model)) == len(pickle.dumps(plain))
    tallax.watch(model, optimizer, **ALL)  # and it can be watched again


@pytest.mark.parametrize("copied", [nnx.clone, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_watched_too(copied):
    """Clones, deep copies and pickles keep their statistics, count on, and can be removed."""
    model = Net()
    watch = tallax.watch(model)
    model(batch(0))
    other = copied(model)
    assert isinstance(other, Net)
    assert type(other).__name__ == "Net"
    other(batch(1))
    assert watch.result()[":output"].updates == 1
    own = tallax.Watch(other)
    assert own.result()[":output"].updates == 2
    own.remove()
    assert nnx.graphdef(other) == nnx.graphdef(Net())


def test_copies_of_optimizers():
    """A copy of a watched optimizer is watched."""
    model = Net(blocks=1)
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
    tallax.watch(model, optimizer, outputs=False, updates=True)
    assert type(nnx.clone(optimizer)) is type(optimizer) is not nnx.Optimizer


def test_names_of_the_classes_stay():
    """Errors and logs name the classes as before, and the signature of the method is the same."""
    model = Net()
    tallax.watch(model)
    assert (type(model).__name__, type(model).__qualname__, type(model).__module__) == ("Net", "Net", Net.__module__)
    assert [type(m).__name__ for _, m in nnx.iter_modules(model.first)][-1] == "Layer"


@pytest.mark.parametrize("saves_watched", [True, False])
def test_checkpoints_go_both_ways(saves_watched, tmp_path):
    """A checkpoint of a watched model restores into one that is not, and the other way round."""
    saved, restored = Net(), Net(width=4)
    watch = tallax.watch(saved if saves_watched else restored)
    saved(batch(0))
    nnx.update(restored, jax.tree.map(jnp.zeros_like, nnx.state(restored, nnx.Param)))
    tallax.save(tmp_path / "checkpoint", saved)
    tallax.restore(tmp_path / "checkpoint", restored)
    assert_bit_equal(parameters(saved), parameters(restored))
    assert watch.result()[":output"].updates == int(saves_watched)


def test_checkpoints_of_a_watched_model(tmp_path):
    """A watched model continues its statistics from a checkpoint."""
    model, other = Net(), Net()
    for each in (model, other):
        tallax.watch(each)
    model(batch(0))
    tallax.save(tmp_path / "checkpoint", model)
    tallax.restore(tmp_path / "checkpoint", other)
    other(batch(1))
    assert tallax.Watch(other).result()["blocks/0:output"].updates == 2


@standard_promotion
def test_names_in_logs():
    """`Logger` writes each number of a site under the path of the module and the role."""
    records = []

    class Sink(tallax.sinks.Sink):
        def write(self, record):
            records.append(record)

    model, watch = trained(**ALL)
    with tallax.Logger(Sink()) as log:
        log(model, step=3)
    scalars = records[0].scalars
    assert {name.rpartition("/")[0] for name in scalars} == set(watch.sites)
    assert scalars["blocks/0/up:output/rms"] == watch.result()["blocks/0/up:output"].rms
    assert scalars["blocks/0/up/kernel:gradient/largest_at"] in (1, 2, 3)


# --- what is not seen -----------------------------------------------------------------------------------------------


@standard_promotion
def test_unseen_has_the_reasons():
    """Each site that was asked for and not seen is named, with the reason."""

    class Odd(nnx.Module):
        def __init__(self):
            self.used, self.unused, self.closed = (Layer(3, 3, nnx.Rngs(0)) for _ in range(3))
            self.integers = Integers()
            self.activation = nnx.relu

        def __call__(self, x):
            self.integers(x)
            closed = jax.checkpoint(self.closed)
            return self.activation(self.used(closed(x)))

    class Integers(nnx.Module):
        def __call__(self, x):
            return x.argmax(-1)

    model = Odd()
    watch = tallax.watch(model, sites=["*", "activation"], output_gradients=True)
    nnx.jit(lambda model, x: nnx.grad(lambda model: model(x).sum())(model))(model, batch(0))
    assert watch.unseen == {
        "activation": "a function, not a module: it has no state to keep",
        "closed:output": "a transformed function closes over the module, so its state cannot be written; "
        "pass it as an argument",
        "integers:output": "no arrays of floating-point numbers",
        "unused:output": "it was not called, or as Class.method(module, ...), which a watch does not see",
        **{
            f"{name}:output_gradient": "no backward pass by tallax.value_and_grad or tallax.grad reached it"
            for name in ("", "closed", "integers", "unused", "used")
        },
    }
    assert "not seen: 9" in str(watch)


@standard_promotion
def test_a_statistic_that_does_not_take_a_tensor():
    """The model runs on, and `unseen` has the reason for the tensors that the statistic refuses, and for no others."""
    model = Net(width=4, blocks=1)
    watch = tallax.watch(model, sites="blocks/**", inputs=True, statistic=lambda: tallax.statistics.Moments(shape=8))
    nnx.jit(lambda model, x: model(x))(model, batch(0))
    refused = "a statistic of shape (8,) requires values whose last axes have that shape; got: float32[8,4]"
    seen = {"blocks/0/up:output", "blocks/0/down:input"}
    assert watch.unseen == {name: refused for name in watch.sites if name not in seen}
    assert "not seen: 4" in str(watch)
    assert watch.result()["blocks/0/up:output"].count.tolist() == [8] * 8


def test_equal_reasons_are_one_line():
    """Layers that are unseen for the same reason share a line of `print(watch)`."""
    lines = str(tallax.watch(Net(blocks=3), sites="blocks/*/up")).splitlines()[1:]
    assert lines[0] == "not seen: 3"
    assert [line.partition(": ")[0] for line in lines[1:]] == ["  blocks/*/up:output (3 times)"]


@standard_promotion
def test_a_state_that_is_thrown_away():
    """A call on a copy whose state is not returned is reported."""
    model = Net(blocks=1)
    watch = tallax.watch(model, sites="first")
    graphdef, state = nnx.split(model)
    jax.jit(lambda state, x: nnx.merge(graphdef, state)(x))(state, batch(0))
    assert watch.unseen == {
        "first:output": "it was called on a copy whose state was thrown away, as by jax.jit without returning it"
    }


@standard_promotion
def test_a_stack_whose_state_is_not_mapped():
    """A scan that does not map over the state of the watch trains on, and says how to map over it."""
    model = Net("scan")
    watch = tallax.watch(model, stacks="blocks")
    axes = nnx.StateAxes({nnx.Param: 0, ...: None})
    nnx.scan(lambda block, x: block(x), in_axes=(axes, nnx.Carry), out_axes=nnx.Carry)(model.blocks, jnp.ones((8, 4)))
    assert watch.unseen["blocks/up:output"].startswith("the whole stack of modules was used at once")


@standard_promotion
def test_a_module_that_was_replaced():
    """A site whose module was replaced is reported as gone."""
    model = Net(blocks=1)
    watch = tallax.watch(model, sites="first")
    model(batch(0))
    model.first = Layer(3, 4, nnx.Rngs(1))
    assert watch.unseen == {"first:output": "the module was replaced or removed after it was watched"}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake):
    """Each mistake is an error that names the argument and the fix."""
    make, kind, text = MISTAKES[mistake]
    with pytest.raises(kind) as caught:
        make(None)
    assert str(caught.value) == text


def test_a_tensor_may_have_more_entries_than_a_word_can_count():
    """The lanes of a tensor of 2**33 zeros stand for 2**33 entries, as many zeros; a size of 32 bits would overflow."""
    # The lanes themselves, because no test can have a tensor of this size.
    entries = [0, 0, 2]  # digits of 12, 20 and 20 bits
    lanes = jnp.asarray([1, 0, 0, 0, *entries, 0, 0, 0, 0, 0, 0, 0], jnp.float32)
    words = folded(jnp.zeros(17, jnp.uint32), lanes)
    np.testing.assert_array_equal(words[:6], [0, 2, 0, 2, 0, 0])
    x = jax.ShapeDtypeStruct((2**17, 2**16), jnp.float32)
    assert jax.eval_shape(lambda x: lanes_of(x, None, Layout()), x).shape == (14,)
