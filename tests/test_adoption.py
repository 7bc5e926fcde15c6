# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that tallax did not write are recognised, or the error prints the `rename=` that works."""

from __future__ import annotations

import ast
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from orbax.checkpoint.experimental import v1

import tallax
from tests.test_checkpoints import bits, in_mode


@pytest.fixture(autouse=True)
def standard_promotion():
    """Flax's layers and optax mix dtypes."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


class Model(nnx.Module):
    """A model before tallax came, or after."""

    def __init__(self, seed: int, *, new: bool = False):
        rngs = nnx.Rngs(seed)
        self.first = nnx.Linear(2, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.second = nnx.Linear(3, 2, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        if new:
            self.step = tallax.Counter()
            self.extra = nnx.Dict(rate=tallax.statistics.Rate(), ema=tallax.Buffer(jnp.zeros(2)))


def adam(model):
    return nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)


def trained(tx=None):
    """Returns a model and an optimizer whose every array is its own."""
    model = Model(0)
    optimizer = adam(model) if tx is None else nnx.Optimizer(model, tx, wrt=nnx.Param)
    for thing in (model, optimizer):
        for k, (_, leaf) in enumerate(nnx.to_flat_state(nnx.state(thing))):
            if not isinstance(leaf, nnx.RngState):
                raw = leaf.get_raw_value()
                leaf = raw + jnp.asarray(k + 1, raw.dtype)
                nnx.update(thing, nnx.from_flat_state([(_, leaf)]))
    return model, optimizer


def assert_restored(old, new):
    """Every array of an old object is in the new one, to the bit."""
    before, after = bits(old), bits(new)
    assert before
    assert {path: value for path, value in after.items() if path in before} == before


def pure(thing, *filters):
    return nnx.to_pure_dict(nnx.state(thing, *filters))


LAYOUTS = {
    "named": lambda m, o: {"model": nnx.state(m), "optimizer": nnx.state(o), "step": 4},
    "named-pure": lambda m, o: {"model": pure(m), "optimizer": pure(o), "step": 4},
    "short": lambda m, o: {"net": pure(m), "opt": pure(o)},
    "values": lambda m, o: jax.tree.map(lambda x: {"value": x}, {"model": pure(m), "optimizer": pure(o)}),
    "with-others": lambda m, o: {"model": pure(m), "optimizer": pure(o), "ema": pure(m, nnx.Param), "x": {"step": 3}},
}  # fmt: skip
# Layouts that are not recognised, with the `rename=` of the error.
RENAMED = {
    "wrapped": (
        lambda m, o: {"state": {"model": pure(m), "optimizer": pure(o)}, "step": 4},
        {"state/model": "model", "state/optimizer": "optimizer"},
    ),
    "within-the-optimizer": (
        lambda m, o: {"optimizer": {"model": pure(m), **pure(o)}},
        {"optimizer/model": "model"},
    ),
    "collections": (
        lambda m, o: {
            "params": pure(m, nnx.Param), "batch_stats": pure(m, nnx.BatchStat), "rngs": pure(m, nnx.RngState),
            "optimizer": pure(o),
        },
        {"params": "model", "batch_stats": "model", "rngs": "model"},
    ),
    "collections-of-the-model": (
        lambda m, o: {
            "model": {"params": pure(m, nnx.Param), "rest": pure(m, nnx.Not(nnx.Param))}, "optimizer": pure(o),
        },
        {"model/params": "model", "model/rest": "model"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_recognised(layout, tmp_path):
    """From a folder and from memory; new state starts fresh, everything else is the old one's, to the bit."""
    old = trained()
    tree = LAYOUTS[layout](*old)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "old", tree)
    for restore in (
        lambda *objects, **options: tallax.restore(tmp_path / "old", *objects, **options),
        lambda *objects, **options: tallax.from_checkpoint(tree, *objects, **options),
    ):
        new = Model(7, new=True)
        optimizer = adam(new)
        report = restore(new, optimizer, missing="state", unexpected="ignore")
        assert_restored(old[0], new)
        assert_restored(old[1], optimizer)
        assert report.missing == ("model/extra/ema", "model/extra/rate/counts", "model/step")
        assert int(new.step) == 0


