# SPDX-License-Identifier: Apache-2.0
"""The results of a compiled step are those of `nnx.jit`: the very bound objects, wherever they are in it."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tallax


class Net(nnx.Module):
    def __init__(self):
        self.layer = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
        self.layers = nnx.List([nnx.Dict(step=tallax.Counter()), nnx.Dict(step=tallax.Counter())])
        self.rate = tallax.statistics.Rate(2)
        self.scale = tallax.Buffer(jnp.ones(2))


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    model: Any
    loss: Any


class Pair(NamedTuple):
    first: Any
    second: Any


RESULTS = {
    "object": lambda m: m,
    "submodule": lambda m: m.layer,
    "list": lambda m: m.layers,
    "in-a-list": lambda m: m.layers[1],
    "statistic": lambda m: m.rate,
    "counter": lambda m: m.layers[1].step,
    "buffer": lambda m: m.scale,
    "parameter": lambda m: m.layer.kernel,
    "tuple": lambda m: (m, jnp.ones(2), m.layer),
    "dict": lambda m: {"z": m, "a": {"b": m.layers[0].step, "x": jnp.zeros(())}},
    "dataclass": lambda m: TrainState(m, {"loss": jnp.ones(())}),
    "named-tuple": lambda m: Pair([m.rate, None], m),
    "twice": lambda m: [m, m, m.layer.bias],
}


def touched(result):
    """Returns a step that changes the model and returns a part of it."""

    def step(model, x):
        for part in model.layers:
            part.step += 1
        model.rate.update(x > 0)
        model.layer.kernel[...] = model.layer.kernel[...] + x.sum()
        return result(model)

    return step


@pytest.mark.parametrize("graph", [True, False], ids=["graph", "tree"])
@pytest.mark.parametrize("name", RESULTS)
def test_bound_objects_come_back_as_themselves(name, graph):
    """At every call, in every container, as from `nnx.jit`; with the same values."""
    result = RESULTS[name]
    model, other, x = Net(), Net(), jnp.array([1.0, -1.0])
    is_object = lambda leaf: isinstance(leaf, nnx.Pytree | nnx.Variable)  # noqa: E731
    plain = nnx.jit(touched(result), graph=True, graph_updates=True)
    with tallax.compile_step(touched(result), model, graph=graph) as step:
        for _ in range(3):
            out, expected = step(x), plain(other, x)
            leaves, structure = jax.tree.flatten(out, is_leaf=is_object)
            own = jax.tree.leaves(result(model), is_leaf=is_object)
            theirs, its_structure = jax.tree.flatten(expected, is_leaf=is_object)
            assert str(structure) == str(its_structure)
            for leaf, mine, its in zip(leaves, own, theirs, strict=True):
                if is_object(mine):
                    assert leaf is mine
                else:
                    np.testing.assert_array_equal(leaf, its)
        assert step.traces == 1
    left, right = (jax.tree.leaves(nnx.state(each)) for each in (model, other))
    assert [np.asarray(a).tobytes() for a in left] == [np.asarray(b).tobytes() for b in right]


def test_a_loop_that_goes_on_with_the_result():
    """`state, metrics = step(x)` loops write to the state, and the next step sees it."""
    model = nnx.Dict(step=tallax.Counter())

    def run(model, x):
        model.step += 1
        return model, x.sum()

    step = tallax.compile_step(run, model)
    out, _ = step(jnp.ones(3))
    out.step += 100
    again, _ = step(jnp.ones(3))
    step.sync()
    assert again is out is model
    assert int(model.step) == 102


def test_a_state_of_the_model_has_its_variables():
    """`nnx.state(model)` returns the model's own Variables, as from `nnx.jit`; `nnx.as_pure` of it, arrays."""
    model = nnx.Dict(step=tallax.Counter(5), weight=nnx.Param(jnp.ones(2)))

    def run(model):
        model.step += 1
        return nnx.state(model), nnx.as_pure(nnx.state(model, nnx.Param))

    step = tallax.compile_step(run, model)
    state, arrays = step()
    assert state["step"] is model.step
    step()
    assert int(state["step"]) == 7
    assert arrays["weight"].tolist() == [1.0, 1.0]


def test_a_variable_that_the_step_replaces():
    """The bound Variable in its place has the value, and comes back."""
    model = nnx.Dict(step=tallax.Counter(5))

    def run(model):
        model.step = tallax.Counter(9)
        return model.step

    with tallax.compile_step(run, model) as step:
        assert step() is model.step
    assert int(model.step) == 9


class Wrapper(nnx.Module):
    def __init__(self, inner):
        self.inner = inner
        self.extra = tallax.Counter(3)


def test_new_objects():
    """New objects are returned as new, and bound objects within them as the bound ones."""
    model = Net()

    def run(model):
        model.layers[0].step += 2
        fresh = nnx.Variable(model.scale[...] + 1.0)
        return Wrapper(model.layer), fresh, nnx.clone(model)

    with tallax.compile_step(run, model) as step:
        wrapper, fresh, clone = step()
        again, *_ = step()
    assert wrapper is not again
    assert wrapper.inner is again.inner is model.layer
    assert int(wrapper.extra) == 3
    wrapper.extra += 1
    assert fresh[...].tolist() == [2.0, 2.0]
    assert (int(clone.layers[0].step), int(model.layers[0].step)) == (2, 4)
    assert clone.layer.kernel is not model.layer.kernel
    np.testing.assert_array_equal(clone.layer.kernel[...], model.layer.kernel[...])


def tied(model):
    fresh = nnx.Variable(jnp.ones(2))
    return fresh, fresh


def looped(model):
    one, other = nnx.Dict(), nnx.Dict()
    one.other, other.one = other, one
    return one


@pytest.mark.parametrize("run", [tied, looped])
def test_new_objects_that_are_no_trees(run):
    """They could only come back as silent copies, so they are refused by the function's name."""
    model = nnx.Dict(step=tallax.Counter())
    step = tallax.compile_step(run, model)
    with pytest.raises(tallax.InvalidTypeError, match=rf"^{run.__name__}: a compiled step can return arrays"):
        step()
    step.sync()
    assert int(model.step) == 0


@pytest.mark.parametrize("name", RESULTS)
def test_a_scan_has_no_objects_to_return(name):
    """It stacks its steps' results."""
    step = tallax.compile_step(lambda model, x: RESULTS[name](model), Net())
    with pytest.raises(tallax.InvalidTypeError, match=r"step\.scan stacks(.|\n)*model"):
        step.scan(jnp.ones(2))
