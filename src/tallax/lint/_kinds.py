# SPDX-License-Identifier: Apache-2.0
"""What an expression may hold, as far as source tells. Unknown is None, and rules are silent on it."""

from __future__ import annotations

import ast
import dataclasses
from typing import TypeAlias

from tallax.lint._index import Scope


class Frame:
    """Where an expression is worked out: a scope, and in a called function the arguments as far as known."""

    __slots__ = ("arguments", "depth", "memory", "scope")

    def __init__(self, scope: Scope, arguments: dict[str, Value] | None = None, depth: int = 0):
        self.scope = scope
        self.arguments = arguments or {}
        self.depth = depth
        self.memory: dict[object, Value | None] = {} if arguments else scope.memory


@dataclasses.dataclass(frozen=True, slots=True)
class Variable:
    """An `nnx.Variable`.

    Attributes:
        type: The Flax type that its own is or derives from, `nnx.Param`.
        call: The call that makes it; None where only an annotation says what it is.
        frame: Where that call stands.
        cls: The project's own subclass.
        home: The class and the name of the attribute that holds it.
        or_else: Where it may be made instead, in other branches.
        held: What it holds where another library makes it and that is known.
    """

    type: str
    call: ast.Call | None = None
    frame: Frame | None = None
    cls: Scope | None = None
    home: tuple[Scope, str] | None = None
    or_else: tuple[Variable, ...] = ()
    held: Array | None = None

    @property
    def called(self) -> str:
        """What messages call its type."""
        return self.type if self.cls is None else self.cls.name.rpartition(".")[2]


@dataclasses.dataclass(frozen=True, slots=True)
class Instance:
    """An object of a class: one of the project's, or one of Flax by its name.

    Attributes:
        still: Whether it was made so that calling it changes nothing, such as a Dropout without a stream to draw from.
    """

    cls: Scope | str
    still: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Type:
    """A class itself."""

    cls: Scope | str


@dataclasses.dataclass(frozen=True, slots=True)
class Callee:
    """A function of the project, and the object that it is bound to.

    Attributes:
        transformed: The transformation that it was handed to, `nnx.jit`.
    """

    scope: Scope
    bound: Value | None = None
    transformed: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Name:
    """Something of another library, by its canonical name: `jnp.zeros`."""

    name: str


@dataclasses.dataclass(frozen=True, slots=True)
class Array:
    """A jax or NumPy array.

    Attributes:
        weak: Whether its type is weak; None if that can't be told.
        dtype: `float32`, `int32`, `bool` where written, `float` or `int` where it is JAX's default, empty if unknown.
        state: The attribute whose Variable's value this is, or `derived` for what was computed from one.
        scalar: Whether its shape is (); None if that can't be told.
    """

    weak: bool | None = None
    dtype: str = ""
    state: tuple[Scope, str] | str | None = None
    scalar: bool | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Number:
    """A Python number.

    Attributes:
        type: `int`, `float`, `bool`.
        size: Whether it counts elements: from a shape, `.size` or `len`.
        state: As of an array.
        value: The number where it is written out.
    """

    type: str
    size: bool = False
    state: tuple[Scope, str] | str | None = None
    value: float | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Items:
    """A tuple or list; `each` is what every element is where they are not listed."""

    items: tuple[Value | None, ...] = ()
    each: Value | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Table:
    """A dict.

    Attributes:
        each: What every value is.
        named: The values under the keys that are written out.
        is_node: Whether it is an `nnx.Dict`, whose values are attributes too.
    """

    each: Value | None = None
    named: tuple[tuple[str, Value | None], ...] = ()
    is_node: bool = False

    def under(self, key: str) -> Value | None:
        """Returns the value under a key."""
        return dict(self.named).get(key, self.each)


@dataclasses.dataclass(frozen=True, slots=True)
class Plain:
    """Something that is surely no Variable and no array: `None`, a string, a dict, a shape."""

    what: str


Value: TypeAlias = Variable | Instance | Type | Callee | Name | Array | Number | Items | Table | Plain
NOTHING = Plain("None")
_MANY = 8  # places where one Variable may be made, beyond which nobody looks


def joined(values: list[Value | None]) -> Value | None:
    """Returns what one of several values is, as far as they agree.

    A Variable or None is that Variable: what is done to it is done to a Variable.
    """
    if len(values) < 2:
        return values[0] if values else None
    if any(isinstance(value, Variable) for value in values):
        values = [value for value in values if value != NOTHING]
    first = values[0]
    for other in values[1:]:
        if first is None or other is None:
            return None
        if first != other:
            first = _both(first, other)
    return first


def _both(a: Value, b: Value) -> Value | None:
    if isinstance(a, Variable) and isinstance(b, Variable):
        kind = a.type if a.type == b.type else b.type if a.type == "nnx.Param" else "nnx.Variable"
        if (a.call is None and a.held is None) or len(a.or_else) >= _MANY:
            return Variable(kind, cls=a.cls, home=a.home)  # what it holds can't be told
        return dataclasses.replace(a, type=kind, or_else=(*a.or_else, b))
    if isinstance(a, Array) and isinstance(b, Array):
        return Array(
            a.weak if a.weak == b.weak else None,
            a.dtype if a.dtype == b.dtype else "",
            a.state if a.state == b.state else ("derived" if a.state or b.state else None),
            a.scalar if a.scalar == b.scalar else None,
        )
    if isinstance(a, Number) and isinstance(b, Number):
        wider = a.type if a.type == b.type else "float" if "float" in (a.type, b.type) else "int"
        return Number(wider, a.size or b.size, a.state or b.state)
    if isinstance(a, Items) and isinstance(b, Items) and len(a.items) == len(b.items):
        return Items(tuple(joined([x, y]) for x, y in zip(a.items, b.items, strict=True)), joined([a.each, b.each]))
    return None


def element(value: Value | None) -> Value | None:
    """Returns what the elements of a sequence hold."""
    if isinstance(value, Items):
        return value.each if value.each is not None else joined(list(value.items))
    if isinstance(value, Table):
        return Plain("text")  # a loop over a dict gives its keys
    return Array(value.weak, value.dtype, "derived" if value.state else None) if isinstance(value, Array) else None


def item(value: Value | None, k: int) -> Value | None:
    """Returns what stands at a place of a sequence."""
    if isinstance(value, Items):
        return value.items[k] if -len(value.items) <= k < len(value.items) else value.each
    return element(value) if isinstance(value, Array) else None
