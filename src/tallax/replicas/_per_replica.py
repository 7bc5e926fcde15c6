# SPDX-License-Identifier: Apache-2.0
"""Per-replica state: made by `per_replica`, mapped by `replica_specs`, combined by `combine_replicas`."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.nnx import filterlib

from tallax import _uint64
from tallax._errors import InvalidTypeError, InvalidValueError, ReplicasError, describe
from tallax._walk import groups_of, leaves_of
from tallax.replicas._agreement import check_alike, check_concrete, fingerprints
from tallax.statistics import Statistic
from tallax.statistics._statistic import Counts
from tallax.variables import Counter, PerReplica, StateVariable

Node = TypeVar("Node")


def per_replica(model: Node, mesh: jax.sharding.Mesh, axis_name: str | tuple[str, ...], *, only: Any = ...) -> Node:
    """Returns a copy of a model with per-replica state along a mesh axis.

    The first replica starts from the counts so far, the others from zero, so that the values of all replicas add up to
    the whole. Inside a `shard_map` whose specs come from `replica_specs`, tallax variables have their usual shape, read
    as the value of this replica, and count without any collective. Elsewhere they raise until `combine_replicas` has
    combined them.

    An increment is summed over the axes that it varies on, and over no others, as without per-replica state. Along an
    axis of the replicas on which it is the same, only the first replica adds it. If the axes cannot be inferred, for
    example because the increment is a constant or under `check_vma=False`, it raises `ReplicasError`. Then name the
    axes with `like=` or `axis_name=`.

    Replicated values (`reduce="replicated"`: buffers by default, `StepCounter`, `ScheduledValue`) and parameters do not
    change.

    Args:
        model: A module, or any other node of Flax NNX's graph; it is not changed.
        mesh: The mesh of the `shard_map`.
        axis_name: The axis or axes of the replicas. The batch may be split over fewer or other axes.
        only: An NNX filter that selects the tallax variables. The others are counted globally, with one collective
            each.

    A scalar `Buffer` has the shape (1,) while it has per-replica state.

    Raises:
        InvalidTypeError: `mesh` is not a mesh.
        InvalidValueError: The mesh does not have the axis.
        ReplicasError: A tallax variable has per-replica state already.
        TracedReadError: Called inside a trace.

    Example:
        >>> import jax, jax.numpy as jnp, tallax
        >>> from flax import nnx
        >>> mesh = jax.make_mesh((8,), ("data",))
        >>> model = tallax.per_replica(nnx.Dict(seen=tallax.Counter()), mesh, "data")
        >>> specs = tallax.replica_specs(model)
        >>> @nnx.jit
        ... @nnx.shard_map(mesh=mesh, in_specs=(specs, jax.P("data")), out_specs=None)
        ... def step(model, x):
        ...     model.seen.increment(x.shape[0], like=x)
        >>> step(model, jax.device_put(jnp.zeros(64), jax.NamedSharding(mesh, jax.P("data"))))
        >>> int(tallax.combine_replicas(model).seen)
        64
    """
    if not isinstance(mesh, jax.sharding.Mesh | jax.sharding.AbstractMesh):
        raise InvalidTypeError(
            "per_replica",
            "requires the mesh that the replicas are on.",
            got=describe(mesh),
            fix='mesh = jax.make_mesh((jax.device_count(),), ("data",)); tallax.per_replica(model, mesh, "data")',
        )
    axes = axis_name if isinstance(axis_name, tuple) else (axis_name,)
    if not axes or not set(axes) <= set(mesh.axis_names):
        raise InvalidValueError(
            "axis_name",
            "must name axes of the mesh.",
            got=describe(axis_name),
            expected=f"one or several of {mesh.axis_names}",
            fix=f"axis_name={mesh.axis_names[0]!r}",
        )
    copy, selected = nnx.clone(model), filterlib.to_predicate(only)
    chosen = {
        id(item) for path, item in nnx.iter_graph(copy) if isinstance(item, StateVariable) and selected(path, item)
    }
    for (_, originals), (statistic, items) in zip(_parts(model), _parts(copy), strict=True):
        if chosen.isdisjoint(map(id, items)) or (statistic is None and items[0].get_metadata("reduce") == "replicated"):
            continue
        for original, item in zip(originals, items, strict=True):
            _check_whole(original)
            item.set_raw_value(np.asarray(item.get_raw_value()))
        for item, further in zip(items, _values_of_further_replicas(statistic, items), strict=True):
            whole = item.get_raw_value()
            item.set_raw_value(_laid_out(np.atleast_1d(whole), np.atleast_1d(further), mesh, axes))
            item.set_metadata("per_replica", PerReplica(axes, whole.shape))
    return copy


def replica_specs(model: Any, *, graph: bool | None = None) -> Any:
    """Returns the specs, for `in_specs` and `out_specs`, of a model that `per_replica` made or of its state.

    Tallax variables with per-replica state are split over the axes of their replicas. Everything else is `P()`:
    replicated on every device.

    Args:
        model: The module, for `nnx.shard_map`; or `nnx.state(model)`, for `jax.shard_map`.
        graph: For a module, whether `nnx.shard_map` runs in graph mode; by default as Flax is set.

    Returns:
        For a module in graph mode, an `nnx.StateSharding`. Otherwise the same structure as `model`, with a spec instead
        of each Variable. With `graph_updates=False`, Flax's `nnx.shard_map` accepts neither; use `nnx.split` and map
        over the state.

    Example:
        >>> import jax, tallax
        >>> from flax import nnx
        >>> model = nnx.Dict(seen=tallax.Counter(), scale=tallax.Buffer(1.0))
        >>> model = tallax.per_replica(model, jax.make_mesh((8,), ("data",)), "data")
        >>> tallax.replica_specs(nnx.state(model))
        State({
          'scale': P(),
          'seen': P('data',)
        })
    """
    graph = nnx.set_graph_mode.current_value() if graph is None else graph
    if graph and not isinstance(model, nnx.State):
        axes = {item._replica_axes: None for _, item in nnx.iter_graph(model) if isinstance(item, StateVariable)}
        return nnx.StateSharding(
            [*((_HasPerReplicaState(names), jax.P(names)) for names in axes if names), (..., jax.P())]
        )

    def spec(leaf: Any) -> jax.P:
        return jax.P(leaf._replica_axes) if isinstance(leaf, StateVariable) and leaf._per_replica else jax.P()

    return jax.tree.map(spec, model, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def combine_replicas(model: Node) -> Node:
    """Returns a copy of a model with its per-replica state combined, as if one device had counted everything.

    Counts are summed exactly, with carries, and buffers by their `reduce`. Statistics with a buffer are
    merged: `Extrema` and `Ema` document how. All other values are copied, so a model without per-replica state is
    accepted too.

    Use it to read the state between steps; the model keeps its per-replica state. All processes must call it together.

    Args:
        model: A module that `per_replica` made, or a statistic or tallax variable in it.

    Raises:
        ReplicasError: The copies of a replicated variable differ between devices, or per-replica state was moved to
            other devices.
        TracedReadError: Called inside a trace.

    Example:
        >>> import jax, tallax
        >>> mesh = jax.make_mesh((8,), ("data",))
        >>> seen = tallax.per_replica(tallax.Counter(2**40), mesh, "data")
        >>> int(tallax.combine_replicas(seen))
        1099511627776
    """
    copy = nnx.clone(model)
    groups: dict[Any, list[tuple[Statistic | None, list[StateVariable]]]] = {}
    for (_, originals), (statistic, items) in zip(_parts(model), _parts(copy), strict=True):
        for item in originals:
            _check_combinable(item)
        if items and items[0]._per_replica:
            sharding: Any = items[0].get_raw_value().sharding
            groups.setdefault((sharding.mesh, items[0]._replica_axes), []).append((statistic, items))
    for (mesh, axes), parts in groups.items():
        held = [item for _, items in parts for item in items]
        how = tuple("merge" if statistic else _reduction(item) for statistic, items in parts for item in items)
        shapes = tuple(item._per_replica.shape for item in held if item._per_replica)
        values = _reduced(mesh, axes, how, shapes, [item.get_raw_value() for item in held])
        for item, value in zip(held, values, strict=True):
            item.set_raw_value(value)
            item.del_metadata("per_replica")
        for statistic, _ in parts:
            if statistic is not None:
                nnx.update(statistic, _joined(*nnx.split(statistic, _stays_whole, ...)))
    return copy


# --- the parts of a model ---------------------------------------------------------------------------------------------


def _parts(model: Any) -> list[tuple[Statistic | None, list[StateVariable]]]:
    """Returns the parts that are combined separately: statistics to be merged, and single variables."""
    merging, alone = [], []
    for group in groups_of(model, StateVariable):
        if isinstance(group.owner, Statistic) and not isinstance(group.owner, Counts):
            variables = [leaf.variable for leaf in leaves_of(group.owner, StateVariable)]
            merging.append((group.owner, [variable for variable in variables if not _stays_whole((), variable)]))
        else:
            alone += [(None, [variable]) for variable in group.variables.values()]
    return [*merging, *alone]


def _stays_whole(path: Any, value: Any) -> bool:
    """An NNX filter: whether a variable counts the steps that all replicas take together, also in a statistic."""
    del path
    return isinstance(value, Counter) and value.get_metadata("reduce", None) == "replicated"


@dataclass(frozen=True)
class _HasPerReplicaState:
    """An NNX filter. Filters with equal arguments compare equal, so that a step is not compiled again."""

    axes: tuple[str, ...]

    def __call__(self, path: Any, value: Any) -> bool:
        return isinstance(value, StateVariable) and value._replica_axes == self.axes


def _reduction(item: StateVariable) -> str:
    return "count" if isinstance(item, Counter) else item.get_metadata("reduce")


def _check_whole(item: StateVariable) -> None:
    check_concrete(item)
    if item._per_replica:
        raise ReplicasError(
            item,
            "already has per-replica state.",
            got=f"per-replica state over the mesh axes {item._replica_axes}",
            fix="tallax.combine_replicas(model) first, then tallax.per_replica again",
        )


def _check_combinable(item: StateVariable) -> None:
    check_concrete(item)
    sharding = getattr(item.get_raw_value(), "sharding", None)
    if item._per_replica:
        if not (isinstance(sharding, jax.NamedSharding) and set(item._replica_axes) <= set(sharding.mesh.axis_names)):
            raise ReplicasError(
                item,
                "per-replica state must stay on the mesh that per_replica put it on.",
                got=f"an array with {'no sharding' if sharding is None else sharding}",
                fix="variable.set_raw_value(jax.device_put(array, jax.NamedSharding(mesh, jax.P(axis_name))))",
            )
    elif item.get_metadata("reduce") == "replicated":
        copies: dict[bytes, set[bytes]] = {}
        for place, content in fingerprints(item):
            copies.setdefault(place, set()).add(content)
        check_alike(item, copies)


# --- the values of the replicas ---------------------------------------------------------------------------------------


def _values_of_further_replicas(statistic: Statistic | None, items: list[StateVariable]) -> list[np.ndarray]:
    """Returns the value of each variable on every replica except the first."""
    if statistic is None:
        whole = items[0].get_raw_value()
        return [np.zeros_like(whole) if _reduction(items[0]) in ("count", "sum") else whole]
    further = nnx.clone(statistic)
    further._begin_replica()
    variables = [item for _, item in nnx.iter_graph(further) if isinstance(item, StateVariable)]
    return [np.asarray(item.get_raw_value()) for item in variables if not _stays_whole((), item)]


def _laid_out(first: np.ndarray, further: np.ndarray, mesh: jax.sharding.Mesh, axes: tuple[str, ...]) -> jax.Array:
    """Returns the values of all replicas concatenated, each on its own devices. Each process creates its own part."""
    replicas = math.prod(mesh.shape[axis] for axis in axes)

    def share(index: Any) -> np.ndarray:
        return further if index[0].start else first

    return jax.make_array_from_callback(
        (replicas * first.shape[0], *first.shape[1:]),
        jax.NamedSharding(mesh, jax.P(axes)),
        share,
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _reduced(
    mesh: jax.sharding.Mesh,
    axes: tuple[str, ...],
    how: tuple[str, ...],
    shapes: tuple[tuple[int, ...], ...],
    shares: list[jax.Array],
) -> list[jax.Array]:
    """Returns each array combined over the replicas. Arrays to be merged are only stacked."""

    def of_all(kind: str, shape: tuple[int, ...], share: jax.Array) -> jax.Array:
        if kind == "count":
            return _uint64.psum(share, axes)
        stacked = jax.lax.all_gather(share.reshape(shape), axes)
        return _REDUCTIONS[kind](stacked)

    def on_a_device(shares: list[jax.Array]) -> list[jax.Array]:
        return [of_all(*each) for each in zip(how, shapes, shares, strict=True)]

    # The results are the same on all devices, which is not inferred for all_gather.
    return jax.shard_map(on_a_device, mesh=mesh, in_specs=jax.P(axes), out_specs=jax.P(), check_vma=False)(shares)


_REDUCTIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "sum": lambda stacked: stacked.sum(0, dtype=stacked.dtype),
    "max": lambda stacked: stacked.max(0),
    "min": lambda stacked: stacked.min(0),
    "merge": lambda stacked: stacked,
}


@functools.partial(jax.jit, static_argnums=0)
def _joined(graphdef: Any, whole: Any, stacked: Any) -> Any:
    """Returns the state of a statistic from the stacked states of all replicas, and the state that they share."""

    def join(into: Any, numbered_share: tuple[jax.Array, Any]) -> tuple[Any, None]:
        number, share = numbered_share
        statistic = nnx.merge(graphdef, whole, into)
        statistic._join(nnx.merge(graphdef, whole, share), number)
        return nnx.split(statistic, _stays_whole, ...)[2], None

    first, further = (jax.tree.map(lambda x, part=part: x[part], stacked) for part in (0, slice(1, None)))
    numbers = jnp.arange(1, jax.tree.leaves(stacked)[0].shape[0])
    return jax.lax.scan(join, first, (numbers, further))[0]
