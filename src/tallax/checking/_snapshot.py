# SPDX-License-Identifier: Apache-2.0
"""What a model holds, written down: every Variable, array and plain attribute by its path, and how two notes differ."""

from __future__ import annotations

import contextlib
import copy
import functools
import pickle
import random
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tallax._arrays import is_traced
from tallax._errors import describe
from tallax._walk import leaves_of
from tallax.checking._source_lines import is_users
from tallax.variables import Counter

Kind: TypeAlias = Literal["variable", "array", "attribute"]

# A compiled program rounds in another order than an eager one, so floats agree to a few units in the last place of the
# largest entry, or to a hundredth of what a call changes: counts that are lost or doubled are wrong by a third or more.
_ROUNDING = 3e-5
_SHARE_OF_CHANGE = 0.01

_PLAIN = (int, float, complex, str, bytes, bool, type(None), np.generic)
_COPIED = (dict, list, set, tuple, bytearray)


class Leaked:
    """Stands for a value that belongs to a trace that has ended."""

    def __repr__(self) -> str:
        return "a tracer that leaked out of its trace"


LEAKED = Leaked()


@dataclass(frozen=True)
class Opaque:
    """Stands for a plain Python object, by its pickled form: two of them are equal if their contents are."""

    type_name: str
    pickled: bytes


@dataclass(frozen=True)
class Leaf:
    """One value that a model holds.

    `variable` is the type of the Variable that holds it, None for a bare array or a plain attribute.
    """

    kind: Kind
    value: Any
    variable: type | None = None
    weak_type: bool = False

    @property
    def is_number(self) -> bool:
        """Whether the value is an array of booleans or numbers, or a plain number."""
        dtype = getattr(self.value, "dtype", None)
        return isinstance(self.value, int | float) or (dtype is not None and _is_numeric(dtype))

    def describe(self) -> str:
        """Words the value for a message."""
        if self.value is LEAKED:
            return repr(self.value)
        if isinstance(self.value, np.ndarray) and self.value.ndim == 0 and _is_numeric(self.value.dtype):
            return str(self.value)
        if isinstance(self.value, Opaque):
            return f"a {self.value.type_name}"
        return describe(self.value)


Snapshot: TypeAlias = dict[str, Leaf]


def snapshot(model: Any) -> Snapshot:
    """Returns a copy of everything that `model` holds, on the host, by slash-joined path; waits for the device."""
    leaves: Snapshot = {}
    for path, node in nnx.iter_graph(model, graph=True):
        # None has no state, and Flax lists it under the first of its names only.
        if node is None or any(str(part).startswith("_pytree__") or part == "_length" for part in path):
            continue
        name = "/".join(map(str, path))
        for suffix, leaf in _leaves_of(node):
            leaves[name + suffix] = leaf
        if isinstance(node, nnx.Variable):
            for key, value in node.get_metadata().items():
                if isinstance(value, bool | int | float) and key not in _flax_metadata():
                    leaves[f"{name}/{key}"] = Leaf("attribute", value)
    return leaves


@functools.cache
def _flax_metadata() -> frozenset[str]:
    """Returns the metadata that every Variable has, whoever made it."""
    return frozenset(nnx.Variable(np.zeros(())).get_metadata())


def variables_of(model: Any) -> dict[str, nnx.Variable[Any]]:
    """Returns every Variable of `model` by slash-joined path; a shared one under its first path only."""
    return {leaf.name: leaf.variable for leaf in leaves_of(model)}


def attribute_of(path: str, start: Snapshot) -> str:
    """Returns `path`, or for one that a call made the attribute that it made: `mean` for the sown `mean/2/loss`."""
    if path in start:
        return path
    parts = path.split("/")
    for count in range(len(parts) - 1, -1, -1):
        prefix = "/".join((*parts[:count], ""))
        if any(known.startswith(prefix) for known in start) or not count:
            return "/".join(parts[:count] if count and parts[count].isdigit() else parts[: count + 1])
    return path


