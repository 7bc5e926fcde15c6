# SPDX-License-Identifier: Apache-2.0
"""The exercise on a step counter: its measurements, and the grade of `tallax check`.

`tallax learn` has the same exercise, as its first. Both measure a solution with the functions below, which return its
mistakes; `tallax learn` has a sentence for each, and `graded` makes a finding of it.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import inspect
import textwrap
import warnings
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

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

FUNCTION = "counter_after_n_calls"
# (seed, n_calls): no call, one, several, a float that holds a whole number, and seeds past 16 and 31 bits.
CASES = ((0, 0), (0, 1), (42, 5), (7, 12), (3.0, 4.0), (65_537, 3), (2**31 - 1, 2), (2**32 - 1, 3), (1, 100))
# Of none of the cases, in case a solution keeps what it has returned.
_OTHER_CASE, _START = (11, 4), 3

_VALUE = "make the counter once, call it n_calls times, then return jnp.array([counter.step[...], n_calls])"
# For each mistake: the path, the message and the fix of its finding.
_FINDINGS = {
    "no_key": (
        "rngs",
        "the constructor must take one key from rngs.",
        "rngs.params() takes one key; take it once, in __init__",
    ),
    "no_result": (
        "output",
        "must be the new count.",
        "return self.step[...], and start it as a number: jnp.zeros((), jnp.int32)",
    ),
    "miscounts": ("step", "must start at 0, and two calls must return 1 and 2.", _VALUE),
    "not_an_array": (
        FUNCTION,
        "returns a value of another type or shape.",
        "jnp.array([counter.step[...], n_calls], jnp.float32): one array of two numbers",
    ),
    "function_miscounts": (FUNCTION, "miscounts.", _VALUE),
    "whole_floats": (
        FUNCTION,
        "raises.",
        "int(seed) and int(n_calls) take floats that hold whole numbers: nnx.Rngs(int(seed))",
    ),
    "in_place": (
        "step",
        "self.step += 1 on a plain nnx.Variable raises.",
        "self.step[...] += 1 writes into the Variable (self.step.value += 1 too); with a tallax.Counter, "
        "self.step += 1 works",
    ),
    "raises": ("", "raises.", f"fix the error: StepCounter(nnx.Rngs(0))() and {FUNCTION}(0, 5) must run"),
    "unfinished": ("", "raises.", "fill in what the comments say"),
    "uncounted": (FUNCTION, "does not return the count of the counter that it called.", _VALUE),
}


_ENDS = {"in_place", "raises", "unfinished"}  # mistakes after which nothing more can be measured


class Mistake(NamedTuple):
    """A mistake of a solution: its name, the result, the right one, the call, and the line in the user's file."""

    name: str
    got: str
    expected: str = ""
    where: tuple[str, ...] = ()
    source: str = ""


# --- measurements -----------------------------------------------------------------------------------------------------


def of_class(counter: Any) -> list[Mistake]:
    """Returns the mistakes of a counter that is made and called twice."""
    rngs, found, counts = nnx.Rngs(0), [], []
    try:
        made = counter(rngs)
        streams = jax.tree.leaves(nnx.state(rngs, nnx.RngCount), is_leaf=lambda node: isinstance(node, nnx.Variable))
        taken = sum(int(stream[...]) for stream in streams)
        if taken != 1:
            found.append(Mistake("no_key", f"{taken} keys", "1 key"))
        start = float(made.step.get_value() if isinstance(made.step, nnx.Variable) else made.step)
        for _ in range(2):
            result = made()
            if not _is_number(result, ()):
                got = "None" if result is None else describe(result)
                return [*found, Mistake("no_result", got, "an integer or float scalar of NumPy or JAX")]
            counts.append(float(result))  # now: an array of NumPy may be written in place by the next call
    except Exception as error:
        return [_raised(error)]
    if start != 0 or counts != [1, 2]:
        got = f"{start:g}, then {[int(count) if count == int(count) else count for count in counts]}"
        found.append(Mistake("miscounts", got, "0, then [1, 2]"))
    return found


