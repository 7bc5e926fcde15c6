# SPDX-License-Identifier: Apache-2.0
"""Group `lint`: tallax lint on one core, on files that mention nnx and on files that do not, beside other linters."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import sysconfig
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks._timing import Case, Group
from tallax.lint import Config, lint

# In lines a second, as an issue promises.
_MENTIONING, _OTHERS = 60_000, 600_000
_START_SECONDS = 0.2
_SITE = Path(sysconfig.get_paths()["purelib"])


def group(most: int = 60_000) -> Group:
    """Returns the cases, each on files of about so many lines, or all there are: other linters are slow."""
    cases, references, title = [], [], []
    for what, promised, files in (("nnx", _MENTIONING, _files(most)), ("no nnx", _OTHERS, _files(most, of="jax"))):
        lines = sum(_text(path).count("\n") for path in files)
        title.append(f"{lines:,} lines that mention {what} (promised: {promised:,} a second)")
        references.append(parser := f"ast.parse, {what}")
        cases += [
            Case(name=parser, make=lambda files=files: lambda: [_parsed(path) for path in files], reference=parser),
            Case(
                name=f"tallax lint, {what}",
                make=lambda files=files: lambda: lint(files, Config()),
                reference=parser,
                limit=2.3 if what == "nnx" else None,
                limit_seconds=lines / promised,
            ),
            _other("ruff", what, files, parser, "check", "--isolated", "--no-cache", "--quiet"),
            _other("flake8", what, files, parser, "--isolated", "--jobs=1", "--quiet"),
        ]
    cases += [
        Case(name="python, nothing", make=lambda: _process("-c", "pass"), reference="python, nothing"),
        Case(
            name="tallax lint, from start to finish on one line",
            make=lambda: _process("-m", "tallax.lint", "-", text=b"from flax import nnx\n"),
            reference="python, nothing",
            limit_seconds=_START_SECONDS,
        ),
    ]
    return Group("lint", f"one core, {' and '.join(title)}", references[0], cases, one_call=True, rounds_in_one=30)


def _files(most: int, of: str = "") -> list[str]:
    """Returns files that are installed: those that mention nnx, Flax's own first, or those of a package that do not."""
    found: dict[str, int] = {}
    for folder in (of,) if of else ("flax/nnx", "flax", "orbax", ""):
        for path in map(str, sorted((_SITE / folder).rglob("*.py"))):
            text = _text(path)
            if path not in found and ("nnx" not in text if of else re.search(r"\bnnx\b", text)):  # not `onnx`
                found[path] = text.count("\n")
            if sum(found.values()) >= most:
                return [*found]
    return [*found]


def _text(path: str) -> str:
    return Path(path).read_bytes().decode(errors="replace")


def _parsed(path: str) -> ast.Module | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(_text(path))
        except (SyntaxError, ValueError):  # a template
            return None


def _process(*arguments: str, text: bytes = b"") -> Callable[[], object]:
    # As pip leaves a package: compiled. The first run, which is not timed, writes what a checkout lacks.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, *arguments]
    return lambda: subprocess.run(command, input=text, env=environment, capture_output=True, check=True)


def _other(name: str, what: str, files: Sequence[str], reference: str, *options: str) -> Case:
    def make() -> Callable[[], object]:
        command = [sys.executable, "-m", name, *options, *files]
        environment = os.environ | {"RAYON_NUM_THREADS": "1"}
        return lambda: subprocess.run(command, env=environment, capture_output=True, check=False).stdout

    return Case(name=f"{name}, {what}", make=make, reference=reference, needs=name)
