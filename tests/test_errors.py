# SPDX-License-Identifier: Apache-2.0
"""The text of every error: the item by its path, the rule, what came, and what to write instead."""

import ast
import copy
import pathlib
import pickle
import re
import sys
import unittest.mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import errors as flax_errors
from flax import nnx

import tallax
from tallax import _errors
from tallax._errors import compose, describe, name_of
from tests import checkpoint_errors, watch_errors

SOURCE = pathlib.Path(tallax.__file__).parent


class Expert(tallax.Module):
    def __init__(self):
        self.tokens = tallax.Counter(shape=2)
        self.bias = tallax.Buffer(np.zeros(2))
        self.step = tallax.Counter()


class Watched(tallax.Module):
    def __init__(self):
        self.rate = tallax.statistics.Rate()
        self.temperature = tallax.ScheduledValue(lambda count: 1.0)
        self.step = tallax.StepCounter(nnx.Rngs(0))


class Model(nnx.Module):
    def __init__(self):
        self.experts = nnx.List([Expert(), Expert()])
        self.rate = tallax.statistics.Rate(shape=2)
        self.temperature = tallax.ScheduledValue(lambda count: 1.0)


def watched(use):
    """Returns a use of a Module that holds what is made of several Variables."""

    def act(model):
        model = Watched()
        use(model)

    return act


def in_mode(model, mode):
    return model.experts


def make_three():
    return 3


def closed_over(model):
    jax.jit(lambda x: [model.experts[1].step.increment(), x][1])(1.0)


def in_a_trace(model):
    nnx.jit(lambda model: int(model.experts[1].step))(model)


def compiled(run=lambda model: None, calls=1):
    """Returns a use of a model that a compiled step holds."""

    def after(use):
        def act(model):
            step = tallax.compile_step(run, model)
            for _ in range(calls):
                step()
            use(model, step)

        return act

    return after


def closed_over_by_a_step(model):
    tallax.compile_step(lambda bound: model.experts[0].step.value, model)()


def write_past(model, step):
    nnx.update(model, {"temperature": {"state": jnp.zeros(3)}})
    step()


class NoSink:
    """Writes nowhere."""

    def write(self, record):
        pass

    def close(self):
        pass


class FullDisk(NoSink):
    """Writes nothing at all."""

    def write(self, record):
        raise OSError("the disk is full")

    def __repr__(self):
        return "FullDisk"


def logged(act, *, sink=None, **options):
    """Returns a use of a Logger."""

    def use(model):
        with tallax.Logger(sink or NoSink(), **{"every": 1, **options}) as log:
            act(log, model)

    return use


def in_turn(*calls):
    """Returns what makes calls of a Logger, one after the other."""

    def act(log, model):
        for call in calls:
            call(log)

    return act


class Odd(tallax.statistics.Rate):
    def read(self, state):
        return "often"


class Unreadable(tallax.statistics.Rate):
    def read(self, state):
        raise ZeroDivisionError("never")


def read_a_parameter(model):
    net = nnx.Dict(weight=nnx.Param(jnp.ones(2)))
    step = tallax.compile_step(lambda net: None, net)
    step()
    np.asarray(net.weight)


def lose(model, step):
    jax.tree.map(lambda array: array.delete(), step._holding.state)  # as a step does that fails on the device
    step.sync()


def replace_an_array(model):
    model.table = jnp.zeros(3)
    tallax.compile_step(lambda model: setattr(model, "table", model.table + 1), model)()


def in_shard_map(model):
    mesh = jax.make_mesh((8,), ("data",))
    graphdef, state = nnx.split(model)

    def body(state):
        inner = nnx.merge(graphdef, state)
        inner.experts[0].step += 1
        return nnx.state(inner)

    jax.shard_map(body, mesh=mesh, in_specs=jax.P(), out_specs=jax.P())(state)


def shares_of(model):
    return tallax.per_replica(model, jax.make_mesh((8,), ("data",)), "data")


def shares_read(model):
    shares = shares_of(model)
    int(shares.experts[0].step)


def in_shares(model, body, *others):
    """Runs a function of a model that keeps shares, and of others, inside `shard_map`."""
    shares = shares_of(model)
    specs = (tallax.replica_specs(shares), *(jax.P() for _ in others))
    mesh = jax.make_mesh((8,), ("data",))
    nnx.shard_map(body, mesh=mesh, in_specs=specs, out_specs=None)(shares, *others)


def shares_written(model):
    def body(model):
        model.experts[0].step.value += 1

    in_shares(model, body)


def shares_merged(model):
    in_shares(model, lambda shares, model: model.rate.merge(shares.rate), nnx.clone(model))


def cast_and_update(model):
    moments = tallax.statistics.Moments()
    moments.moments.set_raw_value(jnp.zeros(9, jnp.bfloat16))
    moments.update(1.0)


def shares_twice(model):
    shares = shares_of(model)
    shares_of(shares.experts[0].step)


def shares_elsewhere(model):
    shares = shares_of(model)
    counter = shares.experts[0].step
    counter.set_raw_value(np.asarray(counter.get_raw_value()))
    tallax.combine_replicas(shares)


