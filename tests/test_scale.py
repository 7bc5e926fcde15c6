# SPDX-License-Identifier: Apache-2.0
"""Collectives that tallax adds to a step, counted in compiled programs on eight devices; one more fails."""

import collections
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tallax
from benchmarks._collectives import Collective, collectives
from benchmarks._scale_model import Network, predicted
from benchmarks._scale_programs import BINS, LAYOUTS, added, reading

# Collectives of each step, and those of a branch for a first batch or a mean that moves away. XLA merges some with the
# all-reduce of the gradients, so that moments and watched tensors add none of their own.
ADDED = {
    ("data-parallel", "counter", "jit"): (1, 0),
    ("data-parallel", "counter", "shard_map"): (1, 0),
    ("data-parallel", "counter", "per-replica"): (0, 0),
    ("data-parallel", "watch", "jit"): (0, 0),
    ("fsdp", "watch", "jit"): (0, 0),
    ("tensor-parallel", "counter", "jit"): (2, 0),
    ("pipeline", "counter", "shard_map"): (1, 0),
    ("pipeline", "counter", "per-replica"): (0, 0),
    ("data-parallel, shard_map", "watch", "shard_map"): (0, 0),
    ("data-parallel, shard_map", "watch", "per-replica"): (0, 0),
}
ADDED_BY_OTHERS = {
    ("data-parallel", "rate", "jit"): (1, 0),
    ("data-parallel", "histogram", "jit"): (1, 0),
    ("data-parallel", "log-histogram", "jit"): (1, 0),
    ("data-parallel", "moments", "jit"): (0, 4),
    ("data-parallel", "extrema", "jit"): (2, 0),
    ("data-parallel", "ema", "jit"): (1, 0),
    ("data-parallel", "histogram", "shard_map"): (1, 0),
    ("data-parallel", "log-histogram", "shard_map"): (1, 0),
    ("data-parallel", "moments", "shard_map"): (1, 4),
    ("data-parallel", "extrema", "shard_map"): (2, 0),
    ("data-parallel", "ema", "shard_map"): (1, 0),
    ("data-parallel", "histogram", "per-replica"): (0, 0),
    ("data-parallel", "moments", "per-replica"): (0, 0),
    ("fsdp", "counter", "jit"): (1, 0),
    ("fsdp", "moments", "per-replica"): (0, 0),
    ("tensor-parallel", "histogram", "jit"): (2, 0),
    ("tensor-parallel", "moments", "shard_map"): (2, 4),
    ("tensor-parallel", "moments", "per-replica"): (0, 0),
    ("pipeline", "histogram", "shard_map"): (1, 0),
    ("pipeline", "moments", "shard_map"): (2, 4),
    ("pipeline", "moments", "per-replica"): (0, 0),
    ("pipeline", "watch", "shard_map"): (0, 0),
    ("pipeline", "watch", "per-replica"): (0, 0),
}


def cases_of(table):
    return [pytest.param(*key, expected, id="-".join(key)) for key, expected in table.items()]


def check_added(layout, state, way, expected):
    found = added(LAYOUTS[layout], state, way, jax.device_count())
    assert (found.collectives, found.in_branch) == expected
    model = predicted(LAYOUTS[layout], state, way, jax.device_count())
    assert found.collectives <= model.collectives
    assert (found.payload, found.payload_in_branch) == (model.payload, model.payload_in_branch)


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "state", "way", "expected"), cases_of(ADDED))
def test_collectives_of_a_step(layout, state, way, expected):
    """A step has the collectives that the page lists and no more, and sends the bytes of the model."""
    check_added(layout, state, way, expected)


@pytest.mark.slow
def test_collectives_of_a_watched_step_with_tensor_parallelism():
    """It sends 16 bytes for each of the nine tensors that are split. By version, XLA merges the sums into 2 or 10."""
    found = added(LAYOUTS["tensor-parallel"], "watch", "jit", jax.device_count())
    assert (found.payload, found.in_branch) == (9 * 16, 0)
    assert found.collectives <= 10
    assert found.payload == predicted(LAYOUTS["tensor-parallel"], "watch", "jit", jax.device_count()).payload


@pytest.mark.thorough
@pytest.mark.parametrize(("layout", "state", "way", "expected"), cases_of(ADDED_BY_OTHERS))
def test_collectives_of_other_state(layout, state, way, expected):
    """The same for the other statistics and layouts."""
    check_added(layout, state, way, expected)


@pytest.mark.slow
def test_collectives_of_a_reading():
    """A reading of replicated state communicates nothing, one of per-replica state sums it once."""
    layout = LAYOUTS["data-parallel"]
    found, to_host = reading(layout, "histogram", "jit", 8)
    assert (found.collectives, to_host) == (0, 8 * 69)
    found, to_host = reading(layout, "counter", "per-replica", 8)
    assert (found.collectives, found.payload, to_host) == (1, 16, 8)


@pytest.mark.thorough
def test_collectives_of_a_reading_of_a_watch():
    """Under `jit` each tensor is gathered once, a row for each device; per-replica state is gathered and merged."""
    found, to_host = reading(LAYOUTS["data-parallel"], "watch", "jit", 8)
    assert (found.collectives, found.payload, to_host) == (15, 15 * 8 * 68, 15 * (8 * 68 + 8))
    found, to_host = reading(LAYOUTS["data-parallel, shard_map"], "watch", "per-replica", 8)
    assert (found.payload, to_host) == (2 * 8 * 68, 2 * 8 * 68)


