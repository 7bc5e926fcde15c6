# SPDX-License-Identifier: Apache-2.0
"""The text of every error of checkpoints and of interop; test_errors.py renders them beside all others."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import io
import json
import os
import pathlib
import sys
import tempfile
import time
import types
import unittest.mock
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

import tallax
from tallax.checking._command import check_resume_of
from tallax.checkpoints._locate import orbax_errors
from tallax.checkpoints._manifest import Manifest
from tallax.interop import from_linen, from_torch, to_linen, to_torch


def unreadable(model):
    with orbax_errors("runs/7", "cannot be read."):  # as around every call of Orbax, whose own words vary
        raise OSError("the disk is gone")


def in_a_folder(act):
    """Returns a use of a model in a new working folder, so that its paths are the same wherever the tests run."""

    def run(model):
        before = pathlib.Path.cwd()
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            try:
                act(model)
            finally:
                os.chdir(before)

    return run


def rewritten(**changes):
    """Returns a restore of a tree whose manifest somebody has changed who knows how it is written."""

    def act(model):
        tree = tallax.to_checkpoint(model)
        manifest = dataclasses.replace(Manifest.decoded(tree["tallax"]), **changes)
        tallax.from_checkpoint({**tree, "tallax": manifest.encoded()}, model)

    return act


def of_the_future(model):
    tree = tallax.to_checkpoint(model)
    found = json.loads(tree["tallax"].tobytes())
    found["format"] = 2
    tallax.from_checkpoint({"tallax": np.frombuffer(json.dumps(found).encode(), np.uint8)}, model)


def bit_flipped(model):
    model.table = nnx.Param(jnp.ones(3))
    tree = tallax.to_checkpoint(model)
    tree["model"]["table"] = jnp.float32([1, 2, 1])
    tallax.from_checkpoint(tree, model)


def cast(model):
    model.table = nnx.Param(jnp.ones(3))
    tree = tallax.to_checkpoint(model)
    tree["model"]["table"] = tree["model"]["table"].astype(jnp.bfloat16)
    tallax.from_checkpoint(tree, model)


def abstract_mesh(model):
    mesh = jax.make_mesh((2,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    with jax.set_mesh(mesh):
        abstract = nnx.eval_shape(lambda: nnx.Dict(a=nnx.Param(jnp.ones(3))))
    tallax.from_checkpoint({"a": jnp.ones(3)}, abstract)


def several_trees(model):
    for name in ("state", "ema"):
        tallax.save(f"run/{name}", model)
    tallax.restore("run", model)


def another(act):
    """Returns a restore of what a model was before something was done to it."""

    def run(model):
        tree = tallax.to_checkpoint(model)
        act(model)
        tallax.from_checkpoint(tree, model)

    return run


def without_a_place(model):
    tallax.from_checkpoint(tallax.to_checkpoint(model.experts[0]), nnx.Dict(bias=model.experts[0].bias))


def rename(mapping):
    return lambda model: tallax.from_checkpoint(tallax.to_checkpoint(model), model, rename=mapping)


def held(model):
    step = tallax.compile_step(lambda model: None, model)
    step()
    tallax.to_checkpoint(model)


def series(model, *steps):
    with tallax.Checkpoints("run") as checkpoints:
        for step in steps:
            checkpoints.save(step, model)
        checkpoints.restore(model, step=30)


def differing(model):
    with (
        unittest.mock.patch("jax.process_count", return_value=2),
        unittest.mock.patch(
            "jax.experimental.multihost_utils.process_allgather", lambda own: np.stack([own, own + np.uint8(1)])
        ),
    ):
        tallax.save("one", model)


def count_beyond(act, count):
    def run(model):
        model.experts[0].step.set(count)
        act(model)

    return run


def unloadable(model):
    def load(path, **options):
        assert options["weights_only"] is True
        raise ValueError("Weights only load failed.")

    with zipfile.ZipFile("a.pt", "w") as archive:
        archive.writestr("data.pkl", b"x")
    with unittest.mock.patch.dict(sys.modules, torch=types.SimpleNamespace(load=load)):
        from_torch("a.pt", model)


def damaged_file(model):
    pathlib.Path("a.safetensors").write_bytes(b"\xff" * 20)
    from_torch("a.safetensors", model)


def of_several_arrays(act):
    """Returns a restore of a folder of Orbax's own, after something was done to it."""

    def run(model):
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as checkpointer:
            checkpointer.save(pathlib.Path.cwd() / "one", args=ocp.args.PyTreeSave({"w": jnp.ones(3)}))
        act(pathlib.Path("one"))
        tallax.restore("one", model)

    return in_a_folder(run)


