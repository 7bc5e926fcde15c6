# SPDX-License-Identifier: Apache-2.0
"""Marks in the arguments and results of a step: pytrees without arrays, which JAX compares and passes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx


@jax.tree_util.register_static
class Static:
    """A static argument: a pytree without arrays, so that JAX traces once for each value and passes it through."""

    __slots__ = ("value",)

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        # 1, 1.0 and True are equal, but a function may treat them differently.
        return isinstance(other, Static) and type(self.value) is type(other.value) and bool(self.value == other.value)

    def __hash__(self) -> int:
        return hash((type(self.value), self.value))


@jax.tree_util.register_static
@dataclass(frozen=True)
class Reference:
    """Stands for a bound module or Variable in an argument or a result: a pytree without arrays."""

    path: tuple[Any, ...]


def values_of(arguments: Any, objects: tuple[Any, ...]) -> Any:
    """Returns arguments with static values, and the objects of a trace, in their places.

    Args:
        arguments: those of a call, with `Static` and `Reference` in them.
        objects: the copies of the bound objects in this trace.
    """
    is_mark = lambda leaf: isinstance(leaf, Static | Reference)  # noqa: E731
    marks = [leaf for leaf in jax.tree.leaves(arguments, is_leaf=is_mark) if isinstance(leaf, Reference)]
    nodes = dict(nnx.iter_graph(objects)) if marks else {}

    def value_of(leaf: Any) -> Any:
        if isinstance(leaf, Reference):
            return nodes[leaf.path]
        return leaf.value if isinstance(leaf, Static) else leaf

    return jax.tree.map(value_of, arguments, is_leaf=is_mark)
