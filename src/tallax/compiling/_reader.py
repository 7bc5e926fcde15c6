# SPDX-License-Identifier: Apache-2.0
"""Reads all tallax variables from the state of a step."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from tallax import _uint64
from tallax.compiling._layout import Layout, Packing, State
from tallax.compiling._owners import Kind, Owner
from tallax.reading import Decoded, Entry, Reading, errors_among


class Reader:
    """The places of the values of tallax variables in the state of a step."""

    def __init__(self, entries: list[Entry], layout: Layout, owners: list[Owner]):
        places = {id(owner.variable): place for place, owner in zip(layout.places, owners, strict=True)}
        self._entries = entries
        self._names: list[str] = []  # in the order in which `_decode` makes the values: scalar counts first
        starts: list[int] = []
        self._others: list[int] = []
        # For every entry that is not a scalar count, the place of each of its arrays: columns among all counts, or a
        # separate value.
        self._parts: list[tuple[Entry, list[Callable[[np.ndarray, list[np.ndarray]], np.ndarray]]]] = []
        packing, self._packed = layout.packing, False
        for entry in entries:
            its = [places[id(item)] for item in entry.items.values()]
            if entry.owner is None and its[0].form.kind is Kind.COUNT and len(its[0].form.shape) == 1:
                self._names.append(entry.name)
                starts.append(packing.columns(its[0].number)[0])
                continue
            _refuse_unreadable(entry)
            parts = []
            for place in its:
                if place.number is None:
                    parts.append(functools.partial(_other, len(self._others)))
                    self._others.append(place.arrays[0])
                else:
                    parts.append(functools.partial(_packed, packing, place.number))
                    self._packed = True
            self._parts.append((entry, parts))
        self._names += [entry.name for entry, _ in self._parts]
        # A copy of a dict keeps the order of its keys, and takes a tenth of the time of a new one.
        self._blank: dict[str, Any] = dict.fromkeys(entry.name for entry in entries)
        self._places = np.array(starts, np.intp)  # the columns of the scalar counts among all counts
        self._packed |= bool(starts)
        self._lasting = all(k < layout.small for k in self._others)

    def reading(self, state: State) -> Reading:
        arrays = [state.packed] if self._packed else []
        if self._others:
            values = state.values
            arrays += [values[k] for k in self._others]
        return Reading(self._entries, arrays, self._decode, lasting=self._lasting)

    def _decode(self, copies: list[np.ndarray]) -> Decoded:
        others, words, counts = copies, np.zeros((0, 2), np.uint32), []
        if self._packed:
            packed, *others = copies
            words = np.ascontiguousarray(packed.T)
            counts = _uint64.to_uint64(words)[self._places].tolist()  # one conversion to a list of Python integers
        rest = [entry.value([part(words, others) for part in parts]) for entry, parts in self._parts]
        result = self._blank.copy()
        result.update(zip(self._names, counts + rest, strict=True))
        return result, errors_among(rest)


def _packed(packing: Packing, number: int, words: np.ndarray, others: list[np.ndarray]) -> np.ndarray:
    del others
    return packing.part_of_words(words, number)


def _other(number: int, words: np.ndarray, others: list[np.ndarray]) -> np.ndarray:
    del words
    return others[number]


def _refuse_unreadable(entry: Entry) -> None:
    """Raises if an entry has per-replica state or was cast. It raises now, not when the copy on the host arrives."""
    for item in entry.items.values():
        if item._per_replica:
            item._stored()
    if entry.owner is not None:
        entry.owner.refuse_casts()
