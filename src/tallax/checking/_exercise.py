# SPDX-License-Identifier: Apache-2.0
"""Grades the exercise: `counter_after_n_calls` on the cases of the problem, `StepCounter` by statecheck."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import inspect
import textwrap
import warnings
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tallax._errors import StatecheckError, describe
from tallax.checking._check_results import Collected, outcome_of
from tallax.checking._report import Cell, Finding, Outcome, Report
from tallax.checking._source_lines import is_users, line_of_error, place
from tallax.checking._statecheck import check_into
from tallax.variables import Counter

# (seed, n_calls): no call, one, several, a float that holds a whole number, and seeds past 16 and 31 bits.
CASES = ((0, 0), (0, 1), (42, 5), (7, 12), (3.0, 4.0), (65_537, 3), (2**31 - 1, 2), (2**32 - 1, 3), (1, 100))
# Of none of the cases, in case a solution keeps what it has returned.
_OTHER_CASE, _START = (11, 4), 3

HINTS = {
    "missing": "tallax check --start solution.py writes a file to start from",
    "body": "fill in what the comments say",
    "raises": "fix the error: StepCounter(nnx.Rngs(0))() and counter_after_n_calls(0, 5) must run",
    "value": "make the counter once, call it n_calls times, then return jnp.array([counter.step[...], n_calls])",
    "type": "jnp.array([counter.step[...], n_calls], jnp.float32): one array of two numbers",
    "scalar": "return self.step[...], and start it as a number: jnp.zeros((), jnp.int32)",
    "argument": "int(seed) and int(n_calls) take floats that hold whole numbers: nnx.Rngs(int(seed))",
    "iadd": "self.step[...] += 1 writes into the Variable (self.step.value += 1 too); with a tallax.Counter, "
    "self.step += 1 works",
    "host": "keep it on the device: read the counter once, after the loop, without int() or float()",
    "key": "rngs.params() takes one key; take it once, in __init__",
    ".value": "self.step[...] += 1, and return self.step[...]",
}


def write_starter(path: Path) -> None:
    """Writes the file to start the exercise from.

    Raises:
        StatecheckError: Something is there already, or the path does not end in .py.
    """
    if path.suffix != ".py":  # as where FILE:NAME is meant to be checked
        raise StatecheckError(
            "--start", "requires the name of a Python file to create.", got=str(path), fix="--start solution.py"
        )
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(resources.files("tallax.checking.exercise").joinpath("starter.py").read_text(encoding="utf-8"))
    except OSError as error:
        raise StatecheckError(
            str(path), "cannot be created.", got=f"{type(error).__name__}: {error}", fix="name a new file"
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
            _add(collected, missing, [finding("exercise", missing, "is not defined.", "missing")])
    if callable(counter):
        deprecated: list[Finding] = []
        with watched_value_access(deprecated):
            found, runs = of_class(counter)
        _add(collected, "StepCounter, called", [*found, *deprecated])
        if runs:
            _check_class(collected, counter)
            collected.name = name
    if callable(function):
        deprecated = []
        with watched_value_access(deprecated):
            found, right = of_function(function, counter)
        note = f"{right} of {len(CASES)} cases"
        _add(collected, "counter_after_n_calls", [*found, *deprecated], note)
    reads = [*_host_reads(function, in_loop=True), *_host_reads(counter, in_loop=False)]
    _add(collected, "no read in the loop", reads)
    return collected.report()


def _add(collected: Collected, check: str, found: list[Finding], note: str = "") -> None:
    collected.notify(check)
    collected.add(Cell(check, "", outcome_of(found), note), *found)


def _check_class(collected: Collected, counter: Any) -> None:
    """Adds what statecheck says of the class. A count of 32 bits is wide enough for the problem, so it only warns."""
    adjust = _leniently if is_wide(counter) else None
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
        finding(
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


# --- behaviour --------------------------------------------------------------------------------------------------------


def finding(rule: str, path: str, message: str, hint: str, **details: Any) -> Finding:
    """Returns a finding with one of the hints as its remedy."""
    return Finding(rule, path, message, fix=HINTS[hint], **details)


def of_class(counter: Any) -> tuple[list[Finding], bool]:
    """Returns what is wrong with a counter that is made and called twice, and whether that ran to its end."""
    rngs = nnx.Rngs(0)
    found = []
    try:
        made = counter(rngs)
        taken = sum(int(v[...]) for v in jax.tree.leaves(nnx.state(rngs, nnx.RngCount), is_leaf=_is_variable))
        if taken != 1:
            found.append(
                finding("exercise", "rngs", "the constructor must take one key from rngs.", "key", got=f"{taken} keys")
            )
        start = _value(made.step)
        counts = []
        for _ in range(2):
            result = made()
            if result is None:
                return [finding("exercise", "output", "must be the new count.", "scalar", got="None")], False
            if not _is_number(result, ()):
                message = "must be an integer or float scalar of NumPy or JAX."
                return [*found, finding("exercise", "output", message, "scalar", got=describe(result))], True
            counts.append(float(result))  # now: an array of NumPy may be written in place by the next call
    except Exception as error:
        return [_raised(error)], False
    if start != 0 or counts != [1, 2]:
        got = f"{start:g}, then {[int(count) if count == int(count) else count for count in counts]}"
        message = "must start at 0, and two calls must return 1 and 2."
        found.append(finding("exercise", "step", message, "value", got=got))
    return found, True


def is_wide(counter: Any) -> bool:
    """Whether the count holds at least 2**24: no case goes so far, and the problem asks for no more."""
    step = counter(nnx.Rngs(0)).step
    value = step.get_value() if isinstance(step, nnx.Variable) else step
    dtype = jnp.result_type(value)
    return isinstance(step, Counter) or (jnp.issubdtype(dtype, jnp.number) and np.dtype(dtype).itemsize >= 4)


def of_function(function: Any, counter: Any) -> tuple[list[Finding], int]:
    """Returns what is wrong with the cases of the problem, and the number of cases that are right.

    If all are right, it is called once more with a counter that starts at 3: the answer has to be 3 higher, or it is
    not the counter's.
    """
    found = [wrong for seed, n_calls in CASES for wrong in _of_case(function, seed, n_calls)]
    right = len(CASES) - len(found)
    if not found and isinstance(counter, type):
        found = _of_later_start(function, counter)
    return found, right


@contextlib.contextmanager
def watched_value_access(found: list[Finding]) -> Iterator[None]:
    """Adds a warning to `found` for `.value` of a Variable, which Flax deprecates."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DeprecationWarning)
        yield
    told = [warning for warning in caught if "'.value'" in str(warning.message)]
    if told:
        lines = [place(warning.filename, warning.lineno) for warning in told if is_users(warning.filename)]
        message = "is read or written as `.value`, which Flax deprecates."
        found.append(finding("deprecated-value", "step", message, ".value", source=(lines or [""])[0], is_warning=True))


