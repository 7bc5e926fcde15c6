# SPDX-License-Identifier: Apache-2.0
"""NNX lists and dicts that keep their Variables. `tallax.Module` converts each `nnx.List` and `nnx.Dict` to these.

Flax stores entries as attributes, so `loads[0] = loads[0] + 1` replaces a Variable by an array, like an assignment to
an attribute of a module. The class of a container determines whether that raises. The class is changed in place,
because the caller would not see the change in a copy. The classes here differ from Flax's only in the check.
`nnx.merge`, `nnx.clone` and pickle restore them like any other class of a module.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from flax import nnx

from tallax._errors import ReplacedVariableError, describe, name_of


def refuse_replacing(current: Any, value: Any, *, name: str | None = None) -> None:
    """Raises if an assignment of `value` in the place of `current` would drop a Variable or a statistic.

    Args:
        current: The current value.
        value: The assigned value. A Variable may be replaced by another Variable, and a statistic by another module.
        name: The name of the attribute, or None if `current` is an entry of a container.
    """
    kept = _dropped(current, value)
    if kept is None:
        return
    item, replacement = kept
    path = name_of(item)
    _written_by = getattr(type(item), "_written_by", "self.{name}[...] = x")
    if name is None or item is not current:
        known = path.isidentifier() or "." in path or "[" in path
        fix = _written_by.replace("self.{name}", path if known else "entry")
    else:
        fix = _written_by.format(name=name)
    place = "attribute" if name is not None and item is current else "entry"
    raise ReplacedVariableError(
        path,
        f"this {place} is a {type(item).__name__}, which an assignment would drop.",
        got=describe(replacement),
        fix=fix,
    )


def _dropped(current: Any, value: Any) -> tuple[Any, Any] | None:
    """Returns the first Variable or statistic that would be lost, and the value that would replace it."""
    if current is value or isinstance(value, nnx.Variable | dataclasses.Field):
        return None
    if isinstance(current, nnx.Variable):
        return current, value
    if hasattr(type(current), "_written_by"):  # a statistic, a ScheduledValue, a StepCounter
        return None if isinstance(value, nnx.Pytree) else (current, value)
    if isinstance(current, nnx.List | nnx.Dict):
        return _dropped_within(current, value)
    return None


def _dropped_within(current: Any, value: Any) -> tuple[Any, Any] | None:
    """Returns the first entry of a container that the same entry of another container would replace."""
    if isinstance(current, nnx.Dict) and isinstance(value, Mapping):
        pairs = [(current[key], value[key]) for key in current if key in value]
    elif isinstance(current, nnx.List) and isinstance(value, nnx.List | list | tuple):
        pairs = list(zip(current, value, strict=False))
    else:
        return None
    return next((found for pair in pairs if (found := _dropped(*pair)) is not None), None)


def guard(node: Any) -> None:
    """Makes the containers in an assigned value keep their Variables, at any depth."""
    queue, seen = [node], set()
    for part in queue:  # grows while it is walked
        if not isinstance(part, nnx.Pytree) or id(part) in seen:
            continue
        seen.add(id(part))
        if type(part) in _GUARDED:
            object.__setattr__(part, "__class__", _GUARDED[type(part)])
        queue.extend(vars(part).values())


class Dict(nnx.Dict[Any]):
    """An `nnx.Dict` that keeps its Variables."""

    def __setattr__(self, name: str, value: Any) -> None:
        current = vars(self).get(name)
        if current is value and value is not None:
            return
        refuse_replacing(current, value)
        super().__setattr__(name, value)
        guard(vars(self)[name])

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Like `dict.update`. If one of the entries would drop a Variable, it raises and writes nothing."""
        entries = dict(*args, **kwargs)
        for name, value in entries.items():
            refuse_replacing(vars(self).get(name), value)
        super().update(entries)


class List(nnx.List[Any]):
    """An `nnx.List` that keeps its Variables."""

    def __setattr__(self, name: str, value: Any) -> None:
        current = vars(self).get(name)
        if current is value and value is not None:
            return
        if not vars(self).get("_moving"):
            refuse_replacing(current, value)
        super().__setattr__(name, value)
        guard(vars(self)[name])

    def __setitem__(self, index: int | slice, value: Any) -> None:
        if isinstance(index, slice):
            value = list(value)
            for current, new in zip(self[index], value, strict=False):
                refuse_replacing(current, new)
        super().__setitem__(index, value)

    # These methods move entries, so that an index may change from one Variable to another.

    def insert(self, index: int, value: Any) -> None:
        """Adds an entry before the one at `index`."""
        with self._moves():
            super().insert(index, value)

    def reverse(self) -> None:
        """Reverses the order."""
        with self._moves():
            super().reverse()

    def __delitem__(self, index: int | slice) -> None:
        with self._moves():
            super().__delitem__(index)

    @contextlib.contextmanager
    def _moves(self) -> Iterator[None]:
        outermost = "_moving" not in vars(self)
        vars(self)["_moving"] = True
        try:
            yield
        finally:
            if outermost:
                del vars(self)["_moving"]


_GUARDED: dict[type, type] = {nnx.Dict: Dict, nnx.List: List}
