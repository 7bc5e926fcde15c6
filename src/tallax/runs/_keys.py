# SPDX-License-Identifier: Apache-2.0
"""The names of numbers in a run: the parts of a name, the order of names, and the patterns that select them.

A Logger writes a number of the state as `gate/fired/rate`, and a number of a site of `tallax.watch` as
`layers/0/up:output/rms`. This is the only file that takes a name apart.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Container, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

_ENTRY = re.compile(r"\d+(,\d+)*")
# The numbers of sites that count entries, updates and steps for the other numbers.
_BOOKKEEPING = {"size", "updates", "entries", "queries", "largest_at", "nonfinite_at"}


class SiteKey(NamedTuple):
    """The parts of the name of a number of a site.

    Attributes:
        path: The path of the module or the Param: `layers/0/up`. It is empty for the model itself.
        role: The watched tensor or the preset: `output`, `gradient`, `attention`.
        number: The name of the number: `rms`. It is empty if the site has a single number, such as `update_ratio`.
        entry: The index of an array's entry, such as a layer of a stack or a head: `3`, or `3,1`. It may be empty.
    """

    path: str
    role: str
    number: str
    entry: str

    @property
    def site(self) -> str:
        """The name of the site: `layers/0/up:output`."""
        return f"{self.path}:{self.role}"

    @property
    def is_bookkeeping(self) -> bool:
        """True if the number is only the step or the number of entries of another one."""
        return not _BOOKKEEPING.isdisjoint(self.number.split("/"))


@functools.lru_cache(2**16)  # a live table takes thousands of names apart at each record
def site_key(name: str) -> SiteKey | None:
    """Returns the parts of the name of a number of a site; None for other names."""
    path, colon, rest = name.rpartition(":")
    role, *number = rest.split("/")
    if not colon or not role.isidentifier():
        return None
    entry = number.pop() if number and is_entry(number[-1]) else ""
    return SiteKey(path, role, "/".join(number), entry)


def is_entry(part: str) -> bool:
    """Returns whether the last part of a name is the index of an array entry: `3`, or `1,2`."""
    return bool(_ENTRY.fullmatch(part))


def owner_of(name: str, *known: Container[str]) -> str:
    """Returns the variable or statistic that a number belongs to: the longest part of its name that is known, or ""."""
    while name and not any(name in names for names in known):
        name = name.rpartition("/")[0]
    return name


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Returns whether a name matches one of some shell patterns. Without patterns, every name matches.

    A pattern also matches everything below a name: `gate` matches `gate/fired` and `gate:output`.
    """
    return not patterns or any(
        fnmatchcase(name, pattern) or name.startswith((f"{pattern}/", f"{pattern}:")) for pattern in patterns
    )


def is_selected(name: str, patterns: Sequence[str]) -> bool:
    """Returns whether `--names` selects a name.

    A pattern that matches a site selects its numbers, and one that matches a number selects its entries. A wildcard
    does not stand for the bookkeeping of a site.
    """
    key = site_key(name)
    if key is None:
        return matches(name, patterns)
    if key.is_bookkeeping:
        patterns = [pattern for pattern in patterns if is_spelled_out(key, pattern)]
        return bool(patterns) and matches(name, patterns)
    return any(matches(part, patterns) for part in (name, key.site, f"{key.site}/{key.number}"))


def is_spelled_out(key: SiteKey, pattern: str) -> bool:
    """Returns whether a pattern contains the name of a number of a site, without a wildcard in it."""
    return bool(key.number) and key.number in pattern.split("/")


@functools.lru_cache(2**16)
def sort_key(name: str) -> tuple[object, ...]:
    """Returns a sort key by which `layers/10` follows `layers/9`, and names below another follow it directly."""
    path, colon, rest = name.rpartition(":")
    return _natural(path if colon else rest), _natural(rest if colon else "")


def _natural(text: str) -> tuple[tuple[object, ...], ...]:
    """Returns the parts of a path, with the numbers in them as numbers."""
    return tuple(
        tuple(
            (0, int(piece), "") if piece.isdecimal() else (1, 0, piece) for piece in re.split(r"(\d+)", part) if piece
        )
        for part in re.split("[/,]", text)
    )
