# SPDX-License-Identifier: Apache-2.0
"""Reads the arguments of `tallax check FILE:NAME --inputs ...`: objects of a file, and arrays like `float32[8,4]`."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from tallax._errors import StatecheckError

_ARRAY = re.compile(r"(?P<dtype>[a-z]+\d*)\[(?P<shape>[\d,\s]*)\](?:\s*<\s*(?P<high>\d+))?")


def loaded(path: Path) -> ModuleType:
    """Imports a file and returns the module. As in `python FILE`, its folder comes first on the import path.

    Raises:
        StatecheckError: The file does not exist, or raises when it is imported.
    """
    if not path.is_file():
        raise StatecheckError(str(path), "the file does not exist.", fix="tallax check path/to/file.py:Name")
    sys.path.insert(0, str(path.resolve().parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise StatecheckError(str(path), "is not a Python file.", fix="tallax check path/to/file.py:Name")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # pickle finds classes by the name of their module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise StatecheckError(
            str(path), "raises when it is imported.", got=f"{type(error).__name__}: {error}", fix="fix that error first"
        ) from error
    return module


def found(module: ModuleType, name: str) -> Any:
    """Returns the object that a file defines as `name`, which may have dots.

    Raises:
        StatecheckError: The file does not define the name.
    """
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            raise StatecheckError(
                f"{module.__file__}:{name}",
                "the file does not define this name.",
                got=f"modules: {', '.join(modules_in(module)) or 'none'}",
                fix=f"tallax check {module.__file__}:{(modules_in(module) or ['Name'])[0]}",
            )
        value = getattr(value, part)
    return value


def modules_in(module: ModuleType) -> list[str]:
    """Returns the names of the NNX modules that a file itself defines."""
    return [
        name
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, nnx.Module) and value.__module__ == module.__name__
    ]


def input_of(text: str) -> Any:
    """Returns the input that a command-line argument describes.

    `float32[8,4]` is an array of normally distributed numbers, `int32[8,4]<100` an array of integers below 100 (below 2
    if no bound is given), `bool[8]` an array of random booleans. `x.npy` is read from the file. Anything else must be a
    Python literal. The arrays are the same every time.

    Raises:
        StatecheckError: The text is neither an array, a file nor a literal.
    """
    text = text.strip()
    match = _ARRAY.fullmatch(text)
    try:
        if match:
            return _array(match["dtype"], match["shape"], match["high"])
        if text.endswith(".npy"):
            return jnp.asarray(np.load(text, allow_pickle=False))
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, OSError) as error:
        raise StatecheckError(
            "--inputs",
            "accepts arrays by dtype and shape, NumPy files, and Python literals.",
            got=f"{text} ({type(error).__name__}: {error})",
            fix="--inputs 'float32[8,4]' --inputs 'int32[8]<100' --inputs batch.npy --inputs True",
        ) from None


def _array(dtype: str, shape: str, high: str | None) -> Any:
    kind = jnp.dtype(dtype)
    sizes = tuple(int(size) for size in shape.split(",") if size.strip())
    random = np.random.default_rng(0)
    if jnp.issubdtype(kind, jnp.floating):
        return jnp.asarray(random.normal(size=sizes), kind)
    return jnp.asarray(random.integers(0, int(high or 2), size=sizes), kind)
