# SPDX-License-Identifier: Apache-2.0
"""Reads `.safetensors` files: a length, JSON, and the bytes of arrays, which are mapped and not loaded.

A large model is in several of them, with an index: JSON that tells the file of each array.

References:
    The format's description in the repository huggingface/safetensors, section Format.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from tallax._errors import CheckpointError, compose
from tallax.checkpoints._manifest import is_too_much

_MOST = 100_000_000  # bytes of JSON, the limit of the format
_DTYPES = {
    "BOOL": np.bool_, "U8": np.uint8, "I8": np.int8, "U16": np.uint16, "I16": np.int16, "U32": np.uint32,
    "I32": np.int32, "U64": np.uint64, "I64": np.int64, "F16": np.float16, "BF16": jnp.bfloat16, "F32": np.float32,
    "F64": np.float64, "C64": np.complex64, "F8_E4M3": jnp.float8_e4m3fn, "F8_E5M2": jnp.float8_e5m2,
}  # fmt: skip


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Returns the arrays of a file by name; none takes memory before it is looked at.

    Raises:
        CheckpointError: the file is missing, damaged, or of another format.
    """
    try:
        content: Any = np.memmap(Path(path), np.uint8, "r")
    except (OSError, ValueError) as error:
        raise _unreadable(path, f"{type(error).__name__}: {error}") from None
    if content.size < 8:
        raise _unreadable(path, f"{content.size} bytes")
    length = int.from_bytes(content[:8].tobytes(), "little")
    if length > min(_MOST, content.size - 8):
        raise _unreadable(path, f"a header of {length} bytes in a file of {content.size}")
    text = content[8 : 8 + length].tobytes()
    if is_too_much(text):
        raise _unreadable(path, f"a header of {length} bytes, with more tensors than any model")
    try:
        header = json.loads(text)
        data = content[8 + length :]
        return {name: _array(data, told) for name, told in header.items() if name != "__metadata__"}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _unreadable(path, f"a header that makes no sense ({type(error).__name__}: {error})") from None


def read_index(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Returns the arrays of several files by name, from the index that lies beside them.

    Raises:
        CheckpointError: as `read` does; or the index and the files do not agree, or it names a file elsewhere.
    """
    text = Path(path).read_bytes() if Path(path).is_file() and Path(path).stat().st_size <= _MOST else b""
    try:
        places = {} if is_too_much(text) else json.loads(text)["weight_map"]
        files = sorted({str(file) for file in places.values()})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _unreadable(path, f"an index that makes no sense ({type(error).__name__})") from None
    for file in files:
        if Path(file).name != file:
            raise _unreadable(path, f"{file!a}, which is not beside the index")
    found: dict[str, np.ndarray] = {}
    for file in files:
        arrays = read(Path(path).parent / file)
        told = {name for name, place in places.items() if place == file}
        for name in arrays.keys() ^ told:
            raise _unreadable(path, f"{name!a}, which is in {file} or in the index, but not in both")
        found |= arrays
    return found


def _array(data: np.ndarray, told: dict[str, Any]) -> np.ndarray:
    dtype, shape = np.dtype(_DTYPES[told["dtype"]]), tuple(told["shape"])
    start, end = told["data_offsets"]
    if not all(type(size) is int and size >= 0 for size in (*shape, start, end)):
        raise ValueError("sizes are not negative")
    if end > data.size or end - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{end - start} bytes at {start} for {dtype}{list(shape)}")
    return data[start:end].view(dtype).reshape(shape)


def _unreadable(path: str | os.PathLike[str], got: str) -> CheckpointError:
    return CheckpointError(
        compose(str(path), "is no readable .safetensors file.", got=got, fix="a file that safetensors wrote")
    )
