# SPDX-License-Identifier: Apache-2.0
"""The arguments and results of a step that are not arrays: static values, and bound objects or parts of them.

They are replaced by marks, pytrees without arrays, which JAX compares and passes on. Inside the trace the objects are
copies. One of them in a result, a module or a Variable, becomes a `Reference` to its place among the bound objects, and
the caller gets the bound object at that place. A module or a Variable that the function makes is returned as a new one;
bound objects may be parts of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx

from tallax._errors import InvalidTypeError
from tallax.compiling._owners import path_in
from tallax.variables import TwoPartCount

_OBJECTS = (nnx.Pytree, nnx.Variable)


def is_object(x: Any) -> bool:
    """Returns whether it is a module, an optimizer or a Variable."""
    return isinstance(x, _OBJECTS)


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
    """Returns the arguments of a call with static values, and the objects of a trace, in the places of the marks."""
    is_mark = lambda leaf: isinstance(leaf, Static | Reference)  # noqa: E731
    marks = [leaf for leaf in jax.tree.leaves(arguments, is_leaf=is_mark) if isinstance(leaf, Reference)]
    nodes = dict(nnx.iter_graph(objects)) if marks else {}

    def value_of(leaf: Any) -> Any:
        if isinstance(leaf, Reference):
            return nodes[leaf.path]
        return leaf.value if isinstance(leaf, Static) else leaf

    return jax.tree.map(value_of, arguments, is_leaf=is_mark)


def refuse_objects(batch: Any) -> None:
    """Raises if a batch contains a module or a Variable, because changes by the step would be lost."""
    for leaf in jax.tree.leaves(batch, is_leaf=lambda x: is_object(x) or isinstance(x, nnx.State)):
        if is_object(leaf) and not isinstance(leaf, nnx.State):
            raise InvalidTypeError(
                "the compiled step",
                "accepts only arrays; the state of a module in the batch would be lost.",
                got=f"a {type(leaf).__name__}",
                fix="bind it: compile_step(train_step, model, rngs), with train_step(model, rngs, x)",
            )


@dataclass(frozen=True)
class Shape:
    """The structure of a result, to build it from its arrays and the bound objects.

    Attributes:
        structure: The structure of the result, in which references are leaves.
        references: The positions of references among the leaves, and the paths of their objects.
    """

    structure: Any
    references: tuple[tuple[int, tuple[Any, ...]], ...]

    def build(self, arrays: Sequence[Any], nodes: Mapping[tuple[Any, ...], Any]) -> Any:
        """Returns the result, given its arrays and the bound objects by their paths."""
        leaves = list(arrays)
        for place, path in self.references:
            leaves.insert(place, nodes[path])
        return jax.tree.unflatten(self.structure, leaves)


def with_references(result: Any, objects: tuple[Any, ...], name: str) -> Any:
    """Returns a result of a traced function with references instead of the objects that were passed to it.

    Raises:
        InvalidTypeError: A new module or Variable is in two places.
    """
    paths = {id(node): path for path, node in nnx.iter_graph(objects) if isinstance(node, _OBJECTS)}
    refuse_graphs(result, paths, name)

    def convert(leaf: Any) -> Any:
        if id(leaf) in paths:
            return Reference(paths[id(leaf)])
        return leaf.limbs if isinstance(leaf, TwoPartCount) else leaf

    return jax.tree.map(convert, result, is_leaf=lambda x: id(x) in paths or isinstance(x, TwoPartCount))


def refuse_graphs(result: Any, known: Mapping[int, Any], name: str) -> None:
    """Raises if a new object is in two places of a result: it would come back as two objects.

    Objects whose ids are in `known` come back as themselves.
    """
    seen: set[int] = set()
    queue: list[Any] = [[result]]
    for node in queue:  # not by `jax.tree`, which would recurse forever if objects refer to each other
        parts = vars(node) if isinstance(node, nnx.Pytree) else node
        for child in jax.tree.leaves(dict(parts) if node is not parts else parts, is_leaf=is_object):
            if not is_object(child) or id(child) in known:
                continue
            if id(child) in seen:
                raise InvalidTypeError(
                    name,
                    "a compiled step can return arrays, bound objects, and new objects that are trees.",
                    got=f"one new {type(child).__name__} in two places",
                    fix="return its arrays; or bind it, compile_step(train_step, model, other)",
                )
            seen.add(id(child))
            if isinstance(child, nnx.Pytree):
                queue.append(child)


def flatten(result: Any) -> tuple[list[Any], Shape]:
    """Returns the arrays of a result, and its shape."""
    leaves, structure = jax.tree.flatten(result, is_leaf=lambda x: isinstance(x, Reference))
    references = tuple((k, leaf.path) for k, leaf in enumerate(leaves) if isinstance(leaf, Reference))
    return [leaf for leaf in leaves if not isinstance(leaf, Reference)], Shape(structure, references)


def refuse_references(result: Any, names: Sequence[str], function: str) -> None:
    """Raises if a step of a scan returns a bound object, which does not have a value for each step."""
    _, shape = flatten(result)
    for _, path in shape.references:
        raise InvalidTypeError(
            function,
            "step.scan stacks the results of its steps, and a bound object has only its last state.",
            got=f"{path_in(path, names)} in a result",
            fix="return arrays from the function; the bound objects are available outside",
        )
