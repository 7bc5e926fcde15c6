# SPDX-License-Identifier: Apache-2.0
"""`compile_step` and what it returns."""

from __future__ import annotations

import contextlib
import functools
import itertools
import weakref
from collections.abc import Callable, Iterable
from html import escape
from typing import Any, Self

import jax
import numpy as np
from flax import nnx
from jax.extend.core import jaxpr_as_fun

from tallax._arrays import is_committed, is_traced
from tallax._errors import InvalidTypeError, TallaxError, compose
from tallax.compiling._arguments import Arguments, values_of
from tallax.compiling._cells import tracing
from tallax.compiling._jaxpr_analysis import uses
from tallax.compiling._layout import Layout
from tallax.compiling._ownership import Holding, put_back
from tallax.compiling._refusals import changed, in_a_trace, refuse_objects, written_past
from tallax.compiling._results import Shape, flatten, refuse_references, with_references
from tallax.compiling._step_state import Items, Programs, State
from tallax.compiling._structure import Structure, refuse_shared
from tallax.reading import Reading, entries_of, reading_of
from tallax.variables import Pending, StateVariable

_LOOK_AT = 16  # Variables at each call, and twice as many modules: a few microseconds


def compile_step(
    train_step: Callable[..., Any],
    *objects: Any,
    donate: bool = True,
    graph: bool | None = None,
    static_argnums: int | Iterable[int] | None = None,
    static_argnames: str | Iterable[str] | None = None,
) -> CompiledStep:
    """Compiles a training step for the objects that it is going to change: a model, its optimizer, metrics.

    `train_step(*objects, *batch)` is ordinary NNX code. What it does to the objects is what `nnx.jit` would have it do,
    to the bit; but they are flattened once instead of at every call, and their values stay on the device, in the step,
    until they are asked for. A `Counter`, or a statistic that counts, adds nothing to the time of a step.

    From its first call, the step owns the state of the bound objects. You can still read and write tallax variables and
    statistics, such as `model.step`. Reading anything else, such as `model.layer.kernel`, raises
    `StateOwnedByStepError`. Call `step.sync()` to put everything back; the next call takes it over again. Leaving a
    `with compile_step(...) as step:` block also puts everything back, after an exception too.

    Several steps may bind the same objects, or parts of them, and be called in any order. The values move between the
    steps on the device.

    If the function returns a bound object or a part of one, the caller gets the bound object itself, as from `nnx.jit`.

    Args:
        train_step: takes the objects, and then the arguments of a call: arrays, pytrees of arrays, static values.
        *objects: modules and optimizers, of any mixture of Flax's and tallax's state. No Variable twice.
        donate: whether a step may overwrite the memory of the state before it. What the objects held when the step took
            them over is copied first, so other references to it stay good.
        graph: whether Flax's graph mode takes the objects apart; None for the mode that is set.
        static_argnums: positions of static parameters, as `jax.jit` counts them: over all parameters of `train_step`,
            the objects included. In `train_step(model, x, mode)`, `mode` is at 2.
        static_argnames: names of static parameters. Their values are hashable, stay Python values inside the step, and
            each is traced once. A parameter in either list is static by position and by name.

    Returns:
        A `CompiledStep`, to be called with a batch.

    Raises:
        StructureChangedError: an item is reached on two ways.
        InvalidTypeError: there is nothing to bind, or `train_step` can't be called.
        InvalidValueError: `train_step` has no such static parameter, or it is a bound object.

    Example:
        >>> import jax.numpy as jnp, tallax
        >>> from flax import nnx
        >>> model = nnx.Dict(total=nnx.Variable(jnp.float32(0.0)), seen=tallax.Counter())
        >>> def add(model, x):
        ...     model.total[...] += x.sum()
        ...     model.seen.count(jnp.isfinite(x))
        ...     return model.total[...]
        >>> with tallax.compile_step(add, model) as step:
        ...     for _ in range(3):
        ...         total = step(jnp.ones(4))
        ...     print(int(model.seen), float(total))
        12 12.0
        >>> float(model.total[...])
        12.0
    """
    return CompiledStep(
        train_step,
        objects,
        donate=donate,
        graph=graph,
        static_argnums=static_argnums,
        static_argnames=static_argnames,
    )


