# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are damaged, foreign, from the future or hostile: a clear error, and the model as it was."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import pathlib
import pickle
import random
import shutil

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore
from flax import nnx

import tallax
from tallax.checkpoints import _manifest as manifest_module
from tallax.checkpoints import shown
from tallax.checkpoints._manifest import ArrayEntry, Manifest
from tests.cases import leaves

# Orbax drops its other reads when one fails, and tensorstore then calls back into a closed event loop.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def make(seed=0):
    return nnx.Dict(
        layer=nnx.Linear(20, 300, rngs=nnx.Rngs(seed)),
        step=tallax.Counter(seed),
        seen=tallax.statistics.Histogram(0.0, 1.0, bins=64),
        scale=tallax.Buffer(float(seed)),
    )


def bits(model):
    return [leaf.tobytes() for leaf in leaves(model)]


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A checkpoint that must not be changed."""
    path = tmp_path_factory.mktemp("good") / "one"
    tallax.save(path, make(3))
    return path


def refused(path, model=None):
    """Returns the text of the error of a restore, after which the model is as it was."""
    model = make() if model is None else model
    before = bits(model)
    with pytest.raises(tallax.CheckpointError) as caught:
        tallax.restore(path, model)
    assert bits(model) == before
    text = str(caught.value)
    assert "Traceback" not in text
    assert "fix:" in text
    assert all(len(line) < 600 for line in text.splitlines())
    return text


DAMAGES = {
    "flipped": lambda data, rng: bytes(
        byte ^ (bit if k == place else 0)
        for place, bit in [(rng.randrange(len(data)), 1 << rng.randrange(8))]
        for k, byte in enumerate(data)
    ),
    "halved": lambda data, rng: data[: len(data) // 2],
    "emptied": lambda data, rng: b"",
    "zeroed": lambda data, rng: bytes(len(data)),
    "random": lambda data, rng: rng.randbytes(len(data)),
    "gone": lambda data, rng: None,
}


def damaged_copies(good, folder, flips, seed):
    """Yields which file was damaged how, and the copy of a checkpoint in which it is."""
    rng = random.Random(seed)
    files = sorted(path.relative_to(good) for path in good.rglob("*") if path.is_file())
    assert len(files) > 5
    for file in files:
        for name in ["flipped"] * flips + list(DAMAGES)[1:]:
            copy = folder / "copy"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(good, copy)
            data = DAMAGES[name]((copy / file).read_bytes(), rng)
            if data is None:
                (copy / file).unlink()
            else:
                (copy / file).write_bytes(data)
            yield f"{file} {name}", copy


def check_damages(good, folder, flips, seed=0, every=1):
    whole, start, refusals = bits(make(3)), bits(make()), 0
    for what, copy in itertools.islice(damaged_copies(good, folder, flips, seed), 0, None, every):
        model = make()
        try:
            tallax.restore(copy, model)
            assert bits(model) == whole, f"{what}: restored, and wrong"
        except tallax.CheckpointError as error:
            assert bits(model) == start, f"{what}: an error, and half restored"
            refusals += "fix:" in str(error)
    return refusals


def test_any_damage_to_any_file_is_reported_or_harmless(good, tmp_path):
    """A bit flipped, cut in half, empty, zeros, noise, gone: a third of all. Nothing wrong ever comes back."""
    assert check_damages(good, tmp_path, flips=2, every=3) > 8  # of seven, so that each kind has its turn


@pytest.mark.thorough
def test_more_damage(good, tmp_path):
    """Each file in each way, and thirty bits of each."""
    assert check_damages(good, tmp_path, flips=30, seed=1) > 90


def test_a_bit_that_orbax_would_not_notice(tmp_path):
    """A flipped bit in an uncompressed array, which Orbax does not notice, is detected."""
    noise = np.random.default_rng(0).integers(0, 2**32, 5000, np.uint32)
    tallax.save(tmp_path / "one", nnx.Dict(noise=nnx.Variable(jnp.asarray(noise))))
    here = noise[2500:2508].tobytes()
    (file,) = (path for path in (tmp_path / "one").rglob("*") if path.is_file() and here in path.read_bytes())
    data = bytearray(file.read_bytes())
    data[data.index(here)] ^= 1
    file.write_bytes(data)
    fresh = nnx.Dict(noise=nnx.Variable(jnp.zeros(5000, jnp.uint32)))
    assert "model/noise differs from the bytes that were written" in refused(tmp_path / "one", fresh)
    with ocp.StandardCheckpointer() as checkpointer:  # which reads it all the same
        read = np.asarray(checkpointer.restore(tmp_path / "one")["model"]["noise"])
    assert (read != noise).nonzero()[0].tolist() == [2500]


# --- what is no checkpoint --------------------------------------------------------------------------------------------


def test_missing_and_other_folders_are_named(good, tmp_path):
    """Nothing, a file, an empty folder, another program's folder, one of several checkpoints, one never finished."""
    (tmp_path / "file").write_text("text")
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign" / "sub").mkdir(parents=True)
    (tmp_path / "foreign" / "saved_model.pb").write_bytes(b"\x00\x01")
    shutil.copytree(good, tmp_path / "several" / "10" / "default")
    shutil.copytree(good, tmp_path / "several" / "20" / "default")
    shutil.copytree(good, tmp_path / "7.orbax-checkpoint-tmp")
    for name, says in {
        "none": "there is nothing",
        "file": "a file",
        "empty": "a folder that Orbax has not written a tree to",
        "foreign": "a folder that Orbax has not written a tree to",
        "several": "a folder of 2 checkpoints",
        "7.orbax-checkpoint-tmp": "it was never finished",
    }.items():
        text = refused(tmp_path / name)
        assert "is not a checkpoint" in text
        assert says in text
    tallax.restore(tmp_path / "several" / "20", make())
    with pytest.raises(tallax.CheckpointError, match="has no checkpoint"):
        tallax.Checkpoints(tmp_path / "empty").restore(make())
    with pytest.raises(tallax.CheckpointError, match=r"(?s)has no such checkpoint.*one of \[10, 20\]"):
        tallax.Checkpoints(tmp_path / "several").restore(make(), step=30)
    with pytest.raises(tallax.CheckpointError, match="already exists"):
        tallax.save(good, make())


