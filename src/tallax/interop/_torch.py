# SPDX-License-Identifier: Apache-2.0
"""Converts between the state of PyTorch and NNX modules."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax import nnx

from tallax._errors import InvalidValueError, describe
from tallax.checkpoints import RestoreReport
from tallax.checkpoints._policy import Missing, Policy, Rename, Unexpected, check_rename, renamed
from tallax.checkpoints._serialize import stored
from tallax.interop._named import MODEL, Place, match, places_in, put
from tallax.interop._tensors import as_numpy, as_tensor, refuse_nested, state_of

Change = Callable[[np.ndarray], np.ndarray]
# The place of a PyTorch array in a module, and the change of layout into the module and back.
Placed = tuple[Place, Change, Change]


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
    policy = Policy(missing, unexpected, rename, separator=".")
    places = _places(model, abstract=True)
    state = state_of(source)
    own = _renamed(state, rename, places)
    slashed = {old: _slashed(new) for old, new in own.items()}
    found = match(slashed, {_slashed(name): place for name, (place, _, _) in places.items()})
    if not found:
        refuse_nested(state)
    by_name = {placed[0].name: placed for placed in reversed(list(places.values()))}
    layouts = {old: places.get(own[old], by_name[name]) for old, name in found.items()}
    arrays = {old: into(as_numpy(old, state[old])) for old, (_, into, _) in layouts.items()}
    in_vain = {old: f"{MODEL}/{new}" for old, new in own.items() if new != old}
    others = [old for old in state if old not in found]
    return put(arrays, model, in_vain | found, policy, others=others)


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
    for name, (place, _, back) in _places(model).items():  # PyTorch has a shared parameter under each of its names
        array = np.asarray(place.holder.variable if place.holder.kind == "Counter" else stored(place.leaf))
        if array.dtype == np.uint64:
            if np.any(array > np.uint64(2**63 - 1)):
                raise InvalidValueError(
                    name,
                    "the count does not fit into int64, the dtype of a count in PyTorch.",
                    got=describe(array),
                    fix="counter.set(n) with n below 2**63",
                )
            array = array.astype(np.int64)
        result[name] = back(array)
    return {name: as_tensor(name, result[name]) for name in sorted(result)}


# --- names and layouts ------------------------------------------------------------------------------------------------


_WORDS = {
    (nnx.Linear, "kernel"): "weight", (nnx.Conv, "kernel"): "weight", (nnx.ConvTranspose, "kernel"): "weight",
    (nnx.Embed, "embedding"): "weight", (nnx.BatchNorm, "mean"): "running_mean", (nnx.BatchNorm, "var"): "running_var",
    (nnx.BatchNorm, "scale"): "weight", (nnx.LayerNorm, "scale"): "weight", (nnx.GroupNorm, "scale"): "weight",
    (nnx.RMSNorm, "scale"): "weight", (nnx.InstanceNorm, "scale"): "weight",
    (nnx.LinearGeneral, "kernel"): "weight", (nnx.LinearGeneral, "bias"): "bias",
}  # fmt: skip


def _places(model: Any, *, abstract: bool = False) -> dict[str, Placed]:
    """Returns the places of a module by PyTorch's names. A shared part has several names."""
    found = {}
    for place in places_in(model, abstract=abstract):
        owner, last = place.owners[-1], place.path[-1]
        steps = zip(place.owners, place.path, strict=True)
        parts = [str(part) for above, part in steps if part != "layers" or not isinstance(above, nnx.Sequential)]
        words = (word for (kind, own), word in _WORDS.items() if isinstance(owner, kind) and own == last)
        parts[-1:] = [next(words, parts[-1]), *place.inner]
        found[".".join(parts)] = (place, *_layout(owner, last))
    return found


def _renamed(state: Mapping[str, Any], rename: Rename, places: Mapping[str, Placed]) -> dict[str, str]:
    """Returns the new names, with dots. Paths of the module are converted to PyTorch's names."""
    check_rename(rename)
    if rename is None:
        return {name: name for name in state}
    if not callable(rename):
        rename = {old if old in state else _dotted(old): _dotted(new) for old, new in rename.items()}
    # A user may also write a path as in errors: `layers.0.kernel` instead of `0.weight`.
    paths = {_dotted(at[0].name).removeprefix(f"{MODEL}."): name for name, at in reversed(list(places.items()))}
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


def _layout(owner: Any, attribute: Any) -> tuple[Change, Change]:
    if isinstance(owner, nnx.LinearGeneral) and attribute in ("kernel", "bias"):
        return _general(owner, attribute)
    if attribute != "kernel" or not isinstance(owner, nnx.Linear | nnx.Conv | nnx.ConvTranspose):
        return (lambda array: array), (lambda array: array)
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


def _slashed(name: str) -> str:
    return name.replace(".", "/")


def _dotted(name: str) -> str:
    return name.replace("/", ".")
