# SPDX-License-Identifier: Apache-2.0
"""The checks on calls without other transformations: they are reproducible, lose no write, and are traced once."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from tallax.checking._check_results import Results, reported
from tallax.checking._diagnosis import OUTPUT, finding_of
from tallax.checking._model_copies import Template, template_of
from tallax.checking._program import Batch, Program, Reference, called, outputs_agree
from tallax.checking._report import Cell, Outcome
from tallax.checking._snapshot import Leaf, Snapshot, attribute_of, changed, snapshot
from tallax.checking._uncompiled_runs import UncompiledRuns
from tallax.checking._watched_writes import Writes, watched

# --- reproducible -----------------------------------------------------------------------------------------------------


def reproducible(program: Program, reference: Reference) -> Results:
    """Two models from one factory start equal and behave alike, which all other checks rely on."""
    model, start = program.make(), reference.start
    new = snapshot(model)
    message = "starts with a different value in a second model: the factory is not deterministic, or models share it."
    findings = [
        finding_of("not-reproducible", path, message, "make(), twice", got=new.get(path), expected=start.get(path))
        for path in changed(start, new)
    ]
    if not findings:
        copy_model(program, reference)
    if not findings and not program.is_copied:
        first = called(program, model)
        copy_model(program, first)  # if calls are compiled by now, their state differs from the reference by rounding
        if not program.is_copied:
            second = called(program, program.make())
            paths = changed(first.end, second.end)
            if not paths and not outputs_agree(first.outputs, second.outputs):
                paths = [OUTPUT]
            for path in paths:
                values = ("", "") if path == OUTPUT else (second.end.get(path), first.end.get(path))
                message, where = "differs if the same calls are repeated.", "plain calls, twice"
                findings.append(finding_of("not-reproducible", path, message, where, got=values[0], expected=values[1]))
    yield from reported("reproducible", findings)


def copy_model(program: Program, first: Reference) -> None:
    """Sets the templates of the models of a run, as far as a run of copies is the same to the bit, and its writes."""
    templates: list[Template] = []
    writes = Writes()
    for calls, expected in enumerate((first.start, *first.after)):
        model = templates[-1].copy() if templates else program.make()
        if calls:
            with watched(model) as seen:
                outputs = jax.tree.map(np.asarray, program.plain_call(model, program.batches[calls - 1]))
            writes.add(seen)
            if not outputs_agree(first.outputs[calls - 1 : calls], [outputs]):
                break
        template = template_of(model, functools.partial(program.called_model, calls))
        if template is None or changed(expected, snapshot(template.copy())):
            break
        templates.append(template)
    program.templates = tuple(templates)
    program.writes = writes if program.is_copied else None


# --- lost writes ------------------------------------------------------------------------------------------------------


def writes_of(program: Program) -> Writes:
    """Returns the writes of plain calls."""
    if program.writes is None:
        model, program.writes = program.new_model(), Writes()
        for batch in program.batches:
            with watched(model) as seen:
                program.plain_call(model, batch)
            program.writes.add(seen)
    return program.writes


def lost_writes(program: Program, reference: Reference) -> Results:
    """A value that a call writes to a Variable is still there after the call."""
    writes = writes_of(program)
    lost = {path: source for path, source in writes.lost.items() if path not in reference.written}
    findings = []
    for path, source in {**writes.once, **lost}.items():
        got = reference.end.get(path, "")
        message = "is written in the call, but on a copy: the update is lost."
        fix, is_warning = "", path not in lost
        if is_warning:
            message = (
                "is written inside nnx.vmap with the same integer in every lane: it counts once per call, not once per "
                "lane, unless the increment was summed over the lanes."
            )
            fix = (
                "jax.lax.psum(increment, axis_name) for all lanes together; in_axes=0 for a count each; with a "
                "tallax.Counter, increment(..., axis_name=...)"
            )
        findings.append(
            finding_of(
                "lost-update", path, message, "plain calls", got=got, fix=fix, source=source, is_warning=is_warning
            )
        )
    yield from reported("no write is lost", findings)


# --- one trace --------------------------------------------------------------------------------------------------------


def one_trace(program: Program, reference: Reference) -> Results:
    """Calls with inputs of the same types are traced once, because the state keeps its types too."""
    traces = 0

    def counted(model: object, batch: Batch) -> tuple[jax.Array, ...]:
        nonlocal traces
        traces += 1
        return program.call(model, batch)

    calls = [*program.batches, program.batches[0]]
    with contextlib.suppress(Exception):

        def called_once_more(models: list[Any], batches: Sequence[Batch]) -> None:
            step = nnx.jit(counted)
            for batch in batches:
                step(models[0], batch)

        UncompiledRuns(program).trace(called_once_more, calls)
        if traces == 1:
            yield from reported("one trace", [], f"1 in {len(calls)} calls")
            return
    traces, model = 0, program.new_model()
    step = nnx.jit(counted)
    held, drifts = [snapshot(model)], {}
    try:
        for batch in calls:
            before = traces
            jax.block_until_ready(step(model, batch))
            held.append(snapshot(model))
            if traces > before and before:
                for path, types in _drift(held[-3], held[-2]).items():
                    drifts.setdefault(attribute_of(path, held[0]), types)
    except Exception:  # `transformations` reports the error
        yield Cell("one trace", "", Outcome.SKIPPED, "does not run under nnx.jit")
        return
    findings = []
    if traces > 1:
        drifts = drifts or {"": ("another trace", "the same one")}
        findings = [
            finding_of(
                "retrace",
                path,
                f"changes its type from call to call, so that {len(calls)} calls are compiled {traces} times.",
                "nnx.jit (graph)",
                got=got,
                expected=expected,
                model=model,
            )
            for path, (got, expected) in drifts.items()
        ]
    yield from reported("one trace", findings, f"{traces} in {len(calls)} calls")


def _drift(before: Snapshot, after: Snapshot) -> dict[str, tuple[str, str]]:
    """Returns the paths whose types changed, each with the new and the old type."""
    found = {}
    for path in dict.fromkeys((*before, *after)):
        types = _type_of(after.get(path)), _type_of(before.get(path))
        if types[0] != types[1]:
            found[path] = types
    return found


def _type_of(leaf: Leaf | None) -> str:
    if leaf is None:
        return "missing"
    if leaf.kind == "attribute":
        return leaf.describe()
    value = np.asarray(leaf.value)
    holder = leaf.variable.__name__ if leaf.variable else "array"
    return f"{holder} {value.dtype}{list(value.shape)}{', weakly typed' if leaf.weak_type else ''}"
