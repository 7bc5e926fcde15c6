# SPDX-License-Identifier: Apache-2.0
"""Training jobs for `resumecheck`: one that can be broken in every way that public threads report, and right ones.

`train` saves its whole state with pickle and nothing of tallax. A fault changes the saved state, the restored objects,
or the loop, as the program in its thread did.
"""

from __future__ import annotations

import functools
import io
import os
import pickle
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import tallax

BATCH = 8


class Routing(nnx.Variable):
    """A table that no optimizer trains, as of a router."""


class Model(nnx.Module):
    def __init__(self, rngs):
        self.layer = nnx.Linear(4, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.head = nnx.Linear(8, 1, rngs=rngs)
        self.table = Routing(jnp.arange(1.0, 9.0))

    def __call__(self, x):
        return self.head(self.dropout(nnx.relu(self.norm(self.layer(x)))) * self.table[...] / 8)


class Data:
    """Batches in a shuffled order that is drawn anew for each epoch."""

    def __init__(self, seed=0):
        self.rng, self.epoch, self.at = np.random.default_rng(seed), 0, 0
        self.order = self.rng.permutation(3)

    def __next__(self):
        if self.at == 3:
            self.order, self.epoch, self.at = self.rng.permutation(3), self.epoch + 1, 0
        batch = np.random.default_rng(int(self.order[self.at])).normal(size=(BATCH, 4)).astype(np.float32)
        self.at += 1
        return batch

    def get_state(self):
        order = self.order.tolist()
        return {"rng": self.rng.bit_generator.state, "epoch": self.epoch, "at": self.at, "order": order}

    def set_state(self, state):
        self.rng.bit_generator.state = state["rng"]
        self.epoch, self.at, self.order = state["epoch"], state["at"], np.array(state["order"])


@nnx.jit
def train_step(model, optimizer, x, scale):
    def loss_fn(model):
        return ((model(x) - x.sum(-1, keepdims=True)) ** 2).mean() * scale

    loss, grads = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, grads)
    return loss


def arrays(tree):
    """Returns a tree as NumPy, with typed keys as their words."""

    def host(leaf):
        is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.array(jax.random.key_data(leaf) if is_key else leaf)

    return [host(leaf) for leaf in jax.tree.leaves(tree)]


def put(node, found):
    """Puts what `arrays` returned into an object."""
    state = nnx.state(node)
    leaves, structure = jax.tree.flatten(state)

    def like(leaf, array):
        is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.wrap_key_data(jnp.asarray(array)) if is_key else jnp.asarray(array)

    nnx.update(node, jax.tree.unflatten(structure, [like(*pair) for pair in zip(leaves, found, strict=True)]))


class Things(NamedTuple):
    """All state of a run."""

    model: Any
    optimizer: Any
    ema: Any
    data: Any
    loop: dict
    trained: Any = None  # another model than the one that is saved and shown

    def shown(self):
        """Returns what the job returns."""
        return {name: thing for name, thing in self._asdict().items() if name != "trained"}


def make():
    model = Model(nnx.Rngs(0))
    schedule = optax.linear_schedule(1e-2, 1e-3, 20)
    optimizer = nnx.Optimizer(model, optax.MultiSteps(optax.adam(schedule), 2), wrt=nnx.Param)
    ema = nnx.clone(nnx.state(model, nnx.Param))
    return Things(model, optimizer, ema, Data(), {"step": 0, "scale": 1.0, "good": 0, "best": 1e9, "examples": 0})


def write(folder, things, name="state"):
    saved = {"model": arrays(nnx.state(things.model)), "optimizer": arrays(nnx.state(things.optimizer))}
    saved |= {"ema": arrays(things.ema), "data": things.data.get_state(), "loop": dict(things.loop)}
    temporary = folder / "temporary"
    temporary.write_bytes(pickle.dumps(saved))
    temporary.rename(folder / name)


def read(folder, name="state"):
    path = folder / name
    return pickle.loads(path.read_bytes()) if path.exists() else None


def restore(things, saved):
    if "model" in saved:
        put(things.model, saved["model"])
    if "optimizer" in saved:
        put(things.optimizer, saved["optimizer"])
    if "data" in saved:
        things.data.set_state(saved["data"])
    things.loop.update(saved["loop"])
    if "ema" in saved:
        return things._replace(ema=jax.tree.unflatten(jax.tree.structure(things.ema), map(jnp.asarray, saved["ema"])))
    return things


