# SPDX-License-Identifier: Apache-2.0
"""The collectives of a compiled program: how often each runs in a call, over how many devices, with how many bytes."""

from __future__ import annotations

import collections
import math
import re
from typing import NamedTuple

import jax.numpy as jnp

_KINDS = "all-reduce|all-gather|all-to-all|collective-permute|collective-broadcast|reduce-scatter|ragged-all-to-all"
_COLLECTIVE = re.compile(rf"= (?P<type>.*?) (?P<kind>{_KINDS})(?:-start)?\(")
_HEAD = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) .*\{$")
_ARRAY = re.compile(r"(?P<dtype>[a-z]+\d*\w*)\[(?P<shape>[\d,]*)\]")
_CALLED = re.compile(
    r"(?:body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)"
    r"|(?:branch_computations|called_computations)=\{([^}]*)\}"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_DTYPES = {
    "pred": bool,
    "bf16": jnp.bfloat16,
    **{f"{'s' if kind == 'i' else kind}{8 * size}": f"{kind}{size}" for kind in "ui" for size in (1, 2, 4, 8)},
    **{f"f{8 * size}": f"f{size}" for size in (2, 4, 8)},
}


class Collective(NamedTuple):
    """One collective of a program.

    Attributes:
        kind: `all-reduce`, `all-gather`, ...
        size: the number of devices that take part in it.
        payload: the bytes of its result on one device.
        in_branch: whether it is in a branch, so that it does not run in each call.
    """

    kind: str
    size: int
    payload: int
    in_branch: bool


def collectives(text: str) -> collections.Counter[Collective]:
    """Returns how often each collective runs in one call of a compiled program.

    A collective in a loop counts once for each iteration, and in a branch as if the branch were taken.

    Args:
        text: the compiled program: `compiled.as_text()`.

    Raises:
        ValueError: a loop with a collective has an unknown number of iterations, or the notation of a group is unknown.
    """
    bodies, entry = _computations(text)
    found: collections.Counter[Collective] = collections.Counter()

    def visit(name: str, times: int, in_branch: bool) -> None:
        for line in bodies.get(name, ()):
            if match := _COLLECTIVE.search(line):
                found[Collective(match["kind"], _size(line), _payload(match["type"]), in_branch)] += times
                continue
            for one, several in _CALLED.findall(line):
                for called in [one] if one else re.findall(r"[\w.\-]+", several):
                    visit(called, times * _iterations(line, called, bodies), in_branch or " conditional(" in line)

    visit(entry, 1, False)
    return found


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    bodies: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        if not line.startswith(" ") and (head := _HEAD.match(line)):
            lines = bodies[head["name"]] = []
            entry = head["name"] if head["entry"] else entry
        elif " = " in line:
            lines.append(line)
    return bodies, entry


def _iterations(line: str, called: str, bodies: dict[str, list[str]]) -> int:
    if " while(" not in line:
        return 1
    if trips := _TRIPS.search(line):
        return int(trips[1])
    if any(_COLLECTIVE.search(inner) for inner in bodies.get(called, ())):
        raise ValueError(f"a loop with a collective has an unknown number of iterations: {line.strip()[:200]}")
    return 1


def _size(line: str) -> int:
    """Returns the size of the groups, for which XLA has three notations; a permutation has pairs."""
    if "source_target_pairs=" in line:
        return 2
    if groups := re.search(r"replica_groups=\[\d+,(\d+)\]<=", line):
        return int(groups[1])
    if groups := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return len(groups[1].split(","))
    if groups := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\([^{]*\))? \{([^}]*)\}", line):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", groups[1])}
        named = re.findall(r"'([^']*)'(?::\(\d+\)(\d+))?", groups[2])
        return math.prod(int(part) if part else sizes[name] for name, part in named)
    raise ValueError(f"groups in an unknown notation: {line.strip()[:300]}")


def _payload(results: str) -> int:
    """Returns the bytes of the arrays that a type lists."""
    total = 0
    for array in _ARRAY.finditer(results):
        entries = math.prod(int(size) for size in array["shape"].split(",") if size)
        total += entries * jnp.dtype(_DTYPES[array["dtype"]]).itemsize
    return total
