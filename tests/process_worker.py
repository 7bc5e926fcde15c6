# SPDX-License-Identifier: Apache-2.0
"""One process of several: makes its items, joins the others, trains in every way asked for, and prints what it counted.

Run by test_processes.py as `python -m tests.process_worker PORT PROCESSES RANK DEVICES VARIANT...`. The last line it
prints is JSON: for each variant the totals, or the text of the error that was expected. The test process imports the
same functions and runs them by itself, on all of the data.
"""

import json
import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

if sys.argv[5:] == ["hang"]:
    time.sleep(3600)  # before the imports: the test that ends it need not wait for them

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import tallax
from tests.cases import STATE_CASES
from tests.meshes import KINDS, P, feed, mesh_of, result_of

STEPS, ROWS = 3, 64
FOLDER = pathlib.Path(os.environ.get("TALLAX_TEST_FOLDER", "."))  # of the variants that save and restore
MATRIX = np.arange(64.0, dtype=np.float32).reshape(8, 8)
X = np.random.default_rng(0).normal(size=(STEPS, ROWS, 2)).astype(np.float32)
# One in each eight rows, so that every device has as many finite entries, as the Ema of shares asks for.
X[:, 3::8, 0] = np.array([np.nan, np.inf, -np.inf], np.float32)[:, None]


class Items(nnx.Module):
    """Every item, counted in part before there is any device."""

    def __init__(self):
        self.kinds = nnx.Dict({name: make() for name, make in KINDS.items()})
        self.examples = tallax.Counter(2**40 - 100)
        self.steps = tallax.Counter(reduce="replicated")
        self.temperature = tallax.ScheduledValue(lambda count: 5.0 - 0.5 * jnp.asarray(count, jnp.float32))
        self.examples += 3
        self.examples.count(np.array([True, False, True]))
        assert int(self.examples) == 2**40 - 95
        assert not self.steps.every(2) or int(self.steps) == 0

    def feed(self, x: jax.Array) -> None:
        for item in self.kinds.values():
            feed(item, x)
        self.examples.increment(x.shape[0], like=x)
        self.steps += 1
        self.temperature(self.steps)

    def totals(self) -> dict[str, list[Any]]:
        found = {name: result_of(item) for name, item in self.kinds.items()}
        found |= {"examples": [np.asarray(self.examples)], "steps": [np.asarray(self.steps)]}
        found["temperature"] = [np.asarray(self.temperature.value)]
        return {name: [leaf.tolist() for leaf in leaves] for name, leaves in found.items()}


class Model(nnx.Module):
    """A layer that is trained, and the items."""

    def __init__(self, items: Items):
        self.layer = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
        self.items = items


def train_step(model: Model, x: jax.Array) -> jax.Array:
    """Takes a step of gradient descent, counting inside the loss, in whatever mode."""
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params: Any, rest: Any) -> jax.Array:
        model = nnx.merge(graphdef, params, rest)
        model.items.feed(x)
        return (model.layer(jnp.nan_to_num(x)) ** 2).mean()

    value, grads = nnx.value_and_grad(loss, graph=False)(params, rest)
    nnx.update(model, jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), rest)
    return value


def mesh_of_all(kind: str = "auto") -> jax.sharding.Mesh:
    return mesh_of(kind, (jax.device_count(),), ("data",))


def batches(mesh: jax.sharding.Mesh) -> Any:
    """Yields each batch as a global array of which this process has its own rows."""
    share = ROWS // jax.process_count()
    rows = slice(share * jax.process_index(), share * (jax.process_index() + 1))
    for x in X:
        yield jax.make_array_from_process_local_data(jax.NamedSharding(mesh, P("data")), x[rows])


def trained(graph: bool) -> Callable[[Items], Items]:
    def run(items: Items) -> Items:
        model = Model(items)
        step = nnx.jit(train_step, graph=graph)
        for x in batches(mesh_of_all()):
            jax.block_until_ready(step(model, x))
        tallax.assert_replicated(model, only=...)
        return model.items

    return run


class Records:
    """A sink that keeps what it is given."""

    def __init__(self):
        self.records: list[tallax.sinks.Record] = []

    def write(self, record: tallax.sinks.Record) -> None:
        self.records.append(record)

    def close(self) -> None:
        pass


def compiled(items: Items) -> Items:
    """As `trained`, by a compiled step, whose state starts as arrays that each process has for itself; and logged."""
    model = Model(items)
    here, alone, losses = Records(), Records(), []
    with (
        tallax.compile_step(train_step, model) as step,
        tallax.Logger(here, every=2, all_processes=True) as log,
        tallax.Logger(alone, every=2) as log_alone,
    ):
        for x in batches(mesh_of_all()):
            losses.append(jax.block_until_ready(step(x)))
            log(step, loss=losses[-1])
            log_alone(model, loss=losses[-1])
        log.flush()
        assert [record.step for record in here.records] == [1, 2]
        assert {record.process for record in here.records} == {jax.process_index()}
        assert here.records[-1].scalars["items/steps"] == 2
        np.testing.assert_equal(here.records[-1].scalars["loss"], np.asarray(losses[1]).item())
        assert step.collect().result()["items/examples"] == int(model.items.examples)
        model.items.examples += 1
        model.items.examples.set(int(model.items.examples) - 1)
    assert [record.step for record in alone.records] == ([1, 2] if jax.process_index() == 0 else [])
    assert step.traces == 1
    tallax.assert_replicated(model, only=...)
    return model.items


def on_explicit_mesh(items: Items) -> Items:
    step = nnx.jit(lambda items, x: items.feed(x))
    for x in batches(mesh_of_all("explicit")):
        step(items, x)
        jax.block_until_ready(items.examples.get_raw_value())
    tallax.assert_replicated(items)
    return items


