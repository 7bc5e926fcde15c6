# SPDX-License-Identifier: Apache-2.0
"""Reading all items out of a step's state."""

from __future__ import annotations

from typing import Any

import numpy as np

from tallax import _limbs
from tallax.compiling._layout import Layout
from tallax.compiling._state import State
from tallax.reading import Entry, Reading


class Reader:
    """Where the values of items lie in a step's state."""

    def __init__(self, entries: list[Entry], layout: Layout):
        places = {id(place.variable): place for place in layout.places}
        self._entries = entries
        self._names = [entry.name for entry in entries]
        self._scalars: list[str] = []
        starts: list[int] = []
        self._shaped: list[tuple[Entry, int, int, tuple[int, ...]]] = []
        self._others: list[tuple[Entry, int]] = []
        packing = layout.packing
        for entry in entries:
            if entry.item.shares:
                entry.item.stored()  # raises, and says how to combine them
            place = places[id(entry.item)]
            if place.number is None:
                self._others.append((entry, place.arrays[0]))
            elif packing.shapes[place.number] or entry.owner is not None:
                start, end = packing.ends[place.number : place.number + 2]
                self._shaped.append((entry, start, end, (*packing.shapes[place.number], 2)))
            else:
                self._scalars.append(entry.name)
                starts.append(packing.ends[place.number])
        self._places = np.array(starts, np.intp)  # of the scalar counts among all counts
        self._lasting = all(k < layout.lasting for _, k in self._others)

    def reading(self, state: State) -> Reading:
        arrays = [state.items.packed] if self._scalars or self._shaped else []
        if self._others:
            values = state.values
            arrays += [values[k] for _, k in self._others]
        return Reading(self._entries, arrays, self._decode, lasting=self._lasting)

    def _decode(self, copies: list[np.ndarray]) -> dict[str, Any]:
        result: dict[str, Any] = dict.fromkeys(self._names)
        others = copies
        if self._scalars or self._shaped:
            packed, *others = copies
            words = np.ascontiguousarray(packed.T)
            counts = _limbs.to_uint64(words)[self._places].tolist()  # a list of Python integers, at once
            result.update(zip(self._scalars, counts, strict=True))
            for entry, start, end, shape in self._shaped:
                result[entry.name] = entry.value(words[start:end].reshape(shape))
        for (entry, _), copy in zip(self._others, others, strict=True):
            result[entry.name] = entry.value(copy)
        return result
