# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: everything that objects hold comes back to the bit, or an error says what differs."""

from __future__ import annotations

import contextlib
import json
import pathlib
import shutil
import time
import weakref

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from orbax.checkpoint.experimental import v1

import tallax
from tallax.checkpoints._manager import _tell_of_what_is_lost
from tallax.checkpoints._serialize import _sum_of, _sum_on_host, sums_of
from tests.cases import MODES, STATE_CASES, Everything, assert_same_state, batch, leaves

MESH = jax.sharding.Mesh(np.array(jax.devices()), ("data",))


@pytest.fixture(autouse=True)
def standard_promotion():
    """Flax's layers and optax mix dtypes."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@contextlib.contextmanager
def in_mode(mode: str):
    """All of a program in one of Flax's modes."""
    with nnx.set_graph_mode(mode != "tree"), nnx.set_graph_updates(mode == "graph"):
        yield


class Layers(nnx.Module):
    """One of everything that Flax keeps state in, and of the oddest things that it takes."""

    def __init__(self, seed: int):
        rngs = nnx.Rngs(seed, noise=nnx.RngStream(jax.random.key(seed, impl="rbg"), tag="noise"))
        self.linear = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.half = nnx.Param(jnp.full(3, seed, jnp.bfloat16))
        self.complex = nnx.Variable(jnp.full(2, 1j * seed))
        self.mask = nnx.Variable(jnp.array([True, bool(seed)]))
        self.tied = self.linear.kernel
        self.pair = nnx.Variable((jnp.full(1, seed), {"of": jnp.zeros(2) + seed}))
        self.number, self.ratio, self.nothing = nnx.Variable(seed), nnx.Variable(seed / 3), nnx.Variable(None)
        self.empty = nnx.Param(jnp.zeros((0, 3)))
        self.table, self.host = jnp.arange(3.0) * seed, np.full(2, seed)
        self.odd = nnx.Dict(
            {"a.b/c d": nnx.Param(jnp.ones(1) * seed), "a": nnx.Dict({"b/c d": nnx.Param(jnp.ones(1))})}
        )
        self.large = tallax.Buffer(np.full(20_000, seed, np.float32))
        self.small = tallax.Buffer(np.full((2, 0, 3), seed, np.float32))
        self.count = tallax.Counter(2**60 + seed, shape=2)


def objects(seed: int, *, empty: bool = True):
    model = nnx.Dict(layers=Layers(seed), everything=Everything())
    if not empty:  # Orbax takes no array of size 0, and keeps only one of `a.b` and `a: {b`
        del model.layers.empty, model.layers.small, model.layers.odd
    tx = optax.chain(
        tallax.clip_by_global_norm(optax.linear_schedule(0.1, 1.0, 10)),
        tallax.inject_schedules(optax.adamw, learning_rate=optax.cosine_decay_schedule(1e-3, 100)),
    )
    return model, nnx.Optimizer(model, tx, wrt=nnx.Param), nnx.Rngs(seed + 1)


def bits(*things):
    """Returns everything that things hold, by path, as bytes."""
    flat = nnx.to_flat_state(nnx.split(things, graph=True)[1])
    found = {}
    for path, node in flat:
        raw = node.get_raw_value() if isinstance(node, nnx.Variable) else node
        for k, leaf in enumerate(jax.tree.leaves(raw)):
            if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                leaf = jax.random.key_data(leaf)
            array = np.asarray(leaf)
            found[(*path, k)] = (type(leaf).__name__ == "ndarray", str(array.dtype), array.shape, array.tobytes())
    return found


def same(left, right):
    """Whether two results of `bits` are the same, wherever their arrays lie."""
    assert left.keys() == right.keys()
    return not [path for path in left if left[path][1:] != right[path][1:]]


# --- everything comes back --------------------------------------------------------------------------------------------


def test_everything_comes_back_from_a_folder(tmp_path):
    """Parameters, statistics, streams, keys, odd dtypes, pytrees, bare arrays, numbers, optimizer and every item."""
    saved, other = objects(5), objects(2)
    for _ in range(2):
        saved[0].everything(batch())
    assert not same(bits(*saved), bits(*other))
    tallax.save(tmp_path / "one", *saved, extra={"epoch": 3, "seeds": [1, 2**60]})
    report = tallax.restore(tmp_path / "one", *other)
    assert same(bits(*saved), bits(*other))
    assert not any((report.missing, report.unexpected, report.reset, report.converted, report.warnings))
    assert report.extra == {"epoch": 3, "seeds": [1, 2**60]}
    assert {"model/layers/odd/a%2Eb%2Fc d", "rngs/default/key", "optimizer/step"} <= set(report.restored)
    assert other[0].layers.tied is other[0].layers.linear.kernel
    assert type(other[0].layers.number.get_raw_value()) is int
    assert isinstance(other[0].layers.host, np.ndarray)


def test_a_tree_goes_through_any_call_of_orbax(tmp_path):
    """An existing CheckpointManager, StandardCheckpointer and PyTreeCheckpointer save the tree and give it back."""
    saved = objects(5)
    tree = tallax.to_checkpoint(*saved)
    with ocp.CheckpointManager(tmp_path / "manager") as manager:
        manager.save(3, args=ocp.args.Composite(state=ocp.args.StandardSave(tree), info=ocp.args.JsonSave({"a": 1})))
        manager.wait_until_finished()
        found = manager.restore(3, args=ocp.args.Composite(state=ocp.args.StandardRestore()))["state"]
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "standard", tree)
        checkpointer.wait_until_finished()
        also = checkpointer.restore(tmp_path / "standard")
    for restored in (tree, found, also):
        other = objects(2)
        tallax.from_checkpoint(restored, *other)
        assert same(bits(*saved), bits(*other))
    other = objects(2)
    tallax.restore(tmp_path / "manager" / "3" / "state", *other)
    assert same(bits(*saved), bits(*other))


