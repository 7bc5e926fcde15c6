# SPDX-License-Identifier: Apache-2.0
"""Watched tensors of all sizes, reduced one by one or together, have the numbers that NumPy computes."""

import contextlib
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import tallax
from tallax.watching._lanes import table_of, table_of_packed
from tallax.watching._reduction import Numbers, PackedNumbers
from tests.meshes import P, mesh_of

EVERYTHING = {"output_gradients": True, "parameters": True, "gradients": True, "updates": True}


class Dense(nnx.Module):
    def __init__(self, inputs, outputs, rngs):
        self.kernel = nnx.Param(rngs.params.normal((inputs, outputs)) / inputs**0.5)
        self.bias = nnx.Param(rngs.params.normal((outputs,)))

    def __call__(self, x):
        return x @ self.kernel[...] + self.bias[...][None]


class Reshards(Dense):
    """Gives the shardings of its operands and its result, as explicit axes require."""

    def __call__(self, x):
        x = jax.reshard(x, P())
        return jnp.dot(x, self.kernel[...], out_sharding=P(None, "model")) + self.bias[...][None]


class Passes(nnx.Module):
    """Returns the output of its layer, so that both see the same tensor, as `nnx.MultiHeadAttention` does."""

    def __init__(self, layer):
        self.layer = layer

    def __call__(self, x):
        return self.layer(x)


class Stack(nnx.Module):
    def __init__(self, widths, kind=Dense):
        rngs = nnx.Rngs(0)
        layers = [kind(inputs, outputs, rngs) for inputs, outputs in itertools.pairwise(widths)]
        self.layers = nnx.List([*layers[:-1], Passes(layers[-1])])

    def __call__(self, x):
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return x


def loss_of(values, inputs, added):
    """Returns the loss of a `Stack` from its Params, and its outputs; something is added to each output."""
    x, outputs = inputs, []
    for (kernel, bias), each in zip(values, added, strict=True):
        outputs.append(x @ kernel + bias[None] + each)
        x = nnx.relu(outputs[-1])
    return (x**2).mean(), outputs


def layers_of(model):
    return [*model.layers[:-1], model.layers[-1].layer]


def values_of(model):
    return [(layer.kernel[...], layer.bias[...]) for layer in layers_of(model)]


def tensors_of_step(values, x, new):
    """Returns each tensor of a step by the name of its role."""
    zeros = [jnp.zeros((len(x), len(bias))) for _, bias in values]
    _, outputs = loss_of(values, x, zeros)
    (gradients, output_gradients), _ = jax.grad(loss_of, argnums=(0, 2), has_aux=True)(values, x, zeros)
    found = {}
    for k, output in enumerate(outputs):
        for name in (f"layers/{k}", f"layers/{k}/layer") if k == len(outputs) - 1 else (f"layers/{k}",):
            found |= {f"{name}:output": output, f"{name}:output_gradient": output_gradients[k]}
        for part, kind in enumerate(("kernel", "bias")):
            param = f"{name}/{kind}"
            found[f"{param}:parameter"], found[f"{param}:gradient"] = values[k][part], gradients[k][part]
            found[f"{param}:update"] = np.asarray(new[k][part]) - np.asarray(values[k][part])
    return found


def train_step(model, optimizer, x):
    loss, grads = tallax.value_and_grad(lambda model: (model(x) ** 2).mean())(model)
    optimizer.update(model, grads)
    return loss