@pytest.mark.parametrize("layout", RENAMED)
def test_another_layout_is_restored_by_the_names_in_the_error(layout):
    """Nothing is guessed: the error proposes the `rename=`, and with it everything is the old one's, to the bit."""
    make, rename = RENAMED[layout]
    old, new = trained(), Model(7)
    optimizer = adam(new)
    before = bits(new, optimizer)
    with pytest.raises(tallax.RestoreError, match=r"rename=\{") as caught:
        tallax.from_checkpoint(make(*old), new, optimizer, unexpected=["step"])
    assert bits(new, optimizer) == before
    proposed = ast.literal_eval(re.findall(r"rename=(\{[^}]*\})", str(caught.value))[0])
    assert proposed.items() <= rename.items()
    tallax.from_checkpoint(make(*old), new, optimizer, rename=rename, unexpected=["step"])
    assert_restored(old[0], new)
    assert_restored(old[1], optimizer)


@pytest.mark.parametrize("mode", ["graph", "graph-no-updates", "tree"])
def test_in_every_mode(mode):
    """The layout does not depend on Flax's modes."""
    old = trained()
    tree = LAYOUTS["short"](*old)
    with in_mode(mode):
        new = Model(7, new=True)
        optimizer = adam(new)
        tallax.from_checkpoint(tree, new, optimizer, missing="state")
    assert_restored(old[0], new)
    assert_restored(old[1], optimizer)


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_every_writer_of_orbax(tmp_path):
    """The manager, its items, the checkpointers of states and of trees, and the next version."""
    old = trained()
    tree = {"model": nnx.state(old[0]), "optimizer": nnx.state(old[1])}
    with ocp.CheckpointManager(tmp_path / "manager") as manager:
        manager.save(4, args=ocp.args.StandardSave(tree))
        manager.wait_until_finished()
    with ocp.CheckpointManager(tmp_path / "items", item_names=("state", "info")) as manager:
        arguments = ocp.args.Composite(state=ocp.args.StandardSave(tree), info=ocp.args.JsonSave({"epoch": 3}))
        manager.save(4, args=arguments)
        manager.wait_until_finished()
    with ocp.CheckpointManager(tmp_path / "composite") as manager:
        arguments = {name: ocp.args.StandardSave(part) for name, part in tree.items()}
        manager.save(4, args=ocp.args.Composite(**arguments, info=ocp.args.JsonSave({"epoch": 3})))
        manager.wait_until_finished()
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "tree", tree)
    v1.save(tmp_path / "next", {"model": pure(old[0]), "optimizer": pure(old[1])})
    v1.save(tmp_path / "states", tree)
    places = [tmp_path / name for name in ("manager/4", "manager/4/default", "items/4", "tree", "next")]
    places.append(tmp_path / "states")
    for restore in (
        *[lambda *objects, path=path: tallax.restore(path, *objects, missing="state") for path in places],
        lambda *objects: [
            tallax.restore(tmp_path / "composite/4" / name, thing, missing="state")
            for name, thing in zip(("model", "optimizer"), objects, strict=True)
        ],
        lambda *objects: tallax.Checkpoints(tmp_path / "manager").restore(*objects, missing="state"),
    ):
        new = Model(7, new=True)
        optimizer = adam(new)
        restore(new, optimizer)
        assert_restored(old[0], new)
        assert_restored(old[1], optimizer)
    with pytest.raises(tallax.CheckpointError, match=r"a folder of 1 checkpoints(?s:.*)Checkpoints\(path\)\.restore"):
        tallax.restore(tmp_path / "manager", new)