def of_function(function: Callable[..., Any], seed: float, n_calls: float) -> list[Mistake]:
    """Returns the mistake of one case of the problem, if there is one."""
    where, expected = (f"{FUNCTION}({seed}, {n_calls})",), [int(n_calls)] * 2
    try:
        result = function(seed, n_calls)
    except Exception as error:
        raised = _raised(error)
        name = "whole_floats" if isinstance(seed, float) else "raises"
        name = raised.name if raised.name == "unfinished" else name
        return [raised._replace(name=name, expected=str(expected), where=where)]
    if not (isinstance(result, jax.Array) and _is_number(result, (2,))):
        return [Mistake("not_an_array", describe(result), "a JAX array of two numbers, of shape (2,)", where)]
    got = np.asarray(result).tolist()
    return [] if got == expected else [Mistake("function_miscounts", str(got), str(expected), where)]


def _raised(error: Exception) -> Mistake:
    line, name = line_of_error(error), "raises"
    if "+=" in line and ".value" not in line and "[" not in line:
        name = "in_place"  # a plain Variable has no in-place addition, and says so in one of two ways
    elif isinstance(error, NotImplementedError) and not error.args:
        name = "unfinished"  # the starter's own error; Flax's says something
    return Mistake(name, f"{type(error).__name__}: {error}".split("\n")[0], source=line)


def of_later_start(function: Any, counter: type) -> list[Mistake]:
    """Returns a mistake if a counter that starts at 3 does not make the function's answer 3 higher."""
    seed, n_calls = _OTHER_CASE
    got = due = [n_calls + _START, n_calls]
    with contextlib.suppress(Exception), _starting_later(counter):  # one that cannot be started later says nothing
        got = np.asarray(function(seed, n_calls)).tolist()
    where = (f"{FUNCTION}({seed}, {n_calls}) with a counter that starts at {_START}",)
    return [] if got == due else [Mistake("uncounted", str(got), str(due), where)]


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


def host_reads(function: Any, *, in_loop: bool) -> Iterator[tuple[str, str]]:
    """Yields each call in a function, or in its loops alone, that reads a counter to the host, and its line."""
    if not inspect.isfunction(function):
        return
    try:
        lines, first = inspect.getsourcelines(function)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, SyntaxError):
        return
    loops = [node for node in ast.walk(tree) if isinstance(node, ast.For | ast.While)]
    parts = [part for loop in loops for part in loop.body] if in_loop else [tree]
    nodes = {ast.dump(node): node for part in parts for node in ast.walk(part) if isinstance(node, ast.Call)}
    for node in nodes.values():
        name = ast.unparse(node.func)
        reads = name in ("int", "float", "bool", "jax.device_get", "np.asarray", "numpy.asarray") and node.args
        if (reads and not isinstance(node.args[0], ast.Constant)) or name.endswith((".item", ".tolist")):
            yield ast.unparse(node), place(function.__code__.co_filename, first + node.lineno - 1)


def _is_number(value: Any, shape: tuple[int, ...]) -> bool:
    return (
        isinstance(value, jax.Array | np.ndarray | np.generic)
        and (jnp.issubdtype(value.dtype, jnp.integer) or jnp.issubdtype(value.dtype, jnp.floating))
        and tuple(value.shape) == shape
    )


# --- the grade of `tallax check` --------------------------------------------------------------------------------------


def write_starter(path: Path) -> None:
    """Writes the file to start the exercise from.

    Raises:
        StatecheckError: Something is there already, or the path does not end in .py.
    """
    if path.suffix != ".py":  # as where FILE:NAME is meant to be checked
        rule = "requires the name of a Python file to create."
        raise StatecheckError("--start", rule, got=str(path), fix="--start solution.py")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(resources.files("tallax.checking.exercise").joinpath("starter.py").read_text(encoding="utf-8"))
    except OSError as error:
        got = f"{type(error).__name__}: {error}"
        raise StatecheckError(str(path), "cannot be created.", got=got, fix="name a new file") from None