def one_step(things):
    loop = things.loop
    loss = train_step(things.trained or things.model, things.optimizer, next(things.data), loop["scale"])
    ema = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, things.ema, nnx.state(things.model, nnx.Param))
    loop["step"] += 1
    loop["examples"] += BATCH
    loop["good"] += 1
    if loop["good"] == 3:  # a loss scale that grows after three good steps, as of mixed precision
        loop["scale"], loop["good"] = loop["scale"] * 2, 0
    loop["best"] = min(loop["best"], float(loss))
    return float(loss), things._replace(ema=ema)


def train(folder, steps, fault=""):
    """Trains until `steps`; `fault` names one of `FAULTS`, whose function changes what is restored."""
    things, saved, losses = make(), read(folder), []
    if saved is not None:
        things = FAULTS[fault].change(things, saved) if fault else restore(things, saved)
    while things.loop["step"] < steps:
        loss, things = one_step(things)
        losses.append(loss)
    write(folder, things)
    return {**things.shown(), "losses": losses}


# --- faults -----------------------------------------------------------------------------------------------------------


class Fault(NamedTuple):
    """A fault of a public thread.

    Attributes:
        thread: repository and number.
        change: restores, wrongly.
        expected: a path that the report has to name, and the rule for it.
    """

    thread: str
    change: Callable[[Things, dict], Things]
    expected: tuple[str, str]


FAULTS: dict[str, Fault] = {}


def fault(thread, path, rule):
    def register(change):
        FAULTS[change.__name__] = Fault(thread, change, (path, rule))
        return change

    return register


def without(things, saved, *names):
    return restore(things, {key: value for key, value in saved.items() if key not in names})


def like_new(things, saved, kind):
    """Restores everything but the Variables of one kind."""
    fresh = arrays(nnx.state(things.model, kind))
    things = restore(things, saved)
    state = nnx.state(things.model, kind)
    nnx.update(things.model, jax.tree.unflatten(jax.tree.structure(state), put_like(state, fresh)))
    return things


def put_like(state, found):
    leaves = jax.tree.leaves(state)
    is_key = [jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves]
    return [
        jax.random.wrap_key_data(jnp.asarray(array)) if key else jnp.asarray(array)
        for key, array in zip(is_key, found, strict=True)
    ]


@fault("keras-team/keras#22490", "data/at", "reset")
def data_starts_again(things, saved):
    return without(things, saved, "data")


@fault("AI-Hypercomputer/maxtext#4343 (dropout)", "model/dropout/rngs/count", "reset")
def dropout_stream_starts_again(things, saved):
    return like_new(things, saved, nnx.RngState)


@fault("AI-Hypercomputer/maxtext#4343 (routing table)", "model/table", "reset")
def routing_table_is_zero(things, saved):
    things = restore(things, saved)
    things.model.table[...] = jnp.zeros(8)
    return things


@fault("AI-Hypercomputer/maxtext#4343 (batch statistics)", "model/norm/mean", "reset")
def batch_statistics_start_again(things, saved):
    return like_new(things, saved, nnx.BatchStat)


@fault("THUDM/slime#1547", "optimizer/opt_state/inner_opt_state/0/count", "doubled")
def schedule_is_stepped_twice(things, saved):
    things = restore(things, saved)
    count = things.optimizer.opt_state.inner_opt_state[0].count
    count[...] += count[...]
    return things


@fault("NVIDIA-NeMo/Megatron-Bridge#3832", "optimizer/opt_state/inner_opt_state/0/count", "reset")
def step_of_adam_is_dropped(things, saved):
    things = restore(things, saved)
    things.optimizer.opt_state.inner_opt_state[0].count[...] = jnp.zeros((), jnp.int32)
    return things


@fault("NVlabs/stylegan2-ada-pytorch#108", "optimizer", "reset")
def optimizer_is_not_saved(things, saved):
    return without(things, saved, "optimizer")


@fault("ai2cm/ace#349", "ema/layer/kernel", "misplaced")
def average_starts_from_the_weights(things, saved):
    things = restore(things, saved)
    return things._replace(ema=nnx.clone(nnx.state(things.model, nnx.Param)))


@fault("Megvii-BaseDetection/YOLOX#1318", "model/layer/kernel", "misplaced")
def weights_start_from_the_average(things, saved):
    things = restore(things, saved)
    nnx.update(things.model, things.ema)
    return things


@fault("TensorAuto/OpenTau#185", "model/layer/kernel", "cast")
def weights_went_through_bfloat16(things, saved):
    things = restore(things, saved)
    params = nnx.state(things.model, nnx.Param)
    nnx.update(things.model, jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), params))
    return things


