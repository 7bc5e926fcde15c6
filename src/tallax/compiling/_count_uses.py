# SPDX-License-Identifier: Apache-2.0
"""Finds the counts in a jaxpr that a step only adds to, and which of them it reads.

Each count enters the jaxpr in two parts (see `TwoPartCount`): its base, which is the count before the step, and a word
that starts at 0, to which the step adds. A count may stay in two parts only if everything that happens to both parts is
one of the following; otherwise it is kept whole, and the step is traced again with its limbs in the place of the parts:

- a copy, a call, a branch or a loop passes the part on, and all branches and iterations agree on what it is;
- `TwoPartCount.limbs` reads it, which stands in the jaxpr as a name;
- an increment adds to the word, whose bound stands in the jaxpr as a name or a literal, and the word cannot wrap: the
  bounds of all increments together stay below 2**32, where a loop counts once for each iteration.

A part that reaches any other operation is lost, and only `Uses.lose` defines the consequence. So an operation that this
file does not know makes a step slower, and never wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from jax.extend.core import ClosedJaxpr, Literal

from tallax._uint64 import WORD
from tallax.variables import AT_MOST, READ

# They pass on what they are given: copies, and marks of where a value lies.
IDENTITIES = {
    "copy", "copy_p", "optimization_barrier", "pvary", "pcast", "reshard", "mesh_cast", "sharding_constraint",
}  # fmt: skip
# They run the one jaxpr among their parameters on what they are given, once.
_CALLS = {"jit", "pjit", "closed_call", "remat2", "checkpoint", "custom_jvp_call", "custom_vjp_call", "shard_map"}


@dataclass(frozen=True)
class _Base:
    """The count before the step."""

    number: int


@dataclass(frozen=True)
class _Added:
    """The word that was added to the count so far, at most `bound`."""

    number: int
    bound: int


@dataclass(frozen=True)
class _Fixed:
    """Either part, if a loop reads it from outside. It can only be read."""

    number: int


@dataclass(frozen=True)
class _Amount:
    """The amount of an increment, at most `bound`."""

    bound: int


_Part: TypeAlias = _Base | _Added | _Fixed | _Amount | None


@dataclass
class Uses:
    """The uses of the counts in a step, by the numbers of the counts.

    Attributes:
        read: The counts whose base is read.
        whole: The counts that may not stay in two parts.
    """

    read: set[int] = field(default_factory=set)
    whole: set[int] = field(default_factory=set)

    def lose(self, parts: Sequence[_Part]) -> None:
        """Records that parts have reached an operation that is not known to be harmless."""
        self.whole.update(part.number for part in parts if isinstance(part, _Base | _Added | _Fixed))


def uses(program: ClosedJaxpr, counts: int) -> Uses:
    """Returns the uses of the counts in a program.

    The first inputs and the first outputs of the program are the bases of the counts, followed by the added words.
    """
    inputs: list[_Part] = [*map(_Base, range(counts)), *(_Added(number, 0) for number in range(counts))]
    inputs += [None] * (len(program.jaxpr.invars) - len(inputs))
    found = Uses()
    outputs = _follow(program.jaxpr, inputs, found)
    found.lose(outputs[2 * counts :])
    for number in range(counts):
        base, added = outputs[number], outputs[counts + number]
        if base != _Base(number) or not isinstance(added, _Added) or added.number != number:
            found.lose([base, added, _Base(number)])
    return found


def _follow(jaxpr: Any, inputs: Sequence[_Part], found: Uses) -> list[_Part]:
    """Returns the outputs of a jaxpr, and records the uses of the input parts by its equations."""
    parts: dict[Any, _Part] = dict(zip(jaxpr.invars, inputs, strict=True))

    def part_of(variable: Any) -> _Part:
        if not isinstance(variable, Literal):
            return parts.get(variable)
        aval: Any = variable.aval
        is_word = aval.shape == () and aval.dtype == np.uint32
        return _Amount(int(variable.val)) if is_word else None

    for equation in jaxpr.eqns:
        given = [part_of(variable) for variable in equation.invars]
        parts.update(zip(equation.outvars, _through(equation, given, found), strict=True))
    return [part_of(variable) for variable in jaxpr.outvars]


def _through(equation: Any, given: list[_Part], found: Uses) -> list[_Part]:
    """Returns the outputs of one equation."""
    name, params = equation.primitive.name, equation.params
    nothing: list[_Part] = [None] * len(equation.outvars)
    if name == "name" and params["name"].startswith(AT_MOST):
        found.lose(given)
        return [_Amount(int(params["name"].removeprefix(AT_MOST)))]
    if not any(given):
        return nothing
    if name == "name" and params["name"] == READ:
        found.read.update(part.number for part in given if isinstance(part, _Base | _Fixed))
        return nothing
    if name in IDENTITIES and len(given) == len(equation.outvars):
        return given
    if name == "add":
        return [_sum(given, found)]
    if name == "cond":
        found.lose(given[:1])
        branches = [_follow(branch.jaxpr, given[1:], found) for branch in params["branches"]]
        return [_agreed(parts, found) for parts in zip(*branches, strict=True)]
    if name == "scan":
        return _through_scan(equation, given, found)
    if name == "while":
        return _through_while(params, given, found)
    if (inner := jaxpr_of_call(equation)) is not None:
        return _replicated(params, given, _follow(inner, given, found), found)
    found.lose(given)
    return nothing


def _sum(given: list[_Part], found: Uses) -> _Part:
    """Returns the result of an addition: an incremented count, or None for anything else."""
    for part, other in (given, given[::-1]):
        if isinstance(part, _Added) and isinstance(other, _Amount) and part.bound + other.bound <= WORD:
            return _Added(part.number, part.bound + other.bound)
    found.lose(given)
    return None


def _agreed(parts: Sequence[_Part], found: Uses) -> _Part:
    """Returns the kind of a part that the program chooses from several parts."""
    first = parts[0]
    if all(part == first for part in parts):
        return first
    added = [part for part in parts if isinstance(part, _Added)]
    if len(added) == len(parts) and len({part.number for part in added}) == 1:
        return _Added(added[0].number, max(part.bound for part in added))
    amounts = [part.bound for part in parts if isinstance(part, _Amount)]
    if len(amounts) == len(parts):
        return _Amount(max(amounts))
    found.lose(parts)
    return None


def _replicated(params: dict[str, Any], given: list[_Part], after: list[_Part], found: Uses) -> list[_Part]:
    """Returns the outputs of a call. From a `shard_map`, only replicated outputs are kept."""
    if "in_specs" not in params:
        return after
    split = [part for part, spec in zip(given, params["in_specs"], strict=True) if any(spec)]
    split += [part for part, spec in zip(after, params["out_specs"], strict=True) if any(spec)]
    found.lose(split)
    return [None if any(spec) else part for part, spec in zip(after, params["out_specs"], strict=True)]


def _through_scan(equation: Any, given: list[_Part], found: Uses) -> list[_Part]:
    body, constants, first_slice = parts_of_scan(equation)
    found.lose(given[first_slice:])
    fixed, carried = _fixed(given[:constants]), first_slice - constants

    def once(carries: list[_Part]) -> list[_Part]:
        after = _follow(body, [*fixed, *carries, *[None] * (len(given) - first_slice)], found)
        found.lose(after[carried:])
        return after[:carried]

    carries = _iterated(once, given[constants:first_slice], equation.params["length"], found)
    return [*carries, *[None] * (len(equation.outvars) - carried)]


def parts_of_scan(equation: Any) -> tuple[Any, int, int]:
    """Returns the body of a scan, and the positions of its first carry and its first slice among its inputs."""
    body = equation.params["jaxpr"].jaxpr
    # Versions of JAX name these numbers differently. An input that is scanned over has one more axis outside.
    slices = sum(map(_has_another_rank, equation.invars, body.invars))
    carried = len(body.outvars) - sum(map(_has_another_rank, equation.outvars, body.outvars))
    first_slice = len(equation.invars) - slices
    return body, first_slice - carried, first_slice


def _has_another_rank(outside: Any, inside: Any) -> bool:
    return len(outside.aval.shape) != len(inside.aval.shape)


def jaxpr_of_call(equation: Any) -> Any:
    """Returns the open jaxpr that an equation runs once on all of its inputs, or None for another equation."""
    if equation.primitive.name not in _CALLS:
        return None
    inner = [getattr(value, "jaxpr", value) for value in equation.params.values() if _is_jaxpr(value)]
    return inner[0] if len(inner) == 1 and len(inner[0].invars) == len(equation.invars) else None


def _is_jaxpr(value: Any) -> bool:
    return hasattr(getattr(value, "jaxpr", value), "eqns")


def _through_while(params: dict[str, Any], given: list[_Part], found: Uses) -> list[_Part]:
    first, second = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    for_condition, for_body = _fixed(given[:first]), _fixed(given[first:second])

    def once(carries: list[_Part]) -> list[_Part]:
        found.lose(_follow(params["cond_jaxpr"].jaxpr, [*for_condition, *carries], found))
        return _follow(params["body_jaxpr"].jaxpr, [*for_body, *carries], found)

    return _iterated(once, given[second:], None, found)


def _fixed(parts: list[_Part]) -> list[_Part]:
    return [_Fixed(part.number) if isinstance(part, _Base | _Added) else part for part in parts]


def _iterated(
    once: Callable[[list[_Part]], list[_Part]], start: list[_Part], times: int | None, found: Uses
) -> list[_Part]:
    """Returns the final carry of a loop, whose number of iterations may be unknown (None)."""
    # The slots of one count may be permuted, so each starts with the largest bound among them.
    most: dict[int, int] = {}
    for part in start:
        if isinstance(part, _Added):
            most[part.number] = max(part.bound, most.get(part.number, 0))
    carries = [_Added(part.number, most[part.number]) if isinstance(part, _Added) else part for part in start]
    while True:  # until the kinds of the carry do not change: at most once for each slot
        after = once(carries)
        kept = [_steady(before, part, found) for before, part in zip(carries, after, strict=True)]
        if kept == carries:
            break
        carries = kept
    # Each iteration adds the same amount, because only an addition turns an `_Added` into another one.
    grown = dict.fromkeys(most, 0)
    for part in after:
        if isinstance(part, _Added):
            grown[part.number] = max(grown[part.number], part.bound - most[part.number])
    if times is None:
        found.whole.update(number for number, by in grown.items() if by)
        return [None if isinstance(part, _Added) and grown[part.number] else part for part in carries]

    def grown_by(iterations: int) -> list[_Part]:
        return [
            _Added(part.number, most[part.number] + iterations * grown[part.number])
            if isinstance(part, _Added)
            else part
            for part in carries
        ]

    once(grown_by(max(times - 1, 0)))  # the last iteration, in which every intermediate word must fit too
    result = grown_by(times)
    found.whole.update(part.number for part in result if isinstance(part, _Added) and part.bound > WORD)
    return result


def _steady(before: _Part, after: _Part, found: Uses) -> _Part:
    """Returns the kind of a slot of a loop in every iteration."""
    if isinstance(before, _Added) and isinstance(after, _Added) and before.number == after.number:
        return before
    if isinstance(before, _Amount) and isinstance(after, _Amount) and after.bound <= before.bound:
        return before
    if before == after:
        return before
    found.lose([before, after])
    return None
