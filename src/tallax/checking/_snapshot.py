# SPDX-License-Identifier: Apache-2.0
"""Snapshots of a model: every Variable, array and plain attribute by its path, and the differences of two snapshots."""

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

# A compiled program may round in a different order than an eager one. So floats agree if they differ by a few units in
# the last place of the largest entry, or by a hundredth of the change of a call. A count that is lost or doubled is
# wrong by a third or more.
_ROUNDING = 3e-5
_SHARE_OF_CHANGE = 0.01

_PLAIN = (int, float, complex, str, bytes, bool, type(None), np.generic)
_COPIED = (dict, list, set, tuple, bytearray)


class Leaked:
    """Stands for a value of a trace that has ended."""

    def __repr__(self) -> str:
        return "a tracer that leaked out of its trace"


LEAKED = Leaked()


@dataclass(frozen=True)
class Opaque:
    """Stands for a plain Python object. It stores the pickled form, so two of them are equal if their contents are."""

    type_name: str
    pickled: bytes


@dataclass(frozen=True)
class Leaf:
    """One value of a model.

    `variable` is the type of the Variable that stores the value, or None for a bare array or a plain attribute.
    """

    kind: Kind
    value: Any
    variable: type | None = None
    weak_type: bool = False

    @property
    def is_number(self) -> bool:
        """True if the value is an array of booleans or numbers, or a plain number."""
        dtype = getattr(self.value, "dtype", None)
        return isinstance(self.value, int | float) or (dtype is not None and _is_numeric(dtype))

    def describe(self) -> str:
        """Returns a short description of the value for a message."""
        if self.value is LEAKED:
            return repr(self.value)
        if isinstance(self.value, np.ndarray) and self.value.ndim == 0 and _is_numeric(self.value.dtype):
            return str(self.value)
        if isinstance(self.value, Opaque):
            return f"a {self.value.type_name}"
        return describe(self.value)


def words_for(leaf: Leaf | None) -> str:
    """Returns a short description of a leaf, or "missing" if it is None."""
    return "missing" if leaf is None else leaf.describe()


Snapshot: TypeAlias = dict[str, Leaf]


def snapshot(model: Any) -> Snapshot:
    """Returns a host copy of every value of `model`, by slash-joined path. Waits for the device."""
    leaves: Snapshot = {}
    for path, node in nnx.iter_graph(model, graph=True):
        # None has no state, and Flax lists it only under the first of its names.
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
    """Returns the metadata that Flax gives to every Variable."""
    return frozenset(nnx.Variable(np.zeros(())).get_metadata())


def variables_of(model: Any) -> dict[str, nnx.Variable[Any]]:
    """Returns every Variable of `model` by slash-joined path. A shared Variable is listed under its first path only."""
    return {leaf.name: leaf.variable for leaf in leaves_of(model)}


def paths_of(model: Any, kinds: Any) -> list[str]:
    """Returns the paths of the parts of `model` that are instances of some classes."""
    return ["/".join(map(str, path)) for path, node in nnx.iter_graph(model, graph=True) if isinstance(node, kinds)]


def is_within(path: str, owners: Collection[str]) -> bool:
    """Returns whether a path leads into one of the owners, of which one may be the model itself, at the path ""."""
    return any(not owner or path.startswith(f"{owner}/") for owner in owners)


def attribute_of(path: str, start: Snapshot) -> str:
    """Returns `path`; if a call created it, the new attribute, such as `mean` for the sown `mean/2/loss`."""
    if path in start:
        return path
    parts = path.split("/")
    for count in range(len(parts) - 1, -1, -1):
        prefix = "/".join((*parts[:count], ""))
        if any(known.startswith(prefix) for known in start) or not count:
            return "/".join(parts[:count] if count and parts[count].isdigit() else parts[: count + 1])
    return path


