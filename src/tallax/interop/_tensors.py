# SPDX-License-Identifier: Apache-2.0
"""Converts between PyTorch tensors, also in `.pt` and `.safetensors` files, and NumPy arrays."""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tallax._errors import CheckpointError, InvalidTypeError, MissingExtraError, describe
from tallax.checkpoints._manifest import is_too_much
from tallax.checkpoints._serialize import stored

# The dtypes that PyTorch and NumPy can only exchange as integers of the same size.
_NARROW = ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu")
_FLOAT8 = {"F8_E4M3": jnp.float8_e4m3fn, "F8_E5M2": jnp.float8_e5m2}
_MOST = 100_000_000  # the largest index in bytes; the format has the same limit for a header


def state_of(source: Any) -> Mapping[str, Any]:
    """Returns the entries of a module, a `state_dict` or a file, unchanged. Raises for anything else."""
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if path.name.endswith(".safetensors.index.json"):
            source = _read_index(path)
        else:
            source = _read_safetensors(path) if path.suffix == ".safetensors" else _loaded(path)
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


def _read_safetensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Returns the arrays of a file by name.

    Raises:
        CheckpointError: The file is missing, damaged, or of another format.
        MissingExtraError: `safetensors` is not installed.
    """
    try:
        from safetensors import deserialize, safe_open
    except ModuleNotFoundError:
        raise MissingExtraError.of("tallax.interop", "torch", "safetensors") from None
    try:
        with safe_open(path, framework="np") as file:
            kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 (no mapping)
            found = {name: file.get_tensor(name) for name, kind in kinds.items() if not kind.startswith("F8")}
        if len(found) < len(kinds):
            # NumPy alone has no float8, so safetensors cannot make these arrays. It returns their bytes.
            for name, part in deserialize(Path(path).read_bytes()):
                if name not in found:
                    found[name] = np.frombuffer(part["data"], _FLOAT8[part["dtype"]]).reshape(part["shape"])
    except Exception as error:  # SafetensorError derives from Exception, and the file may be missing
        raise _unreadable(path, f"{type(error).__name__}: {error}") from None
    return found


def _read_index(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Returns the arrays of several files by name, read through their JSON index.

    Raises:
        CheckpointError: A file cannot be read, the index and the files disagree, or it names a file in another folder.
        MissingExtraError: `safetensors` is not installed.
    """
    text = Path(path).read_bytes() if Path(path).is_file() and Path(path).stat().st_size <= _MOST else b""
    try:
        places: Any = {} if is_too_much(text) else json.loads(text)["weight_map"]
        files = sorted({str(file) for file in places.values()})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _unreadable(path, f"an index that cannot be parsed ({type(error).__name__})") from None
    for file in files:
        if Path(file).name != file:
            raise _unreadable(path, f"{file!a}, which is not beside the index")
    found: dict[str, np.ndarray] = {}
    for file in files:
        arrays = _read_safetensors(Path(path).parent / file)
        listed = {name for name, place in places.items() if place == file}
        for name in arrays.keys() ^ listed:
            raise _unreadable(path, f"{name!a}, which is in {file} or in the index, but not in both")
        found |= arrays
    return found


def _unreadable(path: str | os.PathLike[str], got: str) -> CheckpointError:
    got = "".join(character for character in got if character.isprintable())[:200]
    return CheckpointError(
        str(path), "cannot be read as a .safetensors file.", got=got, fix="a file that safetensors wrote"
    )


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
            return words.view(jnp.dtype(kind))
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
