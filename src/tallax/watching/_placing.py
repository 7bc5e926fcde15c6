# SPDX-License-Identifier: Apache-2.0
"""The place of a statistic's state: the axes of a stack, and the devices of a mesh."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from tallax._errors import InvalidValueError, compose
from tallax.statistics import Statistic
from tallax.watching._step_statistic import StepStatistic
from tallax.watching._summary import Summary

# Mesh axes along which a batch is split, by the names that programs use.
_OF_BATCHES = ("data", "batch", "fsdp", "replica", "dp")


class Devices(NamedTuple):
    """The mesh of a model, and the axes along which its batches are split."""

    mesh: jax.sharding.Mesh
    axes: tuple[str, ...]

    @property
    def rows(self) -> int:
        """The number of parts of a batch."""
        return int(np.prod([self.mesh.shape[axis] for axis in self.axes]))


def devices_of(model: Any, batch_axes: Any) -> Devices | None:
    """Returns the mesh that the Variables of a model are on; None if they are on a single device.

    Raises:
        InvalidValueError: The mesh has no axis of a name in `batch_axes`.
    """
    mesh = None
    for _, node in nnx.iter_graph(model):
        if isinstance(node, nnx.Variable):
            sharding = getattr(node.get_raw_value(), "sharding", None)
            if isinstance(sharding, jax.NamedSharding) and sharding.mesh.size > 1:
                mesh = sharding.mesh
                break
    if mesh is None:
        return None
    names = tuple(map(str, mesh.axis_names))
    if batch_axes is None:
        axes = tuple(name for name in names if any(part in name for part in _OF_BATCHES)) or names[:1]
    else:
        axes = (batch_axes,) if isinstance(batch_axes, str) else tuple(batch_axes)
        if not set(axes) <= set(names):
            raise InvalidValueError(
                compose(
                    "batch_axes",
                    "must name axes of the mesh that the model is on.",
                    got=repr(batch_axes),
                    expected=f"axes among {names}",
                    fix=f"batch_axes={names[0]!r}",
                )
            )
    return Devices(mesh, axes)  # pyright: ignore[reportArgumentType]


def row_axis(variable: Any, devices: Devices | None, depth: int) -> int | None:
    """Returns the axis of a Param that is split over the rows of its state; None if all of it is in the first row.

    It is the axis that is split along the axes of the batch, as in FSDP, or else one that is not split and that the
    number of rows divides. If an axis that is split along other axes were used, as by tensor parallelism, XLA would
    permute the numbers of all devices: seven more collectives in a step of two kernels.

    Args:
        variable: The Param.
        devices: The mesh of the model.
        depth: The number of leading axes of a stack, which are not counted.
    """
    value = variable.get_raw_value()
    sharding = getattr(value, "sharding", None)
    if devices is None or not isinstance(sharding, jax.NamedSharding):
        return 0
    spec = [names if isinstance(names, tuple) else (names,) for names in sharding.spec[depth:]]
    spec += [(None,)] * (len(value.shape) - depth - len(spec))
    fitting = [axis for axis, size in enumerate(value.shape[depth:]) if size and size % devices.rows == 0]
    of_batch = [axis for axis in fitting if set(spec[axis]) & set(devices.axes)]
    whole = [axis for axis in fitting if set(spec[axis]) == {None}]
    return next(iter([*of_batch, *whole]), None)


def spec_of(variable: Any) -> jax.P | None:
    """Returns the placement of a Param on its mesh; None if it is on a single device."""
    sharding = getattr(variable.get_raw_value(), "sharding", None)
    return sharding.spec if isinstance(sharding, jax.NamedSharding) and sharding.mesh.size > 1 else None


def place(statistic: Statistic, stack: tuple[int, ...], devices: Devices | None) -> None:
    """Gives the state of a statistic the leading axes of a stack, and puts it on a mesh."""
    for name, variable in statistic.variables.items():
        raw = np.asarray(variable.get_raw_value())
        raw = np.ascontiguousarray(np.broadcast_to(raw, (*stack, *raw.shape)))
        if devices is None:
            variable.set_raw_value(raw)
            continue
        spec: list[Any] = []
        if isinstance(statistic, Summary | StepStatistic) and name == "words":
            spec = [None] * len(stack) + [devices.axes]
        sharding = jax.NamedSharding(devices.mesh, jax.P(*spec))
        # Each process makes its own part, on a mesh of several hosts too.
        variable.set_raw_value(jax.make_array_from_callback(raw.shape, sharding, lambda index, raw=raw: raw[index]))
