# SPDX-License-Identifier: Apache-2.0
"""What a step does with each count: read off its jaxpr, so that no way around a Counter's own methods goes unseen.

Each count enters the jaxpr in two parts (see `Pending`): what it was before, its base, and what the step has added to
it, a word that starts at 0. Both are followed through the program. A base that enters no arithmetic need not be sliced
out of the array of all counts. What was added fits its word if the bounds of all increments, which stand in the jaxpr
beside them, add up to less than 2**32; in a loop they count once for each iteration.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from jax.extend.core import ClosedJaxpr, Literal

from tallax._limbs import WORD
from tallax._variables import AT_MOST

# They hand on what they are given: copies, and marks of where a value lies.
_IDENTITIES = {
    "copy", "copy_p", "name", "stop_gradient", "optimization_barrier",
    "pvary", "pcast", "reshard", "mesh_cast", "sharding_constraint",
}  # fmt: skip


@dataclass
class Uses:
    """What a step does with its counts, by their numbers.

    Attributes:
        read: the base enters arithmetic.
        written: the base is written over.
        wide: what is added may not fit one word, so the count can't go in two parts.
    """

    read: set[int] = field(default_factory=set)
    written: set[int] = field(default_factory=set)
    wide: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class _Base:
    number: int


@dataclass(frozen=True)
class _Added:
    number: int
    bound: float  # an int, or infinite


@dataclass(frozen=True)
class _Amount:
    bound: int


_Part: TypeAlias = _Base | _Added | _Amount | None


def uses(program: ClosedJaxpr, counts: int) -> Uses:
    """Returns what a program does with its counts.

    Args:
        program: its first inputs, and its first outputs, are the bases of the counts and then what is added to them.
        counts: how many there are.
    """
    numbers = range(counts)
    inputs: list[_Part] = [*map(_Base, numbers), *(_Added(number, 0) for number in numbers)]
    inputs += [None] * (len(program.jaxpr.invars) - len(inputs))
    found = Uses()
    outputs = _follow(program.jaxpr, inputs, [True] * len(program.jaxpr.outvars), found)
    for number in numbers:
        added = outputs[counts + number]
        fits = isinstance(added, _Added) and added.number == number and added.bound <= WORD
        if outputs[number] != _Base(number):
            found.written.add(number)
        if not fits:
            found.wide.add(number)
    for place, part in enumerate(outputs):
        if isinstance(part, _Base) and place != part.number:
            found.read.add(part.number)  # it is handed out, or to another count
    return found


def _follow(jaxpr: Any, inputs: Sequence[_Part], wanted: Sequence[bool], found: Uses) -> list[_Part]:
    """Returns what comes out of a jaxpr, and notes what its equations do.

    Args:
        jaxpr: without constants of interest.
        inputs: what goes in.
        wanted: which outputs somebody uses; an equation that nobody uses reads nothing.
        found: is added to.
    """
    parts: dict[Any, _Part] = dict(zip(jaxpr.invars, inputs, strict=True))

    def part_of(variable: Any) -> _Part:
        return None if isinstance(variable, Literal) else parts.get(variable)

    for equation, used in _with_use(jaxpr, wanted):
        given = [part_of(variable) for variable in equation.invars]
        if not any(isinstance(part, _Base | _Added) for part in given) and equation.primitive.name != "name":
            continue
        for variable, part in zip(equation.outvars, _through(equation, given, used, found), strict=True):
            parts[variable] = part
            if isinstance(part, _Added) and part.bound > WORD:
                found.wide.add(part.number)
    return [part_of(variable) for variable in jaxpr.outvars]


def _with_use(jaxpr: Any, wanted: Sequence[bool]) -> list[tuple[Any, list[bool]]]:
    """Returns the equations that are executed for something, in order, each with which of its outputs are used."""
    used = [variable for variable, use in zip(jaxpr.outvars, wanted, strict=True) if use]
    needed = {variable for variable in used if not isinstance(variable, Literal)}
    kept = []
    for equation in reversed(jaxpr.eqns):
        used = [variable in needed for variable in equation.outvars]
        if any(used) or equation.effects:
            needed.update(variable for variable in equation.invars if not isinstance(variable, Literal))
            kept.append((equation, used))
    return kept[::-1]


def _through(equation: Any, given: list[_Part], used: list[bool], found: Uses) -> list[_Part]:
    """Returns what comes out of one equation."""
    name, params = equation.primitive.name, equation.params
    nothing: list[_Part] = [None] * len(equation.outvars)
    if name == "name" and params["name"].startswith(AT_MOST):
        return [_Amount(int(params["name"].removeprefix(AT_MOST)))]
    if name in _IDENTITIES and len(given) == len(equation.outvars):
        return given
    if name == "add":
        return [_sum(given, equation.invars)]
    if name == "mul":
        return [_zero(given, equation.invars)]
    if name == "scan":
        return _through_scan(equation, given, found)
    if name == "while":
        return _through_while(params, given, found)
    if name == "cond":
        return _same([_follow(branch.jaxpr, given[1:], used, found) for branch in params["branches"]])
    inner = [getattr(value, "jaxpr", value) for value in params.values() if _is_jaxpr(value)]
    if len(inner) == 1 and len(inner[0].invars) == len(given) and len(inner[0].outvars) == len(equation.outvars):
        return _follow(inner[0], given, used, found)  # jit, remat, shard_map, custom_jvp_call, custom_vjp_call
    found.read.update(part.number for part in given if isinstance(part, _Base))
    return nothing


def _sum(given: list[_Part], variables: Sequence[Any]) -> _Part:
    """Returns what an addition makes: one that a Counter's increment is, or any other."""
    for part, other, variable in ((*given, variables[1]), (*given[::-1], variables[0])):
        if isinstance(part, _Added):
            if isinstance(other, _Amount):
                return _Added(part.number, part.bound + other.bound)
            if isinstance(variable, Literal):
                return _Added(part.number, part.bound + int(variable.val))
    return None