def rewritten(tree, change):
    """Returns a tree with another manifest."""
    found = json.loads(np.asarray(tree["tallax"]).tobytes())
    changed = change(found)
    return {**tree, "tallax": np.frombuffer(json.dumps(found if changed is None else changed).encode(), np.uint8)}


def honest(tree, **changes):
    """Returns a tree whose manifest was changed by somebody who knows how it is written."""
    manifest = dataclasses.replace(Manifest.decoded(tree["tallax"]), **changes)
    return {**tree, "tallax": manifest.encoded()}


def of_tree(tree, model=None):
    model = make() if model is None else model
    before = bits(model)
    with pytest.raises((tallax.CheckpointError, tallax.RestoreError)) as caught:
        tallax.from_checkpoint(tree, model)
    assert bits(model) == before
    return str(caught.value)


def test_a_manifest_that_is_none():
    """No text, no JSON, no format, a later format, another sum, deeper than Python goes."""
    tree = tallax.to_checkpoint(make(3))
    assert "format 2" in of_tree(rewritten(tree, lambda found: found.update(format=2)))
    assert "pip install --upgrade tallax" in of_tree(rewritten(tree, lambda found: found.update(format=99)))
    for change in (
        lambda found: found.update(format="1"),
        lambda found: found.pop("format"),
        lambda found: found.update(step=7),
        lambda found: found["entries"].pop("model/step"),
        lambda found: found.update(items=""),
        lambda found: [],
        lambda found: 3,
        lambda found: None if found.clear() else {},
    ):
        assert "is damaged or was tampered with" in of_tree(rewritten(tree, change))
    for content in (b"", b"\xff\xfe", b"[" * 100_000, pickle.dumps({"format": 1})):
        assert "is damaged" in of_tree({**tree, "tallax": np.frombuffer(content, np.uint8)})
    for content in (np.zeros((2, 2), np.uint8), np.zeros(3, np.int32)):
        assert "is damaged" in of_tree({**tree, "tallax": content})
    for nothing in ({}, 3, jnp.ones(2), "text", {"model": "text"}, None):
        assert "is not a tree of arrays" in of_tree(nothing)


# --- hostile ones -----------------------------------------------------------------------------------------------------


