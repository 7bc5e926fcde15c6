# SPDX-License-Identifier: Apache-2.0
"""The checks that run the model: reproducible, every transformation in every mode, lost writes, one trace."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tallax.checking._diagnosis import OUTPUT, diagnosed, diagnosed_outputs, explained, fix_for
from tallax.checking._program import Batch, Program
from tallax.checking._reference import Reference, called, outputs_agree
from tallax.checking._report import Cell, Finding, Outcome
from tallax.checking._snapshot import (
    Leaf,
    Snapshot,
    attribute_of,
    changed,
    cycle_of,
    differences,
    snapshot,
    variables_of,
)
from tallax.checking._source_lines import line_of_assignment
from tallax.checking._transformations import (
    GRAPH,
    MODES,
    NO_UPDATES,
    TRANSFORMATIONS,
    TREE,
    Mode,
    Outputs,
    Run,
    Transformation,
    stacked,
)
from tallax.checking._writes import watched

Results: TypeAlias = Iterator[Cell | Finding]


def outcome_of(findings: list[Finding]) -> Outcome:
    """Returns how a check with these findings ended."""
    if any(not finding.is_warning for finding in findings):
        return Outcome.FAILED
    return Outcome.WARNED if findings else Outcome.PASSED


def reported(check: str, findings: list[Finding], note: str = "") -> Results:
    """Yields the cell of a check that has no modes, and its findings."""
    yield Cell(check, "", outcome_of(findings), note)
    yield from findings


# --- reproducible -----------------------------------------------------------------------------------------------------


def reproducible(program: Program, reference: Reference) -> Results:
    """A model made twice starts alike, and does alike; without that, nothing else could be compared."""
    model = program.make()
    fix = "seed it: nnx.Rngs(0) in the factory, jax.random with the module's own rngs; no globals, no clock"
    stale = changed(reference.start, snapshot(model))
    findings = [
        Finding(
            "not-reproducible",
            path,
            "starts otherwise in the second model that the factory makes: models share it, or it is random.",
            ("make(), twice",),
            *_ends(reference.start, snapshot(model), path),
            fix,
        )
        for path in stale
    ]
    if not findings:
        first, second = called(program, model), called(program, program.make())
        findings = [
            Finding(
                "not-reproducible",
                path,
                "comes out otherwise when the same calls are made again.",
                ("plain calls, twice",),
                *_ends(first.end, second.end, path),
                fix,
            )
            for path in changed(first.end, second.end)
        ]
        if not findings and not outputs_agree(first.outputs, second.outputs):
            message = "comes out otherwise when the same calls are made again."
            findings = [Finding("not-reproducible", OUTPUT, message, ("plain calls, twice",), fix=fix)]
    yield from reported("reproducible", findings)


def _ends(expected: Snapshot, got: Snapshot, path: str) -> tuple[str, str]:
    """Returns what came and what was expected, in words."""
    leaves = got.get(path), expected.get(path)
    return tuple("nothing there" if leaf is None else leaf.describe() for leaf in leaves)  # pyright: ignore[reportReturnType]


# --- the matrix -------------------------------------------------------------------------------------------------------


def transformations(program: Program, reference: Reference) -> Results:
    """Every transformation in every mode leaves what plain calls leave, and returns what they return."""
    params = jax.tree.leaves(nnx.as_pure(nnx.state(program.make(), nnx.Param)))
    differentiable = bool(params) and all(jnp.issubdtype(param.dtype, jnp.floating) for param in params)
    twice, cycle = _held_twice(program), cycle_of(program.make())
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
            findings = run_once(program, reference, transformation, mode, run)
            yield Cell(transformation.name, mode.name, outcome_of(findings))
            yield from findings


def _cyclic(path: str) -> Finding:
    return Finding(
        "shared-variable",
        path,
        "leads back to a module that holds it: without graph mode, Flax follows it without end.",
        fix="hand the parent to the child's call as an argument",
        is_warning=True,
    )


def _held_twice(program: Program) -> Finding | None:
    """Returns what to say of a model of which two Variables start with the same array: it can't be donated twice."""
    names: dict[int, str] = {}
    for path, variable in variables_of(program.make()).items():
        for leaf in jax.tree.leaves(variable.get_raw_value()):
            if isinstance(leaf, jax.Array) and names.setdefault(id(leaf), path) != path:
                return Finding(
                    "shared-array",
                    path,
                    f"starts with the very array of {names[id(leaf)]}, and JAX refuses to donate an array twice.",
                    fix="start it with a copy: jnp.array(value, copy=True)",
                    is_warning=True,
                )
    return None


