# SPDX-License-Identifier: Apache-2.0
"""Steps with state on meshes of forced host devices, compiled and not run; and their collectives.

A layout is a way to split a model over a mesh. On most of them the step is a `compile_step` whose arrays XLA splits; on
the others all of it is inside `shard_map`. Statistics keep the hidden values, after the update of the parameters.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import unittest.mock
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import tallax
from benchmarks._collectives import Collective, collectives
from tallax import reading as state_reading
from tallax.replicas import _per_replica

P = jax.P
EXAMPLES = 2**18  # of a batch: with as many entries as in practice, a histogram sends one table
WIDTH, PARTS, BINS = 32, 4, 64  # of the hidden layer; devices along `model` and `stage`; of a histogram

WHOLE, BY_ROWS = P(), P("data")

STATES: dict[str, Callable[[], Any]] = {
    "counter": tallax.Counter,
    "rate": tallax.statistics.Rate,
    "histogram": lambda: tallax.statistics.Histogram(-3.0, 3.0, BINS),
    "log-histogram": tallax.statistics.LogHistogram,
    "moments": tallax.statistics.Moments,
    "extrema": tallax.statistics.Extrema,
    "ema": lambda: tallax.statistics.Ema(0.99),
}
NONE, WATCH = "none", "watch"


@dataclasses.dataclass(frozen=True)
class Layout:
    """The way a model is split over a mesh.

    Attributes:
        axes: the names of the axes; the second one has `parts` devices.
        parts: the number of devices along the second axis.
        up, down: the placement of both kernels.
        hidden: the placement of the hidden values, whose statistics are kept.
        is_mapped: whether the whole step is inside `shard_map`.
    """

    axes: tuple[str, ...]
    parts: int = 1
    up: jax.P = WHOLE
    down: jax.P = WHOLE
    hidden: jax.P = BY_ROWS
    is_mapped: bool = False

    def mesh(self, devices: int) -> jax.sharding.Mesh:
        """Returns a mesh of all devices."""
        shape = (devices // self.parts, self.parts)[: len(self.axes)]
        return jax.make_mesh(shape, self.axes, axis_types=(jax.sharding.AxisType.Auto,) * len(shape))


LAYOUTS = {
    "data-parallel": Layout(("data",)),
    "fsdp": Layout(("data",), up=P("data")),
    "tensor-parallel": Layout(("data", "model"), PARTS, P(None, "model"), P("model"), P("data", "model")),
    "data-parallel, shard_map": Layout(("data", "stage"), 1, is_mapped=True),
    "pipeline": Layout(("data", "stage"), PARTS, is_mapped=True),
}
# Under `jit`, inside a `shard_map` around the update, and there with per-replica state.
WAYS = ("jit", "shard_map", "per-replica")


class Perceptron(nnx.Module):
    """Two layers, and state."""

    def __init__(self, inputs: int, kept: nnx.Dict):
        rngs = nnx.Rngs(0)
        self.up = nnx.Linear(inputs, WIDTH, use_bias=False, rngs=rngs)
        self.down = nnx.Linear(WIDTH, 4, use_bias=False, rngs=rngs)
        self.kept = kept


class Stage(nnx.Module):
    """The layers of a pipeline, one on each device along `stage`."""

    def __init__(self, stages: int):
        self.kernel = nnx.Param(jnp.ones((stages, WIDTH, WIDTH)))

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.relu(x @ self.kernel[...][0])


def feed(kept: nnx.Dict, x: jax.Array, where: jax.Array | None = None) -> None:
    """Counts the positive entries, or updates a statistic with them."""
    for k, state in enumerate(kept.values()):
        x = x - k / 128  # so that XLA cannot share the work of equal states
        if isinstance(state, tallax.Counter):
            state.count(x > 0 if where is None else (x > 0) & where)
        else:
            state.update(x, where=where)


def lowered(
    layout: Layout, state: str, way: str, devices: int, count: int = 1
) -> tuple[nnx.Module, tallax.CompiledStep, jax.stages.Lowered]:
    """Returns a model, its step, and the program of the step.

    Args:
        layout: the way the model is split.
        state: a key of `STATES`, or `NONE`, or `WATCH`.
        way: one of `WAYS`.
        devices: the number of devices.
        count: the number of states.
    """
    mesh = layout.mesh(devices)
    kept = nnx.Dict({f"state{k}": STATES[state]() for k in range(count if state in STATES else 0)})
    if way == "per-replica":
        names = [name for part in layout.hidden for name in (part if isinstance(part, tuple) else (part,))]
        kept = tallax.per_replica(kept, mesh, layout.axes if layout.is_mapped else tuple(filter(None, names)))
    return (_pipelined if layout.is_mapped else _compiled)(layout, mesh, kept, state == WATCH, way)


def _compiled(layout: Layout, mesh: Any, kept: nnx.Dict, is_watched: bool, way: str) -> tuple[Any, ...]:
    rows = mesh.size
    model = Perceptron(rows, kept)
    for variable, spec in ((model.up.kernel, layout.up), (model.down.kernel, layout.down)):
        variable.set_raw_value(jax.device_put(variable.get_raw_value(), jax.NamedSharding(mesh, spec)))
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
    if is_watched:
        tallax.watch(
            model, optimizer, inputs=True, output_gradients=True, parameters=True, gradients=True, updates=True
        )
    counted = feed
    if way != "jit":
        specs = tallax.replica_specs(kept)
        counted = nnx.shard_map(feed, mesh=mesh, in_specs=(specs, layout.hidden), out_specs=None)

    def train(model: Perceptron, optimizer: nnx.Optimizer, x: jax.Array) -> jax.Array:
        def loss_fn(model: Perceptron) -> tuple[jax.Array, jax.Array]:
            hidden = nnx.relu(model.up(x))
            return (model.down(hidden) ** 2).mean(), hidden

        (loss, hidden), grads = tallax.value_and_grad(loss_fn, has_aux=True)(model)
        optimizer.update(model, grads)
        if model.kept:
            counted(model.kept, hidden)
        return loss

    batch = jax.ShapeDtypeStruct((EXAMPLES, rows), jnp.float32, sharding=jax.NamedSharding(mesh, P("data")))
    step = tallax.compile_step(train, model, optimizer)
    return model, step, step.lower(batch)


def _pipelined(layout: Layout, mesh: Any, kept: nnx.Dict, is_watched: bool, way: str) -> tuple[Any, ...]:
    """As many microbatches as stages; devices without one compute zeros, which are masked."""
    stages = layout.parts
    model = nnx.Dict(stage=Stage(stages), kept=kept)
    if is_watched:
        tallax.watch(model, sites="stage", output_gradients=True)
        if way == "per-replica":
            model = tallax.per_replica(model, mesh, layout.axes)
    kernel = model.stage.kernel  # placed only now, as a watch of a model on a mesh has a row for each device
    kernel.set_raw_value(jax.device_put(kernel.get_raw_value(), jax.NamedSharding(mesh, P("stage"))))
    everything = tallax.replica_specs(model)
    specs = nnx.StateSharding([(nnx.Param, P("stage")), *zip(everything.filters, everything.shardings, strict=True)])

    def train(model: Any, x: jax.Array) -> jax.Array:
        here, ticks = jax.lax.axis_index("stage"), 2 * stages - 1
        microbatches = x.reshape(stages, -1, WIDTH)

        def loss_fn(model: Any) -> tuple[jax.Array, jax.Array]:
            arriving = jax.lax.pcast(jnp.zeros_like(microbatches[0]), "stage", to="varying")
            outputs = []
            for tick in range(ticks):
                entering = jnp.where(here == 0, microbatches[min(tick, stages - 1)], arriving)
                outputs.append(model.stage(entering))
                if stages > 1:
                    arriving = jax.lax.ppermute(outputs[-1], "stage", [(k, k + 1) for k in range(stages - 1)])
            leaving = jnp.stack(outputs[stages - 1 :])
            loss = jnp.where(here == stages - 1, (leaving**2).mean(), 0.0)
            return jax.lax.psum(loss, layout.axes), jnp.stack(outputs)

        (loss, outputs), grads = tallax.value_and_grad(loss_fn, has_aux=True)(model)
        gradient = jax.tree.leaves(nnx.state(grads, nnx.Param))[0]
        model.stage.kernel[...] -= 0.1 * gradient
        tick = jnp.arange(ticks)[:, None, None]
        feed(model.kept, outputs, jnp.broadcast_to((here <= tick) & (tick < here + stages), outputs.shape))
        return loss

    mapped = nnx.shard_map(train, mesh=mesh, in_specs=(specs, P("data")), out_specs=P())
    rows = stages * mesh.shape["data"]
    batch = jax.ShapeDtypeStruct((rows, WIDTH), jnp.float32, sharding=jax.NamedSharding(mesh, P("data")))
    step = tallax.compile_step(mapped, model)
    return model, step, step.lower(batch)


@dataclasses.dataclass(frozen=True)
class Sent:
    """Collectives and their payloads, in bytes, that one device takes part in.

    Attributes:
        collectives, payload: those of each call.
        in_branch, payload_in_branch: those of a branch that most calls do not take.
    """

    collectives: int = 0
    payload: int = 0
    in_branch: int = 0
    payload_in_branch: int = 0


def sent(found: collections.Counter[Collective]) -> Sent:
    """Returns the totals of some collectives."""
    parts: dict[bool, list[int]] = {False: [0, 0], True: [0, 0]}
    for collective, times in found.items():
        parts[collective.in_branch][0] += times
        parts[collective.in_branch][1] += times * collective.payload
    return Sent(*parts[False], *parts[True])


def added(layout: Layout, state: str, way: str, devices: int, count: int = 1) -> Sent:
    """Returns the collectives of a step with state, minus those of the same step without.

    XLA merges collectives that can run at the same time, for example with the all-reduce of the gradients, so an
    update can send bytes and add no collective.
    """
    ours = sent(collectives(_text(lowered(layout, state, way, devices, count)[2])))
    base = _base(layout, devices)
    return Sent(*(a - b for a, b in zip(dataclasses.astuple(ours), dataclasses.astuple(base), strict=True)))


@functools.cache
def _base(layout: Layout, devices: int) -> Sent:
    return sent(collectives(_text(lowered(layout, NONE, WAYS[0], devices)[2])))


class _Stop(Exception):  # noqa: N818
    """Ends a reading when its program is known."""


def reading(layout: Layout, state: str, way: str, devices: int) -> tuple[Sent, int]:
    """Returns the collectives of one reading of the state, and the bytes that are copied to each host.

    The reading is `step.collect()`; with per-replica state it is `tallax.combine_replicas`.
    """
    model, step, _ = lowered(layout, state, way, devices)
    programs: list[jax.stages.Lowered] = []

    def record(program: Any) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            programs.append(program.lower(*args))
            raise _Stop

        return call

    # The public functions run these programs on the state, which would take as many threads as there are devices. So
    # they are lowered with the arguments of the real call, and do not run.
    gatherer = state_reading._gatherer
    with (
        unittest.mock.patch.object(state_reading, "_gatherer", lambda home: record(gatherer(home))),
        unittest.mock.patch.object(_per_replica, "_reduced", record(_per_replica._reduced)),
    ):
        try:
            if way == "per-replica":
                step.sync()
                tallax.combine_replicas(model)
            entries = step.collect().entries
        except _Stop:
            (program,) = programs
            outputs = jax.tree.leaves(program.out_info)
            return sent(collectives(_text(program))), sum(x.size * x.dtype.itemsize for x in outputs)
    return Sent(), sum(entry.description.nbytes for entry in entries)


def _text(program: jax.stages.Lowered) -> str:
    text = program.compile().as_text()
    assert text is not None
    return text