def test_a_manifest_that_lies():
    """A manifest with paths as names, wrong offsets, shapes or counts, or other arrays is rejected."""
    tree = tallax.to_checkpoint(make(3))
    manifest = Manifest.decoded(tree["tallax"])
    entries = dict(manifest.entries)
    for name in ("../../etc/passwd", "/etc/passwd", "model/../x", "", "model/\x1b[31m", "model//x", "model/x\n"):
        assert "a name that no object has" in of_tree(honest(tree, entries={**entries, name: entries["model/step"]}))
    step = entries["model/step"]
    for change, says in (
        ({"at": 10**9}, "lies outside of the items"),
        ({"at": -8}, "lies outside of the items"),
        ({"shape": (10**12, 2)}, "lies outside of the items"),
        ({"shape": (-1, 2)}, "has no shape"),
        ({"shape": (True, 2)}, "has no shape"),
        ({"dtype": "float32"}, "not made of words"),
        ({"dtype": "object"}, ""),
        ({"dtype": "O"}, ""),
        ({"dtype": "no dtype"}, "cannot be parsed"),
        ({"kind": 3}, "of an entry is a int"),
        ({"shape": (1,) * 40}, "has no shape"),
    ):
        assert says in of_tree(honest(tree, entries={**entries, "model/step": dataclasses.replace(step, **change)}))
    kernel = {"model/layer/kernel": dataclasses.replace(entries["model/layer/kernel"], shape=(20, 10**11))}
    assert "model/layer/kernel is float32[20, 300]" in of_tree(honest(tree, entries={**entries, **kernel}))
    more = {**entries, "model/more": ArrayEntry("Param", "float32", (3,))}
    assert "not in both" in of_tree(honest(tree, entries=more))
    del entries["model/layer/bias"]
    assert "not in both" in of_tree(honest(tree, entries=entries))


def with_zarray(good, folder, **changes):
    """Returns a copy of a checkpoint in which the storage of one array says something else of itself."""
    copy = folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(good, copy)
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"file://{copy}/"}).result()
    key = b"model.layer.kernel/.zarray"
    told = json.loads(store.read(key).result().value)
    store.write(key, json.dumps({**told, **changes}).encode()).result()
    return copy


def test_sizes_are_looked_at_before_memory_is_taken(good, tmp_path):
    """An array of terabytes is rejected by the shape in its storage, without reading it."""
    huge = with_zarray(good, tmp_path, shape=[20, 10**11], chunks=[20, 10**9])
    assert "model/layer/kernel is float32[20, 100000000000]" in refused(huge)
    assert "has pieces larger than itself" in refused(with_zarray(good, tmp_path, chunks=[20, 10**11]))
    refused(with_zarray(good, tmp_path, dtype="<f8"))
    # Without a manifest it is a plain checkpoint of Orbax's, and the objects are what its sizes are compared with.
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "plain", tallax.to_checkpoint(make(3))["model"])
    with pytest.raises(tallax.RestoreError, match="float32"):
        tallax.restore(tmp_path / "plain", nnx.Dict(layer=nnx.Dict(kernel=nnx.Param(jnp.ones(3)))), unexpected="ignore")


def test_files_that_would_be_read_without_end_or_elsewhere(good, tmp_path):
    """A pipe, sparse files, and links that lead outside are rejected."""

    def copy(name):
        return pathlib.Path(shutil.copytree(good, tmp_path / name))

    pipe = copy("pipe")
    (pipe / "manifest.ocdbt").unlink()
    os.mkfifo(pipe / "manifest.ocdbt")
    assert "'manifest.ocdbt' is neither a file nor a folder" in refused(pipe)
    for name, says in (("manifest.ocdbt", "has 34359738368 bytes"), ("_METADATA", "has more in it than any model")):
        os.truncate(copy(f"huge{name}") / name, 2**35)
        assert says in refused(tmp_path / f"huge{name}")
    bomb = copy("bomb")
    (bomb / "_METADATA").write_bytes(b"[" + b"[]," * 2**23 + b"[]]")
    assert "has more in it than any model" in refused(bomb)
    linked = copy("linked")
    data = next(path for path in sorted((linked / "d").iterdir()))
    data.rename(tmp_path / "elsewhere")
    data.symlink_to(tmp_path / "elsewhere")
    assert "a link that leads out of it" in refused(linked)
    within = copy("within")
    data = within / "d" / data.name
    data.rename(within / "moved")
    data.symlink_to("../moved")
    (tmp_path / "latest").symlink_to(within)
    tallax.restore(tmp_path / "latest", make())
    data.unlink()
    data.symlink_to(data.name)
    assert "is neither a file nor a folder" in refused(within)