def copies_differ(model):
    step = model.experts[0].step
    values = [jax.device_put(np.array([n // 4, 0], np.uint32), device) for n, device in enumerate(jax.devices())]
    sharding = jax.NamedSharding(jax.make_mesh((8,), ("data",)), jax.P())
    step.set_raw_value(jax.make_array_from_single_device_arrays((2,), sharding, values))
    tallax.assert_replicated(model)


def another_model_elsewhere(model):
    with unittest.mock.patch(
        "jax.experimental.multihost_utils.process_allgather", lambda own: np.stack([own, own + np.uint8(1)])
    ):
        tallax.assert_replicated(model)


def replaced(model):
    expert = model.experts[0]
    expert.step = expert.step + 1


def replaced_entry(model):
    net = tallax.Module()
    net.loads = nnx.List([tallax.Counter()])
    net.loads[0] = net.loads[0] + 1


def quantized(model):
    model.q = nnx.Param(jnp.ones(2, jnp.int8))
    return model


def trained(model):
    """Adds what has gradients to the model, for the errors of value_and_grad."""
    model.layer = nnx.Dict(w=nnx.Param(jnp.ones(2)), mean=nnx.BatchStat(jnp.zeros(2)))
    return model


def differentiate(f=lambda model, x: model.layer.w[...].sum() * x, **options):
    return lambda model: tallax.value_and_grad(f, **options)(trained(model), jnp.float32(2.0))


def captured_as_an_argument(model):
    trained(model)
    nnx.jit(lambda x: tallax.value_and_grad(lambda model, x: x)(model, x))(jnp.float32(2.0))


def with_a_ref(model):
    model.layer = nnx.Dict(w=nnx.Param(jnp.ones(2), ref=True))
    tallax.value_and_grad(lambda model: model.layer.w[...].sum())(model)


CASES = {
    "increment-negative": (
        lambda model: model.experts[1].step.increment(-1),
        tallax.InvalidValueError,
        """\
model.experts[1].step: a Counter takes non-negative integers.
  got:  int (-1)
  fix:  counter.set(n) or counter.reset() to go back; a tallax.Buffer for a number that goes up and down""",
    ),
    "increment-float": (
        lambda model: model.experts[1].step.increment(jnp.float32(0.5)),
        tallax.InvalidTypeError,
        """\
model.experts[1].step: a Counter takes non-negative integers.
  got:  float32[] (0.5)
  fix:  self.step += 1, or count a condition with self.step.count(mask)""",
    ),
    "increment-shape": (
        lambda model: model.experts[0].tokens.increment(np.arange(3)),
        tallax.InvalidValueError,
        """\
model.experts[0].tokens: a Counter of shape (2,) requires an array that broadcasts to its shape.
  got:       int64[3] ([0, 1, 2])
  expected:  shape (2,)
  fix:       counter.count(events), which sums over the leading axes; or Counter(shape=...)""",
    ),
    "count-shape": (
        lambda model: model.experts[0].tokens.count(np.ones((2, 5), bool)),
        tallax.InvalidValueError,
        """\
model.experts[0].tokens: a Counter of shape (2,) requires an array that ends in its shape.
  got:       bool[2,5]
  expected:  shape (..., 2)
  fix:       counter.count(events), which sums over the leading axes; or Counter(shape=...)""",
    ),
    "set-too-large": (
        lambda model: model.experts[0].step.set(2**64),
        tallax.InvalidValueError,
        """\
model.experts[0].step: the largest count is 2**64 - 1.
  got:  int (18446744073709551616)
  fix:  a smaller number""",
    ),
    "several-counts": (
        lambda model: int(model.experts[0].tokens),
        tallax.InvalidTypeError,
        """\
model.experts[0].tokens: int() requires a scalar Counter.
  got:  a Counter of shape (2,)
  fix:  np.asarray(counter), which is exact; or int(np.asarray(counter).sum())""",
    ),
    "compare": (
        lambda model: model.experts[0].step > 3,
        tallax.InvalidTypeError,
        """\
model.experts[0].step: a Counter cannot be compared with < or >; compare its value.
  got:  a comparison with int (3)
  fix:  int(counter) > n on the host; counter.value > n, or counter.every(n), in a compiled function""",
    ),
    "compare-buffer": (
        lambda model: max(model.experts[0].bias, 0.0),
        tallax.InvalidTypeError,
        """\
model.experts[0].bias: a Buffer cannot be compared with < or >; compare its value.
  got:  a comparison with float (0.0)
  fix:  buffer[...] > x""",
    ),
    "a-dtype-as-a-label": (
        lambda model: tallax.Buffer(0.0, dtype="bfloat16"),
        tallax.InvalidTypeError,
        """\
Buffer: has the dtype and shape of its value.
  got:  dtype=str ('bfloat16')
  fix:  Buffer(jnp.zeros(shape, dtype)); Counter(shape=...) always counts up to 2**64 - 1""",
    ),
    "a-slip-as-a-label": (
        lambda model: tallax.Counter(persistant=False),
        tallax.InvalidTypeError,
        """\
Counter: unknown metadata 'persistant'; did you mean 'persistent'?
  got:  persistant=bool (False)
  fix:  persistent=..., or another name for a label of your own""",
    ),
    "no-rngs": (
        lambda model: tallax.StepCounter(0),
        tallax.InvalidTypeError,
        """\
StepCounter: requires an nnx.Rngs, which provides one key.
  got:  int (0)
  fix:  StepCounter(nnx.Rngs(0)), or a tallax.Counter(), which needs none""",
    ),
    "replaced-statistic": (
        watched(lambda watched: setattr(watched, "rate", watched.rate.update(True))),
        tallax.ReplacedVariableError,
        """\
model.rate: this attribute is a Rate, which an assignment would drop.
  got:  NoneType (None)
  fix:  self.rate.update(x), which writes into it; or del self.rate first""",
    ),
    "replaced-schedule": (
        watched(lambda watched: setattr(watched, "temperature", 2.0)),
        tallax.ReplacedVariableError,
        """\
model.temperature: this attribute is a ScheduledValue, which an assignment would drop.
  got:  float (2.0)
  fix:  self.temperature.pin(x), which writes into it; or del self.temperature first""",
    ),
    "replaced-step-counter": (
        watched(lambda watched: setattr(watched, "step", int(watched.step) + 1)),
        tallax.ReplacedVariableError,
        """\
model.step: this attribute is a StepCounter, which an assignment would drop.
  got:  int (1)
  fix:  self.step(), which writes into it; or del self.step first""",
    ),
    "scheduled-transformation": (
        lambda model: tallax.inject_schedules(optax.sgd(1.0)),
        tallax.InvalidTypeError,
        """\
inject_schedules: requires a function that returns a transformation, such as optax.adamw, and its arguments.
  got:  a GradientTransformationExtraArgs
  fix:  tallax.inject_schedules(optax.adamw, learning_rate=schedule)""",
    ),
    "save-without-a-path": (
        lambda model: tallax.save(model, "somewhere"),
        tallax.InvalidTypeError,
        """\
a checkpoint: requires its path as the first argument.
  got:  a Model
  fix:  tallax.save(path, model, optimizer)""",
    ),
    "restore-without-a-path": (
        lambda model: tallax.restore(model, "somewhere"),
        tallax.InvalidTypeError,
        """\
a checkpoint: requires its path as the first argument.
  got:  a Model
  fix:  tallax.restore(path, model, optimizer)""",
    ),
    "checkpoints-without-a-path": (
        lambda model: tallax.Checkpoints(3),
        tallax.InvalidTypeError,
        """\
a checkpoint: requires its path as the first argument.
  got:  a int
  fix:  tallax.Checkpoints(folder)""",
    ),
    "shape": (
        lambda model: tallax.statistics.Rate(shape=(2, -1)),
        tallax.InvalidValueError,
        """\
Rate: a shape must be a non-negative integer or a tuple of them.
  got:  shape=(2, -1)
  fix:  shape=8, shape=(2, 8)""",
    ),
    "shape-of-words": (
        lambda model: tallax.Counter(shape="ab"),
        tallax.InvalidValueError,
        """\
Counter: a shape must be a non-negative integer or a tuple of them.
  got:  shape='ab'
  fix:  shape=8, shape=(2, 8)""",
    ),
    "no-mesh": (
        lambda model: tallax.per_replica(model, None, "data"),
        tallax.InvalidTypeError,
        """\
per_replica: requires the mesh that the replicas are on.
  got:  NoneType (None)
  fix:  mesh = jax.make_mesh((jax.device_count(),), ("data",)); tallax.per_replica(model, mesh, "data")""",
    ),
    "no-step": (
        lambda model: tallax.compile_step(model.experts, model),
        tallax.InvalidTypeError,
        """\
compile_step: requires a function that runs one step.
  got:  a List
  fix:  compile_step(train_step, model, optimizer)""",
    ),
    "save-without-a-step": (
        lambda model: tallax.Checkpoints("somewhere").save(model),
        tallax.InvalidTypeError,
        """\
step: must be the number of the checkpoint, as the first argument.
  got:  a Model
  fix:  checkpoints.save(n, model, optimizer)""",
    ),
    "every": (
        lambda model: model.experts[0].step.every(0),
        tallax.InvalidValueError,
        """\
model.experts[0].step: every(n) requires a Python integer in [1, 2**31 - 1].
  got:  int (0)
  fix:  counter.every(100)""",
    ),
    "subtract": (
        lambda model: model.experts[0].step.__isub__(1),
        tallax.InvalidTypeError,
        """\
model.experts[0].step: a Counter only counts up.
  got:  -= int (1)
  fix:  counter.set(n) or counter.reset()""",
    ),
    "multiply": (
        lambda model: model.experts[0].step.__imul__(2),
        tallax.InvalidTypeError,
        """\
model.experts[0].step: a Counter only counts up.
  got:  *= int (2)
  fix:  counter.set(n), or a tallax.Buffer""",
    ),
    "buffer-shape": (
        lambda model: model.experts[0].bias.set_value(jnp.zeros(3)),
        tallax.InvalidValueError,
        """\
model.experts[0].bias: a write must not change the shape of a Buffer.
  got:       float32[3] ([0.0, 0.0, 0.0])
  expected:  float32[2]
  fix:       buffer[...] = jnp.broadcast_to(x, buffer.shape), or buffer[index] = x to write a part""",
    ),
    "buffer-dtype": (
        lambda model: model.experts[0].bias.set_value(np.zeros(2, np.int32)),
        tallax.InvalidTypeError,
        """\
model.experts[0].bias: a write must not change the dtype of a Buffer.
  got:       int32[2] ([0, 0])
  expected:  float32
  fix:       cast the value explicitly: buffer[...] = x.astype('float32')""",
    ),
    "buffer-kind": (
        lambda model: model.experts[0].bias.set_value([1.0, 2.0]),
        tallax.InvalidTypeError,
        """\
model.experts[0].bias: only arrays and numbers can be written to a Buffer.
  got:       list ([1.0, 2.0])
  expected:  float32[2]
  fix:       buffer[...] = jnp.asarray(x, buffer.dtype)""",
    ),
    "buffer-made-of-nothing": (
        lambda model: tallax.Buffer(None),
        tallax.InvalidTypeError,
        """\
Buffer: a Buffer requires one array.
  got:  NoneType (None)
  fix:  jnp.asarray(x), or one Buffer for each array""",
    ),
    "buffer-narrow": (
        lambda model: tallax.Buffer(2**40),
        tallax.InvalidValueError,
        """\
Buffer: the integer does not fit into int32.
  got:  int64[] (1099511627776)
  fix:  tallax.Counter for counts beyond 32 bits, or a float dtype""",
    ),
    "reduce": (
        lambda model: tallax.Buffer(0.0, reduce="mean"),
        tallax.InvalidValueError,
        """\
Buffer: unknown reduction.
  got:       str ('mean')
  expected:  'sum', 'max', 'min', 'replicated'
  fix:       reduce="replicated" for a value that is equal on all replicas, such as a result of jax.lax.pmean""",
    ),
    "counter-reduce": (
        lambda model: tallax.Counter(reduce="max"),
        tallax.InvalidValueError,
        """\
Counter: reduce must be "sum" or "replicated" for a Counter.
  got:  reduce='max'
  fix:  omit reduce; or reduce="replicated" to count steps that all replicas take together""",
    ),
    "counter-start": (
        lambda model: tallax.Counter(np.arange(2)),
        tallax.InvalidValueError,
        """\
Counter: start must be a scalar.
  got:  int64[2] ([0, 1])
  fix:  Counter(shape=x.shape), then counter.set(x)""",
    ),
    "ref": (
        lambda model: tallax.Counter(ref=True),
        tallax.InvalidValueError,
        """\
Counter: a tallax variable must be a plain Variable; ref=True loses or doubles counts under transformations.
  got:  ref=True
  fix:  omit ref; to set it for parameters, nnx.with_vars(model, only=nnx.Param, ref=True)""",
    ),
    "with-vars": (
        lambda model: nnx.with_vars(model.experts[0], hijax=True),
        tallax.InvalidValueError,
        """\
Buffer: a tallax variable must be a plain Variable; hijax=True loses or doubles counts under transformations.
  got:  hijax=True
  fix:  omit hijax; to set it for parameters, nnx.with_vars(model, only=nnx.Param, hijax=True)""",
    ),
    "declaration-deleted": (
        lambda model: model.experts[0].step.del_metadata("reduce"),
        tallax.InvalidValueError,
        """\
model.experts[0].step: cannot be without reduce.
  got:  del_metadata('reduce')
  fix:  set_metadata(reduce=...)""",
    ),
    "compared-with-text": (
        lambda model: model.experts[0].step == np.array("x"),
        tallax.InvalidTypeError,
        """\
model.experts[0].step: a Counter can only be compared with numbers and arrays.
  got:  <U1[] (x)
  fix:  counter == n; counter == np.asarray(numbers) to compare each count""",
    ),
    "static-args": (
        lambda model: tallax.inject_schedules(optax.sgd, learning_rate=0.1, static_args="masks"),
        tallax.InvalidValueError,
        """\
static_args: every name must be an argument of the function that makes the transformation.
  got:       'masks'
  expected:  learning_rate, momentum, nesterov, accumulator_dtype
  fix:       leave out 'masks', which sgd does not have""",
    ),
    "replaced-entry": (
        replaced_entry,
        tallax.ReplacedVariableError,
        """\
net.loads[0]: this entry is a Counter, which an assignment would drop.
  got:  int32[] (1)
  fix:  net.loads[0] += 1, net.loads[0].set(n)""",
    ),
    "grad-of-an-integer-parameter": (
        lambda model: differentiate(lambda model, x: x)(quantized(model)),
        tallax.InvalidTypeError,
        """\
model.q: only floats can be differentiated.
  got:  int8[2] ([1, 1])
  fix:  wrt=nnx.All(nnx.Param, lambda path, x: jnp.issubdtype(x.dtype, jnp.inexact)), also for nnx.Optimizer; or a \
tallax.Buffer instead""",
    ),
    "replaced": (
        replaced,
        tallax.ReplacedVariableError,
        """\
model.experts[0].step: this attribute is a Counter, which an assignment would drop.
  got:  int32[] (1)
  fix:  self.step += 1, self.step.set(n)""",
    ),
    "replaced-buffer": (
        lambda model: setattr(model.experts[0], "bias", 3),
        tallax.ReplacedVariableError,
        """\
model.experts[0].bias: this attribute is a Buffer, which an assignment would drop.
  got:  int (3)
  fix:  self.bias[...] = x""",
    ),
    "other-trace": (
        closed_over,
        tallax.TraceError,
        """\
model.experts[1].step: a Counter was written from a different trace than its own, so the write would be lost.
  got:  a transformed function that closes over the model, or over state merged into one
  fix:  pass the model as an argument, to nnx.jit, nnx.scan, ...; or return the increment, and add it outside; or \
nnx.merge(..., copy=True) and return its state""",
    ),
    "traced-read": (
        in_a_trace,
        tallax.TracedReadError,
        """\
model.experts[1].step: a Counter has no exact host value inside a trace.
  got:  int32[] (traced)
  fix:  counter.value for arithmetic, counter.every(n) for a condition; int(counter) outside jit""",
    ),
    "shard-map": (
        in_shard_map,
        tallax.ReplicasError,
        """\
inner.experts[0].step: inside shard_map, an increment that is the same on every device is ambiguous: \
it may be one event, or one per device.
  got:  an increment that varies over none of the mapped axes ('data',) (or check_vma=False)
  fix:  like=batch to sum it over the axes the batch is split on, axis_name=('data',) to name them, or axis_name=() \
to count it once, as after jax.lax.psum""",
    ),
    "shares-written": (
        shares_written,
        tallax.ReplicasError,
        """\
model.experts[0].step: with per-replica state, a write cannot be recognised as an increment of a value read before.
  got:  a write of int32[] (traced)
  fix:  counter.increment(n) or counter.count(events) to add; counter.set(n) to overwrite""",
    ),
    "shares-merged": (
        shares_merged,
        tallax.ReplicasError,
        """\
model.rate: a replicated statistic cannot merge a statistic with per-replica state.
  got:  per-replica state over ('data',)
  fix:  merge tallax.combine_replicas(other), between steps""",
    ),
    "cast": (
        cast_and_update,
        tallax.InvalidTypeError,
        """\
moments: its state must be float32, but was cast, so its values are no longer right.
  got:  bfloat16[9]
  fix:  cast only the parameters: nnx.state(model, nnx.Param); to recover the state, restore a checkpoint into a \
new model""",
    ),
    "axis-name": (
        lambda model: tallax.statistics.Rate(axis_name=["data"]),
        tallax.InvalidTypeError,
        """\
Rate: axis_name must be the name of a mapped axis, or a tuple of names.
  got:  list (['data'])
  fix:  axis_name="data", or axis_name=("data", "model")""",
    ),
    "shares-read": (
        shares_read,
        tallax.ReplicasError,
        """\
shares.experts[0].step: has per-replica state, which must be combined first.
  got:  a read or write outside a shard_map over ('data',)
  fix:  to read, tallax.combine_replicas(model); to write, a shard_map with tallax.replica_specs(model)""",
    ),
    "shares-axis": (
        lambda model: tallax.per_replica(model, jax.make_mesh((8,), ("data",)), "model"),
        tallax.InvalidValueError,
        """\
axis_name: must name axes of the mesh.
  got:       str ('model')
  expected:  one or several of ('data',)
  fix:       axis_name='data'""",
    ),
    "shares-twice": (
        shares_twice,
        tallax.ReplicasError,
        """\
shares.experts[0].step: already has per-replica state.
  got:  per-replica state over the mesh axes ('data',)
  fix:  tallax.combine_replicas(model) first, then tallax.per_replica again""",
    ),
    "shares-traced": (
        lambda model: nnx.jit(lambda counter: [tallax.combine_replicas(counter), None][1])(model.experts[0].step),
        tallax.TracedReadError,
        """\
counter: replicas can only be laid out, combined or compared outside a trace, between steps.
  got:  uint32[2] (traced)
  fix:  call it outside of jit and shard_map""",
    ),
    "shares-elsewhere": (
        shares_elsewhere,
        tallax.ReplicasError,
        """\
shares.experts[0].step: per-replica state must stay on the mesh that per_replica put it on.
  got:  an array with no sharding
  fix:  variable.set_raw_value(jax.device_put(array, jax.NamedSharding(mesh, jax.P(axis_name))))""",
    ),
    "copies-differ": (
        copies_differ,
        tallax.ReplicasError,
        """\
model.experts[0].step: the copies of a replicated value differ between devices or processes.
  got:  2 different values
  fix:  jax.make_array_from_process_local_data(sharding, x) for the batch of several processes; shard_map with \
check_vma=True; or reduce= if each replica has its own value""",
    ),
    "other-processes": (
        another_model_elsewhere,
        tallax.ReplicasError,
        """\
assert_replicated: all processes must have the same Variables.
  got:  different Variables or shapes in another process
  fix:  build the same model in all processes, and call assert_replicated in all of them""",
    ),
    "schedule": (
        lambda model: tallax.ScheduledValue(2.0),
        tallax.InvalidTypeError,
        """\
ScheduledValue: requires a schedule: a function from a step count to a scalar.
  got:  float (2.0)
  fix:  optax.constant_schedule(2.0), or optax.linear_schedule(5.0, 1.0, 10_000)""",
    ),
    "schedule-shape": (
        lambda model: tallax.ScheduledValue(lambda count: jnp.ones(2)),
        tallax.InvalidValueError,
        """\
ScheduledValue: the schedule must return a scalar.
  got:  float32[2] (traced)
  fix:  one ScheduledValue for each number, or a tallax.Buffer for an array""",
    ),
    "pin": (
        lambda model: model.temperature.pin(float("nan")),
        tallax.InvalidValueError,
        """\
model.temperature: can only be pinned to one number that is not NaN.
  got:  float (nan)
  fix:  pin(2.0), or release() to follow the schedule""",
    ),
    "step": (
        lambda model: model.temperature(0.5),
        tallax.InvalidTypeError,
        """\
step: a schedule requires an integer step.
  got:       float (0.5)
  expected:  a Counter, a StepCounter, or an integer scalar
  fix:       step=model.step""",
    ),
    "max-norm": (
        lambda model: tallax.clip_by_global_norm(-1.0),
        tallax.InvalidValueError,
        """\
max_norm: the clip threshold must be positive.
  got:  float (-1.0)
  fix:  max_norm=1.0""",
    ),
    "max-norm-kind": (
        lambda model: tallax.clip_by_global_norm(None),
        tallax.InvalidTypeError,
        """\
max_norm: must be a number or an optax schedule.
  got:  NoneType (None)
  fix:  max_norm=1.0""",
    ),
    "clip-counts": (
        lambda model: tallax.clip_counts(optax.EmptyState()),
        tallax.InvalidValueError,
        """\
clip_counts: requires an optimizer with exactly one tallax.clip_by_global_norm.
  got:  0 of them
  fix:  optax.chain(tallax.clip_by_global_norm(1.0), ...), or the state of one of them""",
    ),
    "clip-counts-traced": (
        lambda model: jax.jit(tallax.clip_counts)(tallax.clip_by_global_norm(1.0).init({})),
        tallax.TracedReadError,
        """\
clip_counts: cannot read exact counts inside a trace.
  got:  a traced optimizer state
  fix:  call it outside jit; inside, the ClipByGlobalNormState has max_norm as an array""",
    ),
    "restored-saturated": (
        lambda model: [model.experts[0].step.set_raw_value(np.int32([2**31 - 1])[0:1]), int(model.experts[0].step)],
        tallax.InvalidValueError,
        """\
model.experts[0].step: was restored from a saturated int32 value, so the exact count is lost.
  got:  int32[1] ([2147483647])
  fix:  save nnx.as_pure(nnx.state(model)), which has the exact count; or counter.set(n)""",
    ),
    "statistic-kind": (
        lambda model: model.rate.update("abc"),
        tallax.InvalidTypeError,
        """\
model.rate: a statistic requires a real array.
  got:  str ('abc')
  fix:  jnp.asarray(x), or x.real""",
    ),
    "statistic-shape": (
        lambda model: model.rate.update(np.ones(3)),
        tallax.InvalidValueError,
        """\
model.rate: a statistic of shape (2,) requires values whose last axes have that shape.
  got:       float32[3] ([1.0, 1.0, 1.0])
  expected:  shape (..., 2)
  fix:       move the axis of heads, experts or units to the end, or declare Rate(shape=...)""",
    ),
    "where-dtype": (
        lambda model: model.rate.update(np.ones(2), where=np.ones(2)),
        tallax.InvalidTypeError,
        """\
model.rate: where= must be a boolean array.
  got:  float64[2] ([1.0, 1.0])
  fix:  where=mask.astype(bool), or mask > 0""",
    ),
    "where-shape": (
        lambda model: model.rate.update(np.ones(2), where=np.ones(5, bool)),
        tallax.InvalidValueError,
        """\
model.rate: where= must broadcast to the shape of the values.
  got:       bool[5]
  expected:  a shape that broadcasts to (2,)
  fix:       where=mask[..., None] for a mask of the leading axes""",
    ),
    "merge": (
        lambda model: model.rate.merge(tallax.statistics.Histogram(0, 1, 4)),
        tallax.InvalidValueError,
        """\
model.rate: only statistics of the same type and configuration can be merged.
  got:       Histogram(low=0.0, high=1.0, bins=4)
  expected:  Rate(shape=(2,))
  fix:       make both with the same arguments""",
    ),
    "histogram": (
        lambda model: tallax.statistics.Histogram(1, 0),
        tallax.InvalidValueError,
        """\
Histogram: the edges must increase, and differ in float32.
  got:       low=1, high=0, bins=64
  expected:  low < high, both finite and below 2**127, and 1 to 65536 bins
  fix:       Histogram(-5.0, 5.0, bins=64)""",
    ),
    "relative-error": (
        lambda model: tallax.statistics.LogHistogram(0.9),
        tallax.InvalidValueError,
        """\
LogHistogram: the relative error must be in [1e-4, 0.5].
  got:  float (0.9)
  fix:  LogHistogram(relative_error=0.01)""",
    ),
    "no-stack": (
        lambda model: tallax.statistics.LogHistogram().compute()[0],
        tallax.InvalidValueError,
        """\
LogHistogramResult: only the result of a stack of histograms, such as one for each layer, can be indexed.
  got:  the result of a single histogram
  fix:  the result itself, without [...]""",
    ),
    "quantile": (
        lambda model: tallax.statistics.LogHistogram().compute().quantile(99),
        tallax.InvalidValueError,
        """\
q: a quantile must be in [0, 1].
  got:  int (99)
  fix:  quantile(0.99) for the 99th percentile""",
    ),
    "decay": (
        lambda model: tallax.statistics.Ema(1.0),
        tallax.InvalidValueError,
        """\
Ema: decay must be in [0, 1): an update keeps this fraction of the average.
  got:       decay=1.0
  expected:  a number in [0, 1)
  fix:       Ema(0.99), which remembers about 100 updates""",
    ),
    "units": (
        lambda model: tallax.statistics.Activity(8, window=0),
        tallax.InvalidValueError,
        """\
Activity: units and window must be positive integers.
  got:       units=8, window=0
  expected:  integers in [1, 2**31 - 1], or no window
  fix:       Activity(x.shape[-1], window=1000)""",
    ),
    "calls": (
        lambda model: tallax.counter_after_n_calls(0, -1),
        tallax.InvalidValueError,
        """\
n_calls: the number of calls must not be negative.
  got:  int (-1)
  fix:  n_calls=0 or more""",
    ),
    "seed": (
        lambda model: tallax.counter_after_n_calls(float("inf"), 1),
        tallax.InvalidValueError,
        """\
seed: must be an integer, or a float with an integer value.
  got:  float (inf)
  fix:  seed=5""",
    ),
    "grad-of-integers": (
        differentiate(wrt=tallax.Counter),
        tallax.InvalidTypeError,
        """\
model.experts[0].step: only floats can be differentiated.
  got:  uint32[2] ([0, 0])
  fix:  wrt=nnx.Param, or wrt=nnx.All(..., lambda path, x: jnp.issubdtype(x.dtype, jnp.inexact))""",
    ),
    "grad-of-an-integer-argument": (
        lambda model: tallax.grad(lambda model, x: x["a"][1] * 2.0, argnums=1)(model, {"a": [1.0, 3]}),
        tallax.InvalidTypeError,
        """\
argument 1, at a.1: only floats can be differentiated.
  got:  int (3)
  fix:  x.astype(jnp.float32), or argnums= without this argument""",
    ),
    "grad-of-nothing": (
        differentiate(wrt=nnx.LoRAParam),
        tallax.InvalidValueError,
        """\
model: has no Variable that wrt matches, so there is nothing to differentiate.
  got:  Buffer, Counter, nnx.BatchStat, nnx.Param
  fix:  wrt=nnx.Param""",
    ),
    "grad-of-no-parameters": (
        lambda model: tallax.grad(lambda stats, x: x)(nnx.state(trained(model), nnx.BatchStat), 2.0),
        tallax.InvalidValueError,
        """\
argument 0: has no Variable that wrt matches, so there is nothing to differentiate.
  got:  nnx.BatchStat
  fix:  wrt=nnx.BatchStat""",
    ),
    "grad-of-items": (
        lambda model: tallax.grad(lambda model, x: x)(model, 2.0),
        tallax.InvalidValueError,
        """\
model: has no Variable that wrt matches, so there is nothing to differentiate.
  got:  Buffer, Counter
  fix:  argnums= of the argument with the parameters""",
    ),
    "grad-of-no-state": (
        lambda model: tallax.grad(lambda nothing, x: x)((), 2.0),
        tallax.InvalidValueError,
        """\
argument 0: has no Variable that wrt matches, so there is nothing to differentiate.
  got:  no state
  fix:  argnums= of the argument with the parameters""",
    ),
    "loss-shape": (
        differentiate(lambda model, x: model.layer.w[...]),
        tallax.InvalidTypeError,
        """\
<lambda>: the loss must be a real scalar.
  got:  float32[2] (traced)
  fix:  return loss.mean(), or another real scalar""",
    ),
    "loss-dtype": (
        differentiate(lambda model, x: model.experts[0].step.value),
        tallax.InvalidTypeError,
        """\
<lambda>: the loss must be a real scalar.
  got:  int32[] (0)
  fix:  return loss.mean(), or another real scalar""",
    ),
    "loss-with-aux": (
        differentiate(lambda model, x: (x, model)),
        tallax.InvalidTypeError,
        """\
<lambda>: the loss must be a real scalar.
  got:  a tuple of 2
  fix:  has_aux=True, for a function that returns (loss, aux)""",
    ),
    "loss-without-aux": (
        differentiate(has_aux=True),
        tallax.InvalidTypeError,
        """\
<lambda>: must return a pair if has_aux=True.
  got:  float32[] (traced)
  fix:  return loss, aux; or has_aux=False""",
    ),
    "argnums-range": (
        differentiate(argnums=(0, 2)),
        tallax.InvalidValueError,
        """\
argnums: must be the position of a positional argument of the call.
  got:  0, 2, where 2 were given by position
  fix:  f(model, x), where f(model=model, x=x) has none""",
    ),
    "argnums-twice": (
        differentiate(argnums=(0, -2)),
        tallax.InvalidValueError,
        """\
argnums: must not name an argument twice.
  got:  0, -2
  fix:  argnums=(0, 1)""",
    ),
    "argnums-type": (
        differentiate(argnums="model"),
        tallax.InvalidTypeError,
        """\
argnums: must be an integer or a tuple of integers.
  got:  str ('model')
  fix:  argnums=0, argnums=(0, 1)""",
    ),
    "diff-state": (
        differentiate(argnums=nnx.DiffState(0, nnx.BatchStat)),
        tallax.InvalidTypeError,
        """\
value_and_grad: does not accept nnx.DiffState; use wrt= and argnums=.
  got:  nnx.DiffState(0, nnx.BatchStat)
  fix:  wrt=nnx.BatchStat, argnums=0""",
    ),
    "grad-of-a-method": (
        lambda model: tallax.grad(model.rate.update)(jnp.ones(2)),
        tallax.InvalidTypeError,
        """\
value_and_grad: requires a function with the model as an argument; other state belongs to another trace.
  got:  update of a Rate
  fix:  tallax.value_and_grad(Rate.update)(model, ...)""",
    ),
    "grad-of-a-captured-model": (
        captured_as_an_argument,
        tallax.TraceError,
        """\
model.layer.w: belongs to a different trace than the call, so writes of the function would be lost.
  got:  a model that a transformed function closes over, as an argument of value_and_grad
  fix:  pass the model through each transformation in between, such as nnx.jit(step)(model, x)""",
    ),
    "check-nothing": (
        lambda model: tallax.statecheck(3),
        tallax.StatecheckError,
        """\
statecheck: requires a factory of modules.
  got:  int (3)
  fix:  statecheck(lambda: Model(nnx.Rngs(0)), x)""",
    ),
    "check-no-module": (
        lambda model: tallax.statecheck(make_three),
        tallax.StatecheckError,
        """\
statecheck of make_three: the factory must return a Flax NNX module.
  got:  int (3)
  fix:  return the model; call=step for a function of it: statecheck(make, x, call=step)""",
    ),
    "check-arguments": (
        lambda model: tallax.statecheck(nnx.Linear),
        tallax.StatecheckError,
        """\
statecheck of Linear: the factory is called with no argument except rngs.
  got:  required arguments in_features, out_features
  fix:  statecheck(lambda rngs: Model(..., rngs=rngs), x)""",
    ),
    "check-inputs": (
        lambda model: tallax.statecheck(Model, nnx.Rngs(0)),
        tallax.StatecheckError,
        """\
statecheck: inputs must be arrays and plain values; a module would carry state from run to run.
  got:  a Rngs
  fix:  create it inside call=: call=lambda model, x: model(x, rngs=nnx.Rngs(0))""",
    ),
    "check-no-call": (
        lambda model: tallax.statecheck(Model),
        tallax.StatecheckError,
        """\
statecheck of Model: the model has no __call__, so call= is required.
  got:  a Model without __call__
  fix:  call=lambda metric, x: metric.update(values=x)""",
    ),
    "check-raises": (
        lambda model: tallax.statecheck(Model, call=lambda model: 1 // 0),
        tallax.StatecheckError,
        """\
statecheck of Model: a plain call of the model raises.
  got:  ZeroDivisionError: integer division or modulo by zero
  fix:  statecheck(make, x) with inputs that the model accepts, or call=lambda model, x: ... for another call; \
on the command line --inputs 'float32[8,4]', or --call with a function's name""",
    ),
    "check-once": (
        lambda model: tallax.statecheck(Model, calls=1),
        tallax.InvalidValueError,
        """\
statecheck: at least two calls are needed to detect drift.
  got:  calls=int (1)
  fix:  calls=3, or any larger integer""",
    ),
    "held": (
        read_a_parameter,
        tallax.StateOwnedByStepError,
        """\
net/weight: is owned by a compiled step, which keeps the state on the device between its calls.
  got:  a use of the value, or of a copy of the model or its state, between two calls of the step
  fix:  step.sync() first, to return all state; or step.read(function), to compute with it on the device; or \
step.collect(), to read the tallax variables only""",
    ),
    "clone-of-held": (
        compiled()(lambda model, step: nnx.clone(model).experts[0].step.value),
        tallax.StateOwnedByStepError,
        """\
model/experts/0/step: is a copy of a Variable, made while a compiled step owned the value, so the copy has none.
  got:  a clone of the model, or a state of it
  fix:  step.sync() first, and then copy again; or step.read(function), of a function that returns the copy""",
    ),
    "read-writes": (
        compiled()(lambda model, step: step.read(lambda model: model.experts[1].step.increment())),
        tallax.InvalidTypeError,
        """\
model/experts/1/step: was changed by a function that step.read runs, and the change would be lost.
  got:  <lambda>, which writes to a bound object
  fix:  model.eval() before, or nnx.clone(model) in the function, if the change is not wanted; \
tallax.compile_step(function, model), if it is""",
    ),
    "copy-of-held": (
        compiled()(lambda model, step: tallax.compile_step(lambda model: None, nnx.clone(model))()),
        tallax.StateOwnedByStepError,
        """\
model/experts/0/bias: is a copy of a Variable, made while a compiled step owned the value, so the copy has none.
  got:  a clone of the model, or a state of it
  fix:  step.sync() first, and then copy again; or step.read(function), of a function that returns the copy""",
    ),
    "written-past": (
        compiled()(write_past),
        tallax.StateOwnedByStepError,
        """\
model/temperature/state: was written while a compiled step owned it, so the step did not see the new value.
  got:  a write between two calls of the step
  fix:  step.sync() before the write; tallax variables can be written at any time""",
    ),
    "lost": (
        compiled()(lose),
        tallax.StateOwnedByStepError,
        """\
the compiled step: failed while it ran, after it had overwritten the previous state, so the state is lost.
  got:  a call that raised inside JAX
  fix:  restore the last checkpoint; compile_step(..., donate=False) keeps the state before a step""",
    ),
    "bind-nothing": (
        lambda model: tallax.compile_step(make_three, 3),
        tallax.InvalidTypeError,
        """\
compile_step: requires the modules and optimizers whose state the step changes.
  got:  int
  fix:  compile_step(train_step, model, optimizer), and step(x, y) with the batch""",
    ),
    "bind-an-array": (
        lambda model: tallax.compile_step(lambda state: None, {"model": model, "key": jnp.ones(2)}),
        tallax.InvalidTypeError,
        """\
state/key: is an array in no Variable, so the step would use its first value in every call.
  got:  float32[2] ([1.0, 1.0])
  fix:  compile_step(train_step, bound=state), and pass state in each call""",
    ),
    "bound-in-a-call": (
        compiled(lambda model, *batch: None)(lambda model, step: step(model, 1.0)),
        tallax.InvalidTypeError,
        """\
<lambda>: is called without its bound objects, because the step passes them.
  got:  the bound Model among the arguments of a call
  fix:  step(x); or compile_step(train_step, bound=model), and then step(model, x)""",
    ),
    "bind-twice": (
        lambda model: tallax.compile_step(lambda model, rate: None, model, model.rate),
        tallax.StructureChangedError,
        """\
rate/counts: is the same Counter as model/rate/counts, but a compiled step binds each once.
  got:  a tallax variable, or a module with it, that was passed twice
  fix:  one for each place; or pass it once, and access it from there""",
    ),
    "changed-within": (
        compiled(lambda model: delattr(model, "rate"))(None),
        tallax.StructureChangedError,
        """\
model: a compiled step cannot change the structure of its objects.
  got:  rate is gone; it was Rate
  fix:  change it between two calls, or keep it in a Variable; nnx.pop removes sown values""",
    ),
    "changed-array": (
        replace_an_array,
        tallax.StructureChangedError,
        """\
model/table: is an array outside of Variables, but a compiled step changes only Variables.
  got:  another array after the step
  fix:  tallax.Buffer(x), or nnx.Variable(x), which is written by self.x[...] = y""",
    ),
    "step-in-a-trace": (
        compiled()(lambda model, step: nnx.jit(step)()),
        tallax.TraceError,
        """\
the compiled step: keeps the state between calls, so it cannot be called inside a trace.
  got:  a call inside jit, scan or another transformation
  fix:  call the step outside; step.scan(batches) runs several steps in one program""",
    ),
    "step-of-a-flag": (
        compiled(lambda model, *flags: 1 if flags[0] else 2, calls=0)(lambda model, step: step(True)),
        tallax.InvalidTypeError,
        """\
flags[0]: is an array inside the compiled step, so Python code cannot use its value.
  got:  bool (True), and <lambda> branches on a traced value or converts it
  fix:  compile_step(..., static_argnums=(1,)), which traces once for each value; or jnp.where, jax.lax.cond""",
    ),
    "step-of-a-string": (
        lambda model: tallax.compile_step(in_mode, model)("train"),
        tallax.InvalidTypeError,
        """\
mode: the arguments of a compiled step must be arrays, numbers or static values.
  got:  str ('train')
  fix:  compile_step(..., static_argnames=("mode",)), which traces once for each value""",
    ),
    "step-of-a-static-list": (
        lambda model: tallax.compile_step(in_mode, model, static_argnames="mode")([1]),
        tallax.InvalidTypeError,
        """\
mode: is a static argument, which must be hashable.
  got:  list ([1])
  fix:  a string, a number, a tuple or a frozen dataclass; arrays go in without static_argnames""",
    ),
    "static-object": (
        lambda model: tallax.compile_step(in_mode, model, static_argnums=0),
        tallax.InvalidValueError,
        """\
static_argnums: a bound object cannot be static; its structure is, and its values are arrays.
  got:  model
  fix:  positions count the bound objects, too: train_step(model, x, mode) has mode at 2""",
    ),
    "static-name": (
        lambda model: tallax.compile_step(in_mode, model, static_argnames="made"),
        tallax.InvalidValueError,
        """\
static_argnames: in_mode has no parameter of this name.
  got:  'made'
  fix:  compile_step(train_step, model, static_argnames=("mode",)) for train_step(model, x, mode)""",
    ),
    "scan-of-a-scalar": (
        lambda model: tallax.compile_step(in_mode, model).scan(1.0),
        tallax.InvalidValueError,
        """\
mode: step.scan requires arrays with one entry for each step on their first axis.
  got:  float32[] (traced)
  fix:  jnp.full(steps, mode); or compile_step(..., static_argnames=("mode",)), which traces once for each value""",
    ),
    "scan-of-objects": (
        lambda model: tallax.compile_step(in_mode, model).scan(jnp.ones(2)),
        tallax.InvalidTypeError,
        """\
in_mode: step.scan stacks the results of its steps, and a bound object has only its last state.
  got:  model/experts in a result
  fix:  return arrays from the function; the bound objects are available outside""",
    ),
    "new-objects": (
        compiled(lambda model: [nnx.Dict()] * 2)(None),
        tallax.InvalidTypeError,
        """\
<lambda>: a compiled step can return arrays, bound objects, and new objects that are trees.
  got:  one new Dict in two places
  fix:  return its arrays; or bind it, compile_step(train_step, model, other)""",
    ),
    "step-of-a-module": (
        compiled(lambda model, *batch: None)(lambda model, step: step(nnx.Rngs(0))),
        tallax.InvalidTypeError,
        """\
the compiled step: accepts only arrays; the state of a module in the batch would be lost.
  got:  a Rngs
  fix:  bind it: compile_step(train_step, model, rngs), with train_step(model, rngs, x)""",
    ),
    "step-of-a-closure": (
        closed_over_by_a_step,
        tallax.TraceError,
        """\
bound/experts/0/step: is owned by a compiled step, so a trace cannot use it: reads would be constants, writes lost.
  got:  a use of the object that the step is bound to, while this or another function is traced
  fix:  the step's own argument, as in train_step(model, ...); or step.sync() before nnx.jit takes it""",
    ),
    "collect-no-module": (
        lambda model: tallax.collect(3),
        tallax.InvalidTypeError,
        """\
collect: requires modules or optimizers.
  got:  int (3)
  fix:  collect(model); log(model, loss=loss) for a Logger's numbers""",
    ),
    "collect-in-a-trace": (
        nnx.jit(tallax.collect),
        tallax.TracedReadError,
        """\
experts/0/bias: has no value on the host inside a trace.
  got:  collect(...) inside a compiled function
  fix:  tallax.snapshot(model), which returns arrays; or collect(model) outside""",
    ),
    "log-a-vector": (
        logged(lambda log, model: log(loss=jnp.arange(3.0))),
        UserWarning,
        """\
loss: a Logger takes arrays of one number, and leaves others out of the records.
  got:  float32[3] ([0.0, 1.0, 2.0])
  fix:  its mean(); or a tallax.statistics.Histogram on the model, for how it is distributed""",
    ),
    "log-a-word": (
        logged(lambda log, model: log(loss="low", other="high", same="low")),
        UserWarning,
        """\
loss, same: a Logger takes numbers, and arrays of one number, and leaves other values out of the records.
  got:  str ('low')
  fix:  a float, an int, or an array of shape ()
other: a Logger takes numbers, and arrays of one number, and leaves other values out of the records.
  got:  str ('high')
  fix:  a float, an int, or an array of shape ()""",
    ),
    "log-a-key": (
        logged(lambda log, model: log(nnx.Dict(noise=tallax.Buffer(jax.random.key(0))))),
        UserWarning,
        """\
noise: a Logger writes numbers and arrays of numbers, and leaves this value out of the records.
  got:  a random key
  fix:  a number; Logger(..., exclude=...) with this name leaves it out without a warning""",
    ),
    "log-a-twin": (
        logged(lambda log, model: log(model, **{"temperature": 1.0, "rate/fired": 1}), step="experts/0/step"),
        UserWarning,
        """\
temperature, rate/fired: another value has this name or would have it, so the scalar is left out of the records.
  got:  a scalar of this name
  fix:  another name for the scalar""",
    ),
    "log-twin-items": (
        logged(lambda log, model: log(tallax.compile_step(lambda m: None, model.experts[0]), model.experts[1])),
        tallax.InvalidValueError,
        """\
bias: two values have this name.
  got:  the same name in two objects
  fix:  log a module that contains both: log(nnx.Dict(a=a, b=b))""",
    ),
    "log-an-odd-statistic": (
        logged(lambda log, model: log(nnx.Dict(odd=Odd()), loss=1.0)),
        UserWarning,
        """\
odd: a Logger writes numbers and arrays of numbers, and leaves this value out of the records.
  got:  str ('often')
  fix:  a number; Logger(..., exclude=...) with this name leaves it out without a warning""",
    ),
    "log-an-unreadable-statistic": (
        logged(lambda log, model: log(nnx.Dict(odd=Unreadable()), loss=1.0)),
        UserWarning,
        """\
odd: cannot be written, and is left out of the records.
  got:  ZeroDivisionError: never
  fix:  Logger(..., exclude=...) with this name leaves it out without a warning""",
    ),
    "logger-exclude": (
        lambda model: tallax.Logger(exclude=3),
        tallax.InvalidTypeError,
        """\
Logger: exclude= must be a pattern of names, or a sequence of patterns.
  got:  int (3)
  fix:  exclude='freqs', or exclude=['*/mask', 'gate/*']""",
    ),
    "logger-exclude-nothing": (
        logged(lambda log, model: log(loss=1.0), exclude=["freqs", "loss"]),
        UserWarning,
        """\
Logger: no name matches this pattern of exclude=, so it leaves out nothing.
  got:  'freqs'
  fix:  a name as the records have it, such as 'gate/fired'; '*' also matches slashes""",
    ),
    "log-in-a-trace": (
        logged(lambda log, model: jax.jit(lambda loss: log(loss=loss))(1.0)),
        tallax.TracedReadError,
        """\
loss: has no value on the host inside a trace.
  got:  log(...) inside a compiled function
  fix:  return it from the function, and log the returned value""",
    ),
    "log-of-several-steps": (
        logged(lambda log, model: log(model)),
        tallax.InvalidValueError,
        """\
Logger: several Counters could count the steps of the run.
  got:  experts/0/step, experts/1/step
  fix:  Logger(..., step='experts/0/step')""",
    ),
    "log-by-a-vector": (
        logged(lambda log, model: log(model.experts[0]), step="tokens"),
        tallax.InvalidValueError,
        """\
Logger: step= must be the name of a scalar Counter.
  got:       str ('tokens')
  expected:  step
  fix:       one of these; or log(model, step=...) without it""",
    ),
    "log-both-ways": (
        logged(in_turn(lambda log: log(step=5), lambda log: log.now(loss=1))),
        tallax.InvalidValueError,
        """\
Logger: either every call passes step=, or none does.
  got:  a call without step=
  fix:  log(model, step=step) everywhere; or nowhere, with a tallax.StepCounter on the model""",
    ),
    "log-an-array-step": (
        logged(lambda log, model: log(step=jnp.int32(3))),
        tallax.InvalidTypeError,
        """\
Logger: step= must be an int.
  got:  int32[] (3)
  fix:  log(model) without it, which reads the step counter without stopping the device; or an int""",
    ),
    "log-when-closed": (
        logged(in_turn(lambda log: log.close(), lambda log: log(step=1))),
        tallax.InvalidValueError,
        """\
Logger: has been closed.
  got:  a call after that
  fix:  call it within the with block""",
    ),
    "logger-every": (
        lambda model: tallax.Logger(every=0),
        tallax.InvalidValueError,
        """\
Logger: every= must be an int of at least 1.
  got:  int (0)
  fix:  Logger(every=100)""",
    ),
    "logger-overflow": (
        lambda model: tallax.Logger(overflow="raise"),
        tallax.InvalidValueError,
        """\
Logger: overflow= must be 'wait' or 'drop'.
  got:  str ('raise')
  fix:  overflow='drop'""",
    ),
    "log-to-a-store-elsewhere": (
        lambda model: tallax.Logger("gs://bucket/runs/7"),
        tallax.InvalidValueError,
        """\
sinks.Jsonl: can only write to a folder on this machine.
  got:  'gs://bucket/runs/7'
  fix:  a local folder, which `gcloud storage rsync` or `aws s3 sync` copies; or the store mounted as one""",
    ),
    "logger-no-sink": (
        lambda model: tallax.Logger(tallax.sinks.Jsonl),
        tallax.InvalidTypeError,
        """\
Logger: a sink must have the methods write(record) and close(), or be the folder of the run.
  got:  type (<class 'tallax.sinks._jsonl.Jsonl'>)
  fix:  Logger('runs/1'), tallax.sinks.TensorBoard('runs/1'), or one of your own""",
    ),
    "a-sink-that-fails": (
        logged(lambda log, model: log(loss=1.0), sink=FullDisk()),
        tallax.SinkError,
        """\
FullDisk: failed in writing step 1.
  got:  OSError: the disk is full
  fix:  fix the cause in the error; other sinks have their records, and a loop that catches this continues""",
    ),
    "grad-of-a-ref": (
        with_a_ref,
        tallax.InvalidTypeError,
        """\
model.layer.w: writes of the function to a Variable with ref=True would be lost.
  got:  ref=True
  fix:  a plain Variable: leave ref out, or nnx.with_vars(model, ref=False)""",
    ),
}
CASES |= checkpoint_errors.CASES
CASES |= {f"watch: {name}": case for name, case in watch_errors.MISTAKES.items()}


# Errors about files and processes: their own tests have the texts.
OF_FILES = {f"checking/{name}.py" for name in ("_exercise", "_file_check", "_command_inputs")}
OF_FILES |= {"learning/_learn_command.py"}
OF_FILES |= {f"runs/{path.name}" for path in (SOURCE / "runs").glob("_*.py")}
OF_FILES |= {f"sinks/{path.name}" for path in (SOURCE / "sinks").glob("_*.py") if path.name != "_sink.py"}
COMPOSED: dict[str, set[tuple[str, int]]] = {}  # by case: the errors that it reached, as files and lines


@pytest.fixture
def composed(monkeypatch):
    """Records which errors a case reaches, as a file below `tallax` and a line."""

    def record(name):
        found = COMPOSED.setdefault(name, set())

        def laid_out(*args, **options):
            caller = sys._getframe(2)  # of the error, whose constructor calls this
            while caller.f_code.co_filename == _errors.__file__:  # `compose`
                caller = caller.f_back
            path = pathlib.Path(caller.f_code.co_filename)
            if path.is_relative_to(SOURCE):
                found.add((path.relative_to(SOURCE).as_posix(), caller.f_lineno))
            return original(*args, **options)

        monkeypatch.setattr(tallax.runs._errors, "laid_out", laid_out)

    original = tallax.runs._errors.laid_out
    return record


@pytest.mark.parametrize("name", CASES)
def test_the_text(name, composed):
    """Each error reads, word for word, as written here; no placeholder is left in it."""
    act, error, text = CASES[name]
    composed(name)
    model = Model()
    with pytest.raises(error) as caught:
        act(model)
    message = str(caught.value).partition("\n--------------------")[0]  # jax adds a note on hidden frames
    assert message == text
    assert not re.search(r"\{\w+\}", message)


def test_every_error_has_a_case(composed):
    """Each error in the source, a call with `fix=`, is reached by a case above, whatever its text is made of."""
    for name in CASES.keys() - COMPOSED.keys():  # the test above was deselected, or runs in another process
        composed(name)
        with pytest.raises(CASES[name][1]):
            CASES[name][0](Model())
    calls = set()
    for path in SOURCE.rglob("*.py"):
        relative = path.relative_to(SOURCE).as_posix()
        if relative in OF_FILES or relative == "_errors.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and "fix" in [keyword.arg for keyword in node.keywords]:
                if re.fullmatch(r"\w*Error|kind|error|compose", getattr(node.func, "id", "")):
                    calls.add((relative, node.lineno))
    assert calls
    reached = set().union(*COMPOSED.values())
    assert sorted(calls - reached) == []


def test_the_hierarchy():
    """Every error is a TallaxError and the builtin that a caller would catch, survives pickling, and names its home."""
    builtins = {
        tallax.InvalidTypeError: TypeError,
        tallax.InvalidValueError: ValueError,
        tallax.ReplacedVariableError: TypeError,
        tallax.TracedReadError: TypeError,
        tallax.TraceError: flax_errors.TraceContextError,
        tallax.ReplicasError: ValueError,
        tallax.StateOwnedByStepError: RuntimeError,
        tallax.StructureChangedError: ValueError,
        tallax.StatecheckError: ValueError,
        tallax.CheckFailedError: AssertionError,
        tallax.CheckpointError: OSError,
        tallax.RestoreError: ValueError,
        tallax.MissingExtraError: ImportError,
        tallax.SinkError: RuntimeError,
        tallax.RunLockedError: RuntimeError,
        tallax.RunError: ValueError,
    }
    assert set(builtins) == set(tallax.TallaxError.__subclasses__())
    for error, builtin in builtins.items():
        assert issubclass(error, builtin)
        assert error.__module__ == "tallax"
        made = pickle.loads(pickle.dumps(error("text")))
        assert (type(made), str(made), str(copy.copy(made))) == (error, "text", "text")


def test_a_missing_extra_names_the_install_line():
    """The remedy is the line to type."""
    error = tallax.MissingExtraError.of("the tallax command", "cli", "typer")
    assert str(error).splitlines() == [
        "the tallax command: needs the package typer, which is not installed.",
        "  fix:  pip install 'tallax[cli]'",
    ]


def test_without_typer_the_command_names_the_package(monkeypatch, capsys):
    """The command exits with 2 and the install line where the extra is missing."""
    import tallax.cli

    monkeypatch.setitem(sys.modules, "typer", None)
    with pytest.raises(SystemExit) as stopped:
        tallax.cli.main()
    assert stopped.value.code == 2
    assert "pip install 'tallax[cli]'" in capsys.readouterr().err


def test_names():
    """A variable is named from the outermost frame that leads to it, or by its kind if none does."""
    model = Model()

    def inner(part):
        return name_of(part.tokens)

    assert inner(model.experts[1]) == "model.experts[1].tokens"
    counter = tallax.Counter()
    assert name_of(counter) == "counter"
    assert (lambda: name_of([tallax.Counter()][0]))() == "unnamed Counter"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.float32(0.5), "float32[] (0.5)"),
        (np.zeros((2, 3)), "float64[2,3]"),
        (jnp.arange(3), "int32[3] ([0, 1, 2])"),
        ("abc", "str ('abc')"),
        (None, "NoneType (None)"),
        (tallax.Counter(), "a Counter"),
        ("x" * 100, "str ('" + "x" * 56 + "...)"),
    ],
)
def test_descriptions(value, text):
    """Values are worded by dtype and shape, with small ones in full and long ones cut."""
    assert describe(value) == text


def test_messages_without_the_value():
    """got and expected may be left out."""
    assert compose("x", "must be y.", fix="y") == "x: must be y.\n  fix:  y"
