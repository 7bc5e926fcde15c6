# SPDX-License-Identifier: Apache-2.0
"""Group `imports`: what importing tallax adds in a process that has imported JAX, Flax and optax."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

from benchmarks._timing import Case, Group

_PROMISED_SECONDS = 0.060
# The process imports what is there before, says so, and imports the rest when it is told to.
_PROGRAM = "{before}\nprint(flush=True)\ninput()\n{statement}\nprint(flush=True)\ninput()"
_NEIGHBOURS = "import jax, flax.nnx, optax"
_ALL = "import tallax; [getattr(tallax, name) for name in dir(tallax)]"


def group() -> Group:
    """Returns the cases; each call is a process of its own, of which only the import is timed."""
    cases = [
        _case("flax.nnx, after jax", "import flax.nnx", before="import jax"),
        _case("tallax", "import tallax", limit_seconds=_PROMISED_SECONDS),
        _case("tallax: Counter and StepCounter", "from tallax import Counter, StepCounter"),
        _case("tallax: statistics", "from tallax import statistics"),
        _case("tallax: every name", _ALL),
    ]
    return Group("imports", f"after {_NEIGHBOURS}", cases[0].name, cases, one_call=True, rounds_in_one=15)


def _case(name: str, statement: str, *, before: str = _NEIGHBOURS, limit_seconds: float | None = None) -> Case:
    running: list[subprocess.Popen[bytes]] = []

    def fresh() -> subprocess.Popen[bytes]:
        done()
        code = _PROGRAM.format(before=before, statement=statement)
        process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        running.append(process)
        _answered(process)
        return process

    def done() -> None:
        while running:
            running.pop().communicate(b"\n")

    def make() -> Callable[[subprocess.Popen[bytes]], None]:
        return _told

    return Case(name=name, make=make, fresh=fresh, done=done, limit_seconds=limit_seconds)


def _told(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.write(b"\n")
    process.stdin.flush()
    _answered(process)


def _answered(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    if not process.stdout.readline():
        raise RuntimeError(f"the import ended the process with {process.wait()}")
