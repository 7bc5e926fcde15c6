# SPDX-License-Identifier: Apache-2.0
"""The process that grades one file: it may hang, exit or crash, and only this process is lost.

It imports JAX, reports that it is ready, and waits for a request. The request has a token; only messages that contain
it count, so that a file that writes to every descriptor does not grade itself. The end of this file finds a solution
that replaces functions on which grading relies. This is not a sandbox: a file that is determined to cheat can. It finds
the usual ways, and accidents such as an assignment to `jnp.array`.
"""

from __future__ import annotations

import builtins
import functools
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from tallax._child_process import answer
from tallax._quick_compiles import compile_quickly
from tallax.checking._attribute_checks import after_weight_decay
from tallax.checking._source_lines import line_of_error
from tallax.learning import _claims


def main() -> None:
    """Grades one file."""
    say = answer()
    _warm_up()
    say(ready=True)
    line = sys.stdin.readline()
    if line:  # otherwise the parent is gone, or does not need this process
        request = json.loads(line)
        report = functools.partial(say, token=request["token"])
        grade_file(request["exercise"], Path(request["file"]), report)


def _warm_up() -> None:
    """Imports what the claims use, and compiles a program, so that the first claim does not wait for either."""
    for name in ("tallax.checking", "tallax.statistics", "tallax.schedules", "tallax.compiling", "tallax.counters"):
        importlib.import_module(name)
    compile_quickly()

    class Warm(nnx.Module):
        def __init__(self) -> None:
            self.count = nnx.Variable(jnp.zeros((), jnp.int32))
            self.layer = nnx.Linear(2, 2, rngs=nnx.Rngs(0))

        def __call__(self, x: jax.Array) -> jax.Array:
            self.count[...] += 1
            return jnp.mean(self.layer(x) ** 2)

    model = Warm()
    nnx.jit(lambda model, x: nnx.value_and_grad(lambda model: model(x))(model))(model, jnp.ones((2, 2)))
    after_weight_decay(model)


def grade_file(name: str, file: Path, report: Callable[..., None]) -> None:
    """Runs the file and the claims of the exercise, and reports each claim as it begins and the first failure."""
    exercise = importlib.import_module(f"tallax.learning.exercises.{name}")
    before = fingerprint()
    solution = ModuleType("solution")
    sys.modules["solution"] = solution  # pickle looks classes up by it
    runs: _claims.Claim = ("the file runs", functools.partial(_run, file=file, names=exercise.NAMES))
    for sentence, test in (runs, *exercise.CLAIMS):
        report(at=sentence)
        failure = _tested(test, solution)
        if replaced := first_replaced(before):
            failure = {"wrong": "tampers", "got": f"{replaced} is another object"}
        if failure is not None:
            report(claim=sentence, **failure)
            return
        report(held=sentence)
    report(passed=True)


def _run(solution: ModuleType, file: Path, names: tuple[str, ...]) -> None:
    """The first claim: executes the file in a module, which must then have the names of the exercise."""
    solution.__file__ = str(file)
    try:
        code = compile(file.read_text(encoding="utf-8"), str(file), "exec")
    except SyntaxError as error:
        line = f"{file.name}:{error.lineno}: {(error.text or '').strip()}"
        raise _claims.Wrong("syntax", error.msg, source=line) from error
    except (OSError, ValueError) as error:
        raise _claims.Wrong("syntax", _first_line(error)) from error
    try:
        exec(code, solution.__dict__)
    except Exception as error:
        raise _claims.Wrong("import", _first_line(error), source=line_of_error(error)) from error
    for needed in names:
        if not callable(getattr(solution, needed, None)):
            raise _claims.Wrong("missing", f"no {needed} that can be called", needed)


def _tested(test: Callable[[ModuleType], None], solution: ModuleType) -> dict[str, str] | None:
    """Returns the mistake that a claim finds, with its details; None if the claim holds."""
    try:
        test(solution)
    except _claims.Wrong as wrong:
        return {"wrong": wrong.mistake, "got": wrong.got, "expected": wrong.expected, "source": wrong.source}
    except Exception as error:
        is_unfinished = isinstance(error, NotImplementedError) and not error.args
        mistake = "unfinished" if is_unfinished else "raises"
        return {"wrong": mistake, "got": _first_line(error), "source": line_of_error(error)}
    return None


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {(lines or [''])[0][:200]}"


# --- functions that a solution must not replace -----------------------------------------------------------------------

_MODULES = (builtins, jax, jax.numpy, jax.lax, jax.tree, jax.random, flax, nnx, np, optax)
_CLASSES = (nnx.Variable, nnx.Param, nnx.BatchStat, nnx.Module, nnx.Pytree, nnx.Optimizer, nnx.Rngs, nnx.Linear)


def fingerprint() -> dict[str, Any]:
    """Returns the functions, classes and constants that grading relies on, by dotted name."""
    own = [module for name, module in sys.modules.items() if name == "tallax" or name.startswith("tallax.")]
    found = {
        f"{module.__name__}.{name}": value
        for module in (*_MODULES, *own)
        for name, value in vars(module).items()
        if not name.startswith("__") or name == "__import__"
    }
    for cls in _CLASSES:
        found |= {f"{cls.__module__}.{cls.__qualname__}.{name}": value for name, value in vars(cls).items()}
    return found


def first_replaced(before: dict[str, Any]) -> str:
    """Returns the name of the first of these that has been replaced, or an empty string."""
    now = fingerprint()
    # A name that is new is harmless: modules load parts of themselves when they are first used.
    return next((name for name, value in before.items() if now.get(name) is not value and not _is_cache(name)), "")


def _is_cache(name: str) -> bool:
    return name.rpartition(".")[2] in ("__abstractmethods__", "_abc_impl", "__annotations__", "__annotations_cache__")


if __name__ == "__main__":
    main()