def cycle_of(model: Any) -> str | None:
    """Returns the path of an attribute that leads back to a module that holds it, or None."""

    def search(node: Any, path: str, holders: tuple[int, ...]) -> str | None:
        if not isinstance(node, nnx.Pytree):
            return None
        if id(node) in holders:
            return path
        inner = (search(child, f"{path}/{name}", (*holders, id(node))) for name, child in vars(node).items())
        return next((found for found in inner if found), None)

    found = search(model, "", ())
    return found.lstrip("/") if found else None


def _leaves_of(node: Any) -> Iterator[tuple[str, Leaf]]:
    if isinstance(node, nnx.Variable):
        if isinstance(node, Counter) and not is_traced(node.get_raw_value()):
            yield "", Leaf("variable", np.asarray(node), type(node))
            return
        for path, raw in jax.tree_util.tree_leaves_with_path(node.get_raw_value()):
            weak = bool(getattr(raw, "weak_type", False)) or isinstance(raw, bool | int | float)
            suffix = jax.tree_util.keystr(path, simple=True, separator="/")
            yield f"/{suffix}" if suffix else "", Leaf("variable", _on_host(raw), type(node), weak)
    elif isinstance(node, jax.Array | np.ndarray):
        yield "", Leaf("array", _on_host(node), weak_type=bool(getattr(node, "weak_type", False)))
    elif isinstance(node, _PLAIN):
        yield "", Leaf("attribute", node)
    elif isinstance(node, _COPIED):
        if any(isinstance(leaf, nnx.Variable) for leaf in jax.tree.leaves(node, is_leaf=_is_variable)):
            return  # as the state of an optimizer, whose Variables are listed by themselves
        try:
            yield "", Leaf("attribute", _copied(node))
        except Exception:  # whatever a user's object says to being copied; it is not compared then
            return
    elif isinstance(node, np.random.Generator | np.random.RandomState | random.Random) or _is_plain_object(node):
        with contextlib.suppress(Exception):  # as above
            yield "", Leaf("attribute", Opaque(type(node).__name__, pickle.dumps(node)))


def _is_variable(node: Any) -> bool:
    return isinstance(node, nnx.Variable)


def _copied(node: Any) -> Any:
    """Returns a copy of a container, with the names of functions in their place.

    A factory makes new closures each time, as those of an optimizer's transformation, and they never compare equal.
    """
    if not any(callable(leaf) for leaf in jax.tree.leaves(node)):
        return copy.deepcopy(node)
    return jax.tree.map(
        lambda leaf: getattr(leaf, "__qualname__", type(leaf).__name__) if callable(leaf) else copy.deepcopy(leaf), node
    )


def _is_plain_object(node: Any) -> bool:
    """Whether it is an object of a class of the user's that NNX knows nothing about."""
    if isinstance(node, type | ModuleType | nnx.Pytree | nnx.Variable) or callable(node):
        return False
    module = sys.modules.get(type(node).__module__)
    return is_users(getattr(module, "__file__", None) or "<frozen")


def _is_numeric(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.number) or dtype == np.bool_


def _on_host(value: Any) -> Any:
    if is_traced(value):
        return LEAKED
    if isinstance(value, jax.Array):
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            value = jax.random.key_data(value)
        return np.array(value)
    if isinstance(value, jax.Ref):
        return np.array(value[...])
    return np.array(value)


@dataclass(frozen=True)
class Difference:
    """A path at which a run left something else than it should have; None where one of them has no such path.

    Of a value that the calls made, the path is that of the attribute: three calls that sow differ once.
    """

    path: str
    start: Leaf | None
    expected: Leaf | None
    got: Leaf | None

    @property
    def is_unchanged(self) -> bool:
        """Whether the run left the value as it was at the start, though it should have changed it."""
        if self.start is None or self.got is None:
            return self.start is self.got
        return same(self.start, self.got)

    @property
    def is_overcounted(self) -> bool:
        """Whether the run changed the value in the right direction, but by a multiple."""
        leaves = (self.start, self.expected, self.got)
        if not all(leaf is not None and leaf.is_number for leaf in leaves):
            return False
        start, expected, got = (np.asarray(leaf.value, np.float64) for leaf in leaves if leaf is not None)
        if (
            not start.shape == expected.shape == got.shape
            or len({np.result_type(leaf.value) for leaf in leaves if leaf}) > 1
        ):
            return False
        due, done = expected - start, got - start
        is_more, is_same_way = np.abs(done) > np.abs(due), np.sign(done) * np.sign(due) >= 0
        return bool(np.all(is_more | (done == due)) and np.any(is_more) and np.all(is_same_way))