def graded(module: ModuleType, collected: Collected | None = None) -> Report:
    """Returns the grade of a solution: a finding for every case that fails, and the findings of statecheck.

    The results are collected as they come, in `collected` if it is given.
    """
    collected = collected or Collected("")
    name = collected.name = f"{module.__name__}.py"
    function, counter = getattr(module, FUNCTION, None), getattr(module, "StepCounter", None)
    for missing, thing in (("StepCounter", counter), (FUNCTION, function)):
        if not callable(thing):
            fix = "tallax check --start solution.py writes a file to start from"
            _add(collected, missing, [Finding("exercise", missing, "is not defined.", fix=fix)])
    if callable(counter):
        with _watched_value_access() as deprecated:
            mistakes = of_class(counter)
        _add(collected, "StepCounter, called", [*map(_finding, mistakes), *deprecated])
        if not any(mistake.name in _ENDS or mistake.got == "None" for mistake in mistakes):
            _check_class(collected, counter)
            collected.name = name
    if callable(function):
        with _watched_value_access() as deprecated:
            mistakes = [mistake for case in CASES for mistake in of_function(function, *case)]
            note = f"{len(CASES) - len(mistakes)} of {len(CASES)} cases"
            if not mistakes and isinstance(counter, type):
                mistakes = of_later_start(function, counter)
        _add(collected, FUNCTION, [*(_finding(mistake, FUNCTION) for mistake in mistakes), *deprecated], note)
    call = vars(counter).get("__call__") if isinstance(counter, type) else None
    reads = [*_read_findings(function, in_loop=True), *_read_findings(call, in_loop=False)]
    _add(collected, "no read in the loop", reads)
    return collected.report()


def _add(collected: Collected, check: str, found: list[Finding], note: str = "") -> None:
    collected.notify(check)
    collected.add(Cell(check, "", outcome_of(found), note), *found)


def _finding(mistake: Mistake, path: str = "") -> Finding:
    """Returns a mistake as a finding, at the path of its kind or else at `path`."""
    own, message, fix = _FINDINGS[mistake.name]
    rule = "replaced-variable" if mistake.name == "in_place" else "exercise"
    return Finding(rule, own or path, message, mistake.where, mistake.got, mistake.expected, fix, mistake.source)


def _read_findings(function: Any, *, in_loop: bool) -> list[Finding]:
    turns = " in every turn of the loop." if in_loop else "."
    fix = "keep it on the device: read the counter once, after the loop, without int() or float()"
    return [
        Finding("host-sync", "step", f"`{call}` waits for the device{turns}", fix=fix, source=line)
        for call, line in host_reads(function, in_loop=in_loop)
    ]


def _check_class(collected: Collected, counter: Any) -> None:
    """Adds the results of statecheck for the class. A count that holds 2**24 is wide enough: it only warns."""
    step = counter(nnx.Rngs(0)).step
    dtype = jnp.result_type(step.get_value() if isinstance(step, nnx.Variable) else step)
    is_wide = isinstance(step, Counter) or (jnp.issubdtype(dtype, jnp.number) and np.dtype(dtype).itemsize >= 4)
    check_into(collected, lambda: counter(nnx.Rngs(0)), adjust=_leniently if is_wide else None)


def _leniently(result: Cell | Finding) -> Cell | Finding:
    if isinstance(result, Finding) and result.rule == "narrow-counter":
        return dataclasses.replace(result, is_warning=True)
    if isinstance(result, Cell) and result.outcome is Outcome.FAILED and result.check == "width of counts":
        return dataclasses.replace(result, outcome=Outcome.WARNED)
    return result


@contextlib.contextmanager
def _watched_value_access() -> Iterator[list[Finding]]:
    """Yields a list that gets a warning at the end if `.value` of a Variable was used, which Flax deprecates."""
    found: list[Finding] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DeprecationWarning)
        yield found
    told = [warning for warning in caught if "'.value'" in str(warning.message)]
    if told:
        lines = [place(warning.filename, warning.lineno) for warning in told if is_users(warning.filename)]
        message = "is read or written as `.value`, which Flax deprecates."
        fix, line = "self.step[...] += 1, and return self.step[...]", (lines or [""])[0]
        found.append(Finding("deprecated-value", "step", message, fix=fix, source=line, is_warning=True))
