# SPDX-License-Identifier: Apache-2.0
"""Converts between PyTorch tensors, also in files, and NumPy arrays."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tallax._errors import CheckpointError, InvalidTypeError, MissingExtraError, describe
from tallax.checkpoints._serialize import stored
from tallax.interop import _safetensors

# The dtypes that PyTorch and NumPy can only exchange as integers of the same size.
_NARROW = ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu")


def state_of(source: Any) -> Mapping[str, Any]:
    """Returns the entries of a module, a `state_dict` or a file, unchanged. Raises for anything else."""
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if path.name.endswith(".safetensors.index.json"):
            source = _safetensors.read_index(path)
        else:
            source = _safetensors.read(path) if path.suffix == ".safetensors" else _loaded(path)
    state = source.state_dict() if hasattr(source, "state_dict") else source
    # Unprintable names could contain escape codes for the terminal that shows an error.
    if not isinstance(state, Mapping) or not all(isinstance(name, str) and name.isprintable() for name in state):
        raise InvalidTypeError(
            "from_torch",
            "requires a module, a state_dict, or the path of a file.",
            got=_on_one_line(ascii(source)) if isinstance(source, Mapping) else describe(source),
            fix="from_torch(module, model), from_torch('model.safetensors', model)",
        )
    return state


def _loaded(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(str(path), "is not a file.", fix="the path of a .pt or .safetensors file")
    torch, is_zip = _torch(), zipfile.is_zipfile(path)
    try:  # memory-mapped, so that values take no memory before they are compared
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        said = _on_one_line(f"{type(error).__name__}: {error}")
        raise CheckpointError(
            str(path),
            "cannot be read as tensors without running code from the file.",
            got=said if is_zip else "not a zip archive, the format of PyTorch since 1.6",
            fix="torch.save(module.state_dict(), path), by PyTorch 1.6 or later",
        ) from None
    return found


def _on_one_line(text: str) -> str:
    """Returns the beginning of a text without escape codes, because PyTorch prints parts of its errors in bold."""
    return re.sub(r"\x1b\[\d*m", "", text.splitlines()[0])[:200]


def refuse_nested(state: Mapping[str, Any]) -> None:
    """Raises if an entry of the mapping is itself a `state_dict`, as in most checkpoints of a training run."""
    for name, value in state.items():
        if isinstance(value, Mapping) and any(hasattr(entry, "shape") for entry in value.values()):
            raise _no_tensor(name, value)


def _no_tensor(name: str, value: Any) -> InvalidTypeError:
    return InvalidTypeError(
        name,
        "a state_dict must contain tensors.",
        got=" ".join(describe(value).split()),
        fix="the entry that is a state_dict, such as torch.load(path, weights_only=True)['state_dict']",
    )


def as_numpy(name: str, value: Any) -> np.ndarray:
    """Returns a tensor or an array as a NumPy array. Raises, with its name, if NumPy has no such array."""
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return np.asarray(stored(value))
    if not (hasattr(value, "detach") and hasattr(value, "numpy")):
        raise _no_tensor(name, value)
    kind = str(value.dtype).removeprefix("torch.")
    try:
        tensor = value.detach().cpu().resolve_conj().resolve_neg()
        if kind in _NARROW:
            torch = _torch()
            words = tensor.contiguous().view(torch.int16 if kind == "bfloat16" else torch.int8).numpy()
            return words.view(jax.numpy.dtype(kind))
        return tensor.numpy()
    except (TypeError, RuntimeError):  # includes NotImplementedError, which a tensor without data raises
        raise InvalidTypeError(
            name,
            "the tensor must be dense and numeric, and have values, because NumPy has no other arrays.",
            got=f"{value.dtype}, {value.layout}, on {value.device.type!r}".replace("torch.", ""),
            fix="tensor.to_dense(), tensor.dequantize(), or a module that has its weights",
        ) from None


def as_tensor(name: str, array: np.ndarray) -> Any:
    """Returns an array as a tensor with the same bits. Raises, with its name, if PyTorch does not have the dtype."""
    torch = _torch()
    array = np.array(array, order="C")  # a copy, because JAX's memory must not be written to
    kind = str(array.dtype)
    if kind in _NARROW:
        words = array.view(np.int16 if kind == "bfloat16" else np.int8)
        return torch.from_numpy(words).view(getattr(torch, kind))
    try:
        return torch.from_numpy(array)
    except TypeError:
        raise InvalidTypeError(
            name, "PyTorch has no such dtype.", got=describe(array), fix="cast it explicitly"
        ) from None


def _torch() -> Any:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        raise MissingExtraError.of("tallax.interop", "torch", "torch") from None
    return torch
