# SPDX-License-Identifier: Apache-2.0
"""The program of a step: the user's function, traced for one layout and one set of static values."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend.core import jaxpr_as_fun

from tallax.compiling._arguments import Arguments
from tallax.compiling._bound_objects import Structure
from tallax.compiling._count_uses import uses
from tallax.compiling._layout import Layout, State
from tallax.compiling._results import Shape, flatten, refuse_objects, refuse_references, values_of, with_references
from tallax.variables import TwoPartCount, tracing_step


class Program:
    """A step as a function of arrays, compiled for objects of one structure.

    A step has one program for each structure of its objects, so `model.eval()` and `model.train()` compile once each. A
    program refers to the objects only by their `Layout`, so it keeps neither values nor steps alive.

    Attributes:
        once: Runs one step, and returns the next `Holding.latest`.
        many: Runs several steps with `jax.lax.scan`.
        traces: The number of times that the function was traced.
    """

    def __init__(self, arguments: Arguments, layout: Layout, shardings: State, *, donate: bool):
        self._arguments, self._layout, self._key = arguments, layout, (layout.key, shardings)
        self._names = arguments.names
        self._whole: frozenset[int] = frozenset()  # counts that the step uses for more than additions and reads
        self.traces = 0
        self._results: list[Shape] = []  # the structures of all results so far; see `_flat`
        options: dict[str, Any] = {"donate_argnums": 2} if donate else {}
        if any(sharding is not None for sharding in jax.tree.leaves(shardings)):
            options["out_shardings"] = (*shardings, None)
        once, many = (arguments.named(run, "packed", "small", "values", "arrays") for run in (self._once, self._many))
        self.once, self.many = jax.jit(once, **options), jax.jit(many, **options)

    def fits(self, layout: Layout, shardings: State) -> bool:
        """Returns whether the program runs on objects of this layout with this placement of their state."""
        return self._key == (layout.key, shardings)

    def _once(self, packed: Any, small: Any, rest: Any, constants: Any, /, *batch: Any, **options: Any) -> Any:
        """Traces the program of a call, which returns `Holding.latest`."""
        refuse_objects((batch, options))
        state, result = self._step(State(packed, small, rest), constants, batch, options)
        return (*state, self._flat(result))

    def _many(self, packed: Any, small: Any, rest: Any, constants: Any, /, *batches: Any, **options: Any) -> Any:
        """Traces the program of a scan, which returns `Holding.latest`."""
        refuse_objects((batches, options))
        self._arguments.refuse_scalars(batches, options)

        def body(state: State, each: Any) -> tuple[State, Any]:
            state, result = self._step(state, constants, *each)
            refuse_references(result, self._names, self._arguments.label)
            return state, result

        state, result = jax.lax.scan(body, State(packed, small, rest), (batches, options))
        return (*state, self._flat(result))

    def _flat(self, result: Any) -> Any:
        """Returns a list of the leaves of a result, nested in tuples. The depth encodes the number of its structure."""
        leaves, structure = flatten(result)
        if structure not in self._results:
            self._results.append(structure)
        wrapped: Any = leaves
        for _ in range(self._results.index(structure)):
            wrapped = (wrapped,)
        return wrapped

    def result_of(self, nested: Any, nodes: Callable[[], Any]) -> Any:
        """Returns the result of the function from the nested list of `_flat`, and the bound objects by their paths."""
        number = 0
        while isinstance(nested, tuple):
            (nested,) = nested
            number += 1
        shape = self._results[number]
        return shape.build(nested, nodes()) if shape.references else jax.tree.unflatten(shape.structure, nested)

    def _step(self, state: State, constants: list[Any], batch: Any, options: Any) -> tuple[State, Any]:
        """Traces one step, from the state and the arguments to the new state and the result."""
        packed, values = state.packed, state.values
        self.traces += 1
        layout, packing = self._layout, self._layout.packing
        program, shape, read = self._jaxpr(packed, values, constants, batch, options)
        apart, (bases, added, limbs, words) = self._counts(packed)
        for k in read:
            bases[k] = packing.part(packed, apart[k])
        inputs = [bases, added, limbs, words, values, constants]
        outputs = jaxpr_as_fun(program)(*jax.tree.leaves((inputs, batch, options)))
        _, added, limbs, words, values, result = jax.tree.unflatten(jax.tree.structure(shape), outputs)
        if layout.packed:
            replaced = dict(zip(sorted(self._whole), limbs, strict=True))
            packed = packing.plus(packed, dict(zip(apart, added, strict=True)), replaced, words)
        return layout.state(packed, values), result

    def _jaxpr(
        self, packed: Any, values: list[Any], constants: list[Any], batch: Any, options: Any
    ) -> tuple[Any, Any, set[int]]:
        """Returns the jaxpr of a step, the shapes of its outputs, and the numbers of the two-part counts that it reads.

        In the first trace each count is in two parts. If the jaxpr shows a use that needs the whole count, the function
        is traced again. `_whole` stores these counts, so later shapes are traced once.
        """
        while True:
            apart, counts = self._counts(packed)
            pure = self._arguments.named(
                functools.partial(self._pure, apart), "bases", "added", "counts", "words", "values", "arrays"
            )
            try:
                program, shape = jax.make_jaxpr(pure, return_shape=True)(*counts, values, constants, *batch, **options)
            except (TypeError, ValueError):
                # `nnx.update(model, saved)` in one branch of a `cond` gives branches of different structure: a count
                # in two parts and an array. JAX raises in the middle of the user's function, and there is no jaxpr to
                # find the count in. A check of the message would depend on the version of JAX, and a pytree that hides
                # the parts from `cond` cannot choose between them. So any such error is tried once more with all counts
                # whole, as arrays. An error of the user's own is raised by that second trace, at the cost of its time.
                if not apart:
                    raise
                self._whole = frozenset(range(self._layout.packing.counts))
                continue
            found = uses(program, len(apart))
            if not found.whole:
                return program, shape, found.read
            self._whole |= {apart[k] for k in found.whole}

    def _counts(self, packed: Any) -> tuple[list[int], tuple[list[Any], list[Any], list[Any], Any]]:
        """Returns the numbers of the two-part counts, their bases and increments, the whole counts, and other words."""
        packing = self._layout.packing
        apart = [number for number in range(packing.counts) if number not in self._whole]
        bases: list[Any] = [np.zeros(packing.shapes[number], np.uint32) for number in apart]
        added: list[Any] = [np.zeros(packing.shapes[number][:-1], np.uint32) for number in apart]
        whole = [packing.part(packed, number) for number in sorted(self._whole)]
        return apart, (bases, added, whole, packing.words(packed))

    def _pure(
        self, apart: list[int], bases: Any, added: Any, whole: Any, words: Any, values: Any, constants: Any, /,
        *batch: Any, **options: Any,
    ) -> tuple[Any, ...]:  # fmt: skip
        """Runs the step as a function of arrays: two-part counts, whole counts, other values, and the arguments."""
        layout = self._layout
        packing = layout.packing
        counts: dict[int, Any] = dict(zip(apart, map(TwoPartCount, bases, added), strict=True))
        others = [number for number in range(packing.counts) if number not in counts]
        counts.update(zip(others, whole, strict=True))
        with tracing_step():
            if words is not None:
                counts.update(enumerate(packing.cut(words), packing.counts))
            objects = layout.merge(counts, values, constants)
            before = Structure(objects, self._names)
            batch, options = values_of((batch, options), objects)
            result = self._arguments.function(*objects[: self._arguments.count], *batch, **options)
            result = with_references(result, objects, self._arguments.label)
            after = layout.split(objects, constants)
            if after is None:
                raise before.refusal()
            counts, values = after
            if words is not None:
                words = packing.joined([counts[number] for number in range(packing.counts, len(packing.shapes))])
        parts = [_in_two(counts[number], word) for number, word in zip(apart, added, strict=True)]
        limbs = [_in_one(counts[number]) for number in others]
        return [part.base for part in parts], [part.added for part in parts], limbs, words, values, result


def _in_two(count: Any, word: Any) -> TwoPartCount:
    """Returns a count in two parts. It is whole if Flax or the user has replaced it."""
    return count if isinstance(count, TwoPartCount) else TwoPartCount(None, word).at(count)


def _in_one(value: Any) -> Any:
    """Returns a count as a whole, and anything else unchanged."""
    return value.limbs if isinstance(value, TwoPartCount) else value
