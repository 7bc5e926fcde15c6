# SPDX-License-Identifier: Apache-2.0
"""`tallax.watch` on the kinds of models that people train, built of Flax's own layers.

Each number is compared with tensors that are captured by hand: a second run of the model, in which every `__call__` is
replaced by one that keeps its output and adds a zero to it, and the gradient of the loss by these zeros.
"""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import tallax
from tallax._walk import path_name

WIDTH = 8


class Block(nnx.Module):
    def __init__(self, rngs):
        self.before_attention = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, WIDTH, decode=False, rngs=rngs)
        self.before_mlp = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.up = nnx.Linear(WIDTH, 2 * WIDTH, rngs=rngs)
        self.down = nnx.Linear(2 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x, mask):
        x = x + self.attention(self.before_attention(x), mask=mask)
        return x + self.down(nnx.gelu(self.up(self.before_mlp(x))))


class Gpt(nnx.Module):
    def __init__(self, rngs, layers=2):
        self.embedding = nnx.Embed(16, WIDTH, rngs=rngs)
        self.layers = nnx.List([Block(rngs) for _ in range(layers)])
        self.norm = nnx.RMSNorm(WIDTH, rngs=rngs)

    def __call__(self, tokens):
        x, mask = self.embedding(tokens), nnx.make_causal_mask(tokens)
        for layer in self.layers:
            x = layer(x, mask)
        return self.embedding.attend(self.norm(x))


class Convolutional(nnx.Module):
    def __init__(self, rngs):
        self.convolutions = nnx.List([nnx.Conv(1, 4, (3, 3), rngs=rngs), nnx.Conv(4, 4, (3, 3), rngs=rngs)])
        self.norms = nnx.List([nnx.BatchNorm(4, rngs=rngs) for _ in range(2)])
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, images):
        x = images
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = nnx.relu(norm(convolution(x)))
        return self.head(x.mean((1, 2)))


class Recurrent(nnx.Module):
    """An LSTM, whose scan over time a capture by hand replaces by a loop."""

    def __init__(self, rngs):
        self.recurrence = nnx.RNN(nnx.OptimizedLSTMCell(3, WIDTH, rngs=rngs), rngs=rngs)
        self.head = nnx.Linear(WIDTH, 2, rngs=rngs)
        self.in_loop = False

    def __call__(self, x):
        if not self.in_loop:
            return self.head(self.recurrence(x)[:, -1])
        carry = jnp.zeros((len(x), WIDTH)), jnp.zeros((len(x), WIDTH))
        for k in range(x.shape[1]):
            carry, y = self.recurrence.cell(carry, x[:, k])
        return self.head(y)


class Experts(nnx.Module):
    """A layer of experts, of which each token uses two."""

    def __init__(self, rngs):
        self.router = nnx.Linear(WIDTH, 4, use_bias=False, rngs=rngs)
        self.experts = nnx.List([nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(4)])

    def __call__(self, x):
        probabilities = nnx.softmax(self.router(x))
        chosen = probabilities >= jax.lax.top_k(probabilities, 2)[0][:, -1:]
        weights = jnp.where(chosen, probabilities, 0.0)
        return sum(weights[:, k, None] * expert(x) for k, expert in enumerate(self.experts))


TOKENS = jax.random.randint(jax.random.key(0), (4, 6), 0, 16)
MODELS = {
    "gpt": (Gpt, TOKENS),
    "convolutional": (Convolutional, jax.random.normal(jax.random.key(1), (4, 6, 6, 1))),
    "lstm": (Recurrent, jax.random.normal(jax.random.key(2), (4, 5, 3))),
    "mixture of experts": (Experts, jax.random.normal(jax.random.key(3), (16, WIDTH))),
}


def loss_of(model, x):
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):  # Flax's layers need them
        return (model(x) ** 2).mean()


@contextlib.contextmanager
def replaced_calls(model, zeros, seen):
    """Replaces the `__call__` of every module in a model: it keeps each output, after a zero was added to it."""
    names = {id(module): path_name(path) for path, module in nnx.iter_modules(model)}
    originals = {type(module): type(module).__call__ for _, module in nnx.iter_modules(model) if callable(module)}

    def replacement(original):
        def call(self, *args, **kwargs):
            out = original(self, *args, **kwargs)
            outputs = seen.setdefault(names[id(self)], [])
            if names[id(self)] in zeros:
                out = jax.tree.map(jnp.add, out, zeros[names[id(self)]][len(outputs)])
            outputs.append(out)
            return out

        return call

    try:
        for kind, original in originals.items():
            kind.__call__ = replacement(original)
        yield
    finally:
        for kind, original in originals.items():
            kind.__call__ = original