class CompiledStep:
    """A step that owns the state of its objects between calls; made by `compile_step`."""

    def __init__(
        self,
        function: Callable[..., Any],
        objects: tuple[Any, ...],
        *,
        donate: bool,
        graph: bool | None,
        static_argnums: int | Iterable[int] | None,
        static_argnames: str | Iterable[str] | None,
    ):
        if not callable(function):
            raise InvalidTypeError(
                compose(
                    "compile_step",
                    "takes the function that makes a step.",
                    got=f"a {type(function).__name__}",
                    fix="compile_step(train_step, model, optimizer)",
                )
            )
        if not objects or not all(isinstance(thing, nnx.Pytree) for thing in objects):
            raise InvalidTypeError(
                compose(
                    "compile_step",
                    "binds the modules and optimizers whose state the step changes.",
                    got=", ".join(type(thing).__name__ for thing in objects) or "none",
                    fix="compile_step(train_step, model, optimizer), and step(x, y) with the batch",
                )
            )
        self._function, self._objects, self._donate = function, objects, donate
        self._graph = bool(nnx.set_graph_mode.current_value() if graph is None else graph)
        self._arguments = Arguments(function, objects, static_argnums, static_argnames)
        self._names = self._arguments.names
        refuse_shared(objects, self._names, items_only=self._graph, kind=StateVariable)
        self._structure = Structure(objects, self._names)  # the one that it is compiled for
        self._layout: Layout | None = None
        self._whole: frozenset[int] = frozenset()  # counts that the step does more with than add to and read
        self._traces = 0
        self._steps = 0
        self._results: list[Shape] = []  # how the results are built, of each kind that there was
        self._programs: Programs | None = None
        self._holding: Holding | None = None
        self._end = weakref.finalize(self, _retire, None)
        functools.update_wrapper(self, function, updated=())

    # --- running ----------------------------------------------------------------------------------------------------

    def __call__(self, *batch: Any, **options: Any) -> Any:
        """Runs one step on the bound objects and returns what the function returns.

        Args:
            *batch: what the function takes after the objects. A new shape or dtype compiles once more.
            **options: likewise, by name.

        Raises:
            StructureChangedError: if the objects have changed since the first call, or the step changes them: an
                attribute, a layer, a new Variable.
            StateOwnedByStepError: if a value was written past the step, or a step that shares Variables failed on the
                device.
            TraceError: called inside another compiled function.
        """
        holding = self._holding
        if holding is None or not holding.is_ready:
            holding = self._take_over(batch, options)
        assert self._programs is not None
        result = self._run(holding, self._programs.once, batch, options)
        self._steps += 1
        return result

    def scan(self, *batches: Any, **options: Any) -> Any:
        """Runs as many steps as the batches have entries on their first axis, in one program, by `jax.lax.scan`.

        Args:
            *batches: as for a call, each array with a leading axis more.
            **options: likewise, by name.

        Returns:
            What the function returns, each array with a leading axis more.

        Raises:
            TallaxError: as a call does.
        """
        holding = self._holding
        if holding is None or not holding.is_ready:
            holding = self._take_over(batches, options)
        assert self._programs is not None
        result = self._run(holding, self._programs.many, batches, options)
        self._steps += next(leaf.shape[0] for leaf in jax.tree.leaves((batches, options)) if getattr(leaf, "ndim", 0))
        return result

    @property
    def steps(self) -> int:
        """The number of steps that calls and scans have started. The host knows it without waiting for the device."""
        return self._steps

    @property
    def traces(self) -> int:
        """How often the step was traced and compiled: once for each combination of shapes and dtypes."""
        return self._traces

    # --- the state --------------------------------------------------------------------------------------------------

    @property
    def objects(self) -> tuple[Any, ...]:
        """What the step is bound to."""
        return self._objects

    def sync(self) -> None:
        """Puts everything back on the objects, as the last completed step left it; waits for that step.

        Other steps that bind some of the objects take these over again at their next calls.

        Raises:
            StateOwnedByStepError: if a value was written past the step while the step owned it. The written value stays
                and everything else is put back. Also if a step failed on the device after it had donated the state.
        """
        holding, strays = self._holding, []
        others_may_hold = holding is None or not holding.is_ready
        if holding is not None:
            strays = holding.put_back()
            self._hold(None)
        if others_may_hold:
            put_back(self._objects)
        if strays:
            raise written_past(", ".join(strays))

    def collect(self) -> Reading:
        """Starts to bring the values of all items to the host, in one copy, and returns at once.

        Returns:
            What the items are after the last step that was started, whenever it is looked at. The names are those that
            `tallax.collect` gives; where two objects have items of one name, the later object's own is put in front.

        Raises:
            StateOwnedByStepError: a step failed on the device after it had taken the memory of the state before it.
            ReplicasError: an item is kept as a share for each replica.
        """
        holding = self._holding
        if holding is None or not holding.is_ready:
            return reading_of(entries_of(self._objects, self._names))
        return holding.reading(self._names)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sync()

    def __repr__(self) -> str:
        return f"<compiled step {self._arguments.label} of {', '.join(self._names)}>"

    def _repr_html_(self) -> str:
        try:
            items = self.collect()._repr_html_()
        except TallaxError as error:  # what can't be read is shown without
            items = f"<pre>{escape(str(error))}</pre>"
        return f"<div><code>{escape(repr(self))}</code>, traced {self._traces} times</div>{items}"

    # --- inside -----------------------------------------------------------------------------------------------------

    def _run(self, holding: Holding, program: Any, batch: tuple[Any, ...], options: dict[str, Any]) -> Any:
        holding.look(_LOOK_AT)
        if not holding.is_current:
            holding.catch_up()
        if holding.failed:
            holding.checked_state()
        if self._arguments.has_static:
            batch, options = self._arguments.with_static(batch, options)
        call = functools.partial(program, **options) if options else program
        before = holding.latest[0]
        items, rest, _ = before
        # Python raises KeyboardInterrupt between two of its own instructions. The program consumes the old state, so it
        # is called by `extend`, which has put the new one in its place before the next instruction. For the same reason
        # it returns lists and tuples only, which JAX makes without running any code of Python's.
        holding.failed = True
        try:
            holding.latest.extend(itertools.starmap(call, ((items, rest, holding.constants, *batch),)))
        except TypeError as error:
            explained = self._arguments.explained(error, batch, options)
            if explained is None:
                raise
            raise explained from error
        holding.failed = False
        items, rest, result = holding.latest[0]
        if is_traced(items[0]) or (items[0] is None and is_traced(*jax.tree.leaves((items, rest, result)))):
            holding.latest.append(before)
            raise in_a_trace()
        holding.latest.append((items, rest, None))
        structure = 0
        while isinstance(result, tuple):
            (result,) = result
            structure += 1
        shape = self._results[structure]
        if shape.references:
            return shape.build(result, holding.nodes)
        return jax.tree.unflatten(shape.structure, result)

    def _hold(self, holding: Holding | None) -> None:
        """Keeps the state, or lets go of it. If the step is dropped, the values go back on the objects."""
        self._holding = holding
        self._end.detach()
        if holding is not None:
            self._end = weakref.finalize(self, _retire, holding)
            self._end.atexit = False

    def _take_over(self, batch: tuple[Any, ...], options: dict[str, Any]) -> Holding:
        """Takes the state over, from the objects and from other steps."""
        before = self._holding
        layout = Layout(self._objects, self._names, graph=self._graph)
        refuse_shared(self._objects, self._names, items_only=self._graph, kind=StateVariable)
        if self._layout is not None and layout.graphdef != self._layout.graphdef:
            raise changed(self._structure.change())
        self._layout = layout
        structure = Structure(self._objects, self._names)
        holding = Holding(layout, self._objects, structure, (batch, options))
        try:
            self._hold(holding)
            holding.install()
        finally:
            if holding.time < 0:
                self._hold(before)
        shardings = jax.tree.map(lambda array: array.sharding if is_committed(array) else None, holding.state)
        if self._programs is None or self._programs.shardings != shardings:
            self._programs = self._compiled(shardings)
            self._whole = frozenset()  # the counts may have other numbers now
        holding.is_ready = True
        if before is not None:
            before.retire()
        return holding

    def _compiled(self, shardings: State) -> Programs:
        options: dict[str, Any] = {"donate_argnums": 1} if self._donate else {}
        if any(sharding is not None for sharding in jax.tree.leaves(shardings)):
            options["out_shardings"] = (*shardings.plain(), None)
        # A program that kept the step alive would keep the objects from getting their values back when it is dropped.
        runs = (_weakly(self._once), _weakly(self._many))
        once, many = (self._arguments.named(run, "items", "values", "arrays") for run in runs)
        return Programs(jax.jit(once, **options), jax.jit(many, **options), shardings)

    def _once(self, items: Any, rest: Any, constants: list[Any], /, *batch: Any, **options: Any) -> tuple[Any, ...]:
        """Traces the program of a call: what it returns is `Holding.latest`."""
        refuse_objects((batch, options))
        state, result = self._step(State(Items(*items), rest), constants, batch, options)
        return (*state.plain(), self._flat(result))

    def _many(self, items: Any, rest: Any, constants: list[Any], /, *batches: Any, **options: Any) -> tuple[Any, ...]:
        """Traces the program of a scan, likewise."""
        refuse_objects((batches, options))
        self._arguments.refuse_scalars(batches, options)

        def body(state: State, each: Any) -> tuple[State, Any]:
            state, result = self._step(state, constants, *each)
            refuse_references(result, self._names, self._arguments.label)
            return state, result

        state, result = jax.lax.scan(body, State(Items(*items), rest), (batches, options))
        return (*state.plain(), self._flat(result))

    def _flat(self, result: Any) -> Any:
        """Returns a list of the leaves of a result, within as many tuples as tell the number of its structure."""
        leaves, structure = flatten(result)
        if structure not in self._results:
            self._results.append(structure)
        wrapped: Any = leaves
        for _ in range(self._results.index(structure)):
            wrapped = (wrapped,)
        return wrapped

    def _step(self, state: State, constants: list[Any], batch: Any, options: Any) -> tuple[State, Any]:
        """Traces one step: from the state, and what else the function takes, to the state and what it returns."""
        items, rest = state
        self._traces += 1
        layout = self._layout
        assert layout is not None
        packing = layout.packing
        numbers = range(len(layout.counters))
        whole = self._whole
        while True:
            apart = [number for number in numbers if number not in whole]
            bases: list[Any] = [np.zeros((*packing.shapes[number], 2), np.uint32) for number in apart]
            added = [np.zeros(packing.shapes[number], np.uint32) for number in apart]
            limbs = [packing.part(items.packed, number) for number in sorted(whole)]
            inputs = [bases, added, limbs, items.values + rest, constants]
            pure = functools.partial(self._pure, layout, apart)
            pure = self._arguments.named(pure, "bases", "added", "counts", "values", "arrays")
            try:
                program, shape = jax.make_jaxpr(pure, return_shape=True)(*inputs, *batch, **options)
            except (TypeError, ValueError):
                # Other state may have met a count in two parts, as `nnx.update(model, saved)` in one branch of two.
                if not apart:
                    raise
                whole = frozenset(numbers)
                continue
            found = uses(program, len(apart))
            if not found.whole:
                break
            whole |= {apart[k] for k in found.whole}
        self._whole = whole
        for k in found.read:
            bases[k] = packing.part(items.packed, apart[k])
        outputs = jaxpr_as_fun(program)(*jax.tree.leaves((inputs, batch, options)))
        _, words, limbs, values, result = jax.tree.unflatten(jax.tree.structure(shape), outputs)
        packed = items.packed
        if numbers:
            added, replaced = dict(zip(apart, words, strict=True)), dict(zip(sorted(whole), limbs, strict=True))
            packed = packing.plus(packed, added, replaced)
        return State(Items(packed, values[: layout.lasting]), values[layout.lasting :]), result

    def _pure(
        self, layout: Layout, apart: list[int], bases: Any, added: Any, whole: Any, values: Any, constants: Any, /,
        *batch: Any, **options: Any,
    ) -> tuple[Any, ...]:  # fmt: skip
        """The step as a function of arrays: counts in two parts, whole ones, other values, and what it is given."""
        counts: dict[int, Any] = {number: Pending(*parts) for number, *parts in zip(apart, bases, added, strict=True)}
        others = [number for number in range(len(layout.counters)) if number not in counts]
        counts.update(zip(others, whole, strict=True))
        objects = layout.merge(counts, values, constants)
        before = Structure(objects, self._names)
        with tracing():
            batch, options = values_of((batch, options))
            result = with_references(self._function(*objects, *batch, **options), objects, self._arguments.label)
        after = layout.split(objects, constants)
        if after is None:
            raise changed(
                before.change(),
                fix="change it outside of the step, or keep it in a Variable; nnx.pop takes out what was sown",
            )
        counts, values = after
        parts = [_in_two(counts[number], word) for number, word in zip(apart, added, strict=True)]
        limbs = [_in_one(counts[number]) for number in others]
        return [part.base for part in parts], [part.added for part in parts], limbs, values, result


def _weakly(method: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function that calls a method without keeping its object alive."""
    reference: Any = weakref.WeakMethod(method)

    def call(*args: Any, **options: Any) -> Any:
        return reference()(*args, **options)

    return call


def _retire(holding: Holding | None) -> None:
    # Inside a trace, or if a step failed on the device, the values stay with the holding, which the objects keep alive.
    with contextlib.suppress(Exception):
        if holding is not None:
            holding.retire()


def _in_two(count: Any, word: Any) -> Pending:
    """Returns a count in two parts; it is whole where Flax, or the user, has put one in its place."""
    return count if isinstance(count, Pending) else Pending(None, word).at(count)


def _in_one(value: Any) -> Any:
    """Returns a count whole, and anything else as it is."""
    return value.limbs if isinstance(value, Pending) else value