def of_many_kinds(seed):
    """A small model; among what it has is what JAX has only with x64."""
    rngs = nnx.Rngs(seed)
    return nnx.Dict(
        layer=nnx.Linear(2, 3, rngs=rngs), dropout=nnx.Dropout(0.5, rngs=rngs), seen=tallax.Counter(2**40 + seed),
        half=nnx.Param(jnp.full(3, seed, jnp.bfloat16)), pair=nnx.Variable({"n": (jnp.int8(seed), jnp.zeros((0, 2)))}),
        number=nnx.Variable(seed), long=np.full(2, 2**40 + seed), ratio=nnx.Variable(np.full((), seed / 3)),
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_orbax_s_first_version_and_its_next(tmp_path):
    """By what each of them calls metadata, a target in which nothing is cast; and `restore` takes what v1 wrote."""
    saved = of_many_kinds(5)
    tree = tallax.to_checkpoint(saved)
    v1.save(tmp_path / "next", tree)
    v1.save_async(tmp_path / "later", tree).result()
    with v1.training.Checkpointer(tmp_path / "series") as checkpointer:
        checkpointer.save(3, tree)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "first", tree)
        checkpointer.wait_until_finished()

    def first(model):
        with ocp.StandardCheckpointer() as checkpointer:
            target = tallax.checkpoint_target(checkpointer.metadata(tmp_path / "first"), model)
            tallax.from_checkpoint(checkpointer.restore(tmp_path / "first", target), model)

    def series(model):
        with v1.training.Checkpointer(tmp_path / "series") as checkpointer:
            target = tallax.checkpoint_target(checkpointer.metadata(3), model)
            tallax.from_checkpoint(checkpointer.load(3, target), model)

    def following(model):
        target = tallax.checkpoint_target(v1.metadata(tmp_path / "next"), model)
        tallax.from_checkpoint(v1.load(tmp_path / "next", target), model)

    for restore in (
        first,
        series,
        following,
        lambda model: tallax.from_checkpoint(v1.load(tmp_path / "later"), model),
        lambda model: tallax.restore(tmp_path / "later", model),
        lambda model: tallax.Checkpoints(tmp_path / "series").restore(model),
    ):
        other = of_many_kinds(2)
        restore(other)
        assert bits(other) == bits(saved)


def test_states_of_orbax_s_next_version_are_restored(tmp_path):
    """Without tallax: numbers and typed keys, too, by a target of its metadata."""
    saved, other = (nnx.Dict(number=nnx.Variable(seed), rngs=nnx.Rngs(seed)) for seed in (3, 4))
    v1.save(tmp_path / "state", nnx.to_pure_dict(nnx.state(saved)))
    target = tallax.checkpoint_target(v1.metadata(tmp_path / "state"), other)
    tallax.from_checkpoint(v1.load(tmp_path / "state", target), other)
    assert bits(other) == bits(saved)


def test_casts_by_orbax_are_reported(tmp_path):
    """Asked for another dtype than was written, it casts in silence: that is no damage, and the remedy is another."""
    model = make(long=np.full(2, 2**40))
    v1.save(tmp_path / "one", tallax.to_checkpoint(model))
    target = tallax.checkpoint_target(v1.metadata(tmp_path / "one"), model)
    target["model"]["w"] = jax.ShapeDtypeStruct((2,), jnp.bfloat16, sharding=target["model"]["w"].sharding)
    before = bits(model)
    with pytest.raises(
        tallax.CheckpointError, match=r"(?s)model/w: differs in dtype from the saved array.*checkpoint_target"
    ):
        tallax.from_checkpoint(v1.load(tmp_path / "one", target), model)
    assert bits(model) == before


def test_a_folder_of_several_trees_names_them(tmp_path):
    """As of a Composite, and of v1's checkpointables: which of them is meant is for the caller to say."""
    model = make()
    trees = {name: tallax.to_checkpoint(model) for name in ("state", "ema")}
    v1.save_checkpointables(tmp_path / "both", trees)
    with pytest.raises(tallax.CheckpointError, match="a folder of 2 trees: 'ema', 'state'"):
        tallax.restore(tmp_path / "both", model)
    tallax.restore(tmp_path / "both" / "ema", model)


def test_only_small_variables_are_in_the_manifest():
    """A thousand counters are one array to Orbax; parameters and large buffers have their own."""
    model = nnx.Dict(counts=nnx.List([tallax.Counter(k) for k in range(1000)]), w=nnx.Param(jnp.ones(2)))
    model.large = tallax.Buffer(np.zeros(20_000, np.float32))
    tree = tallax.to_checkpoint(model)
    assert len(jax.tree.leaves(tree)) == 3
    assert json.loads(np.asarray(tree["tallax"]).tobytes())["entries"]["model/counts/7"]["kind"] == "Counter"


SOME = ("counter", "buffer", "rate", "scheduled")  # whose arithmetic compiles quickly


