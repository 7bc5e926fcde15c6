# SPDX-License-Identifier: Apache-2.0
"""The axes of stacks: how many copies of itself a module is, as `nnx.vmap` makes them for `nnx.scan`.

A stack of layers is one module whose Variables have one more axis in front, and nothing on it says so. A statistic in
it must have the same axis, one row per layer. The number of axes is known for the layers of Flax, whose Variables have
a rank that follows from the layer's attributes, and for counters and random streams, which are scalars. A module is
a stack of as many axes as all of these below it have too many. A module without any is a stack if it lies in one; if
none of the modules has any, `stacks=` tells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from flax import nnx

from tallax._errors import InvalidValueError, compose
from tallax._walk import WATCHED
from tallax.watching._select import Found, matching

# The rank of a Variable of a single layer, by class and attribute. Layers that are missing here give no evidence.
_RANKS: Mapping[type, Mapping[str, Callable[[Any], int]]] = {
    nnx.Linear: {"kernel": lambda _: 2, "bias": lambda _: 1},
    nnx.LinearGeneral: {"kernel": lambda m: len(m.in_features) + len(m.out_features)},
    nnx.Embed: {"embedding": lambda _: 2},
    nnx.Conv: {"kernel": lambda m: len(m.kernel_size) + 2, "bias": lambda _: 1},
    nnx.ConvTranspose: {"kernel": lambda m: len(m.kernel_size) + 2, "bias": lambda _: 1},
    nnx.LayerNorm: {"scale": lambda _: 1, "bias": lambda _: 1},
    nnx.RMSNorm: {"scale": lambda _: 1},
    nnx.GroupNorm: {"scale": lambda _: 1, "bias": lambda _: 1},
    nnx.BatchNorm: {"mean": lambda _: 1, "var": lambda _: 1},
}


def stack_shapes(modules: Sequence[Found], stacks: Any) -> dict[int, tuple[int, ...]]:
    """Returns the shape of the stack that each module is, by the module's id: `()` for a module on its own.

    Args:
        modules: All modules of a model.
        stacks: Globs of the modules that are stacks of one axis in any case, or None.

    Raises:
        InvalidValueError: `stacks` selects nothing, or a module whose Variables do not share a leading axis.
    """
    patterns = [] if stacks is None else [stacks] if isinstance(stacks, str) else list(stacks)
    tests = {pattern: matching(pattern) for pattern in patterns}
    shapes = {id(each.module): _inferred(each.module) for each in modules}
    for each in modules:  # a module without any Variable, such as an activation, is a stack if it lies in one
        for _, below in nnx.iter_graph(each.module):
            if len(shapes.get(id(below), shapes[id(each.module)])) < len(shapes[id(each.module)]):
                shapes[id(below)] = shapes[id(each.module)]
    for pattern, test in tests.items():
        found = [each for each in modules if test(each.name)]
        if not found:
            raise InvalidValueError(
                compose(
                    "stacks",
                    "selects no module of the model.",
                    got=repr(pattern),
                    expected=", ".join(each.name for each in modules[1:9]),
                    fix='stacks="layers"',
                )
            )
        for each in found:
            shape = _leading_axis(each)
            for _, below in nnx.iter_graph(each.module):
                if id(below) in shapes and not shapes[id(below)]:
                    shapes[id(below)] = shape
    return shapes


def _inferred(module: Any) -> tuple[int, ...]:
    stacks = list(_evidence(module))
    if not stacks:
        return ()
    depth = min(map(len, stacks))
    if len({stack[:depth] for stack in stacks}) > 1:
        return ()
    return stacks[0][:depth]


def _evidence(module: Any) -> Iterator[tuple[int, ...]]:
    """Yields the axes that each Variable of a known rank has too many."""
    for path, node in nnx.iter_graph(module):
        if WATCHED in path:
            continue
        if isinstance(node, nnx.RngKey | nnx.RngCount):
            yield tuple(np.shape(node.get_raw_value()))
        for kind, ranks in _RANKS.items():
            if isinstance(node, kind):
                for name, rank in ranks.items():
                    variable = getattr(node, name, None)
                    if isinstance(variable, nnx.Variable):
                        shape = tuple(np.shape(variable.get_raw_value()))
                        yield shape[: max(len(shape) - rank(node), 0)]


def _leading_axis(each: Found) -> tuple[int, ...]:
    shapes = [
        np.shape(node.get_raw_value())
        for path, node in nnx.iter_graph(each.module)
        if isinstance(node, nnx.Variable) and WATCHED not in path
    ]
    sizes = {shape[0] if shape else None for shape in shapes}
    if len(sizes) != 1 or None in sizes:
        raise InvalidValueError(
            compose(
                each.name or "the model",
                "is not a stack: the Variables below it do not share a leading axis.",
                got=f"leading axes of {', '.join(sorted(map(str, sizes))) or 'no Variable'}",
                fix="stacks= with the path of the module that nnx.vmap made",
            )
        )
    return tuple(size for size in sizes if size is not None)