def into_a_link(folder):
    (folder / "_METADATA").rename("elsewhere")
    (folder / "_METADATA").symlink_to("../elsewhere")


def into_a_string(folder):
    text = (folder / "_METADATA").read_text()
    (folder / "_METADATA").write_text(text.replace('"jax.Array"', '"string"'))


def without_a_value(model):
    tree = {"experts": jax.tree.map(lambda _: jax.ShapeDtypeStruct((3,), jnp.float32), {"table": 0})}
    tallax.from_checkpoint(tree, nnx.Dict(experts=nnx.Dict(table=nnx.Param(jnp.ones(3)))))


def too_much(model):
    with unittest.mock.patch("tallax.checkpoints._manifest.MOST", 100):
        tallax.to_checkpoint(nnx.Dict(step=tallax.Counter()))


def sparse(model):
    def refuse():
        raise TypeError("no")

    tensor = types.SimpleNamespace(
        dtype="torch.float32", layout="torch.sparse_coo", device=types.SimpleNamespace(type="cpu")
    )
    tensor.detach, tensor.numpy = refuse, refuse
    from_torch({"w": tensor}, nnx.Dict(w=nnx.Param(jnp.ones(2))))


def narrow(model):
    def from_numpy(array):
        raise TypeError("no")

    with unittest.mock.patch.dict(sys.modules, torch=types.SimpleNamespace(from_numpy=from_numpy)):
        to_torch(nnx.Dict(w=nnx.Param(jnp.ones(2, jnp.int4))))


class Batches:
    """An iterator that can tell its position, and refuses one that is not a number."""

    def __init__(self, state):
        self.state = state

    def get_state(self):
        return self.state

    def set_state(self, state):
        if not isinstance(state, int):
            raise TypeError("no such position")
        self.state = state


def position_of_another(model):
    tree = tallax.to_checkpoint(model, data=Batches("the first"))
    tallax.from_checkpoint(tree, model, data=Batches(0))


def positions_of_two(model):
    def gather(own):
        return np.stack([own, own] if own.dtype != np.uint8 else [own, np.frombuffer(b"[1]", np.uint8)])

    with (
        unittest.mock.patch("jax.process_count", return_value=2),
        unittest.mock.patch("jax.experimental.multihost_utils.process_allgather", gather),
    ):
        tree = tallax.to_checkpoint(nnx.Dict(step=tallax.Counter()), data=Batches(0))
    tallax.from_checkpoint(tree, nnx.Dict(step=tallax.Counter()), data=Batches(0))


def disagreement(model):
    things = nnx.Dict(step=tallax.Counter(10), examples=tallax.Counter(81))
    with tallax.Checkpoints("run", batch_size=8) as checkpoints:
        checkpoints.save(10, things)


def preemption_in_a_thread(model):
    with concurrent.futures.ThreadPoolExecutor(1, "worker") as pool:
        pool.submit(tallax.Checkpoints, "run", preemption_exit_code=1).result()


def nested_job(model):
    def job(folder, steps):
        pass

    tallax.resumecheck(job)


def resume_command(target, devices):
    """Returns a use of the command line, whose printed error is raised."""

    def act(model):
        with contextlib.redirect_stderr(io.StringIO()) as printed:
            assert check_resume_of(target, 4, devices, 60.0, as_json=False) == 2
        raise tallax.StatecheckError(printed.getvalue().rstrip())

    return act


