# SPDX-License-Identifier: Apache-2.0
"""`persistent=False` on everything that takes it: left out by checkpoints, and empty after a restore."""

import jax
import numpy as np
import optax
import pytest
from flax import nnx

import tallax
from tests.meshes import KINDS, feed, result_of

X = np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)
STATISTICS = sorted(KINDS.keys() - {"counter"})


def model_of(persistent, name):
    return nnx.Dict(item=KINDS[name](persistent=persistent), step=tallax.Counter(3))


def is_empty(item, name):
    return all(np.array_equal(a, b) for a, b in zip(result_of(item), result_of(KINDS[name]()), strict=True))


def by_file(saved, target, path):
    tallax.save(path / "checkpoint", saved)
    return tallax.restore(path / "checkpoint", target)


def by_tree(saved, target, path):
    return tallax.from_checkpoint(tallax.to_checkpoint(saved), target)


@pytest.mark.parametrize("through", [by_file, by_tree])
@pytest.mark.parametrize("name", STATISTICS)
def test_a_statistic_is_left_out_and_reset(name, through, tmp_path):
    """A restore reports it as reset, empties it, and restores everything else; a persistent one comes back."""
    for persistent in (True, False):
        saved, target = model_of(persistent, name), model_of(persistent, name)
        feed(saved.item, X)
        feed(target.item, X[:4])
        target.step.reset()
        path = tmp_path / str(persistent)
        path.mkdir()
        report = through(saved, target, path)
        assert int(target.step) == 3
        if persistent:
            assert all(map(np.array_equal, result_of(target.item), result_of(saved.item)))
        else:
            assert is_empty(target.item, name)
            assert {path.rpartition("/")[0] for path in report.reset} == {"model/item"}
            assert report.restored == ("model/step",)


def test_a_schedule_is_left_out(tmp_path):
    """A ScheduledValue that is not persistent is not in a checkpoint, and keeps its value, like a Buffer."""
    saved, target = (
        nnx.Dict(t=tallax.ScheduledValue(optax.linear_schedule(5.0, 1.0, 10), persistent=False), step=tallax.Counter(n))
        for n in (3, 0)
    )
    saved.t(5)
    report = by_file(saved, target, tmp_path)
    assert (report.kept, report.restored, float(target.t.value)) == (("model/t/state",), ("model/step",), 5.0)


@pytest.mark.parametrize("name", STATISTICS)
def test_it_is_said_and_stays(name):
    """The description has the declaration, and copies, transformations and stacks keep it."""
    model = nnx.Dict(item=KINDS[name](persistent=False))
    (entry,) = tallax.collect(model).entries
    assert not entry.description.persistent
    nnx.jit(lambda model: feed(model.item, X))(model)
    stack = nnx.vmap(lambda _: KINDS[name](persistent=False), axis_size=3)(np.zeros(3))
    for item in (model.item, nnx.clone(model.item), stack):
        variables = jax.tree.leaves(nnx.state(item), is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
        assert {variable.get_metadata("persistent") for variable in variables} == {False}