def test_an_optimizer_that_accumulates():
    """`optax.MultiSteps` has the inner state one level deeper on both sides."""
    tx = optax.MultiSteps(optax.adam(1e-3), 2)
    old = trained(tx)
    tree = {"net": pure(old[0]), "optimizer": pure(old[1])}
    new = Model(7)
    optimizer = nnx.Optimizer(new, tx, wrt=nnx.Param)
    tallax.from_checkpoint(tree, new, optimizer)
    assert_restored(old[0], new)
    assert_restored(old[1], optimizer)


def test_one_object_of_a_checkpoint_of_several():
    """If only the model or only the optimizer is restored, the rest is unexpected, by its name in the checkpoint."""
    old = trained()
    tree = LAYOUTS["named"](*old)
    new = Model(7)
    with pytest.raises(tallax.RestoreError, match="optimizer/opt_state/0/count, optimizer/opt_state/0/mu"):
        tallax.from_checkpoint(tree, new)
    tallax.from_checkpoint(tree, new, unexpected=["optimizer", "step"])
    assert_restored(old[0], new)
    optimizer = adam(Model(7))
    tallax.from_checkpoint(tree, optimizer, unexpected=["model/**", "s?ep"])
    assert_restored(old[1], optimizer)
    # An object that has a name of its own here, or there.
    for source in (pure(old[0]), {"net": pure(old[0])}):
        for names in ({}, {"teacher": True}):
            new = Model(7)
            objects = ((), {"teacher": new}) if names else ((new,), {})
            tallax.from_checkpoint(source, *objects[0], **objects[1])
            assert_restored(old[0], new)
    # In a checkpoint of tallax the names are exact, and the error proposes another.
    new = Model(7)
    with pytest.raises(tallax.RestoreError, match=r"rename=\{'x': 'model'\}"):
        tallax.from_checkpoint(tallax.to_checkpoint(x=old[0]), new)
    tallax.from_checkpoint(tallax.to_checkpoint(x=old[0]), new, rename={"x": "model"})
    assert_restored(old[0], new)


def test_several_models_and_streams():
    """Each object gets its own part, in any order."""
    first, second, rngs = Model(1), Model(2), nnx.Rngs(3)
    tree = {"teacher": pure(second), "net": pure(first), "rngs": pure(rngs)}
    new = Model(7), Model(8), nnx.Rngs(9)
    for objects, named in (((new[0], new[2]), {"teacher": new[1]}), ((new[2], new[0]), {"teacher": new[1]})):
        tallax.from_checkpoint(tree, *objects, **named)
        for old, thing in zip((first, second, rngs), new, strict=True):
            assert_restored(old, thing)


# --- what must not be recognised --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tree",
    [
        lambda m, o: {"optimizer": pure(o), "step": 4},
        lambda m, o: {"opt": pure(o)},
        lambda m, o: {"optimizer": {"opt_state": {"mu": pure(m, nnx.Param)}}},
        lambda m, o: {"trace": pure(m, nnx.Param)},
        lambda m, o: {"metrics": {"step": 4, "loss": 0.5}},
        lambda m, o: (
            {"params": pure(m, nnx.Param), "ema_params": pure(m, nnx.Param)} | {"model": {"other": np.ones(3)}}
        ),
        lambda m, o: {"ema": pure(m, nnx.Param), "student": pure(m, nnx.Param)},
        lambda m, o: {"model": {"unrelated": np.ones(3)}},
    ],
)
def test_nothing_of_an_object_is_an_error_under_any_policy(tree):
    """Adam's moments look like parameters, and a counter called `step` is everywhere: neither makes a model."""
    new = Model(7, new=True)
    before = bits(new)
    for policy in ("error", "state", "init"):
        with pytest.raises(tallax.RestoreError, match=r"^model: none of its arrays are in the checkpoint"):
            tallax.from_checkpoint(tree(*trained()), new, missing=policy, unexpected="ignore")
        assert bits(new) == before


