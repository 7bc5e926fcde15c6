# SPDX-License-Identifier: Apache-2.0
"""`.safetensors` files, one or several with an index, read with the `safetensors` package."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from tallax._errors import CheckpointError, MissingExtraError
from tallax.checkpoints._manifest import is_too_much

_FLOAT8 = {"F8_E4M3": jnp.float8_e4m3fn, "F8_E5M2": jnp.float8_e5m2}
_MOST = 100_000_000  # the largest index in bytes; the format has the same limit for a header


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
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


def read_index(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
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
        arrays = read(Path(path).parent / file)
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