def is_unwritten(error: Exception) -> bool:
    """Whether an error is the starter's own; Flax's says something."""
    return isinstance(error, NotImplementedError) and not error.args


def _raised(error: Exception) -> Finding:
    line = line_of_error(error)
    # A plain Variable has no in-place addition, and says so in one of two ways.
    is_iadd = "+=" in line and ".value" not in line and "[" not in line
    return finding(
        "replaced-variable" if is_iadd else "exercise",
        "step" if is_iadd else "",
        "self.step += 1 on a plain nnx.Variable raises." if is_iadd else "raises when it is made or called.",
        "iadd" if is_iadd else "body" if is_unwritten(error) else "raises",
        got=f"{type(error).__name__}: {error}".split("\n")[0],
        source=line,
    )


def _of_case(function: Any, seed: float, n_calls: float) -> list[Finding]:
    name, where, expected = "counter_after_n_calls", (f"counter_after_n_calls({seed}, {n_calls})",), [int(n_calls)] * 2
    try:
        result = function(seed, n_calls)
    except Exception as error:
        hint = "body" if is_unwritten(error) else "argument" if isinstance(seed, float) else "raises"
        got = f"{type(error).__name__}: {error}".split("\n")[0]
        source = line_of_error(error)
        return [finding("exercise", name, "raises.", hint, where=where, got=got, expected=str(expected), source=source)]
    if not (isinstance(result, jax.Array) and _is_number(result, (2,))):
        message, expects = "returns a value of another type or shape.", "a JAX array of two numbers, of shape (2,)"
        return [finding("exercise", name, message, "type", where=where, got=describe(result), expected=expects)]
    got = np.asarray(result).tolist()
    if got != expected:
        return [finding("exercise", name, "miscounts.", "value", where=where, got=str(got), expected=str(expected))]
    return []


def _of_later_start(function: Any, counter: type) -> list[Finding]:
    seed, n_calls = _OTHER_CASE
    try:
        with _starting_later(counter):
            got = np.asarray(function(seed, n_calls)).tolist()
    except Exception:  # a counter that cannot be started otherwise says nothing
        return []
    if got == [n_calls + _START, n_calls]:
        return []
    message = "does not return the count of the counter that it called."
    where = (f"counter_after_n_calls({seed}, {n_calls}) with a counter that starts at {_START}",)
    expected = str([n_calls + _START, n_calls])
    return [
        finding("exercise", "counter_after_n_calls", message, "value", where=where, got=str(got), expected=expected)
    ]


@contextlib.contextmanager
def _starting_later(counter: Any) -> Iterator[None]:
    """Starts the counters of a class at 3 within the block."""
    init, is_own = counter.__init__, "__init__" in vars(counter)

    def start_later(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        step = self.step
        if isinstance(step, Counter):
            step.set(_START)
        elif isinstance(step, nnx.Variable):
            step.set_value(step.get_value() + _START)
        else:
            self.step = step + _START

    counter.__init__ = start_later
    try:
        yield
    finally:
        if is_own:
            counter.__init__ = init
        else:
            del counter.__init__


def _is_number(value: Any, shape: tuple[int, ...]) -> bool:
    return (
        isinstance(value, jax.Array | np.ndarray | np.generic)
        and (jnp.issubdtype(value.dtype, jnp.integer) or jnp.issubdtype(value.dtype, jnp.floating))
        and tuple(value.shape) == shape
    )


def _is_variable(node: Any) -> bool:
    return isinstance(node, nnx.Variable)


def _value(step: Any) -> float:
    return float(step.get_value() if isinstance(step, nnx.Variable) else step)
