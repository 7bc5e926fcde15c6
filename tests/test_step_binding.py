# SPDX-License-Identifier: Apache-2.0
"""Bound objects may be in any position and container, and a step has the methods of `nnx.jit`."""

import copy
import dataclasses
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, struct

import tallax


def made():
    model = nnx.Dict(weight=nnx.Param(jnp.array([3.0, 4.0])), seen=tallax.Counter())
    return model, nnx.Dict(total=nnx.Variable(jnp.float32(0.0)))


def work(model, log, x):
    model.weight[...] = model.weight[...] * x
    model.seen += 1
    log.total[...] += model.weight[...].sum()
    return log.total[...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Registered:
    model: Any
    log: Any


@struct.dataclass
class Struct:
    model: Any
    log: Any


CONTAINERS = {
    "tuple": (lambda model, log: (model, log), lambda both: both),
    "dict": (lambda model, log: {"m": model, "rest": [log, None]}, lambda both: (both["m"], both["rest"][0])),
    "dataclass": (Registered, lambda both: (both.model, both.log)),
    "struct": (Struct, lambda both: (both.model, both.log)),
}
EXPECTED = [14.0, 42.0]  # 2 * 7, and 4 * 7 more


@pytest.mark.parametrize("graph", [True, False], ids=["graph", "tree"])
@pytest.mark.parametrize("name", CONTAINERS)
def test_containers_of_objects(name, graph):
    """Bound as the first argument, or passed in each call; results have the bound objects in the same containers."""
    pack, unpack = CONTAINERS[name]

    def run(x, both, *, scale=1.0):
        return both, work(*unpack(both), x * scale)

    def first(both, x):
        return run(x, both)

    for way in ("first", "bound"):
        model, log = made()
        both = pack(model, log)
        if way == "first":
            step = tallax.compile_step(first, both, graph=graph)
            results = [step(2.0) for _ in range(2)]
        else:
            step = tallax.compile_step(run, bound=both, graph=graph)
            results = [step(1.0, both, scale=2.0), step(2.0, both=both, scale=1.0)]
        for out, _ in results:
            assert type(out) is type(both)
            assert unpack(out)[0] is model
            assert unpack(out)[1] is log
        assert [float(total) for _, total in results] == EXPECTED
        reads = {"first": lambda both: unpack(both)[0].seen.value, "bound": lambda x, both: unpack(both)[0].seen.value}
        assert int(step.read(reads[way], *([] if way == "first" else [1.0, both]))) == 2
        step.sync()
        assert (int(model.seen), float(log.total[...])) == (2, 42.0)


def test_a_part_of_a_bound_object_as_an_argument():
    """It is the same object inside the step."""
    model, log = made()

    def run(x, weight, model, log):
        assert weight is model.weight
        return work(model, log, x)

    step = tallax.compile_step(run, bound=(model, log))
    assert float(step(2.0, model.weight, model, log)) == 14.0
    assert float(step.scan(jnp.full(2, 2.0), model.weight, model, log)[-1]) == 98.0
    step.sync()
    assert int(model.seen) == 3


def test_a_container_that_is_changed_between_calls():
    """An entry that is replaced is another object to bind, as after a change of an attribute."""
    model, log = made()
    both = {"model": model, "log": log}
    step = tallax.compile_step(lambda both, x: work(both["model"], both["log"], x), both)
    step(2.0)
    other, _ = made()
    both["model"] = other
    assert float(step(2.0)) == 28.0
    step.sync()
    assert (int(model.seen), int(other.seen)) == (1, 1)
    assert float(model.weight[0]) == 6.0


def test_arrays_of_a_container_are_refused():
    """A step would use their first values for ever; passed in each call, they are arguments like others."""
    model, _ = made()
    for thing, name in (({"model": model, "key": jnp.ones(2)}, "state/key"), ((model, 3.0), "state/1")):
        with pytest.raises(tallax.InvalidTypeError, match=rf"^{name}: is an array in no Variable(.|\n)*bound=state"):
            tallax.compile_step(lambda state: None, thing)
    state = {"model": model, "key": jnp.ones(2)}

    def run(state):
        state["model"].seen += 1
        return {**state, "key": state["key"] + 1}

    step = tallax.compile_step(run, bound=state)
    for _ in range(3):
        state = step(state)
    step.sync()
    assert state["model"] is model
    assert (int(model.seen), state["key"].tolist()) == (3, [4.0, 4.0])


@dataclasses.dataclass
class Unregistered:
    model: Any


def test_arguments_without_objects_are_refused():
    """Nothing is bound by mistake."""
    unregistered = Unregistered(made()[0])
    for objects, bound in (((), None), ((), jnp.ones(2)), (({"a": 1},), None), ((unregistered,), None)):
        with pytest.raises(tallax.InvalidTypeError, match=r"^compile_step: requires the modules"):
            tallax.compile_step(work, *objects, bound=bound)


def test_bound_objects_that_a_call_passes_by_mistake():
    """At the first call, and when the step owns them."""
    model, log = made()
    step = tallax.compile_step(work, model, log)
    for _ in range(2):
        with pytest.raises(
            tallax.InvalidTypeError, match=r"^work: is called without its bound objects(.|\n)*bound=model"
        ):
            step(model, 2.0)
        step(2.0)
    step.sync()
    assert int(model.seen) == 2


def test_a_lowered_step():
    """It has costs and text; to compile it is to compile the step, and nothing runs."""
    model, log = made()
    step = tallax.compile_step(work, model, log)
    lowered = step.lower(jax.ShapeDtypeStruct((2,), jnp.float32))
    assert "work" in lowered.as_text()
    compiled = lowered.compile()
    assert compiled.cost_analysis()["flops"] > 0
    assert int(model.seen) == 0
    step(jnp.full(2, 2.0, jnp.float32))
    assert step.traces == 1
    step.sync()
    assert int(model.seen) == 1
    with pytest.raises(tallax.InvalidTypeError, match=r"^x: (.|\n)*static_argnames"):
        step.lower("text")


class Net(nnx.Module):
    def __init__(self, rngs):
        self.layer = nnx.Linear(2, 2, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.seen = tallax.Counter()

    def __call__(self, x):
        self.seen += 1
        return self.dropout(self.layer(x))


ACCIDENTS = {
    "method": lambda model: model.layer.kernel.mean(),
    "attribute": lambda model: model.layer.kernel.T,
    "at": lambda model: model.layer.kernel.at[0].set(1.0),
    "item": lambda model: model.layer.bias.tolist(),
    "comparison": lambda model: model.layer.bias == 0.0,
    "numpy": lambda model: np.asarray(model.layer.kernel),
    "jnp": lambda model: jnp.sum(model.layer.kernel),
    "operator": lambda model: model.layer.kernel + 1.0,
    "global-norm": lambda model: optax.tree.norm(nnx.state(model, nnx.Param)),
    "global-norm-of-all": lambda model: optax.tree.norm(nnx.state(model)),
    "tree-copy": lambda model: jax.tree.map(jnp.copy, nnx.state(model)),
    "ema": lambda model: nnx.EMA(model, 0.9),
    "clone": lambda model: nnx.clone(model)(jnp.ones((1, 2))),
    "pure-dict": lambda model: nnx.to_pure_dict(nnx.state(model))["layer"]["kernel"] * 2,
    "split-and-merge": lambda model: nnx.merge(*nnx.split(model))(jnp.ones((1, 2))),
    "pickle": pickle.dumps,
    "deepcopy": copy.deepcopy,
    "device-put": lambda model: jax.device_put(nnx.state(model), jax.devices()[0]),
    "device-get": lambda model: jax.device_get(nnx.state(model)),
    "call": lambda model: model(jnp.ones((1, 2))),
    "nnx-jit": nnx.jit(lambda model: None),
    "jax-jit": lambda model: jax.jit(lambda state: None)(nnx.state(model)),
    "vmap": lambda model: jax.vmap(lambda state: state)(nnx.state(model, nnx.Param)),
    "nnx-grad": nnx.grad(lambda model: model(jnp.ones((1, 2))).sum()),
    "stream": lambda model: model.dropout.rngs(),
    "write": lambda model: model.layer.kernel.set_value(jnp.ones((2, 2)), index=0),
}


def owning():
    model = Net(nnx.Rngs(0))
    step = tallax.compile_step(lambda model, x: model(x), model)
    step(jnp.ones((1, 2)))
    return model, step


@pytest.mark.parametrize("name", ACCIDENTS)
def test_accidents_are_explained(name):
    """Every way to use what a step owns is one error, which names the Variable and both remedies."""
    model, step = owning()
    with pytest.raises(tallax.StateOwnedByStepError, match=r"^model/\S+: is (owned by|a copy)") as caught:
        ACCIDENTS[name](model)
    assert "step.sync()" in str(caught.value)
    assert "step.read(" in str(caught.value)
    step.sync()
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        if name not in ("global-norm-of-all", "deepcopy", "pickle", "write"):  # those of keys, or of Flax's own
            ACCIDENTS[name](model)


COPIES = {
    "clone": nnx.clone,
    "variable": lambda model: nnx.Dict(layer=nnx.Dict(kernel=model.layer.kernel.copy())),
}


@pytest.mark.parametrize("name", COPIES)
def test_copies_explain_themselves(name):
    """A copy made meanwhile has no value: it says so before and after `sync`, which does not revive it."""
    model, step = owning()
    other = COPIES[name](model)
    uses = [lambda x: x[...], lambda x: x.mean(), lambda x: jnp.sum(x[...]), jnp.sum]
    for _ in range(2):
        for use in uses:
            with pytest.raises(tallax.StateOwnedByStepError, match=r"^model/layer/kernel: is a copy(.|\n)*copy again"):
                use(other.layer.kernel)
        step.sync()
    assert model.layer.kernel[...].shape == (2, 2)


def test_a_wait_for_the_objects_waits_for_the_step():
    """`jax.block_until_ready(model)` is no error: timing loops call it."""
    model, step = owning()
    jax.block_until_ready(nnx.state(model))
    assert not hasattr(model.layer.kernel, "no_such_attribute")
    step.sync()


def bump(model):
    model.weight[...] = model.weight[...] + 1.0
    model.seen += 1


def metadata(model):
    model.weight.set_metadata(note="new")


def dtype(model):
    model.weight = nnx.Param(jnp.array([1, 2]))


def sharding(model):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    model.weight.set_value(jax.device_put(model.weight[...], jax.NamedSharding(mesh, jax.P("data"))))


BETWEEN = {
    "nothing": (lambda model: None, [7.0, 8.0], 1),
    "value": (lambda model: model.weight.set_value(jnp.zeros(2)), [2.0, 2.0], 1),
    "shape": (lambda model: model.weight.set_value(jnp.zeros(3)), [2.0, 2.0, 2.0], 2),
    "metadata": (metadata, [7.0, 8.0], 2),
    "sharding": (sharding, [7.0, 8.0], 2),
    "attribute": (lambda model: setattr(model, "weight", nnx.Param(jnp.zeros(2))), [2.0, 2.0], 1),
    "more": (lambda model: setattr(model, "more", nnx.Param(jnp.zeros(2))), [7.0, 8.0], 2),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_changes_after_sync_are_found(name, monkeypatch):
    """A step that takes over again walks the model only if something has changed, and misses no change."""
    change, expected, traces = BETWEEN[name]
    model, _ = made()
    walks = []
    plain = nnx.split
    monkeypatch.setattr(nnx, "split", lambda *args, **options: [walks.append(1), plain(*args, **options)][1])
    step = tallax.compile_step(bump, model)
    for _ in range(2):
        step()
        step.sync()
    del walks[:]
    change(model)
    for _ in range(2):
        step()
    step.sync()
    assert model.weight[...].tolist() == expected
    assert int(model.seen) == 4
    assert step.traces == traces
    assert bool(walks) == (name not in ("nothing", "value"))


def test_arrays_that_were_read_after_sync_stay():
    """The values that a step takes over again are copied, so references from in between are not donated."""
    model, _ = made()
    step = tallax.compile_step(bump, model)
    kept = []
    for _ in range(4):
        step()
        step.sync()
        kept.append(model.weight[...])
    step()
    assert [array.tolist() for array in kept] == [[4.0, 5.0], [5.0, 6.0], [6.0, 7.0], [7.0, 8.0]]
    step.sync()