@pytest.mark.parametrize("mode", [*MODES, "compiled"])
def test_every_mode_gives_the_same_tree(mode):
    """Eager, held by a compiled step, graph mode, tree mode and split give the same checkpoint, to the bit."""

    def train(model, x):
        return model(x)

    eager = Everything(SOME)
    nnx.jit(train)(eager, batch())
    expected = tallax.to_checkpoint(eager)
    model = Everything(SOME)
    if mode == "compiled":
        with tallax.compile_step(train, model) as step:
            step(batch())
            tree = tallax.to_checkpoint(step)
            step(batch())
        assert int(model.parts["counter"].item) == 2
    else:
        MODES[mode](train)(model, batch())
        with in_mode(mode):
            tree = tallax.to_checkpoint(model)
    left, right = ({k: np.asarray(v).tobytes() for k, v in leaves_of(t).items()} for t in (tree, expected))
    assert left == right


def leaves_of(tree):
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


FLAX = {
    "linear": lambda seed: nnx.Linear(2, 3, rngs=nnx.Rngs(seed)),
    "norm": lambda seed: nnx.BatchNorm(2, rngs=nnx.Rngs(seed)),
    "dropout": lambda seed: nnx.Dropout(0.5, rngs=nnx.Rngs(seed)),
    "embed": lambda seed: nnx.Embed(3, 2, rngs=nnx.Rngs(seed), param_dtype=jnp.bfloat16),
    "attention": lambda seed: nnx.MultiHeadAttention(2, 4, rngs=nnx.Rngs(seed)),
    "lora": lambda seed: nnx.LoRA(2, 1, 3, rngs=nnx.Rngs(seed)),
    "metric": lambda seed: nnx.metrics.Average(),
    "plain": lambda seed: nnx.Dict(v=nnx.Variable(np.uint64(2**63 + seed)), c=nnx.Cache(jnp.int8(seed))),
}
PARTS = {**FLAX, **{name: lambda seed, make=item.make: make() for name, item in STATE_CASES.items()}}


def mixture(names, seed):
    """Returns a model of parts, each perturbed, so that no two are alike by accident."""
    model = nnx.Dict({f"{k}": PARTS[name](seed) for k, name in enumerate(names)})
    rng = np.random.default_rng(seed)
    for _, node in nnx.iter_graph(model):
        raw = node.get_raw_value() if isinstance(node, nnx.Variable) else None
        if isinstance(raw, jax.Array | np.ndarray) and not isinstance(node, nnx.RngState):
            noise = rng.integers(0, 2, raw.nbytes, np.uint8).view(raw.dtype).reshape(raw.shape)
            node.set_raw_value(noise if isinstance(raw, np.ndarray) else jnp.asarray(noise))
    return model


@hypothesis.given(
    st.lists(st.sampled_from(sorted(PARTS)), min_size=1, max_size=6), st.integers(0, 99), st.sampled_from(list(MODES))
)
@hypothesis.settings(max_examples=25)
def test_any_mixture_comes_back_to_the_bit(names, seed, mode):
    """Any items and layers, with any bits in them, in any mode and from it into any other."""
    saved, other, another = (mixture(names, seed + k) for k in range(3))
    with in_mode(mode):
        tree = tallax.to_checkpoint(saved)
        tallax.from_checkpoint(tree, another)
    tallax.from_checkpoint(tree, other)
    assert same(bits(saved), bits(other))
    assert same(bits(saved), bits(another))


@pytest.mark.thorough
@hypothesis.given(st.lists(st.sampled_from(sorted(PARTS)), min_size=1, max_size=12), st.integers(0, 99))
@hypothesis.settings(max_examples=150)
def test_any_mixture_comes_back_from_a_folder(tmp_path_factory, names, seed):
    """The same through a folder of Orbax's, trained by a compiled step or not."""
    saved, other = mixture(names, seed), mixture(names, seed + 1)
    path = tmp_path_factory.mktemp("any") / "one"
    tallax.save(path, saved)
    tallax.restore(path, other)
    assert same(bits(saved), bits(other))


@pytest.mark.parametrize(
    "dtype",
    ["bool", "int8", "uint8", "int16", "bfloat16", "float16", "int32", "float32", "complex64", "float8_e4m3fn", "int4"],
)
def test_the_sum_of_an_array_is_the_same_on_the_host_and_on_a_device(dtype):
    """Whichever computed it when it was saved; and it tells one bit."""
    noise = np.random.default_rng(0).integers(0, 2, (3, 5, 7))
    array = jnp.asarray(noise).astype(dtype)
    split = jax.device_put(array.reshape(-1)[:104], jax.NamedSharding(MESH, jax.P("data")))
    for each in (array, split):
        assert _sum_on_host(np.asarray(each)) == int(_sum_of(each))
    other = array.at[1, 2, 3].set(jnp.asarray(1 - noise[1, 2, 3]).astype(dtype))
    assert sums_of([array]) != sums_of([other])


def test_a_weak_scalar_stays_one():
    """Or half-precision activations would be float32 after a restore, and every step traced once more."""
    saved, other, placed = (
        nnx.Dict(
            scale=nnx.Variable(jnp.asarray(x)),
            n=nnx.Variable(jnp.asarray(3)),
            many=nnx.Variable(jnp.broadcast_to(jnp.asarray(x), 3)),
        )
        for x in (0.1, 0.7, 0.7)
    )
    for name in ("scale", "many"):
        placed[name].set_raw_value(jax.device_put(placed[name][...], jax.devices()[1]))
    for model in (other, placed):
        tallax.from_checkpoint(tallax.to_checkpoint(saved), model)
        assert same(bits(saved), bits(model))
        for name in ("scale", "many"):
            assert model[name][...].weak_type
            assert (model[name][...] * jnp.ones(3, jnp.bfloat16)).dtype == jnp.bfloat16
    assert placed.many[...].devices() == {jax.devices()[1]}