@fault("TensorAuto/OpenTau#184", "optimizer/opt_state/inner_opt_state/0/nu/layer/kernel", "cast")
def moments_went_through_bfloat16(things, saved):
    things = restore(things, saved)
    nu = things.optimizer.opt_state.inner_opt_state[0].nu
    nu["layer"]["kernel"][...] = nu["layer"]["kernel"][...].astype(jnp.bfloat16).astype(jnp.float32)
    return things


@fault("huggingface/transformers#11663", "loop/scale", "reset")
def loss_scale_is_not_saved(things, saved):
    things = restore(things, saved)
    things.loop.update(scale=1.0)
    return things


@fault("facebookresearch/metaseq#3", "loop/good", "reset")
def good_steps_of_the_loss_scale_are_not_saved(things, saved):
    things = restore(things, saved)
    things.loop.update(good=0)
    return things


@fault("Nerogar/OneTrainer#1465", "optimizer/opt_state/acc_grads/layer/kernel", "reset")
def accumulated_gradients_are_lost(things, saved):
    things = restore(things, saved)
    for gradient in jax.tree.leaves(
        things.optimizer.opt_state.acc_grads, is_leaf=lambda x: isinstance(x, nnx.Variable)
    ):
        gradient[...] = jnp.zeros_like(gradient[...])
    things.optimizer.opt_state.mini_step[...] = jnp.zeros((), jnp.int32)
    return things


@fault("Lightning-AI/pytorch-lightning#18727", "loop/best", "reset")
def best_score_is_not_saved(things, saved):
    things = restore(things, saved)
    things.loop.update(best=1e9)
    return things


@fault("Red-Hat-AI-Innovation-Team/mini_trainer#79", "data/at", "doubled")
def last_batch_is_seen_twice(things, saved):
    saved["data"]["at"] -= 1
    return restore(things, saved)


@fault("allenai/open-instruct#681", "data/at", "skipped")
def a_batch_is_skipped(things, saved):
    saved["data"]["at"] += 1
    return restore(things, saved)


@fault("lightseekorg/TorchSpec#43", "data/order", "reset")
def shuffled_order_is_not_restored(things, saved):
    fresh = things.data.get_state()
    saved["data"] |= {"rng": fresh["rng"], "order": fresh["order"]}
    return restore(things, saved)


@fault("eladrich/pixel2style2pixel#192", "loop/examples", "reset")
def examples_are_counted_from_zero(things, saved):
    things = restore(things, saved)
    things.loop.update(examples=0)
    return things


@fault("NVIDIA/apex#42", "model", "skipped")
def restored_weights_are_not_those_that_are_trained(things, saved):
    things = restore(things, saved)
    return things._replace(trained=nnx.clone(things.model))


# --- jobs that fail in another way ------------------------------------------------------------------------------------


def starts_from_scratch(folder, steps):
    """FabianPlum/SMILify#72: an error of the restore is swallowed, and training starts at step 0."""
    things, losses = make(), []
    try:
        saved = pickle.loads((folder / "state.pkl").read_bytes())  # `write` calls it "state"
        things = restore(things, saved)
    except Exception:
        print("Starting training from scratch...")
    while things.loop["step"] < steps:
        loss, things = one_step(things)
        losses.append(loss)
    write(folder, things)
    return {**things.shown(), "losses": losses}


def uses_the_global_generator(folder, steps):
    """ai2cm/ace#690: `set_seed` at the start of the program, also of the second one."""
    np.random.seed(0)
    weights, start = np.zeros(4), 0
    if (folder / "weights.npy").exists():
        saved = np.load(folder / "weights.npy")
        weights, start = saved[:4], int(saved[4])
    for _ in range(start, steps):
        weights = weights * 0.9 + np.random.normal(size=4)
    np.save(folder / "weights.npy", np.append(weights, steps))
    return {"weights": weights}


def saves_nothing(folder, steps):
    """KatherLab/deepmed#27: there is nothing to start from."""
    return {"weights": np.arange(steps)}


def raises_when_it_resumes(folder, steps):
    """ibab/tensorflow-wavenet#151: a resumed job raises for a variable that the loop had to set."""
    path = folder / "step"
    start = int(path.read_text()) if path.exists() else 0
    for step in range(start, steps):
        weight = step * 2.0
    if start and steps > start:
        raise ValueError("the checkpoint has no key 'weight'")
    path.write_text(str(steps))
    return {"weight": weight}


