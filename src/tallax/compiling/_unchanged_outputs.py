# SPDX-License-Identifier: Apache-2.0
"""Finds in a jaxpr the outputs that are inputs, unchanged.

A transformation of Flax returns all state of the objects that it is given, changed or not: `nnx.grad` of a loss, an
inner `nnx.jit`, a scan over layers. So whether a function writes to a Variable cannot be told from the tracers that it
leaves behind. Here each input is followed through copies, calls, branches and loops that pass it on. An operation that
this file does not know counts as a change, so a change is never missed.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from jax.extend.core import Literal

from tallax.compiling._count_uses import IDENTITIES, jaxpr_of_call, parts_of_scan


def passed_on(jaxpr: Any, inputs: Sequence[Hashable]) -> list[Hashable]:
    """Returns for each output of an open jaxpr the input that it is, or None if it is another value.

    Inputs may have any names. An input named None is not followed.
    """
    names: dict[Any, Hashable] = dict(zip(jaxpr.invars, inputs, strict=True))

    def name_of(variable: Any) -> Hashable:
        return None if isinstance(variable, Literal) else names.get(variable)

    for equation in jaxpr.eqns:
        given = [name_of(variable) for variable in equation.invars]
        if any(name is not None for name in given):
            names.update(zip(equation.outvars, _through(equation, given), strict=False))
    return [name_of(variable) for variable in jaxpr.outvars]


def _through(equation: Any, given: list[Hashable]) -> Sequence[Hashable]:
    name, params = equation.primitive.name, equation.params
    if name in IDENTITIES and len(given) == len(equation.outvars):
        return given
    if name == "cond":
        branches = [passed_on(branch.jaxpr, given[1:]) for branch in params["branches"]]
        return [out[0] if len(set(out)) == 1 else None for out in zip(*branches, strict=True)]
    if name == "scan":
        return _through_scan(equation, given)
    if name == "while":
        first, second = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
        return _steady(params["body_jaxpr"].jaxpr, given[first:second], given[second:], [])[0]
    if (inner := jaxpr_of_call(equation)) is not None:
        if "in_specs" not in params:
            return passed_on(inner, given)
        # Each device has a part of it; put together by another spec, the parts would be another array.
        parts = [name and (name, spec) for name, spec in zip(given, params["in_specs"], strict=True)]
        return _unwrapped(passed_on(inner, parts), params["out_specs"])
    return ()


def _through_scan(equation: Any, given: list[Hashable]) -> list[Hashable]:
    body, constants, first_slice = parts_of_scan(equation)
    # A slice of an input that leaves each iteration as it came is stacked to the input again.
    parts = [name and (name, "slice") for name in given[first_slice:]]
    carries, after = _steady(body, given[:constants], given[constants:first_slice], parts)
    return [*carries, *_unwrapped(after, ["slice"] * len(after))]


def _steady(
    body: Any, constants: Sequence[Hashable], carries: Sequence[Hashable], slices: Sequence[Hashable]
) -> tuple[list[Hashable], list[Hashable]]:
    """Returns what a loop carries unchanged, and what else leaves each iteration."""
    carries = list(carries)
    while True:  # at most once for each carry
        after = passed_on(body, [*constants, *carries, *slices])
        kept = [before if before == out else None for before, out in zip(carries, after, strict=False)]
        if kept == carries:
            return carries, after[len(carries) :]
        carries = kept


def _unwrapped(outputs: Sequence[Any], marks: Sequence[Any]) -> list[Hashable]:
    return [
        out[0] if isinstance(out, tuple) and len(out) == 2 and out[1] == mark else None
        for out, mark in zip(outputs, marks, strict=True)
    ]