def test_a_name_of_a_plain_checkpoint_is_no_path_and_a_string_no_array(tmp_path):
    """Without tensorstore's database Orbax makes folders of names: none of another checkpoint's, nor of the disk's."""
    tree = {"step": jnp.int32(4), "more": {"w": jnp.ones(3)}}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as checkpointer:
        for name in ("plain", "other"):
            checkpointer.save(tmp_path / name, args=ocp.args.PyTreeSave(tree))
    model = nnx.Dict(step=tallax.Counter())
    metadata = tmp_path / "plain" / "_METADATA"
    good = metadata.read_text()
    for key in (f"{tmp_path}/other/more", "../other/more", ".."):
        found = json.loads(good)
        found["tree_metadata"]["('more', 'w')"]["key_metadata"][0]["key"] = key
        metadata.write_text(json.dumps(found))
        assert "a name that would be a path" in refused(tmp_path / "plain", model)
    found = json.loads(good)
    found["tree_metadata"]["('more', 'w')"]["value_metadata"]["value_type"] = "string"
    metadata.write_text(json.dumps(found))
    assert "'more.w', of which Orbax says StringMetadata" in refused(tmp_path / "plain", model)
    metadata.write_text(good)
    assert tallax.restore(tmp_path / "plain", model, unexpected="ignore").restored == ("model/step",)


def test_a_manifest_is_no_larger_than_one_that_is_read(monkeypatch):
    """A manifest that would need gigabytes of Python objects is rejected, and never written."""
    tree = tallax.to_checkpoint(make(3))
    for content in (b"[" + b"[]," * 2**22 + b"[]]", b'{"a":{},"b":' * 2**22):
        bomb = np.frombuffer(content, np.uint8)
        assert "more values than any that tallax writes" in of_tree({**tree, "tallax": bomb})
    for name in ("MOST", "_MANY"):
        monkeypatch.setattr(manifest_module, name, 300)
        with pytest.raises(tallax.InvalidValueError, match="is too large"):
            tallax.to_checkpoint(make(3), extra=list(range(300)))
        monkeypatch.undo()


def test_a_checkpoint_is_shown_without_taking_its_word(tmp_path):
    """Invalid configurations and too large values are not evaluated."""
    model = nnx.Dict(seen=tallax.statistics.Histogram(0.0, 1.0, bins=4))
    model.large = tallax.Buffer(np.zeros(2**25, np.float32))
    tree = tallax.to_checkpoint(model)
    seen = Manifest.decoded(tree["tallax"]).entries["model/seen/counts"]
    lies = [
        {"configuration": "{'low': 0.0, 'high': 1.0, 'bins': 7}"},
        {"configuration": "{'low': 0.0, 'high': 1.0, 'bins': 10_000_000_000_000}"},
        {"configuration": "-" * 9_000 + "1"},
        {"configuration": "print('no')"},
        {"owner": "HistogramResult"},
        {"owner": "Statistic"},
        {"owner": "ScheduledValue"},
        {"owner": "__doc__"},
    ]
    entries = Manifest.decoded(tree["tallax"]).entries
    more = {f"model/lie{k}/counts": dataclasses.replace(seen, **lie) for k, lie in enumerate(lies)}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "one", honest(tree, entries={**entries, **more}))
    found = shown(tmp_path / "one")
    assert found.state["model/large"].nbytes == 2**27
    edges = {name: bins.edges[0] for name, bins in found.histograms.items()}
    assert edges == {"model/seen": 0.0} | {f"model/lie{k}": -0.5 for k in range(len(lies))}  # counts, and no more


def test_no_pickle_is_ever_read(good, tmp_path, monkeypatch):
    """A restore works with pickle out of order, and a file of it is not a checkpoint."""

    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").write_text, ("x",))

    (tmp_path / "evil").mkdir()
    for name in ("_METADATA", "manifest.ocdbt", "checkpoint", "model.pkl", "_sharding"):
        (tmp_path / "evil" / name).write_bytes(pickle.dumps(Evil()))
    refused(tmp_path / "evil")
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Evil()))
    refused(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()

    def forbidden(*_, **__):
        raise AssertionError("pickle")

    for name in ("loads", "load", "Unpickler"):
        monkeypatch.setattr(pickle, name, forbidden)
    monkeypatch.setattr(np, "load", forbidden)
    model = make()
    tallax.restore(good, model)
    assert bits(model) == bits(make(3))


def test_a_name_of_a_plain_checkpoint_never_becomes_a_path(tmp_path):
    """Names that the objects do not have are never read."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "plain", {"../../../evil": jnp.ones(3), "step": jnp.int32(4)})
    model = nnx.Dict(step=tallax.Counter())
    with pytest.raises(tallax.RestoreError, match=r"^%2E%2E%2F%2E%2E%2F%2E%2E%2Fevil: in the checkpoint"):
        tallax.restore(tmp_path / "plain", model)
    assert tallax.restore(tmp_path / "plain", model, unexpected="ignore").restored == ("model/step",)
    assert int(model.step) == 4
