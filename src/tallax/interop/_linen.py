# SPDX-License-Identifier: Apache-2.0
"""Converts between variables of Flax Linen and NNX modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from tallax import _uint64
from tallax._errors import InvalidTypeError, InvalidValueError, describe
from tallax.checkpoints import RestoreReport
from tallax.checkpoints._policy import Missing, Policy, Rename, Unexpected, renamed
from tallax.checkpoints._serialize import joined
from tallax.interop._named import MODEL, Place, match, places_in, put
from tallax.variables import Buffer, Counter

_COLLECTIONS: dict[type, str] = {
    Counter: "counters",
    Buffer: "buffers",
    nnx.Param: "params",
    nnx.BatchStat: "batch_stats",
    nnx.Cache: "cache",
    nnx.Intermediate: "intermediates",
    nnx.Perturbation: "perturbations",
}


def from_linen(
    variables: Mapping[str, Any],
    model: nnx.Module,
    *,
    missing: Missing = "error",
    unexpected: Unexpected = "error",
    rename: Rename = None,
) -> RestoreReport:
    """Copies the variables of a Linen module into an NNX module. If it raises, the module does not change.

    `params/Dense_0/kernel` goes to `model.Dense_0.kernel`: the collection is omitted, because in NNX the type of the
    Variable determines it. An integer of any collection, such as `counters/step`, can go into a `tallax.Counter`,
    exactly. Random streams, which are not variables in Linen, do not change.

    Args:
        variables: A dict such as `{"params": ..., "counters": ..., "batch_stats": ...}`, as `init` and `apply` return
            it. Boxes of partitioned parameters are unboxed.
        model: An NNX module with the same layers.
        missing: See `tallax.from_checkpoint`.
        unexpected: See `tallax.from_checkpoint`.
        rename: A dict or a function from Linen's names to the module's names, such as `{"Dense_0": "layer"}`. Linen's
            names are without the collection, here and in the report.

    Raises:
        InvalidTypeError: `variables` is not a dict of collections, or `model` is not a module.
        InvalidValueError: An argument is invalid, or two collections contain the same name.
        RestoreError: The variables and the module differ in names, shapes or dtypes.

    Example:
        >>> import jax.numpy as jnp, tallax
        >>> from flax import nnx
        >>> model = nnx.Dict(layer=nnx.Linear(2, 2, use_bias=False, rngs=nnx.Rngs(0)), step=tallax.Counter())
        >>> variables = {"params": {"Dense_0": {"kernel": jnp.ones((2, 2))}}, "counters": {"step": jnp.int32(7)}}
        >>> report = tallax.interop.from_linen(variables, model, rename={"Dense_0": "layer"})
        >>> int(model.step), report.converted
        (7, ('model/step: int32 -> exact count',))
    """
    if not isinstance(variables, Mapping) or not all(isinstance(part, Mapping) for part in variables.values()):
        raise InvalidTypeError(
            "from_linen",
            "requires a dict of collections of variables.",
            got=describe(variables),
            expected="{'params': {...}, 'batch_stats': {...}}",
            fix="module.init(key, x), or {'params': params}",
        )
    policy = Policy(missing, unexpected, rename)
    arrays, collections = {}, {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(
        {name: dict(part) for name, part in variables.items()}, is_leaf=lambda leaf: hasattr(leaf, "unbox")
    ):
        collection, _, name = joined(path).partition("/")
        if name in arrays:
            raise InvalidValueError(
                f"{collection}/{name}",
                "two collections have a variable of this name, but an NNX module has one attribute for it.",
                got=f"{collections[name]}/{name}",
                fix="pass one collection after the other, with missing='init'",
            )
        leaf = leaf.unbox() if hasattr(leaf, "unbox") else leaf
        arrays[name] = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
        collections[name] = collection
    own = renamed(arrays, rename)
    found = match(own, {_name_of(place): place for place in places_in(model, abstract=True)})
    in_vain = {old: f"{MODEL}/{new.removeprefix(f'{MODEL}/')}" for old, new in own.items() if new != old}
    return put(arrays, model, in_vain | found, policy)


def _name_of(place: Place) -> str:
    return "/".join([joined(place.path), *place.inner])


def to_linen(model: nnx.Module, *, rename: Rename = None) -> dict[str, Any]:
    """Returns a module's state as Linen's collections of variables, the inverse of `from_linen`.

    The type of a Variable determines the collection: `params`, `batch_stats`, `cache` or `intermediates`. A `Counter`
    goes to `counters`, as int32, a `Buffer` to `buffers`, and any other Variable to a collection named after its type.
    Random streams, and variables with `persistent=False`, are omitted.

    Args:
        model: The module.
        rename: A dict or a function from the module's names to Linen's names, such as `{"layer": "Dense_0"}`.

    Raises:
        InvalidTypeError: `model` is not a module.
        InvalidValueError: A count is beyond int32, or `rename` is invalid.
    """
    found = {}
    for place in places_in(model):
        variable, name = place.holder.variable, place.name
        value = _int32(name, np.asarray(variable)) if isinstance(variable, Counter) else place.leaf
        found[name.removeprefix(f"{MODEL}/")] = (_collection(variable), value)
    result: dict[str, Any] = {}
    for old, new in renamed(found, rename).items():
        collection, value = found[old]
        *parents, last = new.split("/")
        node = result.setdefault(collection, {})
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return result


def _collection(variable: Any) -> str:
    if variable is None:
        return "arrays"
    known = next((name for kind, name in _COLLECTIONS.items() if isinstance(variable, kind)), None)
    return known or type(variable).__name__.lower()


def _int32(name: str, counts: np.ndarray) -> np.ndarray:
    if np.any(counts > np.uint64(_uint64.INT32_MAX)):
        raise InvalidValueError(
            name,
            "the count does not fit into int32, the dtype of a count in Linen.",
            got=describe(counts),
            fix="nnx, which keeps tallax.Counter; or counter.set(n) with n below 2**31",
        )
    return counts.astype(np.int32)
