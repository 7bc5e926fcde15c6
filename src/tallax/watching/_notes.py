# SPDX-License-Identifier: Apache-2.0
"""Notes that tracing makes about the sites of each watch.

Whether a site can be seen is often known only while a program is traced: its state cannot be written there, or its
output has no floats. The model must train on, so nothing is raised; the reason is noted here, and `Watch.unseen` shows
it. Notes are kept by the number of the watch and the name of the site, because under a transformation a site is a copy
that cannot refer to its `Watch`.
"""

from __future__ import annotations

import itertools

_numbers = itertools.count(1)
_notes: dict[int, dict[tuple[str, str], set[str]]] = {}


def new_number() -> int:
    """Returns the number of a new watch."""
    number = next(_numbers)
    _notes[number] = {}
    return number


def note(watch: int, site: str, role: str, text: str) -> None:
    """Notes something about a role of a site."""
    _notes.setdefault(watch, {}).setdefault((site, role), set()).add(text)


def notes_of(watch: int, site: str, role: str) -> frozenset[str]:
    """Returns the notes about a role of a site."""
    return frozenset(_notes.get(watch, {}).get((site, role), ()))