# Widths and rows such that parameters, or outputs, have fewer and more entries than each bound of `_many_tensors`.
SIZES = {
    "parameters": (8, [16, 64, 96, 160, 128, 2100, 16]),
    "outputs of a few thousand entries": (600, [16] * 6),
    "outputs of a million bytes": (20_000, [16] * 4),
}


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("compiled", [False, True], ids=["nnx.jit", "compile_step"])
@pytest.mark.parametrize("sizes", SIZES)
def test_tensors_of_all_sizes(sizes, compiled, every):
    """All numbers are those of NumPy, of every step or of every second one."""
    rows, widths = SIZES[sizes]
    model = Stack(widths)
    optimizer = nnx.Optimizer(model, optax.sgd(1e-2), wrt=nnx.Param)
    watch = tallax.watch(model, optimizer, sites=["layers/*", "layers/*/layer"], every=every, **EVERYTHING)
    expected = []
    run = tallax.compile_step(train_step, model, optimizer) if compiled else nnx.jit(train_step)
    for k in range(3):
        x = jax.random.normal(jax.random.key(k), (rows, 16))
        before = values_of(model)
        run(x) if compiled else run(model, optimizer, x)
        if compiled:
            run.sync()
        if k % every == 0:
            expected.append(tensors_of_step(before, x, values_of(model)))
    results = watch.result()
    assert set(results) == set(expected[0])
    for name, result in results.items():
        arrays = [np.asarray(each[name], np.float64) for each in expected]
        whole = np.concatenate([array.ravel() for array in arrays])
        assert result.size == whole.size, name
        assert result.updates == 3
        assert result.nonfinite == 0
        assert result.zeros == (whole == 0).sum(), name
        np.testing.assert_allclose(result.rms, np.sqrt((whole**2).mean()), rtol=1e-4, err_msg=name)
        np.testing.assert_allclose(result.mean, whole.mean(), rtol=1e-3, atol=1e-6 * np.abs(whole).max(), err_msg=name)
        np.testing.assert_allclose(result.largest, np.abs(whole).max(), rtol=1e-4, err_msg=name)
        step = 1 + every * int(np.argmax([np.abs(array).max() for array in arrays]))
        assert result.largest_at == step, name


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("rows", [8, 600], ids=["small", "larger"])
def test_one_tensor_that_is_not_finite_does_not_hide_the_others(rows, every):
    """A tensor that is reduced together with others is the only one whose numbers are left out."""
    model = Stack([16] * 5)
    model.layers[2].bias[...] = jnp.full(16, jnp.nan).at[1:].set(0.5)
    watch = tallax.watch(model, sites="layers/*", every=every)
    nnx.jit(lambda model, x: tallax.value_and_grad(lambda model: model(x).sum())(model)[0])(model, jnp.ones((rows, 16)))
    results = watch.result()
    assert [results[f"layers/{k}:output"].nonfinite for k in range(4)] == [0, 0, 1, 1]
    assert [results[f"layers/{k}:output"].size for k in range(4)] == [16 * rows, 16 * rows, 0, 0]
    assert results["layers/1:output"].rms > 0


@pytest.mark.parametrize("rows", [8, 600], ids=["small", "larger"])
@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("order", ["in remat first", "in remat last"])
def test_a_layer_that_is_used_within_a_transformation_and_outside_of_it(order, every, rows):
    """Both uses are counted, in the forward and in the backward pass."""
    model = Dense(16, 16, nnx.Rngs(0))
    watch = tallax.watch(model, sites=Dense, every=every, output_gradients=True)

    def loss(model, x):
        def inner(model, x):
            return model(x)

        first, last = (nnx.remat(inner), inner) if order == "in remat first" else (inner, nnx.remat(inner))
        return (last(model, first(model, x)) ** 2).mean()

    @nnx.jit
    def step(model, x):
        tallax.grad(loss)(model, x)

    x = jax.random.normal(jax.random.key(0), (rows, 16))
    for _ in range(2):
        step(model, x)
    result, looks = watch.result(), 2 // every
    y = model.kernel[...], model.bias[...]
    first = x @ y[0] + y[1][None]
    both = np.concatenate([np.asarray(first), np.asarray(first @ y[0] + y[1][None])]).astype(np.float64)
    assert result[":output"].size == looks * both.size
    np.testing.assert_allclose(result[":output"].rms, np.sqrt((both**2).mean()), rtol=1e-4)
    np.testing.assert_allclose(result[":output"].largest, np.abs(both).max(), rtol=1e-4)
    assert result[":output_gradient"].size == looks * both.size
    assert result[":output"].updates == result[":output_gradient"].updates == 2


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("jitted", [False, True], ids=["eager", "nnx.jit"])
def test_a_model_and_its_copy_in_one_loss(jitted, every):
    """A copy has statistics of its own, although its sites have the same names."""
    student = Dense(16, 16, nnx.Rngs(0))
    tallax.watch(student, sites=Dense, every=every, output_gradients=True)
    teacher = nnx.clone(student)

    def step(student, teacher, x):
        def loss(student, teacher):
            return ((student(x) - teacher(2 * x)) ** 2).mean()

        tallax.grad(loss, argnums=(0, 1))(student, teacher)

    x = jax.random.normal(jax.random.key(0), (600, 16))
    for _ in range(3):
        (nnx.jit(step) if jitted else step)(student, teacher, x)
    for model, factor in ((student, 1), (teacher, 2)):
        result = tallax.Watch(model).result()
        output = np.asarray(factor * x @ model.kernel[...] + model.bias[...][None], np.float64)
        looks = len(range(0, 3, every))
        assert result[":output"].size == result[":output_gradient"].size == looks * output.size
        assert result[":output"].updates == result[":output_gradient"].updates == 3
        np.testing.assert_allclose(result[":output"].rms, np.sqrt((output**2).mean()), rtol=1e-4)
        assert result[":output_gradient"].rms > 0


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("axes", ["auto", "explicit"])
def test_tensor_parallel_training(axes, every):
    """If a mesh splits the model alone, the numbers are those of one device."""
    mesh = mesh_of(axes, (2,), ("model",))

    def numbers(mesh):
        model = Stack([16, 64, 16], Dense if mesh is None or axes == "auto" else Reshards)
        if mesh is not None:
            state = jax.tree.map(
                lambda x: jax.device_put(x, jax.NamedSharding(mesh, P(None, "model") if x.ndim == 2 else P("model"))),
                nnx.state(model),
            )
            nnx.update(model, state)
        optimizer = nnx.Optimizer(model, optax.sgd(1e-2), wrt=nnx.Param)
        watch = tallax.watch(model, optimizer, sites="layers/*", every=every, **EVERYTHING)
        with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
            for k in range(2):
                jax.block_until_ready(nnx.jit(train_step)(model, optimizer, _replicated(mesh, k)))
        return watch.result()

    many = numbers(mesh)
    for name, one in numbers(None).items():
        assert many[name].size == one.size, name
        assert many[name].zeros == one.zeros, name
        np.testing.assert_allclose(many[name].rms, one.rms, rtol=1e-4, err_msg=name)
        np.testing.assert_allclose(many[name].largest, one.largest, rtol=1e-4, err_msg=name)