def run_once(
    program: Program, reference: Reference, transformation: Transformation, mode: Mode, run: Run
) -> list[Finding]:
    """Returns what goes wrong under one transformation in one mode."""
    where = f"{transformation.name} ({mode.name})"
    model = program.make()
    try:
        with mode.active():
            outputs = run(program.call, model, program.batches)
        got = snapshot(model)
    except Exception as error:
        return [explained(error, program.make(), reference.start, where, shared=mode is not GRAPH)]
    expected = reference.end if transformation.executes else reference.start
    findings = [
        diagnosed(difference, program.make(), where)
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
    """Returns the path of the state that, were it the same at each call, would make plain calls return `outputs`."""
    for path in sorted(reference.written):
        model, pinned = program.make(), []
        variable = variables_of(model).get(path)
        if variable is None:
            continue
        start = variable.get_raw_value()
        with jax.disable_jit():
            for batch in program.batches:
                variables_of(model)[path].set_raw_value(start)
                pinned.append(program.call(model, batch))
        if outputs_agree(jax.tree.map(np.asarray, pinned), outputs):
            return path
    return None


def lanes(program: Program, reference: Reference) -> Results:
    """Models that are stacked, as `nnx.vmap` creates them, and mapped or scanned over, do each what it does alone."""
    if not reference.written:
        return
    batches = program.batches[:2]
    alone = [called(Program("", program.make, program.call, (batch,)), program.make()) for batch in batches]
    for name, run in (("vmap, stacked models", _vmapped), ("scan over layers", _scanned)):
        for mode in (GRAPH,) if cycle_of(program.make()) else (GRAPH, NO_UPDATES, TREE):
            where = f"{name} ({mode.name})"
            models = [program.make() for _ in batches]
            try:
                with mode.active():
                    graphdef, state = nnx.split(models[0])
                    states = [state, *(nnx.state(model) for model in models[1:])]
                    stack = nnx.merge(graphdef, jax.tree.map(lambda *leaves: jnp.stack(leaves), *states))
                    run(program, stack, batches)
                    for k, model in enumerate(models):
                        nnx.update(model, jax.tree.map(lambda leaf: leaf[k], nnx.state(stack)))  # noqa: B023
                found = [
                    diagnosed(difference, program.make(), f"{where}, model {k + 1} of {len(batches)}")
                    for k, (model, ref) in enumerate(zip(models, alone, strict=True))
                    for difference in differences(ref.start, ref.end, snapshot(model), reference.noisy)
                ]
            except Exception as error:
                found = [explained(error, program.make(), reference.start, where, shared=mode is not GRAPH)]
            yield Cell(name, mode.name, outcome_of(found))
            yield from found


def _vmapped(program: Program, stack: object, batches: tuple[Batch, ...]) -> None:
    nnx.vmap(program.call, in_axes=(0, 0), out_axes=0)(stack, stacked(batches))


def _scanned(program: Program, stack: object, batches: tuple[Batch, ...]) -> None:
    def body(count: jax.Array, model: object, batch: Batch) -> jax.Array:
        program.call(model, batch)
        return count + 1

    nnx.scan(body, in_axes=(nnx.Carry, 0, 0), out_axes=nnx.Carry)(jnp.int32(0), stack, stacked(batches))


# --- lost writes ------------------------------------------------------------------------------------------------------


def lost_writes(program: Program, reference: Reference) -> Results:
    """What is written to a Variable in a call is there after the call."""
    model = program.make()
    lost: dict[str, str] = {}
    once: dict[str, str] = {}
    for batch in program.batches:
        with watched(model) as writes:
            program.call(model, batch)
        lost |= {path: source for path, source in writes.lost.items() if path not in reference.written}
        once |= writes.once
    findings = [
        Finding(
            "lost-update",
            path,
            "is written in the call, but on a copy: the update is lost.",
            ("plain calls",),
            got=reference.end[path].describe() if path in reference.end else "",
            fix=fix_for("lost-update", path),
            source=source,
        )
        for path, source in lost.items()
    ]
    findings += [
        Finding(
            "lost-update",
            path,
            "is written within nnx.vmap with the same integer in every lane: it counts once a call, not once a lane, "
            "unless it was summed over the lanes.",
            ("plain calls",),
            got=reference.end[path].describe() if path in reference.end else "",
            fix="jax.lax.psum(increment, axis_name) for all lanes together; in_axes=0 for a count each; with a "
            "tallax.Counter, increment(..., axis_name=...)",
            source=source,
            is_warning=True,
        )
        for path, source in once.items()
        if path not in lost
    ]
    yield from reported("no write is lost", findings)


# --- one trace --------------------------------------------------------------------------------------------------------


def one_trace(program: Program, reference: Reference) -> Results:
    """Calls with inputs of the same types are traced once, since the state keeps its types too."""
    traces = 0

    def counted(model: object, batch: Batch) -> tuple[jax.Array, ...]:
        nonlocal traces
        traces += 1
        return program.call(model, batch)

    model = program.make()
    step = nnx.jit(counted)
    held, drifts = [snapshot(model)], {}
    calls = [*program.batches, program.batches[0]]
    try:
        for batch in calls:
            before = traces
            jax.block_until_ready(step(model, batch))
            held.append(snapshot(model))
            if traces > before and before:
                for path, types in _drift(held[-3], held[-2]).items():
                    drifts.setdefault(attribute_of(path, held[0]), types)
    except Exception:  # the matrix reports it
        yield Cell("one trace", "", Outcome.SKIPPED, "does not run under nnx.jit")
        return
    findings = []
    if traces > 1:
        drifts = drifts or {"": ("another trace", "the same one")}
        findings = [
            Finding(
                "retrace",
                path,
                f"changes its type from call to call, so that {len(calls)} calls are compiled {traces} times.",
                ("nnx.jit (graph)",),
                got=got,
                expected=expected,
                fix="give it its final shape and a strong dtype at the start, jnp.zeros((), jnp.float32) and not 0.0, "
                "and write values of that dtype: value.astype(...)",
                source=line_of_assignment(model, path),
            )
            for path, (got, expected) in drifts.items()
        ]
    yield from reported("one trace", findings, f"{traces} in {len(calls)} calls")


def _drift(before: Snapshot, after: Snapshot) -> dict[str, tuple[str, str]]:
    """Returns the paths whose types changed, and those types: the new, the old."""
    found = {}
    for path in dict.fromkeys((*before, *after)):
        types = _type_of(after.get(path)), _type_of(before.get(path))
        if types[0] != types[1]:
            found[path] = types
    return found


def _type_of(leaf: Leaf | None) -> str:
    if leaf is None:
        return "nothing there"
    if leaf.kind == "attribute":
        return leaf.describe()
    value = np.asarray(leaf.value)
    holder = leaf.variable.__name__ if leaf.variable else "array"
    return f"{holder} {value.dtype}{list(value.shape)}{', weakly typed' if leaf.weak_type else ''}"