def hangs_when_it_resumes(folder, steps):
    path = folder / "step"
    if path.exists() and steps > int(path.read_text()):
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        (folder.parent / "hung").touch()
        time.sleep(600)
    path.write_text(str(steps))
    return {"step": steps}


def sleeps(folder, steps):
    (folder / "sleeping").touch()
    time.sleep(600)


def exits(folder, steps):
    (folder / "step").write_text(str(steps))
    sys.exit(0)


def dies(folder, steps):
    os.abort()


def is_seeded_by_the_clock(folder, steps):
    path = folder / "weight.npy"
    weight, start = np.load(path) if path.exists() else (0.0, 0)
    rng = np.random.default_rng(time.time_ns())
    for _ in range(int(start), steps):
        weight = weight + rng.normal()
    np.save(path, np.array([weight, steps]))
    return {"weight": float(weight)}


# --- right jobs -------------------------------------------------------------------------------------------------------


def loop_with_numpy(folder, steps):
    """A few steps of gradient descent in NumPy, for quick tests."""
    path = folder / "state.npz"
    weights, start = np.zeros(3), 0
    if path.exists():
        with np.load(path) as saved:
            weights, start = saved["weights"], int(saved["step"])
    losses = []
    for n in range(start, steps):
        x = np.random.default_rng(n).normal(size=3)
        losses.append(float(((weights - x) ** 2).sum()))
        weights = weights - 0.1 * (weights - x)
    np.savez(path, weights=weights, step=steps)
    return {"weights": weights, "step": steps, "losses": losses}


def loop_with_numpy_and_a_lost_step(folder, steps):
    """The same, but that its learning rate falls with a count that is not saved."""
    path = folder / "state.npz"
    weights, start, updates = np.zeros(3), 0, 0
    if path.exists():
        with np.load(path) as saved:
            weights, start = saved["weights"], int(saved["step"])
    losses = []
    for n in range(start, steps):
        x = np.random.default_rng(n).normal(size=3)
        losses.append(float(((weights - x) ** 2).sum()))
        updates = updates + 1
        weights = weights - 0.1 / updates * (weights - x)
    np.savez(path, weights=weights, step=steps)
    return {"weights": weights, "losses": losses}


plain = functools.partial(train, fault="")


def batch_of(n):
    return np.random.default_rng(n).normal(size=(BATCH, 4)).astype(np.float32)


def with_tallax(folder, steps, compiled=True):
    """`Checkpoints`, tallax state, and a compiled step or `nnx.jit`."""

    class Counted(tallax.Module):
        def __init__(self, rngs):
            self.layer = nnx.Linear(4, 1, rngs=rngs)
            self.dropout = nnx.Dropout(0.2, rngs=rngs)
            self.step = tallax.Counter(2**32 - 2)
            self.outputs = tallax.statistics.Histogram(-3.0, 3.0, bins=8)

        def __call__(self, x):
            y = self.layer(self.dropout(x))
            self.outputs.update(y)
            return y

    def step_fn(model, optimizer, x):
        loss, grads = tallax.value_and_grad(lambda model: (model(x) ** 2).mean())(model)
        optimizer.update(model, grads)
        model.step += 1
        return loss

    model = Counted(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    step = tallax.compile_step(step_fn, model, optimizer) if compiled else None
    objects, losses = (step,) if step else (model, optimizer), []
    with tallax.Checkpoints(folder, keep=2) as checkpoints:
        start = checkpoints.latest() or 0
        if start:
            checkpoints.restore(*objects)
        run = step or functools.partial(nnx.jit(step_fn), model, optimizer)
        for n in range(start, steps):
            losses.append(float(run(batch_of(n))))
            checkpoints.save(n + 1, *objects)
    return (step, losses) if step else (model, optimizer, losses)


def in_mode(folder, steps, *, graph, updates):
    """Tallax state under `nnx.jit` in one of the modes of NNX."""
    with nnx.set_graph_mode(graph), nnx.set_graph_updates(updates):
        return with_tallax(folder, steps, compiled=False)


def with_orbax(folder, steps):
    """Orbax's manager, saving in the background, with plain NNX."""
    import orbax.checkpoint as ocp

    model = Model(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(1e-2, momentum=0.9), wrt=nnx.Param)
    graphdef, state = nnx.split((model, optimizer))
    options = ocp.CheckpointManagerOptions(max_to_keep=2)
    losses = []
    with ocp.CheckpointManager(folder, options=options, item_handlers=ocp.StandardCheckpointHandler()) as manager:
        start = manager.latest_step() or 0
        pure = nnx.to_pure_dict(state)
        keys = jax.tree.map(lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key), pure)

        def encoded(tree):
            return jax.tree.map(lambda x, is_key: jax.random.key_data(x) if is_key else x, tree, keys)

        if start:
            found = manager.restore(start, args=ocp.args.StandardRestore(encoded(pure)))
            nnx.replace_by_pure_dict(
                state, jax.tree.map(lambda x, is_key: jax.random.wrap_key_data(x) if is_key else x, found, keys)
            )
            model, optimizer = nnx.merge(graphdef, state)
        for n in range(start, steps):
            losses.append(train_step(model, optimizer, batch_of(n), 1.0))
            state = nnx.state((model, optimizer))
            manager.save(n + 1, args=ocp.args.StandardSave(encoded(nnx.to_pure_dict(state))))
        manager.wait_until_finished()
    return model, optimizer, losses