def test_a_number_that_a_compiled_step_made_an_array_is_the_same_number():
    """A model that was trained goes into a new one, and one that was not into a trained one; exactly, or not at all."""

    def made(number, ratio):
        return nnx.Dict(number=nnx.Variable(number), ratio=nnx.Variable(ratio), flag=nnx.Variable(True))

    trained = made(7, 0.1)
    nnx.jit(lambda model: None)(trained)
    assert isinstance(trained.number.get_raw_value(), jax.Array)
    new = made(1, 0.25)
    report = tallax.from_checkpoint(tallax.to_checkpoint(trained), new)
    values = (new.number.get_raw_value(), new.ratio.get_raw_value(), new.flag.get_raw_value())
    assert values == (7, float(np.float32(0.1)), True)
    assert [type(value) for value in values] == [int, float, bool]
    assert "model/number: int32 -> int, the same number" in report.converted
    tallax.from_checkpoint(tallax.to_checkpoint(made(2**31 - 1, 0.25)), trained)
    assert int(trained.number[...]) == 2**31 - 1
    assert trained.ratio[...].weak_type
    for inexact, says in ((made(2**31, 0.25), "int with 2147483648"), (made(7, 0.1), "float with 0.1, which float32")):
        assert says in str(refused(tallax.to_checkpoint(inexact), trained))
    assert "int[] in the checkpoint" in str(refused(tallax.to_checkpoint(made(7, 1)), made(7, 1.0)))


# --- what differs is told ---------------------------------------------------------------------------------------------


def make(**parts):
    return nnx.Dict(step=tallax.Counter(), w=nnx.Param(jnp.ones(2)), **parts)


def refused(tree, model, **options):
    """Returns the error of a restore, after which the model is as it was."""
    before = bits(model)
    with pytest.raises(tallax.RestoreError) as caught:
        tallax.from_checkpoint(tree, model, **options)
    assert bits(model) == before
    return caught.value


def test_missing_and_unexpected_state_follow_the_policy():
    """Each kind has its own policy, and the report has every name."""
    old, new = make(old=nnx.Variable(jnp.ones(1))), make(new=tallax.Buffer(3.0))
    old.step += 7
    tree = tallax.to_checkpoint(old)
    error = refused(tree, new)
    assert str(error).startswith("model/new: is not in the checkpoint.")
    assert error.report.missing == ("model/new",)
    assert str(refused(tree, new, missing="init")).startswith("model/old: in the checkpoint, but not in the objects.")
    report = tallax.from_checkpoint(tree, new, missing="init", unexpected="ignore")
    assert (report.missing, report.unexpected) == (("model/new",), ("model/old",))
    assert set(report.restored) == {"model/step", "model/w"}
    assert (int(new.step), float(new.new[...])) == (7, 3.0)
    assert "missing, kept as it was: model/new" in str(report)


def test_a_part_of_a_checkpoint_is_restored_by_its_name():
    """A model alone, of a checkpoint of a model and an optimizer; and objects in another order."""
    saved, other = objects(5), objects(2)
    tree = tallax.to_checkpoint(*saved)
    report = tallax.from_checkpoint(tree, other[0], unexpected="ignore")
    assert {name.split("/")[0] for name in report.unexpected} == {"optimizer", "rngs"}
    assert same(bits(saved[0]), bits(other[0]))
    tallax.from_checkpoint(tree, other[2], other[1], other[0])
    assert same(bits(*saved), bits(*other))


@pytest.mark.parametrize(
    ("was", "now", "says"),
    [
        (nnx.Variable(jnp.int32(2**24 + 1)), nnx.Variable(jnp.float32(0)), "int32[] in the checkpoint"),
        (nnx.Variable(jnp.int32(2**24 + 1)), nnx.Variable(jnp.int8(0)), "int8[], as in the objects"),
        (nnx.Param(jnp.ones((3, 2))), nnx.Param(jnp.ones((2, 3))), "float32[3,2] in the checkpoint"),
        (tallax.Counter(3), nnx.Variable(jnp.uint32([0, 0])), "counts[] in the checkpoint"),
        (tallax.Counter(3), nnx.Variable(jnp.int32(0)), "int32[], as in the objects"),
        (tallax.Counter(shape=2), tallax.Counter(), "counts[2] in the checkpoint"),
        (nnx.Variable(jnp.uint32([1, 2])), tallax.Counter(), "uint32[2] in the checkpoint"),
        (nnx.Variable(jnp.int32(-5)), tallax.Counter(), "int32 with -5, which is below 0: it wrapped around"),
        (nnx.Variable(jnp.float32(9.9)), tallax.Counter(), "which is not a whole number"),
        (nnx.Variable(jnp.float32(2**65)), tallax.Counter(), "which is beyond 64 bits"),
        (nnx.Variable(jnp.bool_(True)), tallax.Counter(), "bool[] in the checkpoint"),
        (nnx.Variable(3), nnx.Variable(3.0), "int[] in the checkpoint"),
        (nnx.Variable(jax.random.key(0)), nnx.Variable(jax.random.key(0, impl="rbg")), "key:threefry2x32[2]"),
        (
            tallax.statistics.Histogram(-6.0, 6.0, bins=7),
            tallax.statistics.Histogram(-5.0, 5.0, bins=7),
            "Histogram('low': -6.0",
        ),
    ],
)
def test_a_mismatch_is_always_an_error(was, now, says, tmp_path):
    """Nothing is cast, cut or taken for something else, whatever the policy; the error has the path and both sides."""
    saved, other = make(part=was), make(part=now)
    saved.step += 1
    error = refused(tallax.to_checkpoint(saved), other, missing="init", unexpected="ignore")
    assert str(error).startswith("model/part")
    assert says in str(error)
    assert len(error.report.mismatched) == 1
    tallax.save(tmp_path / "one", saved)
    before = bits(other)
    with pytest.raises(tallax.RestoreError) as caught:
        tallax.restore(tmp_path / "one", other)
    assert str(caught.value) == str(error)
    assert bits(other) == before