def same(left: Leaf, right: Leaf) -> bool:
    """Whether two notes are of the same kind, dtype and shape, and equal to the bit."""
    if (left.kind, left.variable) != (right.kind, right.variable):
        return False
    return _equal(left.value, right.value)


def differences(start: Snapshot, expected: Snapshot, got: Snapshot, noisy: Collection[str] = ()) -> list[Difference]:
    """Returns where `got` is not what it should be: integers exactly, floats but for rounding.

    At the paths in `noisy` a float must only have changed, as in `Reference`.
    """
    found = []
    for path in dict.fromkeys((*expected, *got)):
        a, b = expected.get(path), got.get(path)
        if path in noisy and _is_noise(start.get(path), a, b):
            continue
        if a is None or b is None or not _agree(start.get(path), a, b):
            found.append(Difference(attribute_of(path, start), start.get(path), a, b))
    return found


def _is_noise(start: Leaf | None, a: Leaf | None, b: Leaf | None) -> bool:
    if start is None or a is None or b is None or not all(isinstance(leaf.value, np.ndarray) for leaf in (start, a, b)):
        return False
    return (
        (a.kind, a.variable, a.value.dtype, a.value.shape) == (b.kind, b.variable, b.value.dtype, b.value.shape)
        and _is_float(a.value)
        and same(start, a) == same(start, b)
    )


def changed(before: Snapshot, after: Snapshot) -> list[str]:
    """Returns the paths whose values are not the same to the bit, those that came, and those that went."""
    return [
        path
        for path in dict.fromkeys((*before, *after))
        if path not in before or path not in after or not same(before[path], after[path])
    ]


def arrays_agree(expected: Any, got: Any, change: Any = 0.0) -> bool:
    """Whether two arrays are equal: integers exactly, floats but for rounding, or a hundredth of `change`."""
    expected, got = np.asarray(expected), np.asarray(got)
    if expected.shape != got.shape or expected.dtype != got.dtype:
        return False
    if not _is_float(expected):
        return _equal(expected, got)
    a, b = expected.astype(np.float64), got.astype(np.float64)
    finite = np.isfinite(a)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return False
    scale = np.max(np.abs(a), where=finite, initial=0.0)
    unit = max(1.0, float(jnp.finfo(expected.dtype).eps) / float(np.finfo(np.float32).eps))
    allowed = _ROUNDING * unit * scale + _SHARE_OF_CHANGE * np.abs(change)
    with np.errstate(invalid="ignore"):
        return bool(np.all(np.abs(a - b)[finite] <= np.broadcast_to(allowed, a.shape)[finite] + 1e-12))


def _is_float(value: np.ndarray) -> bool:
    return jnp.issubdtype(value.dtype, jnp.floating)


def _agree(start: Leaf | None, a: Leaf, b: Leaf) -> bool:
    if (a.kind, a.variable) != (b.kind, b.variable):
        return False
    if not (isinstance(a.value, np.ndarray) and isinstance(b.value, np.ndarray) and _is_float(a.value)):
        return _equal(a.value, b.value)
    change: Any = 0.0
    if start is not None and isinstance(start.value, np.ndarray) and start.value.shape == a.value.shape:
        with np.errstate(invalid="ignore"):
            change = np.nan_to_num(np.abs(a.value.astype(np.float64) - start.value.astype(np.float64)))
        if np.any(change > _ROUNDING * np.max(np.abs(a.value), initial=0.0)) and _equal(start.value, b.value):
            return False  # a small step that was not taken, whatever the tolerance
    return arrays_agree(a.value, b.value, change)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return (a.dtype, a.shape) == (b.dtype, b.shape) and a.tobytes() == b.tobytes()
    try:
        return type(a) is type(b) and bool(np.all(a == b))
    except Exception:  # an object that can't be compared says nothing
        return True
