# SPDX-License-Identifier: Apache-2.0
"""`tallax.watch` on meshes of eight devices: no collective more, and the numbers of one device."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import tallax
from benchmarks._collectives import collectives
from tests.meshes import P, mesh_of
from tests.meshes import collectives as kinds_of
from tests.quick import cell

ALL = {"inputs": True, "output_gradients": True, "parameters": True, "gradients": True, "updates": True}


class Net(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.up = Layer(16, 32, rngs)
        self.down = Layer(32, 16, rngs)

    def __call__(self, x):
        return self.down(nnx.relu(self.up(x)))


class Layer(nnx.Module):
    def __init__(self, inputs, outputs, rngs):
        self.kernel = nnx.Param(rngs.params.normal((inputs, outputs)))

    def __call__(self, x):
        kernel = self.kernel[...]
        if any(jax.typeof(kernel).sharding.spec):  # explicit axes: it has to be gathered before it is used
            kernel = jax.reshard(kernel, P())
        return x @ kernel


def train_step(model, optimizer, x):
    loss, grads = tallax.value_and_grad(lambda model: (model(x) ** 2).mean())(model)
    optimizer.update(model, grads)
    return loss


def prepared(mesh, spec, **options):
    """Returns a model whose kernels are split by `spec`, its optimizer and its watch."""
    model = Net()
    if mesh is not None:
        nnx.update(model, jax.device_put(nnx.state(model), jax.NamedSharding(mesh, spec)))
    optimizer = nnx.Optimizer(model, optax.sgd(1e-2), wrt=nnx.Param)
    watch = tallax.watch(model, optimizer, **options) if options else None
    return model, optimizer, watch


def batches(mesh, count=3):
    found = [jax.random.normal(jax.random.key(k), (64, 16)) for k in range(count)]
    return found if mesh is None else [jax.device_put(x, jax.NamedSharding(mesh, P("data"))) for x in found]


def kernels(model):
    return jax.tree.leaves(nnx.state(model, nnx.Param))


SPECS = {"data-parallel": P(), "fully sharded": P("data")}


def accumulating_step(model, optimizer, x):
    """Trains on two parts of a batch, whose gradients are added up."""
    total = None
    for part in jnp.split(x.reshape(8, -1, 16), 2, axis=1):
        grads = tallax.grad(lambda model, part: (model(part) ** 2).mean())(model, part.reshape(-1, 16))
        total = grads if total is None else jax.tree.map(jnp.add, total, grads)
    optimizer.update(model, total)


@pytest.mark.parametrize(
    ("spec", "axes", "step"),
    [
        ("data-parallel", "auto", train_step),
        ("fully sharded", "auto", train_step),
        ("data-parallel", "explicit", train_step),
        ("fully sharded", "explicit", train_step),
        ("data-parallel", "auto", accumulating_step),
        ("fully sharded", "auto", accumulating_step),
    ],
)
def test_no_collective_is_added(spec, axes, step):
    """The compiled step has the collectives of the step that is not watched, and no more."""
    mesh = mesh_of(axes, (8,), ("data",))
    (x,) = batches(mesh, 1)

    def count(**options):
        model, optimizer, _ = prepared(mesh, SPECS[spec], **options)
        with jax.set_mesh(mesh):
            return kinds_of(nnx.jit(step), model, optimizer, x)

    plain = count()
    assert sum(plain.values()) > 0
    assert count(**ALL) == plain
    assert count(**ALL, every=10) == plain


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("compiled", [False, True], ids=["nnx.jit", "compile_step"])
def test_parameters_stay_where_they_are(spec, compiled):
    """The rows of the state do not split the parameters, which would be gathered again at each step."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    (x,) = batches(mesh, 1)
    programs = []
    for options in ({**ALL, "presets": [tallax.watching.update_ratio()]}, ALL, {}):
        model, optimizer, _ = prepared(mesh, SPECS[spec], **options)
        if compiled:
            program = tallax.compile_step(train_step, model, optimizer).lower(x)
        else:
            program = nnx.jit(train_step).lower(model, optimizer, x)
            jax.block_until_ready(nnx.jit(train_step)(model, optimizer, x))
            placed = [
                leaf.sharding.is_equivalent_to(jax.NamedSharding(mesh, SPECS[spec]), 2) for leaf in kernels(model)
            ]
            assert placed == [True, True]
        programs.append(collectives(program.compile().as_text()))
    assert programs[0] == programs[1] == programs[2]