def test_state_that_is_not_persistent_is_not_saved():
    """It comes back at its reset value, whether the model is new or was trained further."""
    rate = tallax.statistics.Rate()
    rate.counts.set_metadata("persistent", False)
    model = make(debug=tallax.Counter(persistent=False), rate=rate, noise=tallax.Buffer(1.0, persistent=False))
    model.debug += 3
    model.rate.update(np.array([True]))
    tree = tallax.to_checkpoint(model)
    entries = json.loads(np.asarray(tree["tallax"]).tobytes())["entries"]
    assert entries["model/debug"]["persistent"] is False
    assert "at" not in entries["model/debug"]
    model.noise[...] = 2.0
    report = tallax.from_checkpoint(tree, model)
    assert report.reset == ("model/debug", "model/rate/counts")
    assert report.kept == ("model/noise",)  # a Buffer has no reset value
    assert "not saved, kept as it was: model/noise" in str(report)
    assert (int(model.debug), model.rate.compute().total, float(model.noise[...])) == (0, 0, 2.0)


def test_renames():
    """By a mapping of names or of their beginnings, the longest first, or by a function."""
    old = nnx.Dict(encoder=nnx.Dict(a=nnx.Param(jnp.ones(1)), b=nnx.Param(jnp.ones(2))), step=tallax.Counter(4))
    tree = tallax.to_checkpoint(old)
    by_mapping = {"model/encoder": "model/backbone", "model/encoder/b": "model/last", "model/step": "model/count"}

    def by_function(name):
        return by_mapping.get(name, name.replace("encoder", "backbone"))

    for rename in (by_mapping, by_function):
        new = nnx.Dict(
            backbone=nnx.Dict(a=nnx.Param(jnp.zeros(1))), last=nnx.Param(jnp.zeros(2)), count=tallax.Counter()
        )
        report = tallax.from_checkpoint(tree, new, rename=rename)
        assert int(new.count) == 4
        assert new.last[...].sum() == 2
        assert ("model/encoder/a", "model/backbone/a") in report.renamed
    for rename, error, says in (
        ({"model/none": "x"}, tallax.InvalidValueError, "is not the beginning of any name"),
        (lambda name: "same", tallax.InvalidValueError, "must give each array a different name"),
        ({"model/step": "model/encoder/a"}, tallax.InvalidValueError, "must give each array a different name"),
        (lambda name: None, tallax.InvalidTypeError, r"NoneType \(None\) for 'model/encoder/a'"),
        ({"model/step": 3}, tallax.InvalidTypeError, "or a mapping of names"),
        ([("model/step", "model/count")], tallax.InvalidTypeError, "or a mapping of names"),
    ):
        with pytest.raises(error, match=says):
            tallax.from_checkpoint(tree, old, rename=rename)
    swapped = nnx.Dict(encoder=nnx.Dict(a=nnx.Param(jnp.ones(2)), b=nnx.Param(jnp.zeros(1))), step=tallax.Counter())
    swap = {"model/encoder/a": "model/encoder/b", "model/encoder/b": "model/encoder/a"}
    tallax.from_checkpoint(tree, swapped, rename=swap)
    assert (swapped.encoder.a[...].tolist(), swapped.encoder.b[...].tolist()) == ([1, 1], [1])


def test_an_error_explains_names_that_only_the_checkpoint_has():
    """It was renamed to what the objects do not have, or they declare that it is not kept."""
    tree = tallax.to_checkpoint(make(seen=tallax.Counter(3)))
    error = refused(tree, make(seen=tallax.Counter()), rename={"model/seen": "model/sen"})
    assert "model/seen (renamed to model/sen)" in str(error)
    error = refused(tree, make(seen=tallax.Counter(persistent=False)))
    assert "model/seen (persistent=False in the objects): in the checkpoint" in str(error)


@pytest.mark.parametrize(
    ("was", "count", "warns"),
    [
        (jnp.float32(2**24 - 1), 2**24 - 1, False),
        (jnp.float32(2**24), 2**24, True),
        (jnp.bfloat16(256), 256, True),
        (jnp.int32(2**24 + 1), 2**24 + 1, False),
        (jnp.int32(2**31 - 1), 2**31 - 1, True),
        (np.uint32(2**32 - 2), 2**32 - 2, False),
        (np.int64(2**62 + 1), 2**62 + 1, False),
        (np.uint64(2**64 - 1), 2**64 - 1, True),
        (12, 12, False),
    ],
)
def test_an_old_counter_becomes_exact(was, count, warns, tmp_path):
    """Of any number; with a warning where it could have stuck or saturated before it was saved."""
    old = nnx.Dict(step=nnx.Variable(was))
    tallax.save(tmp_path / "ours", old)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "plain", nnx.state(old))
    for path in ("ours", "plain"):
        new = nnx.Dict(step=tallax.Counter())
        report = tallax.restore(tmp_path / path, new)
        assert int(new.step) == count
        assert len(report.converted) == 1
        assert bool(report.warnings) == warns
        assert not warns or "the true count may be larger" in report.warnings[0]


