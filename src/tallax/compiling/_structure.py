# SPDX-License-Identifier: Apache-2.0
"""The structure of the objects that a step is compiled for: their names, and changes of it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from flax import nnx

from tallax._errors import StructureChangedError, describe
from tallax._walk import path_name


class Change(NamedTuple):
    """A change: the name of the module, and a text that describes the change."""

    name: str
    text: str


class Structure:
    """Everything about objects that is not a value: their modules, and all attributes of these.

    A search for changes is cheap, because it only compares the attribute dictionaries with copies: 0.1 us per module.
    """

    def __init__(self, objects: Sequence[Any], names: Sequence[str]):
        self._now: list[Any] = []
        self._names: list[str] = []
        for path, node in nnx.iter_graph(tuple(objects)):
            if path and (parts := _parts_of(node)) is not None:
                self._now.append(parts)
                self._names.append(path_in(path, names))
        self._then = [copy.copy(parts) for parts in self._now]

    def change(self) -> Change | None:
        """Returns the first change, or None."""
        try:
            if self._now == self._then:
                return None
        except Exception:  # arrays, whose comparison is not a single bool
            pass
        for name, now, then in zip(self._names, self._now, self._then, strict=True):
            if isinstance(now, list):
                then, now = dict(enumerate(then)), dict(enumerate(now))
            for attribute in {**then, **now}:
                if not str(attribute).startswith("_pytree__"):
                    before, after = then.get(attribute, _NOTHING), now.get(attribute, _NOTHING)
                    if before is not after and not _are_equal(before, after):
                        return Change(name, f"{attribute} {_told(before, after)}")
        return None

    def refusal(self) -> StructureChangedError:
        """Returns the error for a function that changed the structure inside a step."""
        change = self.change()
        return StructureChangedError(
            change.name if change is not None else "the bound objects",
            "a compiled step cannot change the structure of its objects.",
            got=change.text if change is not None else "another structure",
            fix="change it between two calls, or keep it in a Variable; nnx.pop removes sown values",
        )


def _parts_of(node: Any) -> Any:
    """Returns the attributes of a module or a dataclass, or the container itself; None for anything else."""
    if isinstance(node, nnx.Pytree) or (dataclasses.is_dataclass(node) and not isinstance(node, nnx.Variable | type)):
        return getattr(node, "__dict__", None)
    return node if type(node) in (dict, list) else None


class _Nothing:
    pass


_NOTHING = _Nothing()


def _are_equal(before: Any, after: Any) -> bool:
    try:
        return type(before) is type(after) and bool(before == after)
    except Exception:
        return False


def _told(before: Any, after: Any) -> str:
    if before is _NOTHING:
        return f"is new: {_what(after)}"
    if after is _NOTHING:
        return f"is gone; it was {_what(before)}"
    return f"is {_what(after)}; it was {_what(before)}"


def _what(value: Any) -> str:
    return type(value).__name__ if isinstance(value, nnx.Pytree | nnx.Variable) else describe(value)


def refuse_shared(objects: Sequence[Any], names: Sequence[str], *, items_only: bool, kind: type) -> None:
    """Raises if a Variable has two paths.

    With `items_only`, only tallax variables are checked, because Flax's graph mode handles other shared Variables.
    """
    try:
        leaves = jax.tree_util.tree_leaves_with_path(tuple(objects), is_leaf=lambda x: isinstance(x, nnx.Variable))
    except RecursionError:
        return  # objects that refer to each other, which only graph mode accepts, and checks itself
    first: dict[int, str] = {}
    for path, leaf in leaves:
        if not isinstance(leaf, kind if items_only else nnx.Variable):
            continue
        name = path_in(path, names)
        other = first.setdefault(id(leaf), name)
        if other != name:
            raise StructureChangedError(
                name,
                f"is the same {type(leaf).__name__} as {other}, but a compiled step binds each once.",
                got="a tallax variable, or a module with it, that was passed twice",
                fix="one for each place; or pass it once, and access it from there",
            )


def path_in(path: Sequence[Any], names: Sequence[str]) -> str:
    """Returns a path as text, `model/experts/1/step`. Its first key is the position of the bound object in `names`."""
    return path_name(path[1:], names[int(path_name(path[:1]))])