def test_an_object_missing_from_the_checkpoint_is_named():
    """The error names the object, also if others are restored, and if it has only new state."""
    old = trained()
    new, optimizer = Model(7), adam(Model(7))
    before = bits(new, optimizer)
    for other in ({"optimizer": optimizer}, {"stats": nnx.Dict(seen=tallax.Counter())}):
        with pytest.raises(
            tallax.RestoreError, match=f"^{next(iter(other))}: none of its arrays are in the checkpoint"
        ):
            tallax.from_checkpoint({"model": pure(old[0])}, new, **other, missing="init", unexpected="ignore")
        assert bits(new, optimizer) == before
    empty = nnx.Dict(scratch=tallax.Counter(persistent=False))
    tallax.from_checkpoint({"model": pure(old[0])}, new, empty=empty)  # there is nothing that it could be missing


def test_a_parameter_is_never_fresh_by_accident():
    """`missing="state"` starts counters and statistics fresh, and nothing else."""
    old = trained()[0]
    tree = {"model": pure(old, nnx.Not(nnx.BatchStat))}
    del tree["model"]["second"]["bias"]
    new = Model(7, new=True)
    with pytest.raises(tallax.RestoreError) as caught:
        tallax.from_checkpoint(tree, new, missing="state")
    assert str(caught.value).startswith("model/norm/mean, model/norm/var, model/second/bias: are not in the checkpoint")
    tallax.from_checkpoint(tree, new, missing=["model/step", "**/rate", "*/extra/e?a", nnx.BatchStat, "model/*/bias"])
    for wrong in (["**/rat"], ["model"[:-1]], ["*/step"], [nnx.Param], []):
        with pytest.raises(tallax.RestoreError, match="not in the checkpoint"):
            tallax.from_checkpoint(tree, new, missing=wrong)


@pytest.mark.parametrize("value", ["ignore", "**/step", 3, [3], {"**/step": "init"}, [int], None])
def test_other_values_are_not_policies(value):
    """A pattern outside a list is an error, because a misspelled policy would be one; the error shows the list."""
    with pytest.raises((tallax.InvalidValueError, tallax.InvalidTypeError), match=r"missing=\['\*\*/step'\]"):
        tallax.from_checkpoint({}, Model(0), missing=value)
    if value not in ("ignore", [nnx.Param]):
        with pytest.raises((tallax.InvalidValueError, tallax.InvalidTypeError), match=r"unexpected=\['ema/\*\*'\]"):
            tallax.from_checkpoint({}, Model(0), unexpected=value)


def test_a_report_tells_of_a_level_once():
    """Not of every array below it."""
    old, new = Model(0), Model(1)
    parts = [f"{name} -> model/{name}" for name in ("dropout", "first", "norm", "second")]
    for tree, moved in (({"net": pure(old)}, ["net -> model"]), (pure(old), parts)):
        lines = [f"renamed: {line}" for line in moved]
        assert str(tallax.from_checkpoint(tree, new)).splitlines() == ["restored: 10", *lines]
    rename = {"model/first": "model/second", "model/second": "model/first"}
    square = [
        nnx.Dict(first=nnx.Linear(2, 2, rngs=nnx.Rngs(k)), second=nnx.Linear(2, 2, rngs=nnx.Rngs(k))) for k in (0, 1)
    ]
    report = tallax.from_checkpoint(tallax.to_checkpoint(square[0]), square[1], rename=rename)
    assert str(report).splitlines()[1:] == [
        "renamed: model/second -> model/first", "renamed: model/first -> model/second",
    ]  # fmt: skip


# --- hints ------------------------------------------------------------------------------------------------------------


