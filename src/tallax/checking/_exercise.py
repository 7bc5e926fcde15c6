# SPDX-License-Identifier: Apache-2.0
"""Grades the exercise: `counter_after_n_calls` on the cases of the problem, `StepCounter` by statecheck."""

from __future__ import annotations

import ast
import inspect
import textwrap
import time
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tallax._errors import CannotCheckError, compose, describe
from tallax.checking._matrix import outcome_of
from tallax.checking._report import Cell, Finding, Report
from tallax.checking._sources import line_of_error, place
from tallax.checking._statecheck import condensed, statecheck

# (seed, n_calls): no call, one, several, a float that holds a whole number, and seeds past 16 and 31 bits.
CASES = ((0, 0), (0, 1), (42, 5), (7, 12), (3.0, 4.0), (65_537, 3), (2**31 - 1, 2), (2**32 - 1, 3), (1, 100))

_HINTS = {
    "missing": "tallax check --start solution.py writes a file to start from",
    "body": "fill in what the comments say",
    "raises": "mend what raises: StepCounter(nnx.Rngs(0))() and counter_after_n_calls(0, 5) have to run",
    "value": "make the counter once, call it n_calls times, then return jnp.array([counter.step.value, n_calls])",
    "type": "jnp.array([counter.step.value, n_calls]): one integer array of shape (2,)",
    "scalar": "return self.step.value, and start it as an integer: jnp.zeros((), jnp.int32)",
    "argument": "int(seed) and int(n_calls) take floats that hold whole numbers: nnx.Rngs(int(seed))",
    "iadd": "self.step[...] += 1 writes into the Variable (self.step.value += 1 too); a tallax.Counter takes "
    "self.step += 1 as it is",
    "host": "leave it on the device: read the counter once, after the loop, and there without int()",
    "key": "rngs.params() takes one key; take it once, in __init__",
}


def write_starter(path: Path) -> None:
    """Writes the file to start the exercise from.

    Raises:
        CannotCheckError: something is there already, or the path does not end in .py.
    """
    if path.suffix != ".py":  # as where FILE:NAME is meant to be checked
        raise CannotCheckError(
            compose("--start", "names a file of Python to write.", got=str(path), fix="--start solution.py")
        )
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(resources.files("tallax.checking.exercise").joinpath("starter.py").read_text(encoding="utf-8"))
    except OSError as error:
        raise CannotCheckError(
            compose(str(path), "cannot be started.", got=f"{type(error).__name__}: {error}", fix="name a new file")
        ) from None


def graded(module: ModuleType, *, on_progress: Callable[[str], None] = lambda check: None) -> Report:
    """Returns the grade of a solution: a finding for every case that fails, and what statecheck says of the class."""
    began = time.perf_counter()
    cells: list[Cell] = []
    findings: list[Finding] = []

    def add(check: str, found: list[Finding], note: str = "") -> None:
        on_progress(check)
        cells.append(Cell(check, "", outcome_of(found), note))
        findings.extend(finding for finding in found if finding not in findings)

    function = getattr(module, "counter_after_n_calls", None)
    counter = getattr(module, "StepCounter", None)
    for name, thing in (("StepCounter", counter), ("counter_after_n_calls", function)):
        if not callable(thing):
            add(name, [_finding("exercise", name, "is not defined.", "missing")])
    if callable(counter):
        found, runs = _of_class(counter)
        add("StepCounter, called", found)
        if runs:
            report = statecheck(lambda: counter(nnx.Rngs(0)), on_progress=on_progress)  # pyright: ignore[reportOptionalCall]
            cells += report.cells
            findings += report.findings
    if callable(function):
        found = [finding for seed, n_calls in CASES for finding in _of_case(function, seed, n_calls)]
        add("counter_after_n_calls", condensed(found), f"{len(CASES) - len(found)} of {len(CASES)} cases")
    add("no read in the loop", [*_host_reads(function, in_loop=True), *_host_reads(counter, in_loop=False)])
    versions = f"flax {flax.__version__}, jax {jax.__version__}"
    order = sorted(findings, key=lambda finding: finding.is_warning)
    return Report(f"{module.__name__}.py", tuple(cells), tuple(order), time.perf_counter() - began, versions)


def _finding(rule: str, path: str, message: str, hint: str, got: str = "") -> Finding:
    return Finding(rule, path, message, got=got, fix=_HINTS[hint])