def _replicated(mesh, k):
    x = jax.random.normal(jax.random.key(k), (32, 16))
    return x if mesh is None else jax.device_put(x, jax.NamedSharding(mesh, P()))


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("axes", ["auto", "explicit"])
def test_a_batch_that_is_split_and_a_model_that_is_on_no_mesh(axes, every):
    """The model trains, and the numbers are those of one device."""
    results = []
    for mesh in (None, mesh_of(axes, (8,), ("data",))):
        model = Stack([16, 16, 16, 16])
        optimizer = nnx.Optimizer(model, optax.sgd(1e-2), wrt=nnx.Param)
        watch = tallax.watch(model, optimizer, sites="layers/*", every=every, output_gradients=True, inputs=True)
        x = jax.random.normal(jax.random.key(0), (32, 16))
        with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
            x = x if mesh is None else jax.device_put(x, jax.NamedSharding(mesh, P("data")))
            jax.block_until_ready(nnx.jit(train_step)(model, optimizer, x))
        results.append(watch.result())
    for name, one in results[0].items():
        assert results[1][name].size == one.size, name
        np.testing.assert_allclose(results[1][name].rms, one.rms, rtol=1e-4, err_msg=name)


def test_all_sites_share_what_says_whether_a_step_is_due():
    """A model of eight layers is divided as often as one of two: once in each pass, and not once for each site."""

    def divisions(layers):
        model = Stack([16] * (layers + 1))
        optimizer = nnx.Optimizer(model, optax.sgd(1e-2), wrt=nnx.Param)
        tallax.watch(model, optimizer, every=10, **EVERYTHING)
        # The text of the program, since no result tells how often it was computed.
        return tallax.compile_step(train_step, model, optimizer).lower(jnp.ones((8, 16))).as_text().count("remainder")

    assert 0 < divisions(2) == divisions(8)


def test_a_branch_returns_a_single_array():
    """Each array that leaves a branch is copied, and a branch that is not taken makes zeros in its place."""
    model = Stack([16, 64, 96, 160, 128, 512, 16])
    optimizer = nnx.Optimizer(model, optax.sgd(1e-2), wrt=nnx.Param)
    tallax.watch(model, optimizer, every=2, **EVERYTHING)
    text = tallax.compile_step(train_step, model, optimizer).lower(jnp.ones((600, 16))).as_text()
    results = re.findall(r'%\d+(:\d+)? = "stablehlo.case"', text)
    assert len(results) > 5
    assert not any(results), results


def test_numbers_that_leave_a_branch_are_the_same():
    """Packed, several tensors have the lanes that they have one by one, whether or not their counts take digits."""
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    few = Numbers(x[0, 0], x[0, 1], x[0, 2], (x[1, 0],), (7, 8, 9, 10))
    digits = tuple(np.float32(k) for k in (5, 6, 7))
    many = Numbers(np.float32(1), np.float32(2), np.float32(3), digits, 2**40 + 5)
    expected = table_of([few, many], is_split=False)
    packed = PackedNumbers.of([few, many])
    np.testing.assert_array_equal(table_of_packed([packed]), expected)
    np.testing.assert_array_equal(table_of_packed([packed[k] for k in range(5)]), expected)
    np.testing.assert_array_equal(table_of_packed([PackedNumbers.of([each]) for each in (few, many)]), expected)


def test_squares_of_gradients_need_no_memory():
    """The sum of the squares of a gradient takes no array of its size, although Adam computes the squares too."""
    x = jnp.ones((8, 512))

    def temporary_bytes(**watched):
        model = Dense(512, 512, nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
        if watched:
            tallax.watch(model, optimizer, outputs=False, **watched)

        def step(model, optimizer, x):
            loss, grads = tallax.value_and_grad(lambda model, x: (model(x) ** 2).mean())(model, x)
            with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
                optimizer.update(model, grads)
            return loss

        with tallax.compile_step(step, model, optimizer) as run:
            return run.lower(x).compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(gradients=True) <= 1.01 * temporary_bytes()