def follow(restore):
    """Restores, and does to the letter what each error says, until there is none."""
    options = {}
    for _ in range(6):
        caught = None
        try:
            restore(**options)
        except tallax.RestoreError as error:
            caught = str(error)
        if caught is None:
            return
        fix = caught.rpartition("fix:")[2]
        found = re.findall(r"rename=(\{[^}]*\})", fix)[:1]
        words = dict(re.findall(r"(missing|unexpected)='(\w+)'", fix))
        news = {"rename": ast.literal_eval(found[0])} if found else words
        assert {**options, **news} != options, caught
        options |= news
    raise AssertionError(options)


def renamed_layer(old):
    return {("head" if name == "second" else name): part for name, part in pure(old).items()}


@pytest.mark.parametrize(
    "tree",
    [
        lambda m: {"a": {"b": {"c": pure(m)}}},
        lambda m: {"ema": pure(m), "student": pure(m)},
        lambda m: {"model": renamed_layer(m)},
        lambda m: {"net": renamed_layer(m), "step": 4},
        renamed_layer,
        lambda m: {"model": {"inner": renamed_layer(m)}},
        lambda m: {"x": {"y": {**pure(m, nnx.Param)}, "z": pure(m, nnx.Not(nnx.Param))}},
        lambda m: tallax.to_checkpoint(nnx.Dict(body=nnx.Dict(m=m))),
    ],
)
def test_a_hint_works_when_followed_to_the_letter(tree):
    """For every layout, the `rename=` in the error restores the model."""
    old = trained()[0]
    new = Model(7, new=True)
    follow(lambda **options: tallax.from_checkpoint(tree(old), new, **options))
    assert_restored(old, new)


def test_the_hint_of_a_mismatch():
    """The hint of the error restores everything except the mismatched array."""
    old, new = (nnx.Dict(w=nnx.Param(jnp.ones(n)), v=nnx.Param(jnp.full(2, 1.0 * n))) for n in (3, 4))
    with pytest.raises(tallax.RestoreError, match=r"rename=\{'model/w': 'unused'\}, missing=\['model/w'\]") as caught:
        tallax.from_checkpoint(tallax.to_checkpoint(old), new)
    options = eval(f"dict({str(caught.value).rpartition('to ignore it, ')[2]})")
    tallax.from_checkpoint(tallax.to_checkpoint(old), new, **options)
    assert (new.w.shape, new.v[...].tolist()) == ((4,), [3, 3])


def test_an_attribute_may_be_called_value_or_as_its_object():
    """`value` is a level of Flax's Variables only if the objects have none of that name."""
    for make in (
        lambda n: nnx.Dict(value=nnx.Dict(value=nnx.Param(jnp.full(2, n)), b=nnx.Param(jnp.full(1, n)))),
        lambda n: nnx.Dict(model=nnx.Dict(w=nnx.Param(jnp.full(2, n))), w=nnx.Param(jnp.full(2, n + 1.0))),
        lambda n: nnx.Dict(pair=nnx.Variable({"value": jnp.full(2, n), "x": jnp.full(1, n)})),
    ):
        old, new = make(3.0), make(4.0)
        for tree in (pure(old), {"model": pure(old)}, jax.tree.map(lambda x: {"value": x}, {"model": pure(old)})):
            new = make(4.0)
            tallax.from_checkpoint(tree, new)
            assert bits(new) == bits(old)


def test_new_state_and_an_attribute_called_as_its_object():
    """A bare state is found by its parameters, also if a top level has the name of the object."""
    new = nnx.Dict(model=nnx.Dict(w=nnx.Param(jnp.zeros(2))), b=nnx.Param(jnp.zeros(2)), step=tallax.Counter())
    tree = {"model": {"w": jnp.full(2, 9.0)}, "b": jnp.full(2, 2.0)}
    assert tallax.from_checkpoint(tree, new, missing="state").missing == ("model/step",)
    assert (new.model.w[...].tolist(), new.b[...].tolist()) == ([9, 9], [2, 2])
    lone = nnx.Dict(step=tallax.Counter(1))
    with pytest.raises(tallax.RestoreError, match=r"rename=\{'a': 'model'\}"):
        tallax.from_checkpoint({"a": {"step": 4}}, lone)
    tallax.from_checkpoint({"step": 4}, lone)
    assert int(lone.step) == 4