def in_shard_map(items: Items, mesh: jax.sharding.Mesh) -> None:
    """Feeds every batch; `items` may keep shares."""
    graphdef, state = nnx.split(items)
    specs = tallax.replica_specs(state)

    def body(state: Any, x: jax.Array) -> Any:
        items = nnx.merge(graphdef, state)
        items.feed(x)
        return nnx.state(items)

    step = jax.jit(jax.shard_map(body, mesh=mesh, in_specs=(specs, P("data")), out_specs=specs))
    for x in batches(mesh):
        state = jax.block_until_ready(step(state, x))
    nnx.update(items, state)


def summed(items: Items) -> Items:
    in_shard_map(items, mesh_of_all())
    tallax.assert_replicated(items)
    return items


def shares(items: Items) -> Items:
    mesh = mesh_of_all()
    kept = tallax.per_replica(items, mesh, "data")
    in_shard_map(kept, mesh)
    tallax.assert_replicated(kept)
    whole = tallax.combine_replicas(kept)
    tallax.assert_replicated(whole)
    return whole


def wide_shares(items: Items) -> Items:
    """The same with shares over two axes of the mesh, of which the batch is split over one."""
    mesh = mesh_of("auto", (jax.process_count(), jax.local_device_count()))
    kept = tallax.per_replica(items, mesh, ("data", "model"))
    in_shard_map(kept, mesh)
    return tallax.combine_replicas(kept)


def saved_model(items: Items) -> tuple[Model, Any, jax.sharding.Mesh]:
    """Returns what is saved: trained items, and a matrix that is split over all devices of all processes."""
    mesh = mesh_of_all()
    model = Model(items)
    model.matrix = nnx.Param(jax.device_put(MATRIX, jax.NamedSharding(mesh, P("data"))))
    model.rngs = nnx.Rngs(5)
    return model, nnx.Optimizer(model, optax.sgd(0.1, momentum=0.9), wrt=nnx.Param), mesh


def save(items: Items) -> Items:
    """Trains, and saves at once and in the background; what processes hold apart and not alike is refused."""
    model, optimizer, _ = saved_model(trained(graph=True)(items))
    with tallax.Checkpoints(FOLDER / "series", keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, model, optimizer, extra={"step": step})
        assert checkpoints.steps() == [2, 3]
    tallax.save(FOLDER / "one", model, optimizer)
    if jax.process_count() > 1:
        apart = nnx.Dict(count=tallax.Counter(jax.process_index()))
        with pytest.raises(tallax.ReplicasError, match="another process"):
            tallax.save(FOLDER / "apart", apart)
        assert not (FOLDER / "apart").exists()
    return model.items


def restore(items: Items) -> Items:
    """Restores both into a new model, on the devices of its own, and compares them."""
    found = None
    for path in ("one", "series"):
        model, optimizer, mesh = saved_model(Items())
        model.matrix[...] = model.matrix[...] * 0
        if path == "one":
            tallax.restore(FOLDER / path, model, optimizer)
        else:
            report = tallax.Checkpoints(FOLDER / path).restore(model, optimizer)
            assert (report.step, report.extra) == (3, {"step": 3})
        assert model.matrix[...].sharding == jax.NamedSharding(mesh, P("data"))
        for shard in model.matrix[...].addressable_shards:
            assert np.array_equal(shard.data, MATRIX[shard.index])
        assert found is None or found == model.items.totals()
        found = model.items.totals()
    tallax.assert_replicated(model)
    return model.items


def host_local(items: Items) -> Items:
    """The mistake: each process hands in its own rows as NumPy, which JAX takes for the same everywhere."""
    mesh, rank = mesh_of_all(), jax.process_index()
    model = nnx.Dict(items=items, on_mesh=nnx.Variable(next(batches(mesh))))
    nnx.jit(lambda model, x: model.items.feed(x))(model, X[0, rank : rank + 5])
    tallax.assert_replicated(items)
    return items


def by_one_device(items: Items) -> Items:
    """The result that all others must equal."""
    step = nnx.jit(lambda items, x: items.feed(x))
    for x in X:
        step(items, x)
    return items


VARIANTS: dict[str, Callable[[Items], Items]] = {
    "graph": trained(graph=True),
    "tree": trained(graph=False),
    "compiled": compiled,
    "explicit": on_explicit_mesh,
    "shard-map": summed,
    "shares": shares,
    "wide-shares": wide_shares,
    "host-local": host_local,
    "save": save,
    "restore": restore,
}


class _NoKeys:
    """Stands in for `nnx.Rngs`, which computes keys on a device when it is made."""

    def params(self) -> None:
        pass


def main() -> None:
    port, processes, rank, devices, *variants = sys.argv[1:]
    # Made and used before anything may touch a device: jax.distributed.initialize raises if something has.
    for name, item in STATE_CASES.items():
        if name != "step-counter":
            item.make()
    steps = tallax.StepCounter(_NoKeys())  # pyright: ignore[reportArgumentType]
    assert (int(steps()), int(steps())) == (1, 2)
    made = {variant: Items() for variant in variants}

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_num_cpu_devices", int(devices))
    jax.distributed.initialize(f"127.0.0.1:{port}", int(processes), int(rank), initialization_timeout=60)
    assert jax.device_count() == int(processes) * int(devices)
    found: dict[str, Any] = {}
    for variant, items in made.items():
        try:
            found[variant] = VARIANTS[variant](items).totals()
        except tallax.ReplicasError as error:  # expected of some; the test tells which
            found[variant] = str(error)
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