@pytest.mark.parametrize(("spec", "axes"), [(spec, axes) for spec in SPECS for axes in ("auto", "explicit")])
def test_the_numbers_are_those_of_one_device(spec, axes):
    """On eight devices each number is that of one device, and the parameters are those without a watch, to the bit."""
    mesh = mesh_of(axes, (8,), ("data",))
    results, parameters = [], []
    for where, options in ((None, ALL), (mesh, ALL), (mesh, {})):
        model, optimizer, watch = prepared(where, SPECS[spec], **options)
        with (
            contextlib.nullcontext() if where is None else jax.set_mesh(mesh),
            tallax.compile_step(train_step, model, optimizer) as step,
        ):
            for x in batches(where):
                jax.block_until_ready(step(x))  # on few cores, steps that wait for each other at collectives time out
        parameters.append([np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))])
        if watch is not None:
            assert watch.unseen == {}
            results.append(watch.result())
    one, eight = results
    for name, result in one.items():
        other = eight[name]
        assert (result.size, result.zeros, result.updates) == (other.size, other.zeros, other.updates), name
        for field in ("rms", "largest"):
            np.testing.assert_allclose(getattr(result, field), getattr(other, field), rtol=2e-4, err_msg=name)
    for watched, plain in zip(*parameters[1:], strict=True):
        assert watched.tobytes() == plain.tobytes()


def test_inside_shard_map():
    """Inside `shard_map` the numbers of all replicas are combined, of the gradients of outputs too."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    model, _, watch = prepared(None, None, outputs=True, output_gradients=True)
    plain, _, expected = prepared(None, None, outputs=True, output_gradients=True)
    graphdef, state = nnx.split(model)

    def step(state, x):
        model = nnx.merge(graphdef, state)
        tallax.grad(lambda model: jax.lax.psum((model(x) ** 2).sum(), "data"))(model)
        return nnx.state(model)

    run = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(P(), P("data")), out_specs=P()))
    for x in batches(mesh):
        state = jax.block_until_ready(run(state, x))
    nnx.update(model, state)
    alone = nnx.jit(tallax.grad(lambda model, x: (model(x) ** 2).sum()))
    for x in batches(None):
        alone(plain, x)
    for name, result in expected.result().items():
        other = watch.result()[name]
        assert (result.size, result.zeros, result.updates) == (other.size, other.zeros, other.updates), name
        assert result.largest_at == other.largest_at
        np.testing.assert_allclose(result.rms, other.rms, rtol=1e-4)


PRESETS = [tallax.watching.dead_units("up"), tallax.watching.update_ratio("up")]


@pytest.mark.parametrize(
    ("options", "axes"),
    [
        ({"output_gradients": True}, ("data", "model")),
        cell({**ALL, "presets": PRESETS}, ("data", "model"), quick=False),
        cell({**ALL, "presets": PRESETS, "every": 2}, ("data",), quick=False),
    ],
    ids=["outputs", "everything", "every-2"],
)
def test_per_replica_state(options, axes):
    """Combined, the numbers are those of one device: what is the same on several replicas is taken once."""
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    single, single_optimizer, expected = prepared(None, None, sites="up", **options)
    model, optimizer, _ = prepared(None, None, sites="up", **options)
    both = tallax.per_replica(nnx.Dict(model=model, optimizer=optimizer), mesh, axes)

    def train(both, x):
        def loss_fn(model):
            return jax.lax.pmean((model(x) ** 2).mean(), "data")

        loss, grads = tallax.value_and_grad(loss_fn)(both.model)
        both.optimizer.update(both.model, grads)
        return loss

    step = nnx.jit(nnx.shard_map(train, mesh=mesh, in_specs=(tallax.replica_specs(both), P("data")), out_specs=P()))
    for x in batches(None, 2):
        jax.block_until_ready(step(both, x))
        train_step(single, single_optimizer, x)
    results = tallax.watching.Watch(tallax.combine_replicas(both).model).result()
    assert results.keys() == expected.result().keys()
    for name, result in expected.result().items():
        for found, number in zip(*map(jax.tree.leaves, (results[name], result)), strict=True):
            np.testing.assert_allclose(found, number, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("step", [cell(train_step, quick=False), accumulating_step])
def test_a_mesh_of_two_axes(step):
    """Along an axis of the model, kernels may be split too, and the numbers stay right."""
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    model, optimizer, watch = prepared(mesh, P(None, "model"), **ALL)
    single, single_optimizer, expected = prepared(None, None, **ALL)
    step = nnx.jit(step)
    for x, y in zip(batches(mesh, 1), batches(None, 1), strict=True):
        jax.block_until_ready(step(model, optimizer, x))
        step(single, single_optimizer, y)
    for name, result in expected.result().items():
        other = watch.result()[name]
        assert (result.size, result.zeros) == (other.size, other.zeros), name
        np.testing.assert_allclose(result.rms, other.rms, rtol=1e-4, err_msg=name)


def test_axes_that_are_not_there():
    """`batch_axes=` has to name axes of the mesh."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with pytest.raises(tallax.InvalidValueError) as caught:
        prepared(mesh, P(), outputs=True, batch_axes="batch")
    assert str(caught.value) == (
        "batch_axes: must name axes of the mesh that the model is on.\n  got:       'batch'\n"
        "  expected:  axes among ('data',)\n  fix:       batch_axes='data'"
    )


def test_shapes_of_the_state():
    """The state has a row for each device along the axes of the batch, and lies there."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    model, _, _ = prepared(mesh, P(), outputs=True)
    words = vars(model.up)[":"].output.words
    assert words.shape == (8, 17)
    assert words.get_raw_value().sharding.spec == P(("data",))
    assert jnp.asarray(model(batches(mesh, 1)[0])).shape == (64, 16)