def test_two_arrays_under_one_name_of_orbax_are_an_error(tmp_path):
    """Orbax joins keys by dots and writes one array over the other; tallax tells, and its own names have no dots."""
    model = nnx.Dict({"a.b": nnx.Param(jnp.ones(1)), "a": nnx.Dict(b=nnx.Param(jnp.zeros(1)))})
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "plain", nnx.to_pure_dict(nnx.state(model)))
    with pytest.raises(tallax.CheckpointError, match=r"two arrays are written as 'a\.b'"):
        tallax.restore(tmp_path / "plain", model)
    tallax.save(tmp_path / "ours", model)
    other = nnx.Dict({"a.b": nnx.Param(jnp.zeros(1)), "a": nnx.Dict(b=nnx.Param(jnp.ones(1)))})
    tallax.restore(tmp_path / "ours", other)
    assert same(bits(model), bits(other))


def test_a_model_that_orbax_wrote_is_restored(tmp_path):
    """`nnx.state(model)`, alone or in a dict, has the words of counters, keys and all else."""
    saved = objects(5, empty=False)[:2]
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "both", {"model": nnx.state(saved[0]), "optimizer": nnx.state(saved[1])})
        checkpointer.save(tmp_path / "model", nnx.state(saved[0]))
    for path, count in (("both", 2), ("model", 1)):
        other = objects(2, empty=False)[:2]
        tallax.restore(tmp_path / path, *other[:count])
        assert same(bits(*saved[:count]), bits(*other[:count]))


# --- devices ----------------------------------------------------------------------------------------------------------


def on(mesh, spec=None):
    """Returns a model with its matrix split over a mesh, and everything else whole on all of it."""
    model = make(matrix=nnx.Param(jnp.arange(64.0).reshape(8, 8)), seen=tallax.statistics.Rate())
    if mesh is not None:
        for path, node in nnx.iter_graph(model):
            if isinstance(node, nnx.Variable):
                spec = jax.P("data") if path[-1] == "matrix" else jax.P()
                node.set_raw_value(jax.device_put(node.get_raw_value(), jax.NamedSharding(mesh, spec)))
    return model


@pytest.mark.parametrize(("before", "after"), [(8, 4), (4, 8), (1, 8), (8, 1)])
def test_another_number_of_devices(before, after, tmp_path):
    """Counters and statistics are global values; parameters go where the new model has them."""
    meshes = {n: jax.sharding.Mesh(np.array(jax.devices()[:n]), ("data",)) if n > 1 else None for n in (before, after)}
    saved, other = on(meshes[before]), on(meshes[after])
    nnx.jit(lambda model: model.seen.update(jnp.arange(16) % 3 == 0))(saved)
    saved.step += 2**40
    saved.matrix[...] = saved.matrix[...] * 2
    tallax.save(tmp_path / "one", saved)
    shardings = {path: getattr(node.get_raw_value(), "sharding", None) for path, node in variables(other)}
    tallax.restore(tmp_path / "one", other)
    assert same(bits(saved), bits(other))
    for path, node in variables(other):
        assert getattr(node.get_raw_value(), "sharding", None) == shardings[path]


def test_orbax_s_own_restore_on_other_devices(tmp_path):
    """By `checkpoint_target`: shapes and dtypes as saved, devices as the objects have theirs, nothing cast."""
    meshes = [jax.sharding.Mesh(np.array(jax.devices()[:n]), ("data",)) for n in (8, 4)]
    saved, other = map(on, meshes)
    saved.step += 2**40
    handler = ocp.StandardCheckpointHandler()
    with ocp.CheckpointManager(tmp_path, item_handlers=handler) as manager:
        manager.save(1, args=ocp.args.StandardSave(tallax.to_checkpoint(saved)))
        manager.wait_until_finished()
        metadata = manager.item_metadata(1)
        target = tallax.checkpoint_target(metadata, other)
        tree = manager.restore(1, args=ocp.args.StandardRestore(target))
        tallax.from_checkpoint(tree, other)
        assert same(bits(saved), bits(other))
        assert other.matrix[...].sharding.mesh == meshes[1]
        narrow = on(meshes[1])
        narrow.matrix.set_raw_value(jnp.zeros((8, 8), jnp.bfloat16))
        tree = manager.restore(1, args=ocp.args.StandardRestore(tallax.checkpoint_target(metadata, narrow)))
        assert "float32[8,8] in the checkpoint" in str(refused(tree, narrow))


def variables(model):
    return [(path, node) for path, node in nnx.iter_graph(model) if isinstance(node, nnx.Variable)]