def _of_class(counter: Any) -> tuple[list[Finding], bool]:
    """Returns what is wrong with a counter that is made and called twice, and whether that ran to its end."""
    rngs = nnx.Rngs(0)
    found = []
    try:
        made = counter(rngs)
        taken = sum(int(v[...]) for v in jax.tree.leaves(nnx.state(rngs, nnx.RngCount), is_leaf=_is_variable))
        if taken != 1:
            found.append(_finding("exercise", "rngs", "one key is taken from rngs.", "key", got=f"{taken} keys"))
        start = _value(made.step)
        results = [made(), made()]
        if None in results:
            return [_finding("exercise", "output", "is the new count.", "scalar", got="None")], False
        counts = [int(result) for result in results]
    except Exception as error:
        return [_raised(error)], False
    if start != 0 or counts != [1, 2]:
        found.append(
            _finding(
                "exercise",
                "step",
                "starts at 0, and two calls return 1 and 2.",
                "value",
                got=f"{start}, then {counts}",
            )
        )
    if not all(_is_count(result, ()) for result in results):
        got = describe(results[0])
        found.append(_finding("exercise", "output", "is an integer scalar of NumPy or JAX.", "scalar", got=got))
    return found, True


def _raised(error: Exception) -> Finding:
    line = line_of_error(error)
    # A plain Variable has no in-place addition, and says so in one of two ways.
    is_iadd = "+=" in line and ".value" not in line and "[" not in line
    hint = "iadd" if is_iadd else "body" if _is_unwritten(error) else "raises"
    return Finding(
        "replaced-variable" if is_iadd else "exercise",
        "step" if is_iadd else "",
        "self.step += 1 on a plain nnx.Variable raises." if is_iadd else "raises when it is made or called.",
        got=f"{type(error).__name__}: {error}".split("\n")[0],
        fix=_HINTS[hint],
        source=line,
    )


def _is_unwritten(error: Exception) -> bool:
    return isinstance(error, NotImplementedError) and not error.args  # the starter's own; Flax's says something


def _of_case(function: Any, seed: float, n_calls: float) -> list[Finding]:
    where = (f"counter_after_n_calls({seed}, {n_calls})",)
    expected = [int(n_calls)] * 2
    try:
        result = function(seed, n_calls)
    except Exception as error:
        hint = "body" if _is_unwritten(error) else "argument" if isinstance(seed, float) else "raises"
        return [
            Finding(
                "exercise",
                "counter_after_n_calls",
                "raises.",
                where,
                f"{type(error).__name__}: {error}".split("\n")[0],
                str(expected),
                _HINTS[hint],
                line_of_error(error),
            )
        ]
    if not _is_count(result, (2,)):
        return [
            Finding(
                "exercise",
                "counter_after_n_calls",
                "returns something of another type or shape.",
                where,
                describe(result),
                "a JAX array of integers with shape (2,)",
                _HINTS["type"],
            )
        ]
    got = np.asarray(result).tolist()
    if got != expected:
        return [
            Finding("exercise", "counter_after_n_calls", "miscounts.", where, str(got), str(expected), _HINTS["value"])
        ]
    return []


def _is_count(value: Any, shape: tuple[int, ...]) -> bool:
    return (
        isinstance(value, jax.Array | np.integer)
        and jnp.issubdtype(value.dtype, jnp.integer)
        and tuple(value.shape) == shape
    )


def _is_variable(node: Any) -> bool:
    return isinstance(node, nnx.Variable)


def _value(step: Any) -> int:
    return int(step.get_value() if isinstance(step, nnx.Variable) else step)


def _host_reads(thing: Any, *, in_loop: bool) -> list[Finding]:
    """Returns a finding for each read of a counter to the host within a loop of a function, or within `__call__`."""
    function = thing if in_loop else vars(thing).get("__call__") if isinstance(thing, type) else None
    if not inspect.isfunction(function):
        return []
    try:
        lines, first = inspect.getsourcelines(function)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, SyntaxError):
        return []
    reads = []
    for scope in (node for node in ast.walk(tree) if not in_loop or isinstance(node, ast.For | ast.While)):
        body = scope.body if isinstance(scope, ast.For | ast.While) else [scope]
        reads += [call for part in body for call in _reading_calls(part)]
    return [
        Finding(
            "host-sync",
            "step",
            f"`{ast.unparse(call)}` waits for the device" + (" in every turn of the loop." if in_loop else "."),
            fix=_HINTS["host"],
            source=place(function.__code__.co_filename, first + call.lineno - 1),
        )
        for call in {ast.dump(call): call for call in reads}.values()
    ]


def _reading_calls(tree: ast.AST) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        reads = name in ("int", "float", "bool", "jax.device_get", "np.asarray", "numpy.asarray") and node.args
        if (reads and not isinstance(node.args[0], ast.Constant)) or name.endswith((".item", ".tolist")):
            yield node