def cycle_of(model: Any) -> str | None:
    """Returns the path of an attribute that leads back to a module containing it, or None."""

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
            return  # for example the state of an optimizer, whose Variables are listed separately
        try:
            yield "", Leaf("attribute", _copied(node))
        except Exception:  # the user's object cannot be copied, so it is not compared
            return
    elif isinstance(node, np.random.Generator | np.random.RandomState | random.Random) or _is_plain_object(node):
        with contextlib.suppress(Exception):  # the object cannot be pickled, so it is not compared
            yield "", Leaf("attribute", Opaque(type(node).__name__, pickle.dumps(node)))


def _is_variable(node: Any) -> bool:
    return isinstance(node, nnx.Variable)


def _copied(node: Any) -> Any:
    """Returns a copy of a container in which functions are replaced by their names.

    A factory creates new closures each time, for example in an optimizer's transformation, and closures never compare
    equal.
    """
    if not any(callable(leaf) for leaf in jax.tree.leaves(node)):
        return copy.deepcopy(node)
    return jax.tree.map(
        lambda leaf: getattr(leaf, "__qualname__", type(leaf).__name__) if callable(leaf) else copy.deepcopy(leaf), node
    )


def _is_plain_object(node: Any) -> bool:
    """Returns whether it is an object of a user's class that NNX does not know."""
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
    """A path at which a run left a value different from the expected one. A value is None if the path is missing.

    If the calls created the value, the path is that of the attribute, so three calls that sow make one difference.
    """

    path: str
    start: Leaf | None
    expected: Leaf | None
    got: Leaf | None

    @property
    def is_unchanged(self) -> bool:
        """True if the run should have changed the value, but left it as it was at the start."""
        if self.start is None or self.got is None:
            return self.start is self.got
        return same(self.start, self.got)

    @property
    def is_overcounted(self) -> bool:
        """True if the run changed the value in the right direction, but by a multiple."""
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
    """Returns whether two leaves have the same kind, dtype and shape, and are bit-equal."""
    if (left.kind, left.variable) != (right.kind, right.variable):
        return False
    return equal(left.value, right.value)


def differences(start: Snapshot, expected: Snapshot, got: Snapshot, noisy: Collection[str] = ()) -> list[Difference]:
    """Returns the differences of `got` from the expected values: integers exactly, floats except for rounding.

    A float at a path in `noisy` only has to have changed if the expected value has changed; see `Reference`.
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
    """Returns the paths whose values are not bit-equal, and the paths that were added or removed."""
    return [
        path
        for path in dict.fromkeys((*before, *after))
        if path not in before or path not in after or not same(before[path], after[path])
    ]


def arrays_agree(expected: Any, got: Any, change: Any = 0.0) -> bool:
    """Returns whether two arrays are equal: integers exactly, floats except for rounding or a hundredth of `change`."""
    expected, got = np.asarray(expected), np.asarray(got)
    if expected.shape != got.shape or expected.dtype != got.dtype:
        return False
    if not _is_float(expected):
        return equal(expected, got)
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
        return equal(a.value, b.value)
    change: Any = 0.0
    if start is not None and isinstance(start.value, np.ndarray) and start.value.shape == a.value.shape:
        with np.errstate(invalid="ignore"):
            change = np.nan_to_num(np.abs(a.value.astype(np.float64) - start.value.astype(np.float64)))
        if np.any(change > _ROUNDING * np.max(np.abs(a.value), initial=0.0)) and equal(start.value, b.value):
            return False  # a small step that was not taken is a difference, also within the tolerance
    return arrays_agree(a.value, b.value, change)


def equal(a: Any, b: Any) -> bool:
    """Returns whether two values are of one type and equal: arrays to the bit, and NaN equals NaN."""
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return (a.dtype, a.shape) == (b.dtype, b.shape) and a.tobytes() == b.tobytes()
    try:
        return type(a) is type(b) and bool(np.all(a == b) or (a != a and b != b))
    except Exception:  # objects that cannot be compared count as equal
        return True
