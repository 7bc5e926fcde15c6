# SPDX-License-Identifier: Apache-2.0
"""Meshes of eight devices, every item to feed on them, and what a compiled program sends between them."""

import re

import jax
import numpy as np
from flax import nnx

import tallax
from tallax.statistics import Activity, Ema, Extrema, Histogram, LogHistogram, Moments, Rate

P = jax.P
AXES = {"auto": jax.sharding.AxisType.Auto, "explicit": jax.sharding.AxisType.Explicit}

# Each is made for float32[..., 2], and counts it by `feed`.
KINDS = {
    "counter": lambda **how: tallax.Counter(2**32 - 10, shape=2),
    "rate": Rate,
    "histogram": lambda **how: Histogram(-2, 2, bins=8, **how),
    "log-histogram": lambda **how: LogHistogram(0.1, **how),
    "moments": Moments,
    "extrema": Extrema,
    "ema": lambda **how: Ema(0.9, **how),
    "activity": lambda **how: Activity(2, **how),
}

# Every statistic, also with a shape: one entry for each of the last axes.
STATISTICS = {
    **{name: make for name, make in KINDS.items() if name != "counter"},
    "rate-heads": lambda **how: Rate(2, **how),
    "moments-heads": lambda **how: Moments(2, **how),
    "extrema-heads": lambda **how: Extrema(2, **how),
    "ema-heads": lambda **how: Ema(0.9, shape=2, **how),
    "activity-window": lambda **how: Activity(2, window=1, **how),
}


def mesh_of(kind, shape=(4, 2), names=("data", "model")):
    return jax.make_mesh(shape, names, axis_types=(AXES[kind],) * len(names))


def placed(x, mesh, *spec):
    return jax.device_put(x, jax.NamedSharding(mesh, P(*spec)))


def feed(item, x, where=None, axis_name=None):
    """Counts the positive entries of `x`, or updates a statistic with it."""
    if isinstance(item, tallax.Counter):
        item.count(x > 0 if where is None else (x > 0) & where, axis_name=axis_name)
    else:
        item.update(x, where=where)


def result_of(item):
    """Returns what the item has counted, as arrays on the host: integers where they are exact."""
    if isinstance(item, tallax.Counter):
        return [np.asarray(item)]
    return [np.asarray(leaf) for leaf in jax.tree.leaves(item.compute())]


def assert_counted_alike(left, right, rtol=1e-6, atol=1e-7):
    """Asserts that two items have counted the same: integers to the last unit, floats nearly."""
    for a, b in zip(result_of(left), result_of(right), strict=True):
        if a.dtype.kind == "f":
            np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)
        else:
            assert np.array_equal(a, b), (a, b)


def collectives(function, *args, branches=True):
    """Returns how often each collective stands in the compiled program of a function, with those of branches or not."""
    found = {}
    text = function.lower(*args).compile().as_text()
    text = text if branches else text[text.index("\nENTRY ") :]
    names = "all-reduce|all-gather|all-to-all|collective-permute|collective-broadcast|reduce-scatter"
    for match in re.finditer(rf" ({names})(?:-start)?\(", text):
        found[match[1]] = found.get(match[1], 0) + 1
    return found


def feed_in_shard_map(statistic, mesh, *arrays, check_vma=True):
    """Updates a replicated statistic with an array, and a mask if there is one, that are split over `data`."""
    graphdef, state = nnx.split(statistic)
    replicate = jax.tree.map(lambda _: P(), state)

    def body(state, x, where=None):
        statistic = nnx.merge(graphdef, state)
        statistic.update(x, where=where)
        return nnx.state(statistic)

    specs = (replicate, *(P("data") for _ in arrays))
    step = jax.jit(jax.shard_map(body, mesh=mesh, in_specs=specs, out_specs=replicate, check_vma=check_vma))
    arrays = [placed(x, mesh, "data") for x in arrays]
    nnx.update(statistic, jax.block_until_ready(step(placed(state, mesh), *arrays)))
