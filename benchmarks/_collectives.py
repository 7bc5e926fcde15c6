# SPDX-License-Identifier: Apache-2.0
"""The collectives of a compiled program: how often each runs in a call, over how many devices, with how many bytes."""

from __future__ import annotations

import collections
import math
import re
from typing import NamedTuple

_KINDS = "all-reduce|all-gather|all-to-all|collective-permute|collective-broadcast|reduce-scatter|ragged-all-to-all"
_COLLECTIVE = re.compile(rf"= (?P<type>.*?) (?P<kind>{_KINDS})(?:-start)?\(")
_HEAD = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) .*\{$")
_ARRAY = re.compile(r"(?P<dtype>[a-z]+\d*\w*)\[(?P<shape>[\d,]*)\]")
_CALLED = re.compile(
    r"(?:body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)"
    r"|(?:branch_computations|called_computations)=\{([^}]*)\}"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_BITS = {"pred": 8, "bf16": 16, "token": 0}


class Collective(NamedTuple):
    """One collective of a program.

    Attributes:
        kind: `all-reduce`, `all-gather`, ...
        size: the number of devices that take part in one.
        payload: the bytes of its result on one device.
    """

    kind: str
    size: int
    payload: int


def collectives(text: str) -> collections.Counter[Collective]:
    """Returns how often each collective runs in one call of a compiled program.

    A collective in a loop counts once for each iteration, and in a branch as if the branch were taken.

    Args:
        text: the compiled program: `compiled.as_text()`.

    Raises:
        ValueError: a loop with a collective has an unknown number of iterations.
    """
    bodies, entry = _computations(text)
    found: collections.Counter[Collective] = collections.Counter()

    def visit(name: str, times: int) -> None:
        for line in bodies.get(name, ()):
            if match := _COLLECTIVE.search(line):
                found[Collective(match["kind"], _size(line), _payload(match["type"]))] += times
                continue
            for one, several in _CALLED.findall(line):
                for called in [one] if one else re.findall(r"[\w.\-]+", several):
                    visit(called, times * _iterations(line, called, bodies))

    visit(entry, 1)
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
    if groups := re.search(r"replica_groups=\[\d+,(\d+)\]<=", line):
        return int(groups[1])
    if groups := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return len(groups[1].split(","))
    return 2  # a permutation has pairs


def _payload(kind: str) -> int:
    return sum(
        _bytes(found["dtype"]) * math.prod(map(int, filter(None, found["shape"].split(","))))
        for found in _ARRAY.finditer(kind)
    )


def _bytes(dtype: str) -> int:
    bits = _BITS.get(dtype) or int(re.sub(r"\D*", "", dtype, count=1)[:2].rstrip("e") or 8)
    return math.ceil(bits / 8)
