# SPDX-License-Identifier: Apache-2.0
"""`tallax doctor`: prints versions, devices, modes and extras for a bug report.

JAX runs in a separate process, because starting a backend can raise, hang or end the process, and the rest of the
report must still be printed. Modes of Flax are detected by feature, not by version.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import re
import subprocess
import sys
import traceback
from collections.abc import Sequence
from importlib import metadata
from typing import Any

_PACKAGES = ("tallax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
# These select the backend and the modes, and their values reveal neither machines nor folders.
_VARIABLES = ("JAX_PLATFORMS", "JAX_ENABLE_X64", "XLA_FLAGS", "NNX_GRAPH_MODE", "NNX_GRAPH_UPDATES")
_PROBE_SECONDS = 120.0
_MARK = "tallax doctor: "


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the installed packages and the devices that JAX finds, and returns 0. Errors are printed as values."""
    parser = argparse.ArgumentParser("tallax doctor", description="Print a report to paste into a bug report.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    found = examined()
    print(json.dumps(found, indent=2) if options.json else worded(found))
    return 0


def examined() -> dict[str, Any]:
    """Returns the report as JSON values."""
    return {
        "python": f"{platform.python_version()} ({platform.python_implementation()}, {platform.platform()})",
        "packages": {name: _version(name) for name in _PACKAGES},
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "jax": _asked_apart(),
        "extras": extras(),
    }


def extras() -> dict[str, dict[str, str | None]]:
    """Returns the packages of each extra with their installed versions; None if a package is missing."""
    try:
        requirements = metadata.requires("tallax") or []
    except metadata.PackageNotFoundError:  # a source tree on the path
        return {}
    found: dict[str, dict[str, str | None]] = {}
    for requirement in requirements:
        named = re.match(r"[\w.-]+", requirement)
        extra = re.search(r"""extra\s*==\s*["']([\w.-]+)["']""", requirement)
        if named and extra:
            found.setdefault(extra[1], {})[named[0]] = _version(named[0])
    return found


def worded(found: dict[str, Any]) -> str:
    """Returns the report as lines of plain text."""
    rows = [("python", found["python"])]
    rows += [(name, version or "not installed") for name, version in found["packages"].items()]
    if found["packages"]["tallax"] is None:
        rows[1] = ("tallax", "not installed: a source tree, whose extras are not known")
    rows += found["environment"].items()
    rows += _of_jax(found["jax"])
    for extra, packages in found["extras"].items():
        missing = [name for name, version in packages.items() if version is None]
        there = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
        said = f"needs {', '.join(missing)}: pip install 'tallax[{extra}]'" if missing else there
        rows.append((f"[{extra}]", said))
    width = max(len(label) for label, _ in rows)
    return "\n".join(f"{label:<{width}}  {said}".rstrip() for label, said in rows)


def _of_jax(jax: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [("backend", jax["backend"])] if "backend" in jax else []
    if "devices" in jax:
        kinds = [f"{jax['devices'].count(kind)} x {kind}" for kind in dict.fromkeys(jax["devices"])]
        processes = f", in {jax['processes']} processes" if jax["processes"] > 1 else ""
        rows.append(("devices", ", ".join(kinds) + processes))
    if "x64" in jax:
        rows.append(("x64", "on" if jax["x64"] else "off"))
    if "nnx" in jax:
        rows.append(("nnx", jax["nnx"]))
    for subject, error in jax["errors"].items():
        first, *rest = error.splitlines() or [""]
        rows += [(subject, f"FAILED: {first}"), *(("", line) for line in rest)]
    return rows


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _asked_apart(seconds: float = _PROBE_SECONDS) -> dict[str, Any]:
    """Returns the report of a process that imports JAX and Flax, or how it ended instead."""
    # -P: files in the working folder must not shadow packages, as they do not for the `tallax` command.
    command = [sys.executable, "-P", "-c", f"from {__name__} import probe; probe()"]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return {"errors": {"backend": f"JAX did not start within {seconds:g} s"}}
    for line in ended.stdout.splitlines():
        if line.startswith(_MARK):
            return json.loads(line.removeprefix(_MARK))
    last = "\n".join(ended.stderr.strip().splitlines()[-3:])
    return {"errors": {"backend": f"the process that asked JAX ended with {ended.returncode}\n{last}".rstrip()}}


def probe() -> None:
    """Prints the report of JAX and Flax on a marked line. Output of these libraries themselves is discarded."""
    found: dict[str, Any] = {}
    errors: dict[str, str] = {}
    for subject, ask in (("jax", _ask_jax), ("backend", _ask_backend), ("nnx", _ask_nnx)):
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                found |= ask()
        except Exception as error:  # any failure of JAX is part of the report
            raised_by = traceback.extract_tb(error.__traceback__)[-1].name  # some assertions of JAX have no message
            errors[subject] = f"{type(error).__name__}: {str(error) or f'raised by {raised_by}()'}"
    print(_MARK + json.dumps(found | {"errors": errors}))


def _ask_jax() -> dict[str, Any]:
    import jax

    return {"x64": bool(jax.config.read("jax_enable_x64"))}


def _ask_backend() -> dict[str, Any]:
    import jax

    return {
        "backend": jax.default_backend(),
        "devices": [device.device_kind for device in jax.devices()],
        "processes": jax.process_count(),
    }


def _ask_nnx() -> dict[str, Any]:
    from flax import nnx

    if not hasattr(nnx, "set_graph_mode"):
        return {"nnx": "graph mode, the only one"}
    if not nnx.set_graph_mode.current_value():
        return {"nnx": "tree mode by default"}
    updates = nnx.set_graph_updates.current_value() if hasattr(nnx, "set_graph_updates") else True
    return {"nnx": "graph mode by default" + ("" if updates else ", graph_updates=False")}