AXES = {"data": 2, "model": 4}
SPLIT = {  # shapes and placements, and whether the sum takes one collective along each axis
    "by rows": ((4096, 32), jax.P("data"), 1),
    "by rows, over all devices": ((4096, 32), jax.P(("data", "model")), 1),
    "by rows and columns": ((4096, 32), jax.P("data", "model"), 2),
    "by the last axis": ((64, 128, 32), jax.P(None, None, "model"), 1),
    "in the middle too": ((64, 128, 32), jax.P("data", "model"), 2),
    "one axis": ((80_000,), jax.P("data"), 1),
    "not at all": ((4096, 32), jax.P(), 0),
}


@pytest.mark.parametrize("split", SPLIT)
def test_a_histogram_sends_one_table(split):
    """XLA adds up the parts of one device before it sends them, so a histogram sends its slots, and moves no values."""
    shape, spec, count = SPLIT[split]
    mesh = jax.make_mesh(tuple(AXES.values()), tuple(AXES), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    x = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=jax.NamedSharding(mesh, spec))

    def counts(x):
        histogram = tallax.statistics.Histogram(-3.0, 3.0, BINS)
        histogram.update(x)
        return histogram.counts._words()  # on the device; `value` would be that of the host

    found = collectives(jax.jit(counts).lower(x).compile().as_text())
    assert {(each.kind, each.payload) for each in found} == ({("all-reduce", 4 * (BINS + 5))} if count else set())
    assert sum(found.values()) == count


def test_a_histogram_counts_the_same_on_a_mesh():
    """The counts of a split array are those of a single device, with a mask, NaN and infinities."""
    mesh = jax.make_mesh(tuple(AXES.values()), tuple(AXES), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    x = np.random.default_rng(0).normal(size=(96, 160)).astype(np.float32)
    x[0, :3] = np.nan, np.inf, -np.inf
    mask = np.random.default_rng(1).random(x.shape) < 0.7
    update = nnx.jit(lambda histogram, x, where: histogram.update(x, where=where))
    for make in (lambda: tallax.statistics.Histogram(-3.0, 3.0, BINS), tallax.statistics.LogHistogram):
        whole, split = make(), make()
        update(whole, x, mask)
        update(split, *(jax.device_put(each, jax.NamedSharding(mesh, jax.P("data", "model"))) for each in (x, mask)))
        assert whole.counts.value.sum() == mask.sum()
        assert np.array_equal(split.counts.value, whole.counts.value)


def test_the_time_grows_with_the_logarithm_of_the_devices():
    """The latency of a collective is that of a tree, and each byte crosses the network twice."""
    network = Network(latency=1.0, bandwidth=1.0)
    assert network.seconds(1, 0, 8) == 6
    assert network.seconds(2, 0, 1024) == 40
    assert network.seconds(0, 100, 2) == 100


PROGRAM = """HloModule jit_f, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %add = f32[] add(%a, %b)
}

%body (state: (s32[], f32[4])) -> (s32[], f32[4]) {
  %all-reduce.1 = (f32[4]{0}, u32[]) all-reduce(%x, %y), channel_id=1, replica_groups={{0,1},{2,3}}, to_apply=%sum
  ROOT %tuple = (s32[], f32[4]) tuple(%n, %x)
}

%condition (state: (s32[], f32[4])) -> pred[] {
  ROOT %less = pred[] compare(%n, %limit), direction=LT
}

%taken (x: f32[4]) -> f32[8] {
  ROOT %all-gather = bf16[8]{0} all-gather(%x), replica_groups=mesh['a'=2,'b'=4], device_ids=([2,4]T(1,0)) {'a','b'}
}

%other (x: f32[4]) -> f32[8] {
  ROOT %zero = bf16[8]{0} broadcast(%x)
}

ENTRY %main (x: f32[4]) -> f32[4] {
  %while = (s32[], f32[4]) while(%start), condition=%condition, body=%body, config={"known_trip_count":{"n":"5"}}
  %conditional = bf16[8] conditional(%p, %x, %x), branch_computations={%taken, %other}
  %permute = f32[2,2]{1,0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}
  ROOT %all-reduce = pred[3]{0} all-reduce(%z), replica_groups=[2,4]<=[8], to_apply=%sum
}
"""


def test_collectives_of_a_text():
    """Loops, branches and the three notations of groups."""
    assert collectives(PROGRAM) == collections.Counter(
        {
            Collective("all-reduce", 2, 20, False): 5,
            Collective("all-gather", 8, 16, True): 1,
            Collective("collective-permute", 2, 16, False): 1,
            Collective("all-reduce", 4, 3, False): 1,
        }
    )


def test_a_loop_of_unknown_length_raises():
    """The number of collectives of such a program is not known."""
    with pytest.raises(ValueError, match="unknown number of iterations"):
        collectives(PROGRAM.replace("known_trip_count", "unknown"))


@pytest.mark.nightly
@pytest.mark.thorough
def test_the_model_fits_the_form_of_accelerators(tmp_path):
    """The command compiles every case on eight and on 64 devices, and each has the bytes of the model."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "benchmarks.scale", "--devices", "8", "64", "--output", str(tmp_path)]
    subprocess.run(command, env=environment, check=True, timeout=1500)
    record = json.loads((tmp_path / "scale.json").read_text())
    rows = [*record["compiled"]["steps"], *record["compiled"]["readings"]]
    assert len(rows) > 90
    assert [row for row in rows if not row["agrees"]] == []
