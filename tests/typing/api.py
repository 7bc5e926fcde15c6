# SPDX-License-Identifier: Apache-2.0
# pyright: strict, reportMissingTypeStubs=false
"""Uses of every public name, for type checkers: `make lint` reads this strictly, and nothing runs it."""

from __future__ import annotations

import pathlib
from typing import Any, assert_type

import jax
import numpy as np
import optax
from flax import nnx

import tallax
from tallax import sinks, statistics, watching


class Model(tallax.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.step = tallax.StepCounter(rngs)
        self.seen = tallax.Counter()
        self.fired = tallax.Counter(shape=(4,), reduce="sum", persistent=False)
        self.centre = tallax.Buffer(np.zeros(3), reduce="replicated")
        self.rate = statistics.Rate(4)
        self.temperature = tallax.ScheduledValue(optax.linear_schedule(5.0, 1.0, 10), name="temperature")

    def __call__(self, x: jax.Array) -> jax.Array:
        self.seen += 1
        self.fired.increment(x, like=x, axis_name="batch")
        self.fired.count(x > 0)
        self.rate.update(x, where=x > 1)
        return x * self.temperature(self.step())


def train_step(model: Model, optimizer: nnx.Optimizer[Model], x: jax.Array) -> jax.Array:
    return model(x)


def branch(model: Model, x: jax.Array, mode: str = "b") -> dict[str, jax.Array]:
    return {mode: model(x)}


def items(model: Model) -> None:
    assert_type(model.step, tallax.StepCounter)
    assert_type(model.step(), jax.Array | np.ndarray[tuple[Any, ...], np.dtype[Any]] | np.int32)
    assert_type(model.seen, tallax.Counter)
    assert_type(int(model.seen), int)
    assert_type(model.seen.every(10), jax.Array | np.ndarray[tuple[Any, ...], np.dtype[Any]] | np.bool_)
    assert_type(model.seen.get_value(), jax.Array)
    assert_type(model.seen.shape, tuple[int, ...])
    assert_type(model.seen.set(3), None)
    assert_type(model.seen.reset(), None)
    assert_type(model.centre.get_value(), jax.Array)
    assert_type(model.rate.compute(), statistics.RateResult)
    assert_type(model.rate.merge(statistics.Rate(4)), None)
    assert_type(model.rate.reset(), None)
    assert_type(model.temperature.value, jax.Array)
    assert_type(model.temperature.pin(2.0), None)
    assert_type(model.temperature.release(), None)
    assert_type(tallax.counter_after_n_calls(0, 5), jax.Array)
    assert_type(tallax.__version__, str)


def every_statistic(x: jax.Array) -> None:
    assert_type(statistics.Activity(4).compute(), statistics.ActivityResult)
    assert_type(statistics.Ema(0.9).compute(), statistics.EmaResult)
    assert_type(statistics.Extrema().compute(), statistics.ExtremaResult)
    assert_type(statistics.Histogram(0.0, 1.0, 8).compute(), statistics.HistogramResult)
    assert_type(statistics.LogHistogram(0.01).compute(), statistics.LogHistogramResult)
    assert_type(statistics.Moments().compute(), statistics.MomentsResult)
    anything: statistics.Statistic = statistics.Moments()
    anything.update(x)


def steps(model: Model, optimizer: nnx.Optimizer[Model], x: jax.Array) -> None:
    step = tallax.compile_step(train_step, model, optimizer, donate=True, graph=False)
    same: tallax.CompiledStep[[jax.Array], jax.Array] = step
    assert_type(same(x), jax.Array)
    assert_type(tallax.compile_step(train_step, bound=[model, optimizer])(model, optimizer, x), jax.Array)
    assert_type(tallax.compile_step(branch, model, static_argnames="mode")(x, mode="a"), dict[str, jax.Array])
    with step as held:
        assert_type(held(x), jax.Array)
        assert_type(held.scan(x), jax.Array)
    assert_type(step.read(train_step, x), jax.Array)
    assert_type(step.lower(jax.ShapeDtypeStruct((3,), np.float32)), jax.stages.Lowered)
    assert_type(step.traces, int)
    assert_type(step.sync(), None)
    reading = step.collect()
    assert_type(reading, tallax.Reading)
    assert_type(tallax.collect(model, optimizer), tallax.Reading)
    assert_type(reading.done(), bool)
    assert_type(reading.result(), dict[str, Any])
    assert_type(tallax.snapshot(model), dict[str, Any])
    watch = tallax.watch(model, optimizer, updates=True)
    assert_type(watch, tallax.Watch)
    assert_type(watch.unseen, dict[str, str])
    assert isinstance(watch.result()["x:output"], tallax.SummaryResult)
    watch.reset()
    watch.remove()
    assert_type(watching.dead_units("x", units=4), watching.Preset)
    presets = [watching.massive_activations(), watching.attention(), watching.expert_load("x"), watching.update_ratio()]
    tallax.watch(model, optimizer, presets=presets)
    check = watching.coordinate_check(lambda width: Model(nnx.Rngs(width)), [8, 16], 1.0)
    assert_type(check, watching.CoordinateCheckResult)
    tallax.value_and_grad(train_step, wrt=nnx.Param, argnums=0, has_aux=False)(model, optimizer, x)
    tallax.grad(train_step, has_aux=True)(model, optimizer, x)


def optimizers() -> None:
    clip = tallax.clip_by_global_norm(optax.linear_schedule(10.0, 1.0, 100))
    assert_type(clip, optax.GradientTransformationExtraArgs)
    adam = tallax.inject_schedules(optax.adamw, learning_rate=optax.constant_schedule(0.1))
    assert_type(adam, optax.GradientTransformationExtraArgs)
    state: tallax.ClipByGlobalNormState | None = None
    assert_type(tallax.clip_counts(state), tallax.ClipCounts)


def replicas(model: Model, mesh: jax.sharding.Mesh) -> None:
    assert_type(tallax.per_replica(model, mesh, "data"), Model)
    assert_type(tallax.combine_replicas(model), Model)
    tallax.replica_specs(model)
    assert_type(tallax.assert_replicated(model), None)


def checkpoints(model: Model, tree: dict[str, Any]) -> None:
    assert_type(tallax.save("run/1", model, extra={"epoch": 1}), None)
    assert_type(tallax.restore("run/1", model, missing="error", unexpected="error"), tallax.RestoreReport)
    assert_type(tallax.to_checkpoint(model), dict[str, Any])
    assert_type(tallax.from_checkpoint(tree, model), tallax.RestoreReport)
    tallax.checkpoint_target(tree, model)
    with tallax.Checkpoints("run", keep=3, every=10, async_=False) as series:
        assert_type(series.save(10, model), bool)
        assert_type(series.latest(), int | None)
        assert_type(series.steps(), list[int])
        assert_type(series.restore(model, step=10), tallax.RestoreReport)
    assert_type(tallax.interop.from_torch("model.pt", model), tallax.RestoreReport)
    assert_type(tallax.interop.to_torch(model), dict[str, Any])
    assert_type(tallax.interop.from_linen(tree, model), tallax.RestoreReport)
    assert_type(tallax.interop.to_linen(model), dict[str, Any])


class Printing:
    def write(self, record: sinks.Record) -> None:
        print(record.step)

    def close(self) -> None: ...


def every_sink(writer: Any, sink: sinks.Sink) -> list[sinks.Sink]:
    assert_type(sinks.as_sink(writer), sinks.Sink)
    logs = [sinks.Jsonl("run"), sinks.Parquet("run"), sinks.TensorBoard("run"), sinks.Console("gate/*")]
    services = [sinks.WandB(project="run"), sinks.MLflow(experiment="run"), sinks.Clu(writer)]
    return [*logs, *services, sink]


def logger_calls(step: tallax.CompiledStep[..., jax.Array], loss: jax.Array) -> None:
    own: sinks.Sink = Printing()
    with tallax.Logger(own, sinks.Jsonl("run"), sinks.TensorBoard("tb"), every=100, overflow="drop") as log:
        assert_type(log, tallax.Logger)
        assert_type(log(step, loss=loss), None)
        assert_type(log.now(step=3), None)
        assert_type(log.flush(), None)
    run = tallax.Run("run", keep=100)
    assert_type(run.refresh(), bool)


def checking(model: Model) -> None:
    report = tallax.statecheck(Model, np.zeros(3), calls=2)
    assert_type(report.raise_on_failure(), tallax.checking.Report)
    assert_type(tallax.resumecheck(job, steps=5, devices=(8, 4), limit_seconds=60.0), tallax.checking.Report)


class Batches:
    def get_state(self) -> dict[str, int]:
        return {"next_index": 0}

    def set_state(self, state: dict[str, int]) -> None:
        assert state


def job(folder: pathlib.Path, steps: int) -> dict[str, Any]:
    model, data = Model(nnx.Rngs(0)), Batches()
    with tallax.Checkpoints(folder, batch_size=8, preemption_exit_code=75) as checkpoints:
        if checkpoints.latest():
            assert_type(checkpoints.restore(model, data=data), tallax.RestoreReport)
        assert_type(checkpoints.save(steps, model, data=data), bool)
    return {"model": model, "data": data}


def errors() -> tuple[type[tallax.TallaxError], ...]:
    builtins: list[type[Exception]] = [tallax.InvalidValueError, tallax.InvalidTypeError, tallax.MissingExtraError]
    assert builtins
    return (
        tallax.StatecheckError,
        tallax.CheckFailedError,
        tallax.CheckpointError,
        tallax.StateOwnedByStepError,
        tallax.ReplacedVariableError,
        tallax.ReplicasError,
        tallax.RestoreError,
        tallax.RunError,
        tallax.RunLockedError,
        tallax.SinkError,
        tallax.StructureChangedError,
        tallax.TraceError,
        tallax.TracedReadError,
    )
