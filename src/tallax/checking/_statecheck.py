# SPDX-License-Identifier: Apache-2.0
"""`statecheck`: gradcheck for state."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import jax

from tallax._errors import InvalidValueError, StatecheckError, describe
from tallax.checking import (
    _attribute_checks,
    _call_checks,
    _copy_checks,
    _transformation_checks,
    _usage_checks,
    _width_checks,
)
from tallax.checking._check_results import Collected, Results
from tallax.checking._program import Program, Reference, called, program_of, with_noise
from tallax.checking._progress import progress_line
from tallax.checking._report import Cell, Finding, Outcome, Report
from tallax.checking._transformations import GRAPH

# A call that takes more seconds of the processor without `jax.jit` has a long loop. Later runs compile it.
_SLOW_CALL = 1.0

_CHECKS: tuple[Callable[[Program, Reference], Results], ...] = (
    _call_checks.reproducible,
    _attribute_checks.attributes,
    _attribute_checks.parameters,
    _call_checks.lost_writes,
    _call_checks.one_trace,
    _transformation_checks.transformations,
    _transformation_checks.lanes,
    _attribute_checks.eval_mode,
    _copy_checks.copies,
    _width_checks.widths,
    _usage_checks.callbacks,
    _usage_checks.silent_losses,
)


def statecheck(
    make: Any,
    *inputs: Any,
    calls: int = 3,
    call: Callable[..., Any] | None = None,
    on_progress: Callable[[str], None] | None = None,
    progress: bool | None = None,
    limit_seconds: float | None = None,
) -> Report:
    """Runs a module under every transformation in every mode, and reports each loss or change of its state.

    The reference is plain Python: `calls` calls of a new model, without any compilation. Every other way to run these
    calls must leave the same state and return the same outputs: integers exactly, floats except for rounding.

    Args:
        make: A factory of the module: a class, a function or a `functools.partial`. It is called many times, with
            `rngs=nnx.Rngs(0)` if it has a parameter named `rngs`, and otherwise without arguments. If you pass a
            module, it is cloned each time.
        *inputs: The arguments of each call: arrays, pytrees of arrays, and plain values. From call to call, arrays are
            rolled by one along their first axis.
        calls: The number of calls in each run, at least 2.
        call: A function of the module and the inputs that runs instead of the module's own call, for example a training
            step, or `lambda metric, x: metric.update(values=x)`.
        on_progress: A function that is called with the name of each check as it begins.
        progress: Whether a line on stderr shows the current check. If None, the line is shown if stderr is a terminal.
        limit_seconds: The time after which no further check begins; the report is then `incomplete`. None means no
            limit. A check that hangs is not interrupted; use `tallax check --limit` if you need that.

    Returns:
        A `Report`. Print it, read its `failures` and `warnings`, or call `raise_on_failure()`.

    Raises:
        StatecheckError: `make` is not a factory of modules, or a plain call of its module raises.
        InvalidValueError: `calls` is below 2.
        KeyboardInterrupt: You pressed Ctrl-C. The only argument of the exception is the report of the checks that had
            run, marked `incomplete`, so Python prints the report below the traceback.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> import tallax
        >>> class Counts(nnx.Module):
        ...     def __init__(self):
        ...         self.count = nnx.Param(jnp.zeros(()))
        ...     def __call__(self, x):
        ...         self.count[...] += 1.0
        ...         return x
        >>> report = tallax.statecheck(Counts, jnp.ones(3))
        >>> sorted({finding.rule for finding in report.failures})
        ['narrow-counter', 'param-state']

    References:
        The idea comes from `torch.autograd.gradcheck`: run the user's code in a second way, and compare.
    """
    if not isinstance(calls, int) or calls < 2:
        raise InvalidValueError(
            "statecheck",
            "at least two calls are needed to detect drift.",
            got=f"calls={describe(calls)}",
            fix="calls=3, or any larger integer",
        )
    with progress_line(progress, on_progress) as notify:
        name = getattr(make, "__name__", type(make).__name__)
        collected = Collected(name, on_progress=notify, limit_seconds=limit_seconds)
        try:
            incomplete = check_into(collected, make, inputs, calls=calls, call=call)
        except KeyboardInterrupt as interrupt:
            interrupt.args = (collected.report(f"interrupted at: {collected.at}"),)
            raise
    return collected.report(incomplete)


def check_into(
    collected: Collected,
    make: Any,
    inputs: tuple[Any, ...] = (),
    *,
    calls: int = 3,
    call: Any = None,
    adjust: Callable[[Cell | Finding], Cell | Finding] | None = None,
) -> str:
    """Runs every check and collects its results, each through `adjust`.

    Returns:
        The reason why it ended early, or an empty string.
    """
    with warnings.catch_warnings(), GRAPH.active():
        warnings.simplefilter("ignore")  # the linter reports deprecations of Flax in the user's code
        collected.notify("plain calls")
        program = program_of(make, inputs, calls, call)
        collected.name = program.name
        reference = with_noise(program, reference_of(program))
        for result in results(program, reference, collected.notify):
            collected.add(adjust(result) if adjust else result)
            if collected.is_out_of_time:
                return f"out of time at: {collected.at}"
    return ""


def results(program: Program, reference: Reference, notify: Callable[[str], None] = lambda name: None) -> Results:
    """Yields the cells and findings of every check. If the model is not reproducible, it stops after that finding."""
    for check in _CHECKS:
        name = check.__name__.replace("_", " ")
        notify(name)
        found = False
        try:
            for result in check(program, reference):
                if isinstance(result, Cell):
                    notify(f"{result.check} {result.mode}".strip())
                found = found or isinstance(result, Finding)
                yield result
        except Exception as error:
            first = (str(error).strip().splitlines() or [""])[0]
            yield Cell(name, "", Outcome.SKIPPED, f"failed: {type(error).__name__}: {first}")
        if found and check is _call_checks.reproducible:
            return  # comparisons need a reproducible reference


def reference_of(program: Program) -> Reference:
    """Returns the reference: plain calls without any compilation, if JAX can run them, and runs them quickly."""
    model = program.make()
    try:
        reference = called(program, model)
    except Exception as error:
        program.needs_jit = True  # some functions of JAX do not run without it
        try:
            return called(program, program.make())
        except Exception as error_too:
            raise _cannot(program, error_too) from error
    if reference.last_seconds > _SLOW_CALL:
        model, began = program.make(), time.process_time()  # the operations are compiled by now
        jax.block_until_ready(program.plain_call(model, program.batches[0]))
        program.needs_jit = time.process_time() - began > _SLOW_CALL
    return reference


def _cannot(program: Program, error: Exception) -> StatecheckError:
    return StatecheckError(
        f"statecheck of {program.name}",
        "a plain call of the model raises.",
        got=f"{type(error).__name__}: {error}",
        fix="statecheck(make, x) with inputs that the model accepts, or call=lambda model, x: ... for another "
        "call; on the command line --inputs 'float32[8,4]', or --call with a function's name",
    )
