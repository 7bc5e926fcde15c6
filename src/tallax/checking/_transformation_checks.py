# SPDX-License-Identifier: Apache-2.0
"""The checks that run the model under every transformation in every mode, alone and stacked."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tallax.checking._check_results import Results, outcome_of
from tallax.checking._diagnosis import diagnosed, diagnosed_outputs, explained, finding_of
from tallax.checking._program import Batch, Outputs, Program, Reference, Run, called, outputs_agree
from tallax.checking._report import Cell, Finding, Outcome
from tallax.checking._snapshot import Snapshot, cycle_of, differences, snapshot, variables_of
from tallax.checking._transformations import (
    GRAPH,
    MODES,
    NO_UPDATES,
    TRANSFORMATIONS,
    TREE,
    Mode,
    Transformation,
    stacked,
)
from tallax.checking._uncompiled_runs import TracedRun, UncompiledRuns

_BY_NAME = {transformation.name: transformation for transformation in TRANSFORMATIONS}


def transformations(program: Program, reference: Reference, *, shortcuts: bool = True) -> Results:
    """Every transformation in every mode leaves the same state as plain calls, and returns the same outputs.

    With `shortcuts=False`, all runs are made in full, and the results are the same.
    """
    params = jax.tree.leaves(nnx.as_pure(nnx.state(program.new_model(), nnx.Param)))
    differentiable = bool(params) and all(jnp.issubdtype(param.dtype, jnp.floating) for param in params)
    twice, cycle = _held_twice(program), cycle_of(program.new_model())
    runs = UncompiledRuns(program)
    # If copies stand for the model, and nothing is found so far, some runs are shorter; see `Transformation`.
    clean = program.is_copied and shortcuts

    @functools.cache
    def found_uncompiled(name: str, mode: Mode) -> list[Finding] | None:
        each = _BY_NAME[name]
        if clean and each.implied_by and mode is not GRAPH and found_uncompiled(each.implied_by, mode) == []:
            return []
        return _found_uncompiled(program, reference, each, mode, runs, once=clean and each.is_eager)

    confirmed: set[tuple[str, str]] = set()  # rules and paths that a compiled run has shown
    if cycle:
        yield _cyclic(cycle)
    for transformation in TRANSFORMATIONS:
        for mode in MODES:
            run = transformation.run_in(mode)
            if run is None:
                continue
            if cycle and (mode in (NO_UPDATES, TREE) or not transformation.takes_cycles):
                yield Cell(transformation.name, mode.name, Outcome.WARNED)
                continue
            if not reference.written and not transformation.is_basic:
                yield Cell(transformation.name, mode.name, Outcome.SKIPPED, "no state")
                continue
            if transformation.differentiates and not differentiable:
                yield Cell(transformation.name, mode.name, Outcome.SKIPPED, "no parameters to differentiate")
                continue
            if transformation.donates and twice:
                yield Cell(transformation.name, mode.name, Outcome.WARNED)
                yield dataclasses.replace(twice, where=(f"{transformation.name} ({mode.name})",))
                continue
            findings = found_uncompiled(transformation.name, mode)
            if findings is None or not confirmed.issuperset((found.rule, found.path) for found in findings):
                findings = _found_compiled(program, reference, transformation, mode, run, clean=clean)
                confirmed.update((found.rule, found.path) for found in findings)
            clean = clean and not findings
            yield Cell(transformation.name, mode.name, outcome_of(findings))
            yield from findings


def _cyclic(path: str) -> Finding:
    return finding_of(
        "shared-variable",
        path,
        "refers back to a module that contains it: without graph mode, Flax recurses forever.",
        fix="pass the parent as an argument to the call of the child",
        is_warning=True,
    )


def _held_twice(program: Program) -> Finding | None:
    """Returns the findings for Variables that start with the same array, which cannot be donated twice."""
    names: dict[int, str] = {}
    for path, variable in variables_of(program.new_model()).items():
        for leaf in jax.tree.leaves(variable.get_raw_value()):
            if isinstance(leaf, jax.Array) and names.setdefault(id(leaf), path) != path:
                message = f"starts with the same array as {names[id(leaf)]}, and JAX refuses to donate an array twice."
                return finding_of("shared-array", path, message, is_warning=True)
    return None


def _found_uncompiled(
    program: Program,
    reference: Reference,
    transformation: Transformation,
    mode: Mode,
    runs: UncompiledRuns,
    *,
    once: bool,
) -> list[Finding] | None:
    """Returns the findings of a run that is not compiled, or None if the transformation has to be compiled."""
    run: Any = transformation.run_in(mode)
    if run is None or mode in transformation.compiled:
        return None
    run = functools.partial(run, once=True) if once else run
    try:
        with mode.active():
            (model,), outputs = runs.run(lambda models, batches: run(program.call, models[0], batches), program.batches)
        got = snapshot(model)
    except Exception:  # the compiled run shows the error, if there is one
        return None
    return _compared(program, reference, transformation, f"{transformation.name} ({mode.name})", got, outputs)


def _found_compiled(
    program: Program, reference: Reference, transformation: Transformation, mode: Mode, run: Run, *, clean: bool
) -> list[Finding]:
    if clean and transformation.first_call and mode in transformation.compiled:
        first = dataclasses.replace(program, batches=program.batches[:1])
        if not run_once(first, reference.of_calls(1), transformation, mode, run):
            return []
    return run_once(program, reference, transformation, mode, run)


def run_once(
    program: Program, reference: Reference, transformation: Transformation, mode: Mode, run: Run
) -> list[Finding]:
    """Returns the findings of one transformation in one mode."""
    where = f"{transformation.name} ({mode.name})"
    model = program.make() if transformation.donates else program.new_model()  # copies share the template's arrays
    try:
        with mode.active(), jax.disable_jit(transformation.is_eager and not program.needs_jit):
            outputs = run(program.call, model, program.batches)
        got = snapshot(model)
    except Exception as error:
        return [explained(error, program.new_model(), reference.start, where, shared=mode is not GRAPH)]
    return _compared(program, reference, transformation, where, got, outputs)


def _compared(
    program: Program,
    reference: Reference,
    transformation: Transformation,
    where: str,
    got: Snapshot,
    outputs: Outputs | None,
) -> list[Finding]:
    expected = reference.end if transformation.executes else reference.start
    findings = [
        diagnosed(difference, program.new_model(), where)
        for difference in differences(reference.start, expected, got, reference.noisy)
    ]
    if (
        not findings
        and outputs is not None
        and transformation.executes
        and not reference.has_noisy_outputs
        and not outputs_agree(reference.outputs, outputs)
    ):
        findings.append(diagnosed_outputs(reference.outputs, outputs, where, _frozen(program, reference, outputs)))
    return findings


def _frozen(program: Program, reference: Reference, outputs: Outputs) -> str | None:
    """Returns the path of the state that explains `outputs`: plain calls return them if this state never changes."""
    for path in sorted(reference.written):
        model, pinned = program.new_model(), []
        variable = variables_of(model).get(path)
        if variable is None:
            continue
        start = variable.get_raw_value()
        for batch in program.batches:
            variables_of(model)[path].set_raw_value(start)
            pinned.append(program.plain_call(model, batch))
        if outputs_agree(jax.tree.map(np.asarray, pinned), outputs):
            return path
    return None


def lanes(program: Program, reference: Reference) -> Results:
    """Each model of a stack, as `nnx.vmap` creates it, behaves as it does alone if you map or scan over the stack."""
    if not reference.written:
        return
    batches, runs = program.batches[:2], UncompiledRuns(program)
    alone = [
        reference.of_calls(1),
        *(called(dataclasses.replace(program, batches=(x,)), program.new_model()) for x in batches[1:]),
    ]
    for name, run in (("vmap, stacked models", _vmapped), ("scan over layers", _scanned)):
        for mode in (GRAPH,) if cycle_of(program.new_model()) else (GRAPH, NO_UPDATES, TREE):
            where = f"{name} ({mode.name})"
            try:
                with mode.active():
                    models = runs.run_or_compile(_on_stack(program, run), batches, len(batches))
                found = [
                    diagnosed(difference, program.new_model(), f"{where}, model {k + 1} of {len(batches)}")
                    for k, (model, ref) in enumerate(zip(models, alone, strict=True))
                    for difference in differences(ref.start, ref.end, snapshot(model), reference.noisy)
                ]
            except Exception as error:
                found = [explained(error, program.new_model(), reference.start, where, shared=mode is not GRAPH)]
            yield Cell(name, mode.name, outcome_of(found))
            yield from found


def _on_stack(program: Program, run: Callable[[Program, Any, Sequence[Batch]], None]) -> TracedRun:
    def run_stacked(models: list[Any], batches: Sequence[Batch]) -> None:
        graphdef, state = nnx.split(models[0])
        states = [state, *(nnx.state(model) for model in models[1:])]
        stack = nnx.merge(graphdef, jax.tree.map(lambda *leaves: jnp.stack(leaves), *states))
        run(program, stack, batches)
        for k, model in enumerate(models):
            nnx.update(model, jax.tree.map(lambda leaf: leaf[k], nnx.state(stack)))  # noqa: B023

    return run_stacked


def _vmapped(program: Program, stack: object, batches: Sequence[Batch]) -> None:
    nnx.vmap(program.call, in_axes=(0, 0), out_axes=0)(stack, stacked(batches))


def _scanned(program: Program, stack: object, batches: Sequence[Batch]) -> None:
    def body(count: jax.Array, model: object, batch: Batch) -> jax.Array:
        program.call(model, batch)
        return count + 1

    nnx.scan(body, in_axes=(nnx.Carry, 0, 0), out_axes=nnx.Carry)(jnp.int32(0), stack, stacked(batches))
