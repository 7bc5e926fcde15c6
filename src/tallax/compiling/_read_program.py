# SPDX-License-Identifier: Apache-2.0
"""`step.read`: a function of the bound objects, compiled for the state as the step stores it."""

from __future__ import annotations

import collections
import itertools
import operator
import types
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

from tallax._errors import InvalidTypeError
from tallax.compiling._arguments import ReadArguments
from tallax.compiling._bound_objects import Structure
from tallax.compiling._layout import Layout, State
from tallax.compiling._results import refuse_graphs, refuse_objects, values_of
from tallax.compiling._unchanged_outputs import passed_on
from tallax.variables import tracing_step

_MOST = 64  # functions whose programs a step keeps


class _MoreInputs(Exception):  # noqa: N818  # it is caught here, and no error
    """A trace needs arrays that the program was not given so far."""


class ReadProgram:
    """A function of the bound objects as a function of arrays, for one layout.

    A model of 1,000 Variables is read faster if the program is given only the arrays that it uses, because JAX checks
    every argument at each call. So each trace finds them, and the program takes those of all traces so far. The
    function takes the first `leading` objects, and then the arguments of a call.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        layout: Layout,
        names: Sequence[str],
        leading: int,
        state: State,
        constants: list[Any],
    ):
        self._function, self._layout, self._names, self._leading = function, layout, names, leading
        shapes = layout.packing.shapes
        self._first: int = len(shapes)  # the position of the first value, behind the counts
        self._takes_counts = False
        self._shapes: list[Any] = [jax.ShapeDtypeStruct(shape, np.uint32) for shape in shapes]
        self._shapes += map(_shape_of, [*state.values, *constants])
        self._used: list[int] = []  # of the counts, values and constants, in this order
        self._pickers = self._pickers_of_used()
        self._traced: tuple[ClosedJaxpr, Any, list[int]] | None = None
        self.traces = 0

        self._arguments = ReadArguments(function, [None] * leading)

        def program(packed: Any, used: tuple[Any, ...], /, *args: Any, **options: Any) -> Any:
            # Without the empty slices: see `_pickers_of_used`.
            return self._run(packed, [value for part in used for value in part[1:]], args, options)

        self._program = jax.jit(self._arguments.named(program, "counts", "values"))

    def fits(self, layout: Layout) -> bool:
        """Returns whether the program runs on objects of this layout."""
        return self._layout.key == layout.key

    def __call__(self, latest: Any, constants: list[Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Returns what the function returns, for a state as in `Holding.latest`."""
        packed, small, rest, _ = latest
        while True:
            first, second, third = self._pickers
            values = first(small), second(rest), third(constants)
            try:
                return self._program(packed if self._takes_counts else None, values, *args, **options)
            except TypeError as error:
                self._arguments.explain(error, args, options, {})
                raise
            except _MoreInputs:
                self._takes_counts, self._pickers = self._used[0] < self._first, self._pickers_of_used()

    def _pickers_of_used(self) -> list[Callable[[list[Any]], Sequence[Any]]]:
        """Returns functions that pick the used ones of the small values, the other values, and the constants.

        Each also picks an empty slice, because an `itemgetter` of one place would return no tuple. A list of all values
        would be simpler, but to make it, the memory of every array is touched.
        """
        first, end = self._first, len(self._shapes)
        ends = [first, first + self._layout.small, end - len(self._layout.constants), end]
        parts = [[k - start for k in self._used if start <= k < stop] for start, stop in itertools.pairwise(ends)]
        return [operator.itemgetter(slice(0, 0), *numbers) for numbers in parts]

    def _run(self, packed: Any, used: Sequence[Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Traces the program."""
        traced, self._traced = self._traced, None  # if the last trace needed more inputs, it is not made again
        if traced is None:
            traced = self._trace(args, options)
        program, structure, needed = traced
        if not set(needed) <= set(self._used):
            self._used, self._traced = sorted({*self._used, *needed}), traced
            raise _MoreInputs
        packing, first = self._layout.packing, self._first
        inputs: list[Any] = [None] * len(self._shapes)
        counts = [k for k in self._used if k < first]
        inputs[:first] = [packing.part(packed, k) if k in set(counts) else None for k in range(first)]
        for k, value in zip(self._used[len(counts) :], used, strict=True):
            inputs[k] = value
        outputs = jaxpr_as_fun(program)(*inputs, *jax.tree.leaves((args, options)))[: structure.num_leaves]
        # JAX returns an input that is an output as the very same array, and the next step would donate it.
        given = {id(value) for value in used}
        return jax.tree.unflatten(structure, [jnp.copy(x) if id(x) in given else x for x in outputs])

    def _trace(self, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[ClosedJaxpr, Any, list[int]]:
        """Returns the jaxpr, the structure of the result, and the inputs that the jaxpr uses."""
        refuse_objects((args, options))
        self.traces += 1
        layout, first = self._layout, self._first
        values = len(self._shapes) - len(layout.constants)

        def pure(inputs: list[Any], /, *args: Any, **options: Any) -> Any:
            constants = inputs[values:]
            objects = layout.merge(dict(enumerate(inputs[:first])), inputs[first:values], constants)
            before = Structure(objects, self._names)
            with tracing_step():
                args, options = values_of((args, options), objects)
                result = self._function(*objects[: self._leading], *args, **options)
            refuse_graphs(result, {id(node): path for path, node in nnx.iter_graph(objects)}, self._arguments.label)
            split = layout.split(objects, constants)
            if split is None:
                raise before.refusal()
            counts, others = split
            return result, [counts[k] for k in range(first)], others

        program, shapes = jax.make_jaxpr(self._arguments.named(pure, "state"), return_shape=True)(
            self._shapes, *args, **options
        )
        structure = jax.tree.structure(shapes[0])
        results, outputs = structure.num_leaves, program.jaxpr.outvars
        numbers: list[Hashable] = [*range(len(self._shapes)), *[None] * (len(program.jaxpr.invars) - len(self._shapes))]
        written = [k for k, out in enumerate(passed_on(program.jaxpr, numbers)[results:]) if out != k]
        if written:
            raise self._refusal(written)
        read = {v for equation in program.jaxpr.eqns for v in equation.invars if not isinstance(v, Literal)}
        read.update(v for v in outputs[:results] if not isinstance(v, Literal))
        needed = [k for k, v in enumerate(program.jaxpr.invars[: len(self._shapes)]) if v in read]
        return program, structure, needed

    def _refusal(self, written: list[int]) -> Exception:
        names = [
            self._layout.name_of(place)
            for place in self._layout.places
            if place.number in written or any(self._first + k in written for k in place.arrays)
        ]
        return InvalidTypeError(
            ", ".join(names),
            "was changed by a function that step.read runs, and the change would be lost.",
            got=f"{self._arguments.label}, which writes to a bound object",
            fix="model.eval() before, or nnx.clone(model) in the function, if the change is not wanted; "
            "tallax.compile_step(function, model), if it is",
        )


Programs: TypeAlias = collections.OrderedDict[Hashable, tuple[Any, list[ReadProgram]]]


def programs_of(function: Callable[..., Any], known: Programs) -> list[ReadProgram]:
    """Returns the programs of a function that a step has read with, one for each layout, to be added to.

    Two functions share their programs if they are made by the same line and close over the same objects, so a lambda
    that is written in a loop is traced once.
    """
    parts = _parts_of(function)
    key = tuple(map(id, parts))
    found = known.get(key)
    if found is None:
        found = known[key] = (parts, [])  # the parts are kept, so that no other object gets the id of one
        if len(known) > _MOST:
            known.popitem(last=False)
    known.move_to_end(key)
    return found[1]


def _parts_of(function: Any) -> list[Any]:
    """Returns objects that are the same for functions of the same code, globals, defaults and closure."""
    if type(function) is not types.FunctionType:
        return [function]
    parts: list[Any] = [function.__code__, function.__globals__]
    if function.__defaults__ or function.__kwdefaults__:
        parts += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    if function.__closure__:
        try:
            parts += [cell.cell_contents for cell in function.__closure__]
        except ValueError:  # a variable that is not assigned yet
            return [function]
    return parts


def _shape_of(value: Any) -> Any:
    aval: Any = jax.typeof(value)
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type, sharding=_explicit(value))


def _explicit(value: Any) -> Any:
    return value.sharding if isinstance(value, jax.Array) and value.committed else None