def with_grain(folder, steps):
    """An iterator of grain, whose state is saved with the model."""
    import grain

    data = iter(
        grain.MapDataset.source(np.arange(64, dtype=np.float32))
        .shuffle(seed=1)
        .map(lambda x: np.full(4, x, np.float32) / 64)
        .repeat()
        .batch(BATCH)
        .to_iter_dataset()
    )
    model = Model(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    losses = []
    with tallax.Checkpoints(folder) as checkpoints:
        start = checkpoints.latest() or 0
        if start:
            checkpoints.restore(model, optimizer, data=data)
        losses += [train_step(model, optimizer, next(data), 1.0) for _ in range(start, steps)]
        checkpoints.save(steps, model, optimizer, data=data)
    return model, optimizer, data, losses


def epochs_with_numbers_for_steps(folder, steps):
    """Saves at every second step only, keeps the losses of all steps, and returns them by their steps."""
    things, history = make(), {}
    saved = read(folder)
    if saved is not None:
        things, history = restore(things, saved["all"]), dict(saved["history"])
    random.seed(1)  # used by nothing
    while things.loop["step"] < steps:
        loss, things = one_step(things)
        history[things.loop["step"]] = loss
        if things.loop["step"] % 2 == 0:
            write(folder, things, "part")
            whole = {"all": read(folder, "part"), "history": history}
            (folder / "state").write_bytes(pickle.dumps(whole))
    return {"things": things.shown(), "losses": history}


def functional(folder, steps):
    """Plain JAX: a dict of parameters, optax's state, a key that is split, and nothing of Flax."""
    path = folder / "state.pkl"
    params = {"w": jnp.ones((4, 1)), "b": jnp.zeros(())}
    optimizer = optax.adam(1e-2)
    state, key, start = optimizer.init(params), jax.random.key(0), 0
    if path.exists():
        params, state, words, start = pickle.loads(path.read_bytes())
        params, state = jax.tree.map(jnp.asarray, (params, state))
        key = jax.random.wrap_key_data(jnp.asarray(words))

    @jax.jit
    def update(params, state, key):
        key, own = jax.random.split(key)
        x = jax.random.normal(own, (BATCH, 4))
        grads = jax.grad(lambda p: ((x @ p["w"] + p["b"]) ** 2).mean())(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, key

    for _ in range(start, steps):
        params, state, key = update(params, state, key)
    words = np.asarray(jax.random.key_data(key))
    path.write_bytes(pickle.dumps((jax.device_get(params), jax.device_get(state), words, steps)))
    return params, state, key


def scanned(folder, steps):
    """The loop is a `lax.scan`, so that no line of the file runs once a step."""
    path = folder / "state.npy"
    start, value = np.load(path) if path.exists() else (0, 1.0)

    def body(carry, n):
        carry = carry * 1.5 - n
        return carry, carry

    value, losses = jax.lax.scan(body, jnp.float32(value), jnp.arange(start, steps, dtype=jnp.float32))
    np.save(path, np.array([steps, value]))
    return value, losses


def in_two_processes(folder, steps):
    """Two processes of JAX train together; the first one's result is returned."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tests.resume_jobs", str(folder), str(steps), str(port)]
    ranks = [subprocess.Popen([*command, str(rank)]) for rank in range(2)]
    for rank in ranks:
        assert rank.wait(timeout=120) == 0
    return pickle.loads((folder / f"result-{steps}").read_bytes())


def one_of_two_processes(folder, steps, port, rank):
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_num_cpu_devices", 1)
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, rank, initialization_timeout=60)
    mesh = jax.make_mesh((2,), ("data",))
    model = nnx.Dict(layer=nnx.Linear(4, 1, rngs=nnx.Rngs(0)), seen=tallax.Counter())
    replicated = jax.NamedSharding(mesh, jax.P())
    nnx.update(
        model,
        jax.tree.map(
            lambda x: jax.make_array_from_callback(x.shape, replicated, lambda i: np.asarray(x)[i]), nnx.state(model)
        ),
    )
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x):
        loss, grads = nnx.value_and_grad(lambda layer: (layer(x) ** 2).mean())(model.layer)
        optimizer.update(model, nnx.State({"layer": grads}))
        model.seen.increment(x.shape[0])
        return loss

    losses = []
    with tallax.Checkpoints(folder / "checkpoints", keep=2) as checkpoints:
        start = checkpoints.latest() or 0
        if start:
            checkpoints.restore(model, optimizer)
        for n in range(start, steps):
            rows = batch_of(n)[rank * 4 : rank * 4 + 4]
            x = jax.make_array_from_process_local_data(jax.NamedSharding(mesh, jax.P("data")), rows)
            losses.append(float(step(model, optimizer, x)))
            checkpoints.save(n + 1, model, optimizer)
    if rank == 0:
        found = {"kernel": np.asarray(model.layer.kernel[...]), "seen": int(model.seen), "losses": losses}
        (folder / f"result-{steps}").write_bytes(pickle.dumps(found))


def on_all_devices(folder, steps):
    """A batch that is split over all devices, exact counts, and per-replica state combined for the checkpoint."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",), (jax.sharding.AxisType.Auto,))
    model = nnx.Dict(layer=nnx.Linear(4, 1, rngs=nnx.Rngs(0)), seen=tallax.Counter(2**32 - 5))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x):
        loss, grads = nnx.value_and_grad(lambda layer: (layer(x) ** 2).mean())(model.layer)
        optimizer.update(model, nnx.State({"layer": grads}))
        model.seen.increment(x.shape[0])
        return loss

    losses = []
    with tallax.Checkpoints(folder, keep=2) as checkpoints:
        start = checkpoints.latest() or 0
        if start:
            checkpoints.restore(model, optimizer)
        for n in range(start, steps):
            losses.append(step(model, optimizer, jax.device_put(batch_of(n), jax.NamedSharding(mesh, jax.P("data")))))
            checkpoints.save(n + 1, model, optimizer)
    return {"model": model, "optimizer": optimizer, "losses": losses}