def _zero(given: list[_Part], variables: Sequence[Any]) -> _Part:
    """Returns what a multiplication makes: by zero, it is how what was added is forgotten."""
    part, by = given[0], variables[1]
    if isinstance(part, _Added) and isinstance(by, Literal) and int(by.val) == 0:
        return _Added(part.number, 0)
    return None


def _through_scan(equation: Any, given: list[_Part], found: Uses) -> list[_Part]:
    params = equation.params
    body = params["jaxpr"].jaxpr
    # Versions of JAX say in different words how many of each there are. What is scanned over has an axis more outside.
    slices = sum(map(_has_another_rank, equation.invars, body.invars))
    carried = len(body.outvars) - sum(map(_has_another_rank, equation.outvars, body.outvars))
    constants = len(given) - slices - carried
    found.read.update(part.number for part in given[constants + carried :] if isinstance(part, _Base))
    inputs = [*given[: constants + carried], *[None] * slices]
    after = _follow(body, inputs, [True] * len(body.outvars), found)
    carries = _iterated(given[constants : constants + carried], after[:carried], params["length"])
    found.read.update(part.number for part in after[carried:] if isinstance(part, _Base))
    return [*carries, *[None] * (len(after) - carried)]


def _has_another_rank(outside: Any, inside: Any) -> bool:
    return len(outside.aval.shape) != len(inside.aval.shape)


def _through_while(params: dict[str, Any], given: list[_Part], found: Uses) -> list[_Part]:
    condition, constants = params["cond_nconsts"], params["body_nconsts"]
    carried = given[condition + constants :]
    _follow(params["cond_jaxpr"].jaxpr, [*given[:condition], *carried], [True], found)
    body = params["body_jaxpr"].jaxpr
    after = _follow(body, [*given[condition : condition + constants], *carried], [True] * len(body.outvars), found)
    return _iterated(carried, after, math.inf)


def _iterated(before: list[_Part], after: list[_Part], times: float) -> list[_Part]:
    """Returns what is carried out of a loop, given what one iteration makes of what is carried in."""
    result: list[_Part] = []
    for start, end in zip(before, after, strict=True):
        if isinstance(start, _Added) and isinstance(end, _Added) and start.number == end.number:
            grown = end.bound - start.bound
            end = _Added(start.number, start.bound + times * grown if grown > 0 else start.bound)
        elif start != end:
            end = None  # what it was in the first iteration tells nothing about the next
        result.append(end)
    return result


def _same(branches: list[list[_Part]]) -> list[_Part]:
    """Returns what comes out of a conditional: what all branches agree on."""
    result: list[_Part] = []
    for parts in zip(*branches, strict=True):
        if all(isinstance(part, _Added) for part in parts) and len({part.number for part in parts}) == 1:
            result.append(max(parts, key=lambda part: part.bound))
        else:
            result.append(parts[0] if all(part == parts[0] for part in parts) else None)
    return result


def _is_jaxpr(value: Any) -> bool:
    return hasattr(getattr(value, "jaxpr", value), "eqns")