def captured(make, x):
    """Returns the tensors of a training step by the names that the watch has for them, each a list of arrays."""
    model = make(nnx.Rngs(0))
    model.in_loop = True
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def run(zeros, params, rest):
        # The Variables of `rest` are made anew, so that they belong to this trace and can be written.
        merged, seen = nnx.merge(graphdef, params, jax.tree.map(lambda x: x, rest)), {}
        with replaced_calls(merged, zeros, seen):
            return loss_of(merged, x), seen

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(run, {}, params, rest)[1])
    (gradients, of_params), outputs = jax.jit(jax.grad(run, argnums=(0, 1), has_aux=True))(zeros, params, rest)
    adam = optax.adam(1e-2)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        updates, _ = adam.update(of_params, adam.init(params), params)
    tensors = {f"{name}:output": values for name, values in outputs.items()}
    tensors |= {f"{name}:output_gradient": values for name, values in gradients.items()}
    for role, values in (("parameter", params), ("gradient", of_params), ("update", updates)):
        tensors |= {f"{path_name(path)}:{role}": [leaf[...]] for path, leaf in nnx.to_flat_state(values)}
    return {name: [np.asarray(leaf) for leaf in jax.tree.leaves(values)] for name, values in tensors.items()}


def watched(make, x):
    """Trains a model for one step under a watch, and returns the watch."""
    model = make(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    watch = tallax.watch(model, optimizer, output_gradients=True, parameters=True, gradients=True, updates=True)

    def step(model, optimizer, x):
        loss, grads = tallax.value_and_grad(loss_of)(model, x)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            optimizer.update(model, grads)
        return loss

    with tallax.compile_step(step, model, optimizer) as run:
        run(x)
    return watch


def assert_is_captured(watch, tensors, *, not_called=()):
    """Asserts that each number of a watch is that of the tensors which were captured by hand."""
    results = watch.result()
    assert {name for name in tensors if name.partition(":")[0] not in not_called} <= set(results)
    for name, result in results.items():
        if name.partition(":")[0] in not_called:  # the capture has a loop in its place
            continue
        leaves = tensors[name]
        whole = np.concatenate([leaf.ravel() for leaf in leaves]).astype(np.float64)
        largest = np.abs(whole).max()
        # A gradient that cancels, such as that of a bias before a BatchNorm, is a sum of rounding errors, and Adam
        # divides such a gradient by its size.
        tiny = 1e-7
        if name.endswith(":update") and min(np.abs(leaf).min() for leaf in tensors[gradient_of(name)]) < 1e-6:
            tiny = 1e-2
        assert (result.size, result.nonfinite, result.updates) == (whole.size, 0, 1), name
        np.testing.assert_allclose(result.rms, np.sqrt((whole**2).mean()), rtol=1e-4, atol=tiny, err_msg=name)
        np.testing.assert_allclose(result.mean, whole.mean(), rtol=1e-4, atol=tiny + 1e-5 * largest, err_msg=name)
        if len(leaves) == 1 or not name.endswith("_gradient"):
            np.testing.assert_allclose(result.largest, largest, rtol=1e-4, atol=tiny, err_msg=name)
        else:  # several gradients in one step
            assert largest * 0.999 <= result.largest <= 2 * largest, name
        assert result.largest_at == 1, name


def gradient_of(name):
    return name.removesuffix("update") + "gradient"


@pytest.mark.parametrize("name", MODELS)
def test_numbers_are_those_of_tensors_captured_by_hand(name):
    """Outputs, their gradients, parameters, gradients and updates of four kinds of models are all seen, and right."""
    make, x = MODELS[name]
    watch = watched(make, x)
    assert watch.unseen == {}
    assert_is_captured(watch, captured(make, x), not_called=("recurrence",))


@pytest.mark.thorough
def test_five_hundred_tensors_at_once():
    """More than 500 tensors of a deep model are watched in one step, each with its own numbers."""

    def make(rngs):
        return Gpt(rngs, layers=8)

    watch = watched(make, TOKENS)
    assert len(watch.sites) > 500
    assert watch.unseen == {}
    assert_is_captured(watch, captured(make, TOKENS))


def test_modules_without_variables_in_a_stack():
    """A module without Variables is one row for each layer, if it lies in a stack that `nnx.scan` runs."""

    class Activation(nnx.Module):
        def __call__(self, x):
            return nnx.relu(x)

    class Layer(nnx.Module):
        def __init__(self, rngs):
            self.linear, self.activation = nnx.Linear(3, 3, use_bias=False, rngs=rngs), Activation()

        def __call__(self, x):
            return self.activation(self.linear(x))

    model = nnx.Dict(layers=nnx.split_rngs(splits=2)(nnx.vmap(Layer))(nnx.Rngs(0)))
    watch = tallax.watch(model, output_gradients=True)

    def loss(model, x):
        run = nnx.scan(lambda layer, x: layer(x), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        return run(model.layers, x).sum()

    x = jnp.ones((4, 3))
    nnx.jit(tallax.grad(loss))(model, x)
    assert watch.unseen == {}
    result = watch.result()["layers/activation:output"]
    expected = []
    for kernel in np.asarray(model.layers.linear.kernel[...]):
        x = np.maximum(x @ kernel, 0)
        expected.append(np.sqrt((x**2).mean()))
    assert result.size.tolist() == [12, 12]
    np.testing.assert_allclose(result.rms, expected, rtol=1e-5)
