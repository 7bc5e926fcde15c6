# SPDX-License-Identifier: Apache-2.0
"""Meshes of eight devices, and a statistic that is fed inside `shard_map`."""

import jax
from flax import nnx

P = jax.P
AXES = {"auto": jax.sharding.AxisType.Auto, "explicit": jax.sharding.AxisType.Explicit}


def mesh_of(kind, shape=(4, 2), names=("data", "model")):
    return jax.make_mesh(shape, names, axis_types=(AXES[kind],) * len(names))


def placed(x, mesh, *spec):
    return jax.device_put(x, jax.NamedSharding(mesh, P(*spec)))


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