def demo(folder, epochs):
    """The demo, whose steps are epochs."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
    import digits_moe
    from rich.console import Console

    model = digits_moe.DigitsMoE(optax.linear_schedule(5.0, 1.0, 44), rngs=nnx.Rngs(1))
    optimizer = digits_moe.make_optimizer(model, 88)
    shuffle, console = np.random.default_rng(1), Console(file=io.StringIO())
    with tallax.Checkpoints(folder / "checkpoints") as checkpoints:
        history = digits_moe.resumed(checkpoints, model, optimizer, epochs, console)
        digits_moe.train(
            model,
            optimizer,
            digits_moe.load_data(),
            epochs,
            shuffle=shuffle,
            interrupt=digits_moe.Interrupt(),
            console=console,
            log=tallax.Logger(),
            checkpoints=checkpoints,
            history=history,
        )
    losses = [float(step["loss"]) for step in history.steps]
    return {"model": model, "optimizer": optimizer, "shuffle": shuffle, "losses": losses}


RIGHT: dict[str, Callable[..., Any]] = {
    "plain NNX, MultiSteps, EMA, dropout, BatchNorm": plain,
    "tallax state in a compiled step": with_tallax,
    "nnx.jit in graph mode": functools.partial(in_mode, graph=True, updates=True),
    "nnx.jit with graph_updates=False": functools.partial(in_mode, graph=True, updates=False),
    "nnx.jit in tree mode": functools.partial(in_mode, graph=False, updates=False),
    "Orbax's manager": with_orbax,
    "grain": with_grain,
    "saves at every second step, losses by step": epochs_with_numbers_for_steps,
    "plain JAX with a split key": functional,
    "a loop inside lax.scan": scanned,
    "two processes": in_two_processes,
    "NumPy": loop_with_numpy,
}


if __name__ == "__main__":
    one_of_two_processes(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