def test_per_replica_state_is_saved_combined_and_distributed_again():
    """Replicas' shares combine by their reduction; a checkpoint does not know how many there were."""
    model = nnx.Dict(
        seen=tallax.Counter(5), most=tallax.Buffer(jnp.zeros(2), reduce="max"), x=tallax.statistics.Extrema()
    )
    shares = tallax.per_replica(model, MESH, "data")
    specs = tallax.replica_specs(shares)

    @nnx.jit
    @nnx.shard_map(mesh=MESH, in_specs=(specs, jax.P("data")), out_specs=None)
    def count(model, x):
        model.seen.count(x > 0)
        model.most[...] = jnp.maximum(model.most[...], x.max())
        model.x.update(x)

    x = jax.device_put(np.arange(-8.0, 8.0, dtype=np.float32), jax.NamedSharding(MESH, jax.P("data")))
    count(shares, x)
    tree = tallax.to_checkpoint(shares)
    whole = tallax.combine_replicas(shares)
    tallax.from_checkpoint(tree, model)
    assert_same_state(model, whole)
    assert int(model.seen) == 5 + 7
    half = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("data",))
    for mesh in (MESH, half):
        again = tallax.per_replica(nnx.clone(model), mesh, "data")
        again.seen.set_raw_value(again.seen.get_raw_value() * 0)
        tallax.from_checkpoint(tree, again)
        assert int(tallax.combine_replicas(again).seen) == 12
        assert again.seen.get_raw_value().sharding.mesh.size == mesh.size
        assert_same_state(tallax.combine_replicas(again).x, whole.x)
    count(again if mesh is MESH else tallax.per_replica(model, MESH, "data"), x)


# --- steps and loops --------------------------------------------------------------------------------------------------


def train_step(model, optimizer, x):
    loss, grads = tallax.value_and_grad(lambda model: (model(x) ** 2).mean())(model)
    optimizer.update(model, grads)
    return loss


def training():
    model = Everything(SOME)
    return model, nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)


@pytest.mark.parametrize(("async_", "mode"), [(True, "graph-no-updates"), (False, "graph"), (True, "tree")])
def test_a_loop_goes_on_where_it_was(tmp_path, async_, mode):
    """Saved through a compiled step that donates, while it runs on; then everything is as if it had never stopped."""

    def run(steps, folder):
        things = training()
        with in_mode(mode), tallax.Checkpoints(folder, keep=2, every=3, async_=async_) as checkpoints:
            start = checkpoints.latest() or 0
            step = tallax.compile_step(train_step, *things)
            if start:
                assert checkpoints.restore(step).step == start
            for n in range(start, steps):
                step(batch(n % 6))
                checkpoints.save(n + 1, step, extra={"n": n})
            step.sync()
            return start, things, checkpoints.steps(), step.traces

    assert run(8, tmp_path / "a")[::2] == (0, [3, 6])
    start, things, steps, traces = run(12, tmp_path / "a")
    assert (start, steps, traces) == (6, [9, 12], 1)
    assert same(bits(*things), bits(*run(12, tmp_path / "b")[1]))


def test_saving_is_safe_while_the_arrays_are_donated(tmp_path):
    """An asynchronous save has the state of its time, though the next step takes the memory and numbers change."""
    model = nnx.Dict(w=nnx.Param(jnp.arange(2.0**20)), seen=tallax.Counter())
    host = nnx.Dict(array=nnx.data(np.zeros(3)))

    @nnx.jit(donate_argnums=0)
    def step(model):
        model.w[...] += 1.0
        model.seen += 1

    step(model)
    with tallax.Checkpoints(tmp_path) as checkpoints:
        for n in (1, 2):
            checkpoints.save(n, model, host)
            host.array[:] = n
            step(model)
    for n in (1, 2):
        other = nnx.Dict(w=nnx.Param(jnp.zeros(2**20)), seen=tallax.Counter())
        with tallax.Checkpoints(tmp_path) as checkpoints:
            checkpoints.restore(other, host, step=n)
        assert (float(other.w[0]), int(other.seen), float(host.array[0])) == (n, n, n - 1)


def test_a_loop_saves_every_nth_step(tmp_path):
    """Multiples of `every`, anything with `force`, the same number once; smaller ones are an error; old ones go."""
    model = make()
    with tallax.Checkpoints(tmp_path / "new" / "er", keep=2, every=10) as checkpoints:
        assert checkpoints.latest() is None
        assert not (tmp_path / "new").exists()
        assert [n for n in range(1, 35) if checkpoints.save(n, model)] == [10, 20, 30]
        assert checkpoints.save(35, model, force=True)
        assert not checkpoints.save(35, model, force=True)
        assert checkpoints.latest() == 35
        with pytest.raises(tallax.InvalidValueError, match="numbered from 0"):
            checkpoints.save(-10, model)
        with pytest.raises(tallax.InvalidValueError, match="numbered upwards"):
            checkpoints.save(30, model)
        assert checkpoints.steps() == [30, 35]
        assert checkpoints.restore(model, step=30).step == 30
    with ocp.CheckpointManager(tmp_path / "new" / "er") as manager:
        assert manager.all_steps() == [30, 35]
        tallax.from_checkpoint(manager.restore(35), model)


def test_a_failure_in_the_background_is_raised(tmp_path):
    """By the next call, and by the end of the block."""
    model = make()
    checkpoints = tallax.Checkpoints(tmp_path / "a")
    checkpoints.save(1, model)
    checkpoints.wait()
    shutil.rmtree(tmp_path / "a")
    (tmp_path / "a").write_text("in the way")
    checkpoints.save(2, model)
    with pytest.raises(tallax.CheckpointError, match="cannot be written to"):
        checkpoints.wait()
    checkpoints.close()


def test_a_program_that_ends_too_early_is_reported(tmp_path, capsys):
    """Python stops the threads that write before the last checkpoint is there: that is said, once nobody waits."""
    checkpoints = tallax.Checkpoints(tmp_path / "a")
    checkpoints.save(1, make())
    checkpoints.wait()
    _tell_of_what_is_lost(weakref.ref(checkpoints))
    assert capsys.readouterr().err == ""
    shutil.rmtree(tmp_path / "a")
    (tmp_path / "a").write_text("in the way")
    checkpoints.save(2, make())
    while checkpoints.lost() is None:
        time.sleep(0.001)
    _tell_of_what_is_lost(weakref.ref(checkpoints))
    assert capsys.readouterr().err.endswith("The program ended without checkpoints.close().\n")
    with pytest.raises(tallax.CheckpointError):
        checkpoints.close()


