# SPDX-License-Identifier: Apache-2.0
"""Copies of a new model, in place of models that the factory makes.

A check runs some 150 new models. A factory evaluates its initializers each time, which was a third of the processor
time of a check. `nnx.merge` makes the same model from the state and the graph of one, in a tenth of the time.

A copy must be no different from a model of the factory. So it is used only if all that the model holds besides its
Variables is immutable, and if calls of a copy leave the state of the reference run, to the bit. A list on the module,
a closure over the module, or an object of the user's class could be shared by the copies: the factory then makes every
model.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import inspect
import types
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from tallax._arrays import is_traced

_IMMUTABLE = (
    int,
    float,
    complex,
    str,
    bytes,
    type(None),
    type(...),
    type,
    enum.Enum,
    np.generic,
    np.dtype,
    types.ModuleType,
    types.BuiltinFunctionType,
    np.ufunc,
)


class Template:
    """A model of which copies are made. `make` makes it again if a call has donated its arrays."""

    def __init__(self, model: Any, make: Callable[[], Any]):
        self._make = make
        self._take(model)

    def _take(self, model: Any) -> None:
        self._graphdef, state = nnx.split(model, graph=True)
        leaves, self._tree = jax.tree.flatten(state)
        self._leaves: list[Any] = leaves

    @property
    def leaves(self) -> list[Any]:
        """The arrays and numbers of the model, in the order of `nnx.state`."""
        if any(isinstance(leaf, jax.Array) and leaf.is_deleted() for leaf in self._leaves):
            self._take(self._make())
        return self._leaves

    def copy(self, leaves: Sequence[Any] | None = None) -> Any:
        """Returns a copy, with other leaves if they are given."""
        given = self.leaves if leaves is None else leaves
        given = [leaf.copy() if isinstance(leaf, np.ndarray) else leaf for leaf in given]
        return nnx.merge(self._graphdef, jax.tree.unflatten(self._tree, given), copy=True)


def template_of(model: Any, make: Callable[[], Any]) -> Template | None:
    """Returns a template of a model, or None if a change of a copy could show in another copy."""
    try:
        template = Template(model, make)
        return template if _is_apart(model, template.copy()) else None
    except Exception:  # Flax cannot split or merge it
        return None


def _is_apart(model: Any, copied: Any) -> bool:
    """Returns whether no change of `copied` can show in `model`: the values that both hold are immutable."""
    pairs = zip(nnx.iter_graph(model, graph=True), nnx.iter_graph(copied, graph=True), strict=True)
    for (path, node), (path_too, other) in pairs:
        if path != path_too:
            return False
        if node is other and not (_is_internal(path) or _is_immutable(node)):
            return False
        if isinstance(node, nnx.Variable):
            values = [*node.get_metadata().values(), *jax.tree.leaves(other.get_raw_value())]
            if not all(_is_immutable(value) or isinstance(value, np.ndarray) for value in values):
                return False
    return True


def _is_internal(path: tuple[Any, ...]) -> bool:
    return any(str(part).startswith("_pytree__") for part in path)


def _is_immutable(value: Any, depth: int = 8) -> bool:
    parts: Any
    if isinstance(value, _IMMUTABLE):
        return not isinstance(value, types.BuiltinFunctionType) or isinstance(value.__self__, types.ModuleType | None)
    if isinstance(value, jax.Array):
        return not isinstance(value, jax.Ref) and not is_traced(value) and len(value.devices()) == 1
    if isinstance(value, tuple | frozenset):
        parts = value
    elif isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if cell != types.CellType()]
        parts = (*cells, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values())
    elif isinstance(value, functools.partial):
        parts = (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, Mapping) and not isinstance(value, MutableMapping):
        parts = value.values()
    elif _is_frozen(type(value)):
        parts = vars(value).values()
    elif callable(value) and hasattr(value, "__wrapped__") and type(value).__module__.startswith("jax"):
        parts = (inspect.unwrap(value, stop=lambda f: isinstance(f, types.FunctionType)),)  # of `jax.jit` and others
    else:
        return False
    return depth > 0 and all(_is_immutable(part, depth - 1) for part in parts)


def _is_frozen(kind: type) -> bool:
    """Returns whether it is a frozen dataclass, or a class of Flax or optax whose objects are hashed by value."""
    if dataclasses.is_dataclass(kind):
        return kind.__dataclass_params__.frozen  # pyright: ignore[reportAttributeAccessIssue]
    return kind.__hash__ not in (None, object.__hash__) and kind.__module__.startswith(("flax.", "optax."))
