# SPDX-License-Identifier: Apache-2.0
"""Imports the names of a package at first use (PEP 562). They are listed once, in the package's stub."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any


def lazily(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Returns the `__getattr__`, `__dir__` and `__all__` of a package.

    Type checkers read the stub beside `file`, `__init__.pyi`, so it has every public name, one on each line: `from HOME
    import NAME as NAME`. The same lines are read here, so the two lists cannot differ.
    """
    homes: dict[str, str] = {}
    with open(file.removesuffix("c") + "i", encoding="utf-8") as stub:
        for line in stub:
            if line.startswith("from "):
                _, home, _, name, *_ = line.split()
                homes[name] = home

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = homes[name]
        value = importlib.import_module(f"{home}.{name}") if home == package else _attribute(home, name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return get, names, sorted(name for name in homes if not name.startswith("_"))


def _attribute(home: str, name: str) -> Any:
    return getattr(importlib.import_module(home), name)