def test_a_bare_state_wins_over_a_part_that_is_called_as_the_object():
    """Each array of the objects gets one array of the checkpoint, and the other one is unexpected."""
    new = nnx.Dict(w=nnx.Param(jnp.zeros(2)), v=nnx.Param(jnp.zeros(2)))
    tree = {"model": {"w": jnp.full(2, 9.0)}, "v": jnp.full(2, 2.0), "w": jnp.full(2, 1.0)}
    report = tallax.from_checkpoint(tree, new, unexpected="ignore")
    assert (new.w[...].tolist(), new.v[...].tolist(), report.unexpected) == ([1, 1], [2, 2], ("model/w",))


def test_a_target_for_orbax_finds_the_layout_too(tmp_path):
    """`checkpoint_target` puts the arrays of an old checkpoint on the devices that the objects are on."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))
    sharding = jax.NamedSharding(mesh, jax.P(None, "data"))
    old, new = (nnx.Dict(w=nnx.Param(jax.device_put(jnp.full((2, 4), n), sharding))) for n in (1.0, 2.0))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "old", {"net": pure(old)})
        checkpointer.wait_until_finished()
        target = tallax.checkpoint_target(checkpointer.metadata(tmp_path / "old"), new)
        assert target["net"]["w"].sharding == sharding
        tallax.from_checkpoint(checkpointer.restore(tmp_path / "old", target), new)
    assert bits(new) == bits(old)


def test_every_dtype_comes_back_or_is_named(tmp_path):
    """Every dtype is restored, also those that Orbax does not support, or is an error that names it."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))
    place = jax.NamedSharding(mesh, jax.P("data"))
    kinds = ("int2", "uint2", "int4", "uint4", "float4_e2m1fn", "float8_e8m0fnu", "float8_e4m3b11fnuz", "float8_e3m4")

    def make(values):
        arrays = {kind: jnp.asarray(values).astype(kind) for kind in kinds}
        here = {kind: nnx.Param(array) for kind, array in arrays.items()}
        there = {f"{kind}_split": nnx.Param(jax.device_put(array, place)) for kind, array in arrays.items()}
        return nnx.Dict(**here, **there, small=tallax.Buffer(arrays["uint4"]))

    old, new = make([1, 0]), make([0, 1])
    tallax.save(tmp_path / "one", old)
    tallax.restore(tmp_path / "one", new)
    assert bits(new) == bits(old)
    assert new.uint4_split[...].sharding == place
    again = make([0, 1])
    tallax.from_checkpoint(tallax.to_checkpoint(old), again)
    assert bits(again) == bits(old)
    for array in (np.array(["x"]), np.array([None]), np.array(["2020"], "datetime64[Y]"), np.ones(1, np.longdouble)):
        with pytest.raises(tallax.InvalidTypeError, match=r"^model/odd: Orbax cannot save arrays of this dtype"):
            tallax.save(tmp_path / "two", nnx.Dict(odd=nnx.Variable(array)))
        assert not (tmp_path / "two").exists()


@pytest.mark.parametrize("value", [jnp.array(3 + 0j), np.complex128(3), 3 + 0j, np.array(True)])
def test_other_values_than_counts_are_refused_by_name(value, tmp_path):
    """A complex number or a boolean is not made into a count, whoever saved it."""
    tallax.save(tmp_path / "ours", nnx.Dict(c=nnx.Variable(value)))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "plain", {"c": np.asarray(value)})
    for name in ("ours", "plain"):
        new = nnx.Dict(c=tallax.Counter(5))
        with pytest.raises(tallax.RestoreError, match=r"^model/c: the shape or dtype differs from the checkpoint"):
            tallax.restore(tmp_path / name, new)
        assert int(new.c) == 5