def test_a_half_removed_checkpoint_does_no_harm(tmp_path):
    """A kill may come while an old one is removed: the later ones are restored, and saving goes on."""
    with tallax.Checkpoints(tmp_path, keep=2) as checkpoints:
        for n in (1, 2):
            checkpoints.save(n, make())
    for name in ("_CHECKPOINT_METADATA", "default/_METADATA", "default/manifest.ocdbt"):
        (tmp_path / "1" / name).unlink()
    model = make()
    model.step.set(3)
    with tallax.Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.restore(make()).step == 2
        with pytest.raises(tallax.CheckpointError):
            checkpoints.restore(make(), step=1)
        checkpoints.save(model.step, model)
        assert checkpoints.steps() == [2, 3]


def test_remains_of_a_killed_program_are_removed(tmp_path):
    """By the first save, as Orbax itself leaves it there."""
    rest = tmp_path / "7.orbax-checkpoint-tmp"
    rest.mkdir()
    with tallax.Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() is None
        checkpoints.save(1, make())
    assert not rest.exists()


def test_a_restore_that_fails_while_it_writes_changes_nothing(monkeypatch):
    """Whatever comes between, Ctrl-C too: all or nothing."""
    model, saved = make(), make()
    saved.step += 5
    saved.w[...] = 3.0
    tree, before = tallax.to_checkpoint(saved), bits(model)

    def interrupt(value):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(model.w), "set_raw_value", lambda self, value: interrupt(value) if value[0] == 3 else None)
    with pytest.raises(KeyboardInterrupt):
        tallax.from_checkpoint(tree, model)
    monkeypatch.undo()
    assert bits(model) == before


def test_per_replica_state_is_not_half_restored(monkeypatch):
    """Its values are combined, restored and shared out again, and where that fails all of it is as it was."""
    model = nnx.Dict(seen=tallax.Counter(5), w=nnx.Param(jnp.ones(2)), x=nnx.Param(jnp.ones(2)))
    tree = tallax.to_checkpoint(model)
    shares = tallax.per_replica(model, MESH, "data")
    shares.seen.set_raw_value(shares.seen.get_raw_value() * 0)
    shares.w[...] = 2.0
    before = bits(shares)
    write = nnx.Param.set_raw_value

    def refuse(self, value):
        if self is shares.x:
            raise RuntimeError("no")
        write(self, value)

    monkeypatch.setattr(nnx.Param, "set_raw_value", refuse)
    with pytest.raises(RuntimeError, match="no"):
        tallax.from_checkpoint(tree, shares)
    monkeypatch.undo()
    assert bits(shares) == before


def test_objects_without_values_are_an_error():
    """Variables that a partial restore of Orbax did not find are named, and addresses are not paths."""
    saved = make()
    tree = tallax.to_checkpoint(saved)
    tree["model"]["w"] = jax.ShapeDtypeStruct((2,), jnp.float32)
    before = bits(saved)
    with pytest.raises(tallax.CheckpointError, match="model/w: has no value in the tree"):
        tallax.from_checkpoint(tree, saved)
    assert bits(saved) == before
    for call in (tallax.save, tallax.restore, lambda path, _: tallax.Checkpoints(path)):
        with pytest.raises(
            tallax.InvalidValueError, match="gs://bucket/run: tallax writes checkpoints only to folders"
        ):
            call("gs://bucket/run", saved)
    endless: list[object] = []
    for _ in range(10_000):
        endless = [endless]
    with pytest.raises(tallax.InvalidTypeError, match="must be JSON"):
        tallax.to_checkpoint(saved, extra=endless)


def test_a_part_of_a_model_may_be_called_as_the_manifest_is(tmp_path):
    """In what Orbax wrote by itself."""
    old, new = (nnx.Dict(tallax=nnx.Dict(step=nnx.Variable(jnp.int32(n)))) for n in (3, 0))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "plain", nnx.state(old))
    tallax.restore(tmp_path / "plain", new)
    assert int(new.tallax.step[...]) == 3


def test_nothing_of_orbax_is_imported_early():
    """`import tallax` takes no longer for it."""
    import subprocess
    import sys

    command = (
        "import sys, tallax; print([name for name in sys.modules if name.split('.')[0] in ('orbax', 'tensorstore')])"
    )
    out = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, timeout=120, check=True)
    assert out.stdout.strip() == "[]"


def test_the_names_on_the_disk_are_orbax_s_own(tmp_path):
    """A name of the objects never becomes a path."""
    model = nnx.Dict({"../../../evil": nnx.Param(jnp.ones(3)), "..": tallax.Counter(3), "": nnx.Param(jnp.ones(1))})
    tallax.save(tmp_path / "deep" / "one", model)
    files = {path.name for path in tmp_path.rglob("*")} | {
        path.name for path in pathlib.Path(tmp_path.parent).iterdir()
    }
    assert not any("evil" in name for name in files)
    other = nnx.Dict({"../../../evil": nnx.Param(jnp.zeros(3)), "..": tallax.Counter(), "": nnx.Param(jnp.zeros(1))})
    tallax.restore(tmp_path / "deep" / "one", other)
    assert leaves(other)[0].tolist() == leaves(model)[0].tolist()
    assert int(other[".."]) == 3
