# SPDX-License-Identifier: Apache-2.0
"""Converts between the state of PyTorch and NNX modules."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax import nnx

from tallax._errors import InvalidValueError, describe
from tallax.checkpoints import RestoreReport
from tallax.checkpoints._policy import Missing, Rename, Spelling, Unexpected, check_rename, renamed
from tallax.checkpoints._serialize import joined, stored
from tallax.interop._named import MODEL, found_in, holders_in, paths_of, put, shapes_in
from tallax.interop._tensors import as_numpy, as_tensor, refuse_nested, state_of
from tallax.variables import Counter

Change = Callable[[np.ndarray], np.ndarray]


def from_torch(
    source: Any,
    model: nnx.Module,
    *,
    missing: Missing = "error",
    unexpected: Unexpected = "error",
    rename: Rename = None,
) -> RestoreReport:
    """Copies the state of a PyTorch module into an NNX module. If it raises, the module does not change.

    Names are matched by attribute: `encoder.weight` goes to `model.encoder.kernel`. PyTorch's `weight` becomes the
    kernel of a linear layer or a convolution, transposed, and split by heads if the layer is an `nnx.LinearGeneral` of
    attention. It becomes the embedding of an `Embed`, and the scale of a norm. `running_mean` and `running_var` become
    the mean and the variance of a `BatchNorm`. All other names must be equal, for example those of `register_buffer`.
    An `nnx.Sequential` has the same numbers as PyTorch's. An integer such as `num_batches_tracked` goes into a
    `tallax.Counter` of the same name, exactly. `nnx.BatchNorm` does not have this counter, so if you do not add one,
    pass `unexpected="ignore"`. Random streams, which PyTorch's modules do not have, do not change.

    Args:
        source: A module, its `state_dict()`, or a path. The path names a `.safetensors` file, the
            `.safetensors.index.json` of several files, or a file in which `torch.save` wrote a `state_dict`. Files are
            not trusted: safetensors files contain no code, and `torch.load` gets `weights_only=True`.
        model: An NNX module with the same layers.
        missing: See `tallax.from_checkpoint`.
        unexpected: See `tallax.from_checkpoint`. Entries that are not tensors are unexpected too.
        rename: A dict or a function from PyTorch's names to the names of attributes, with dots, such as `{"features.0":
            "stem"}`. The paths in errors are accepted too: `layers.0` in an `nnx.Sequential`, `kernel` for a weight.

    Raises:
        CheckpointError: A file cannot be read.
        InvalidTypeError: The source is none of these, `model` is not a module, or `rename` is neither a dict nor a
            function.
        InvalidValueError: An argument is invalid.
        MissingExtraError: `torch` is needed and not installed.
        RestoreError: The source and the module differ in names, shapes or dtypes, or the source has different values
            for one shared Variable.

    Example:
        >>> import numpy as np, tallax
        >>> from flax import nnx
        >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        >>> state = {"weight": np.ones((3, 2), np.float32), "bias": np.zeros(3, np.float32)}
        >>> report = tallax.interop.from_torch(state, model)
        >>> report.renamed
        (('bias', 'model/bias'), ('weight', 'model/kernel'))
    """
    places = _places(model, abstract=True)
    state = state_of(source)
    own = _renamed(state, rename, places)
    full = {_slashed(name): place.name for name, place in places.items()}
    pinned = [_slashed(new) for old, new in own.items() if new != old]
    found = found_in([_slashed(new) for new in own.values()], full, model, pinned=pinned)
    names = {old: found[_slashed(new)] for old, new in own.items() if _slashed(new) in found}
    by_name = {place.name: place for place in reversed(list(places.values()))}
    layouts = {old: places[own[old]] if own[old] in places else by_name[names[old]] for old in names}
    if not names:
        refuse_nested(state)
    arrays = {old: layouts[old].into(as_numpy(old, state[old])) for old in names}
    shapes = shapes_in(model)
    spelling = Spelling(
        wanted={place.name: name for name, place in reversed(list(places.items()))},
        separator=".",
        given=rename,
        fits=lambda old, new: new in by_name and _shape_into(by_name[new], state[old]) == shapes[new],
    )
    others = [old for old in state if old not in names]
    told = {old: own[old] for old in others if own[old] != old}
    return put(arrays, model, names | told, others=others, missing=missing, unexpected=unexpected, spelling=spelling)


def to_torch(model: nnx.Module) -> dict[str, Any]:
    """Returns the state of a module as a PyTorch `state_dict`, the inverse of `from_torch`. Counts become int64.

    Random streams, and variables with `persistent=False`, are omitted. Other random keys are stored as their words. A
    Variable that several attributes share is in it under all their names, as in PyTorch.

    Raises:
        InvalidTypeError: `model` is not a module, or PyTorch does not have one of its dtypes.
        InvalidValueError: A count is beyond int64.
        MissingExtraError: `torch` is not installed.
    """
    result = {}
    names: dict[str, list[tuple[str, _Place]]] = {}
    for name, place in _places(model).items():
        names.setdefault(place.name, []).append((name, place))
    for holder in holders_in(model):
        for full, leaf in zip(holder.names, holder.leaves, strict=True):
            counts = isinstance(holder.variable, Counter)
            array = np.asarray(holder.variable if counts else stored(leaf))
            if array.dtype == np.uint64:
                if np.any(array > np.uint64(2**63 - 1)):
                    raise InvalidValueError(
                        names[full][0][0],
                        "the count does not fit into int64, the dtype of a count in PyTorch.",
                        got=describe(array),
                        fix="counter.set(n) with n below 2**63",
                    )
                array = array.astype(np.int64)
            for name, place in names[full]:  # PyTorch has a shared parameter under each of its names
                result[name] = place.back(array)
    return {name: as_tensor(name, result[name]) for name in sorted(result)}


# --- names and layouts ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Place:
    """The place of a PyTorch array in a module, with the change of layout in both directions."""

    name: str
    into: Change
    back: Change


_WORDS = {
    (nnx.Linear, "kernel"): "weight", (nnx.Conv, "kernel"): "weight", (nnx.ConvTranspose, "kernel"): "weight",
    (nnx.Embed, "embedding"): "weight", (nnx.BatchNorm, "mean"): "running_mean", (nnx.BatchNorm, "var"): "running_var",
    (nnx.BatchNorm, "scale"): "weight", (nnx.LayerNorm, "scale"): "weight", (nnx.GroupNorm, "scale"): "weight",
    (nnx.RMSNorm, "scale"): "weight", (nnx.InstanceNorm, "scale"): "weight",
    (nnx.LinearGeneral, "kernel"): "weight", (nnx.LinearGeneral, "bias"): "bias",
}  # fmt: skip


def _places(model: Any, *, abstract: bool = False) -> dict[str, _Place]:
    """Returns the places of a module by PyTorch's names. A shared part has several names."""
    paths = paths_of(model)
    nodes: dict[Any, Any] = dict(paths)
    holders = holders_in(model, abstract=abstract)
    names = {id(holder.variable): holder.names for holder in holders if holder.variable is not None}
    bare = {holder.names[0] for holder in holders if holder.variable is None}
    found, first = {}, {}
    for path, node in paths:
        name = joined((MODEL, *path))
        base = first.setdefault(id(node), name)
        owner = nodes.get(path[:-1])
        for full in names.get(id(node), (name,) if name in bare else ()):
            parts = [str(part) for k, part in enumerate(path) if not _is_list_of(nodes, path, k)]
            words = (word for (kind, own), word in _WORDS.items() if isinstance(owner, kind) and own == path[-1])
            word = next(words, parts[-1])
            parts[-1:] = [word, *full.removeprefix(base).split("/")[1:]]
            into, back = _layout(owner, path[-1])
            found[".".join(parts)] = _Place(full, into, back)
    return found


def _renamed(state: Mapping[str, Any], rename: Rename, places: Mapping[str, _Place]) -> dict[str, str]:
    """Returns the new names, with dots. Paths of the module are converted to PyTorch's names."""
    check_rename(rename)
    if rename is None:
        return {name: name for name in state}
    if not callable(rename):
        rename = {old if old in state else _dotted(old): _dotted(new) for old, new in rename.items()}
    # A user may also write a path as in errors: `layers.0.kernel` instead of `0.weight`.
    paths = {_dotted(place.name).removeprefix(f"{MODEL}."): name for name, place in reversed(list(places.items()))}
    result = {}
    for old, new in renamed(state, rename, separator=".").items():
        new = _dotted(new)
        short = new.removeprefix(f"{MODEL}.")
        ways = (new, short, paths.get(short), *_as_in_torch(short, paths))
        result[old] = new if new == old else next((way for way in ways if way in places), new)
    return result


def _as_in_torch(name: str, paths: Mapping[str, str]) -> list[str]:
    """Returns PyTorch's name of an array for a name that is a path of the module except for the last part."""
    head, _, last = name.rpartition(".")
    return [own for path, own in paths.items() if path.rpartition(".")[0] == head and own.rpartition(".")[2] == last]


def _is_list_of(nodes: Mapping[Any, Any], path: tuple[Any, ...], k: int) -> bool:
    return path[k] == "layers" and isinstance(nodes.get(path[:k]), nnx.Sequential)


def _layout(owner: Any, attribute: Any) -> tuple[Change, Change]:
    if isinstance(owner, nnx.LinearGeneral) and attribute in ("kernel", "bias"):
        return _general(owner, attribute)
    if attribute != "kernel" or not isinstance(owner, nnx.Linear | nnx.Conv | nnx.ConvTranspose):
        return _same, _same
    # PyTorch's kernel of a transposed convolution is (in, out, *window), and flipped, because it is that of a gradient.
    # So it is flipped here, unless Flax does that.
    if isinstance(owner, nnx.ConvTranspose) and not owner.transpose_kernel:
        return _guarded(_transposed_into), _guarded(_transposed_back)
    return _guarded(lambda x: np.moveaxis(x, (0, 1), (-1, -2))), _guarded(lambda x: np.moveaxis(x, (-1, -2), (0, 1)))


def _general(owner: nnx.LinearGeneral, attribute: str) -> tuple[Change, Change]:
    """Returns the functions that split the features of a linear layer into several axes, such as heads, and back."""
    rows, columns = math.prod(owner.out_features), math.prod(owner.in_features)
    shape, flat = (*owner.in_features, *owner.out_features), (columns, rows)
    if attribute == "bias":
        shape, flat = owner.out_features, (rows,)
    return (
        lambda array: array.T.reshape(shape) if array.shape == flat[::-1] else array,
        lambda array: array.reshape(flat).T if array.shape == shape else array,
    )


def _transposed_into(array: np.ndarray) -> np.ndarray:
    return np.flip(np.moveaxis(array, (0, 1), (-2, -1)), tuple(range(array.ndim - 2)))


def _transposed_back(array: np.ndarray) -> np.ndarray:
    return np.moveaxis(np.flip(array, tuple(range(array.ndim - 2))), (-2, -1), (0, 1))


def _guarded(change: Change) -> Change:
    return lambda array: change(array) if array.ndim >= 2 else array  # the comparison reports a wrong shape


def _same(array: np.ndarray) -> np.ndarray:
    return array


def _slashed(name: str) -> str:
    return name.replace(".", "/")


def _dotted(name: str) -> str:
    return name.replace("/", ".")


def _shape_into(place: _Place, value: Any) -> tuple[int, ...] | None:
    """Returns the shape that a tensor would have in the module, or None if it is not a tensor."""
    shape = getattr(value, "shape", None)
    return None if shape is None else place.into(np.broadcast_to(np.zeros(()), tuple(shape))).shape