CASES = {
    "save-a-position": (
        lambda model: tallax.to_checkpoint(model, data=Batches({1, 2})),
        tallax.InvalidTypeError,
        """\
data: the state of an iterator is stored as JSON.
  got:       set ({1, 2}) (a set)
  expected:  numbers, text, bytes, NumPy arrays, and lists and dicts of these
  fix:       get_state and set_state of these, or extra= for state that you restore yourself""",
    ),
    "restore-a-position": (
        position_of_another,
        tallax.RestoreError,
        """\
data: the iterator does not accept the saved position.
  got:  TypeError: no such position
  fix:  make the iterator as it was when it was saved: the same datasets, transformations and batch size""",
    ),
    "restore-positions-of-two": (
        positions_of_two,
        tallax.RestoreError,
        """\
data: was saved by another number of processes, each at a position of its own.
  got:       2 positions
  expected:  1, one for each process
  fix:       restore it with as many processes; or without the iterator, with its name in unexpected=[...]""",
    ),
    "counts-disagree": (
        in_a_folder(disagreement),
        UserWarning,
        """\
model/examples: does not agree with model/step, so batches are skipped, repeated or not counted.
  got:       81 at model/step 10
  expected:  80, for batches of 8
  fix:       count examples and steps in one place, and save the data with them: save(n, model, data=iterator)""",
    ),
    "preemption-in-a-thread": (
        in_a_folder(preemption_in_a_thread),
        tallax.InvalidValueError,
        """\
preemption_exit_code: a signal handler can only be set in the main thread.
  got:  the thread 'worker_0'
  fix:  make tallax.Checkpoints in the main thread, or leave preemption_exit_code out""",
    ),
    "resume-nested": (
        nested_job,
        tallax.InvalidTypeError,
        """\
resumecheck: runs the job in new processes, which import it by name.
  got:       nested_job.<locals>.job
  expected:  a function at the top level of a file, or a functools.partial of one
  fix:       def job(folder, steps): ... outside of other functions""",
    ),
    "resume-steps": (
        lambda model: tallax.resumecheck(time.sleep, steps=0),
        tallax.InvalidValueError,
        """\
steps: takes positive numbers.
  got:  int (0)
  fix:  steps=5: each half takes five steps""",
    ),
    "resume-no-name": (
        resume_command("train.py", ""),
        tallax.StatecheckError,
        """\
train.py: --resume requires a file and the name of a job in it.
  fix:  tallax check train.py:job --resume, for def job(folder, steps): ...""",
    ),
    "resume-devices": (
        resume_command(f"{__file__}:CASES", "8,4,2"),
        tallax.StatecheckError,
        """\
--devices: takes one number, or two.
  got:  8,4,2
  fix:  --devices 8, or --devices 8,4 for the two halves""",
    ),
    "save-over": (
        in_a_folder(lambda model: [tallax.save("one", model), tallax.save("one", model)]),
        tallax.CheckpointError,
        """\
one: already exists, and a checkpoint is never overwritten.
  fix:  another path; or tallax.Checkpoints(folder, keep=3), which removes old ones after a new one""",
    ),
    "save-nothing": (
        lambda model: tallax.to_checkpoint(),
        tallax.InvalidTypeError,
        """\
a checkpoint: requires the modules and optimizers to save.
  got:  none
  fix:  tallax.save(path, model, optimizer)""",
    ),
    "save-a-state": (
        lambda model: tallax.to_checkpoint(nnx.state(model)),
        tallax.InvalidTypeError,
        """\
a checkpoint: takes modules, optimizers, compiled steps, and iterators with get_state and set_state.
  got:  State (State({ 'experts': { 0: { 'bias': Buffer( # 2...)
  fix:  tallax.save(path, model, optimizer), or tallax.save(path, step)""",
    ),
    "save-one-name": (
        lambda model: tallax.to_checkpoint(model, tallax=model),
        tallax.InvalidValueError,
        """\
tallax: each object of a checkpoint must have its own name.
  got:  tallax=...
  fix:  another name""",
    ),
    "save-held": (
        held,
        tallax.StateOwnedByStepError,
        """\
model/experts/0/bias: is owned by a compiled step, which keeps the state on the device between its calls.
  got:  the object that the step is bound to
  fix:  the step itself, as in tallax.save(path, step); or step.sync() first""",
    ),
    "save-in-a-trace": (
        nnx.jit(tallax.to_checkpoint),
        tallax.TracedReadError,
        """\
model/experts/0/bias: can only be saved or restored outside of a trace.
  got:  float32[2] (traced)
  fix:  call it outside of jit""",
    ),
    "save-an-object": (
        lambda model: tallax.to_checkpoint(nnx.Dict(name=nnx.Variable("text"))),
        tallax.InvalidTypeError,
        """\
model/name: a checkpoint stores arrays and numbers.
  got:  str ('text')
  fix:  an attribute that is not a Variable, for a constant""",
    ),
    "save-a-large-integer": (
        lambda model: tallax.to_checkpoint(nnx.Dict(seed=nnx.Variable(2**70))),
        tallax.InvalidTypeError,
        """\
model/seed: an integer in a checkpoint must fit into 64 bits.
  got:  int (1180591620717411303424)
  fix:  tallax.Counter, or an attribute that is not a Variable""",
    ),
    "save-extra": (
        lambda model: tallax.to_checkpoint(model, extra=model),
        tallax.InvalidTypeError,
        """\
extra: must be JSON.
  got:  Object of type Model is not JSON serializable
  fix:  numbers, text, lists: extra={"epoch": 3}""",
    ),
    "save-differing": (
        in_a_folder(differing),
        tallax.ReplicasError,
        """\
the checkpoint: values that are local to a process must be equal in all processes, because only one writes them.
  got:  different variables, arrays or names in another process
  fix:  tallax.assert_replicated(model, only=...), which names the first that differs""",
    ),
    "restore-unreadable": (
        unreadable,
        tallax.CheckpointError,
        """\
runs/7: cannot be read.
  got:  OSError: the disk is gone
  fix:  look for a full disk, rights, or a damaged file; an earlier checkpoint may be whole""",
    ),
    "restore-nothing": (
        in_a_folder(lambda model: tallax.restore("no/such", model)),
        tallax.CheckpointError,
        """\
no/such: is not a checkpoint.
  got:  there is nothing
  fix:  the folder that tallax.save wrote""",
    ),
    "restore-no-tree": (
        lambda model: tallax.from_checkpoint("text", model),
        tallax.CheckpointError,
        """\
the checkpoint: is not a tree of arrays.
  got:  str ('text')
  fix:  a tree that Orbax restored from tallax.to_checkpoint(...) or nnx.state(model)""",
    ),
    "restore-damaged": (
        bit_flipped,
        tallax.CheckpointError,
        """\
the checkpoint: is damaged or was tampered with.
  got:  model/table differs from the bytes that were written
  fix:  restore an earlier one: tallax.Checkpoints(folder).restore(model, step=...)""",
    ),
    "restore-cast": (
        cast,
        tallax.CheckpointError,
        """\
model/table: differs in dtype from the saved array; Orbax casts to the requested dtypes, and JAX casts 64-bit arrays.
  got:       bfloat16[3]
  expected:  float32[3], as the manifest says
  fix:       request tallax.checkpoint_target(metadata, model) from Orbax; or restore an earlier checkpoint""",
    ),
    "restore-several-trees": (
        in_a_folder(several_trees),
        tallax.CheckpointError,
        """\
run: is not a checkpoint.
  got:  a folder of 2 trees: 'ema', 'state'
  fix:  one call for each of these, with its path""",
    ),
    "restore-the-future": (
        of_the_future,
        tallax.CheckpointError,
        """\
the checkpoint: was written by a newer tallax than this one.
  got:       format 2
  expected:  format 1
  fix:       pip install --upgrade tallax""",
    ),
    "restore-missing": (
        another(lambda model: setattr(model, "new", tallax.Counter())),
        tallax.RestoreError,
        """\
model/new: is not in the checkpoint.
  fix:  missing='state' to start new counters and statistics fresh""",
    ),
    "restore-several-missing": (
        another(
            lambda model: [setattr(model, "new", nnx.Param(jnp.ones(3))), setattr(model, "count", tallax.Counter())]
        ),
        tallax.RestoreError,
        """\
model/count, model/new: are not in the checkpoint.
  fix:  missing='state' to start new counters and statistics fresh; or missing='init' to keep what the objects have""",
    ),
    "restore-renamed": (
        lambda model: tallax.from_checkpoint(
            {"w": jnp.ones(1), "old": {"a": jnp.ones(3), "b": jnp.ones(2)}},
            nnx.Dict(w=nnx.Param(jnp.ones(1)), new=nnx.Dict(a=nnx.Param(jnp.ones(3)), b=nnx.Param(jnp.ones(2)))),
        ),
        tallax.RestoreError,
        """\
model: none of its arrays are in the checkpoint, so nothing would be restored.
  got:       a checkpoint that has old/a, old/b, w
  expected:  model/new/a, model/new/b, model/w
  fix:       rename={'old': 'model/new', 'w': 'model/w'}""",
    ),
    "restore-nothing-of-an-object": (
        lambda model: tallax.from_checkpoint({"other": {"a": jnp.ones(3)}}, nnx.Dict(b=nnx.Param(jnp.ones(2)))),
        tallax.RestoreError,
        """\
model: none of its arrays are in the checkpoint, so nothing would be restored.
  got:       a checkpoint that has other/a
  expected:  model/b
  fix:       leave model out; or the checkpoint that it was saved to""",
    ),
    "restore-one-of-two": (
        lambda model: tallax.from_checkpoint(
            {"ema": {"a": jnp.ones(3)}, "student": {"a": jnp.ones(3)}}, nnx.Dict(a=nnx.Param(jnp.ones(3)))
        ),
        tallax.RestoreError,
        """\
model: none of its arrays are in the checkpoint, so nothing would be restored.
  got:       a checkpoint that has ema/a, student/a
  expected:  model/a
  fix:       rename={'ema': 'model'} (or with 'student' in its place)""",
    ),
    "restore-abstract-mesh": (
        abstract_mesh,
        tallax.InvalidValueError,
        """\
model/a: has a sharding without devices, and the mesh that has them is not set.
  got:  P() on {'data': 2}
  fix:  call it within jax.set_mesh(mesh), as nnx.eval_shape was""",
    ),
    "restore-abstract-missing": (
        lambda model: tallax.from_checkpoint(
            tallax.to_checkpoint(nnx.Dict(a=nnx.Param(jnp.ones(3)))),
            nnx.eval_shape(lambda: nnx.Dict(a=nnx.Param(jnp.ones(3)), b=nnx.Param(jnp.ones(2)))),
            missing="init",
        ),
        tallax.RestoreError,
        """\
model/b: of an abstract model is not in the checkpoint, so it would not have a value.
  got:  float32[2] of nnx.eval_shape
  fix:  make the model itself, model = Model(rngs); or give this a value before the restore""",
    ),
    "save-a-date": (
        lambda model: tallax.to_checkpoint(nnx.Dict(day=nnx.Variable(np.array("2020", "datetime64[Y]")))),
        tallax.InvalidTypeError,
        """\
model/day: Orbax cannot save arrays of this dtype.
  got:       datetime64[Y][] (2020-01-01)
  expected:  booleans, integers, floats or complex numbers that JAX has
  fix:       cast it to one of these; or an attribute that is not a Variable, for a constant""",
    ),
    "torch-tied": (
        lambda model: from_torch(
            {"a": np.ones(2), "b": np.zeros(2)}, nnx.Dict(a=(shared := nnx.Param(jnp.ones(2))), b=shared)
        ),
        tallax.RestoreError,
        """\
model/a: is one Variable in the module, but the source has two different values for it.
  got:  'a' and 'b'
  fix:  two Variables in the module; or a source without one of these, such as 'b'""",
    ),
    "restore-unexpected": (
        without_a_place,
        tallax.RestoreError,
        """\
model/step, model/tokens: in the checkpoint, but not in the objects.
  fix:  unexpected='ignore' to leave it out; hand in all objects that were saved""",
    ),
    "restore-mismatch": (
        another(lambda model: setattr(model.experts[0], "bias", tallax.Buffer(np.zeros(2, np.int8)))),
        tallax.RestoreError,
        """\
model/experts/0/bias: the shape or dtype differs from the checkpoint, and tallax never casts implicitly.
  got:       float32[2] in the checkpoint
  expected:  int8[2], as in the objects
  fix:       create the model as it was saved; or to ignore it, rename={'model/experts/0/bias': 'unused'}, \
missing=['model/experts/0/bias'], unexpected=['model/experts/0/bias']""",
    ),
    "restore-policy": (
        lambda model: tallax.from_checkpoint({}, model, missing="ignore"),
        tallax.InvalidValueError,
        """\
missing: must be a policy for names that only one side has.
  got:       str ('ignore')
  expected:  'error', 'state', 'init', or a list of patterns
  fix:       missing='error'; or a list for patterns, missing=['**/step']""",
    ),
    "rename-nothing": (
        rename({"model/old": "model/new"}),
        tallax.InvalidValueError,
        """\
rename: must map names in the checkpoint to names in the objects.
  got:       'model/old', which is not the beginning of any name in the checkpoint
  expected:  model/experts/0/bias, model/experts/0/step, model/experts/0/tokens and 5 more
  fix:       one of these names, or its beginning; or a function from name to name""",
    ),
    "rename-to-one": (
        rename(lambda name: "model/same"),
        tallax.InvalidValueError,
        """\
rename: must give each array a different name.
  got:  'model/same' for 'model/experts/0/bias' and for 'model/experts/0/step'
  fix:  another name for one of them""",
    ),
    "series-empty": (
        in_a_folder(series),
        tallax.CheckpointError,
        """\
run: has no checkpoint.
  fix:  checkpoints.latest(), which returns None without a checkpoint""",
    ),
    "series-other": (
        in_a_folder(lambda model: series(model, 1, 2)),
        tallax.CheckpointError,
        """\
run: has no such checkpoint.
  got:       step=30
  expected:  one of [1, 2]
  fix:       step=2""",
    ),
    "series-backwards": (
        in_a_folder(lambda model: series(model, 2, 1)),
        tallax.InvalidValueError,
        """\
step: checkpoints are numbered upwards.
  got:  1, with 2 in run
  fix:  restore the latest one first; or another folder""",
    ),
    "series-every": (
        lambda model: tallax.Checkpoints("run", every=0),
        tallax.InvalidValueError,
        """\
every: must be a positive integer.
  got:  int (0)
  fix:  keep=3, every=1000""",
    ),
    "torch-source": (
        lambda model: from_torch(3, model),
        tallax.InvalidTypeError,
        """\
from_torch: requires a module, a state_dict, or the path of a file.
  got:  int (3)
  fix:  from_torch(module, model), from_torch('model.safetensors', model)""",
    ),
    "torch-model": (
        lambda model: from_torch({}, 3),
        tallax.InvalidTypeError,
        """\
model: requires an NNX module.
  got:  int (3)
  fix:  from_torch(source, model)""",
    ),
    "torch-entry": (
        lambda model: from_torch({"bias": "text"}, model.experts[0]),
        tallax.InvalidTypeError,
        """\
bias: a state_dict must contain tensors.
  got:  str ('text')
  fix:  the entry that is a state_dict, such as torch.load(path, weights_only=True)['state_dict']""",
    ),
    "torch-count": (
        count_beyond(lambda model: to_torch(model.experts[0]), 2**63),
        tallax.InvalidValueError,
        """\
step: the count does not fit into int64, the dtype of a count in PyTorch.
  got:  uint64[] (9223372036854775808)
  fix:  counter.set(n) with n below 2**63""",
    ),
    "torch-no-file": (
        in_a_folder(lambda model: from_torch("no/such.pt", model)),
        tallax.CheckpointError,
        """\
no/such.pt: is not a file.
  fix:  the path of a .pt or .safetensors file""",
    ),
    "torch-file": (
        in_a_folder(unloadable),
        tallax.CheckpointError,
        """\
a.pt: cannot be read as tensors without running code from the file.
  got:  ValueError: Weights only load failed.
  fix:  torch.save(module.state_dict(), path), by PyTorch 1.6 or later""",
    ),
    "torch-safetensors": (
        in_a_folder(damaged_file),
        tallax.CheckpointError,
        """\
a.safetensors: cannot be read as a .safetensors file.
  got:  SafetensorError: Error while deserializing header: header too large
  fix:  a file that safetensors wrote""",
    ),
    "linen-variables": (
        lambda model: from_linen({"params": 3}, model),
        tallax.InvalidTypeError,
        """\
from_linen: requires a dict of collections of variables.
  got:       dict ({'params': 3})
  expected:  {'params': {...}, 'batch_stats': {...}}
  fix:       module.init(key, x), or {'params': params}""",
    ),
    "linen-one-name": (
        lambda model: from_linen({"params": {"a": jnp.ones(1)}, "counters": {"a": jnp.ones(1)}}, model),
        tallax.InvalidValueError,
        """\
params/a: two collections have a variable of this name, but an NNX module has one attribute for it.
  got:  counters/a
  fix:  pass one collection after the other, with missing='init'""",
    ),
    "linen-count": (
        count_beyond(lambda model: to_linen(model.experts[0]), 2**31),
        tallax.InvalidValueError,
        """\
model/step: the count does not fit into int32, the dtype of a count in Linen.
  got:  uint64[] (2147483648)
  fix:  nnx, which keeps tallax.Counter; or counter.set(n) with n below 2**31""",
    ),
    "save-to-an-address": (
        lambda model: tallax.save("gs://bucket/run", model),
        tallax.InvalidValueError,
        """\
gs://bucket/run: tallax writes checkpoints only to folders on a disk.
  fix:  a path that is mounted; or Orbax's own calls, with tallax.to_checkpoint and from_checkpoint""",
    ),
    "save-too-much": (
        too_much,
        tallax.InvalidValueError,
        """\
the checkpoint: the manifest, with extra= and small tallax variables, is too large.
  got:       174 bytes of JSON
  expected:  100 bytes at most, and 8388608 values
  fix:       a separate file for large values in extra=; tallax.Counter(shape=...) for many counts""",
    ),
    "save-below-0": (
        in_a_folder(lambda model: series(model, -1)),
        tallax.InvalidValueError,
        """\
step: checkpoints are numbered from 0.
  got:  -1
  fix:  checkpoints.save(n, model)""",
    ),
    "save-abstract": (
        lambda model: tallax.to_checkpoint(nnx.eval_shape(lambda: nnx.Dict(w=nnx.Param(jnp.ones(2))))),
        tallax.InvalidTypeError,
        """\
model/w: cannot save abstract values (from `nnx.eval_shape`).
  got:  float32[2] without a value
  fix:  tallax.restore(path, model) first, which gives an abstract model its values""",
    ),
    "restore-rename-to-none": (
        lambda model: rename(lambda name: None)(nnx.Dict(step=tallax.Counter())),
        tallax.InvalidTypeError,
        """\
rename: must return a name for each array.
  got:  NoneType (None) for 'model/step'
  fix:  return name, where it stays the same""",
    ),
    "restore-rename-by-a-list": (
        rename([("model/a", "model/b")]),
        tallax.InvalidTypeError,
        """\
rename: must be a function from name to name, or a mapping of names.
  got:  list ([('model/a', 'model/b')])
  fix:  rename={'model/old_name': 'model/new_name'}""",
    ),
    "restore-without-a-value": (
        without_a_value,
        tallax.CheckpointError,
        """\
experts/table: has no value in the tree.
  got:  ShapeDtypeStruct (ShapeDtypeStruct(shape=(3,), dtype=float32))
  fix:  a tree that Orbax has restored; or the tree without the missing arrays, and missing='init'""",
    ),
    "restore-link": (
        of_several_arrays(into_a_link),
        tallax.CheckpointError,
        """\
the checkpoint: must not link to files outside of its folder.
  got:  '_METADATA', a link that leads out of it
  fix:  a copy without links, cp -rL FOLDER COPY, if you trust its author""",
    ),
    "restore-string": (
        of_several_arrays(into_a_string),
        tallax.CheckpointError,
        """\
the checkpoint: can only be restored if all its values are arrays and numbers.
  got:  'w', of which Orbax says StringMetadata
  fix:  Orbax's own restore, and tallax.from_checkpoint of that part of its tree which has arrays""",
    ),
    "torch-sparse": (
        sparse,
        tallax.InvalidTypeError,
        """\
w: the tensor must be dense and numeric, and have values, because NumPy has no other arrays.
  got:  float32, sparse_coo, on 'cpu'
  fix:  tensor.to_dense(), tensor.dequantize(), or a module that has its weights""",
    ),
    "torch-int4": (
        narrow,
        tallax.InvalidTypeError,
        """\
w: PyTorch has no such dtype.
  got:  int4[2] ([1, 1])
  fix:  cast it explicitly""",
    ),
}
