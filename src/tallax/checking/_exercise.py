# SPDX-License-Identifier: Apache-2.0
"""Grades the exercise: `counter_after_n_calls` on the cases of the problem, `StepCounter` by statecheck."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any

from flax import nnx

from tallax._errors import StatecheckError, compose
from tallax.checking import _answers
from tallax.checking._collecting import Collected
from tallax.checking._matrix import outcome_of
from tallax.checking._report import Cell, Finding, Outcome, Report
from tallax.checking._source_lines import place
from tallax.checking._statecheck import check_into


def write_starter(path: Path) -> None:
    """Writes the file to start the exercise from.

    Raises:
        StatecheckError: something is there already, or the path does not end in .py.
    """
    if path.suffix != ".py":  # as where FILE:NAME is meant to be checked
        raise StatecheckError(
            compose("--start", "names a file of Python to write.", got=str(path), fix="--start solution.py")
        )
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(resources.files("tallax.checking.exercise").joinpath("starter.py").read_text(encoding="utf-8"))
    except OSError as error:
        raise StatecheckError(
            compose(str(path), "cannot be started.", got=f"{type(error).__name__}: {error}", fix="name a new file")
        ) from None


def graded(module: ModuleType, collected: Collected | None = None) -> Report:
    """Returns the grade of a solution: a finding for every case that fails, and what statecheck says of the class.

    The results are collected as they come, in `collected` if it is given.
    """
    collected = collected or Collected("")
    name = collected.name = f"{module.__name__}.py"
    function = getattr(module, "counter_after_n_calls", None)
    counter = getattr(module, "StepCounter", None)
    for missing, thing in (("StepCounter", counter), ("counter_after_n_calls", function)):
        if not callable(thing):
            _add(collected, missing, [_answers.finding("exercise", missing, "is not defined.", "missing")])
    if callable(counter):
        deprecated: list[Finding] = []
        with _answers.watched_value_access(deprecated):
            found, runs = _answers.of_class(counter)
        _add(collected, "StepCounter, called", [*found, *deprecated])
        if runs:
            _check_class(collected, counter)
            collected.name = name
    if callable(function):
        deprecated = []
        with _answers.watched_value_access(deprecated):
            found, right = _answers.of_function(function, counter)
        note = f"{right} of {len(_answers.CASES)} cases"
        _add(collected, "counter_after_n_calls", [*found, *deprecated], note)
    reads = [*_host_reads(function, in_loop=True), *_host_reads(counter, in_loop=False)]
    _add(collected, "no read in the loop", reads)
    return collected.report()


def _add(collected: Collected, check: str, found: list[Finding], note: str = "") -> None:
    collected.notify(check)
    collected.add(Cell(check, "", outcome_of(found), note), *found)


def _check_class(collected: Collected, counter: Any) -> None:
    """Adds what statecheck says of the class. A count of 32 bits is wide enough for the problem, so it only warns."""
    adjust = _leniently if _answers.is_wide(counter) else None
    check_into(collected, lambda: counter(nnx.Rngs(0)), adjust=adjust)


def _leniently(result: Cell | Finding) -> Cell | Finding:
    if isinstance(result, Finding) and result.rule == "narrow-counter":
        return dataclasses.replace(result, is_warning=True)
    if isinstance(result, Cell) and result.outcome is Outcome.FAILED and result.check == "width of counts":
        return dataclasses.replace(result, outcome=Outcome.WARNED)
    return result


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
        _answers.finding(
            "host-sync",
            "step",
            f"`{ast.unparse(call)}` waits for the device" + (" in every turn of the loop." if in_loop else "."),
            "host",
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
