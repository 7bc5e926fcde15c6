# SPDX-License-Identifier: Apache-2.0
"""The kinds of values that the linter infers for expressions. An unknown value is None, and rules ignore it."""

from __future__ import annotations

import ast
import dataclasses
import functools
from typing import TypeAlias

from tallax.lint._index import Scope

# The kinds below are not frozen, because making a frozen dataclass takes three times as long. No rule changes one.


class Frame:
    """The context of an expression: a scope, and in a called function the known arguments."""

    __slots__ = ("arguments", "depth", "memory", "scope")

    def __init__(self, scope: Scope, arguments: dict[str, Value] | None = None, depth: int = 0):
        self.scope = scope
        self.arguments = arguments or {}
        self.depth = depth
        self.memory: dict[object, Value | None] = {} if arguments else scope.memory

    @classmethod
    def of(cls, scope: Scope) -> Frame:
        """Returns the frame of a scope whose arguments are not known."""
        if scope.frame is None:
            scope.frame = cls(scope)
        return scope.frame


@dataclasses.dataclass(slots=True, unsafe_hash=True)
class Variable:
    """An `nnx.Variable`.

    Attributes:
        type: The Flax type that its type is or derives from, such as `nnx.Param`.
        call: The call that creates it, or None if it is known only from an annotation.
        frame: The context of that call.
        cls: The project's own subclass.
        home: The class and the name of its attribute.
        or_else: Other calls that may create it, in other branches.
        held: Its value, if another library creates it and the value is known.
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
        """The name of its type in messages."""
        return self.type if self.cls is None else self.cls.name.rpartition(".")[2]


@dataclasses.dataclass(slots=True, unsafe_hash=True)
class Instance:
    """An object of a class: one of the project's, or one of Flax by its name.

    Attributes:
        still: Whether a call does not change it, for example for a Dropout without a random stream.
    """

    cls: Scope | str
    still: bool = False


@dataclasses.dataclass(slots=True, unsafe_hash=True)
class Type:
    """A class itself."""

    cls: Scope | str


@dataclasses.dataclass(slots=True, unsafe_hash=True)
class Callee:
    """A function of the project, and the object that it is bound to.

    Attributes:
        transformed: The transformation that it was passed to, such as `nnx.jit`.
    """

    scope: Scope
    bound: Value | None = None
    transformed: str = ""


@dataclasses.dataclass(slots=True, unsafe_hash=True)
class Name:
    """An object of another library, by its canonical name, such as `jnp.zeros`."""

    name: str


name_of = functools.lru_cache(maxsize=4096)(Name)  # names recur, and making one takes longer than looking it up


@dataclasses.dataclass(slots=True, unsafe_hash=True)
class Array:
    """A jax or NumPy array.

    Attributes:
        weak: Whether its type is weak, or None if that is unknown.
        dtype: `float32`, `int32` or `bool` if it is written, `float` or `int` for JAX's defaults, empty if unknown.
        state: The attribute of the Variable with this value, or `derived` for a value computed from one.
        scalar: Whether its shape is (), or None if that is unknown.
    """

    weak: bool | None = None
    dtype: str = ""
    state: tuple[Scope, str] | str | None = None
    scalar: bool | None = None


@dataclasses.dataclass(slots=True, unsafe_hash=True)
class Number:
    """A Python number.

    Attributes:
        type: `int`, `float`, `bool`.
        size: Whether it counts elements: from a shape, `.size` or `len`.
        state: The attribute of the Variable with this value, or `derived` for a value computed from one.
        value: The number, if it is written as a literal.
    """

    type: str
    size: bool = False
    state: tuple[Scope, str] | str | None = None
    value: float | None = None


@dataclasses.dataclass(slots=True, unsafe_hash=True)
class Items:
    """A tuple or list. If its elements are not listed, `each` is the kind of every element."""

    items: tuple[Value | None, ...] = ()
    each: Value | None = None


@dataclasses.dataclass(slots=True, unsafe_hash=True)
class Table:
    """A dict.

    Attributes:
        each: The kind of every value.
        named: The values under literal keys.
        is_node: Whether it is an `nnx.Dict`, whose values are attributes too.
    """

    each: Value | None = None
    named: tuple[tuple[str, Value | None], ...] = ()
    is_node: bool = False

    def under(self, key: str) -> Value | None:
        """Returns the value under a key."""
        return dict(self.named).get(key, self.each)


@dataclasses.dataclass(slots=True, unsafe_hash=True)
class Plain:
    """A value that is certainly neither a Variable nor an array: `None`, a string, a dict, a shape."""

    what: str


Value: TypeAlias = Variable | Instance | Type | Callee | Name | Array | Number | Items | Table | Plain
NOTHING = Plain("None")
_MANY = 8  # the most calls that are considered for one Variable


def joined(values: list[Value | None]) -> Value | None:
    """Returns the kind of one of several values, as far as they agree.

    A Variable or None counts as the Variable, because any operation on it is one on a Variable.
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
            return Variable(kind, cls=a.cls, home=a.home)  # its value is unknown
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
    """Returns the kind of the elements of a sequence."""
    if isinstance(value, Items):
        return value.each if value.each is not None else joined(list(value.items))
    if isinstance(value, Table):
        return Plain("text")  # a loop over a dict yields its keys
    return Array(value.weak, value.dtype, "derived" if value.state else None) if isinstance(value, Array) else None


def item(value: Value | None, k: int) -> Value | None:
    """Returns the kind of one element of a sequence."""
    if isinstance(value, Items):
        return value.items[k] if -len(value.items) <= k < len(value.items) else value.each
    return element(value) if isinstance(value, Array) else None
