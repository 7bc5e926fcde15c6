# SPDX-License-Identifier: Apache-2.0
"""`compile_step` and what it returns."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from html import escape
from typing import Any, Self

import jax
import numpy as np
from flax import nnx
from jax.extend.core import jaxpr_as_fun

from tallax import _limbs
from tallax._errors import InvalidTypeError, TallaxError, compose
from tallax._placement import home_of, is_committed, is_traced, placed
from tallax._variables import Item, Pending
from tallax.compiling._holding import Holding
from tallax.compiling._layout import Layout, owned
from tallax.compiling._refusals import changed, in_a_trace, refuse_objects, written_past
from tallax.compiling._sources import with_sources
from tallax.compiling._state import Items, Programs, State
from tallax.compiling._structure import Structure, names_of, refuse_shared
from tallax.compiling._uses import uses
from tallax.reading import Reading, collect

_LOOK_AT = 16  # Variables at each call, and twice as many modules: a few microseconds


def compile_step(
    train_step: Callable[..., Any], *objects: Any, donate: bool = True, graph: bool | None = None
) -> CompiledStep:
    """Compiles a training step for the objects that it is going to change: a model, its optimizer, metrics.

    `train_step(*objects, *batch)` is ordinary NNX code. What it does to the objects is what `nnx.jit` would have it do,
    to the bit; but they are flattened once instead of at every call, and their values stay on the device, in the step,
    until they are asked for. A `Counter`, or a statistic that counts, adds nothing to the time of a step.

    Between the calls the bound objects are held. An item of tallax (`model.step`, a statistic) can be read and written
    as ever, and has its current value. Any other use of a value raises `HeldError`: `step.sync()` brings everything
    back, and the next call takes it over again. So does the end of a `with compile_step(...) as step:` block.

    Args:
        train_step: takes the objects, and then what a call of the step is given: arrays, and pytrees of arrays.
        *objects: modules and optimizers, of any mixture of Flax's and tallax's state. No Variable twice.
        donate: whether a step may overwrite the memory of the state before it. What the objects held when the step took
            them over is copied first, so other references to it stay good.
        graph: whether Flax's graph mode takes the objects apart; None for the mode that is set.

    Returns:
        A `CompiledStep`, to be called with a batch.

    Raises:
        StructureError: an item is reached on two ways.
        InvalidTypeError: there is nothing to bind, or `train_step` can't be called.

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
    return CompiledStep(train_step, objects, donate=donate, graph=graph)


class CompiledStep:
    """A step that owns the state of its objects between calls; made by `compile_step`."""

    def __init__(self, function: Callable[..., Any], objects: tuple[Any, ...], *, donate: bool, graph: bool | None):
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
        self._names = names_of(function, objects)
        refuse_shared(objects, self._names, items_only=self._graph, kind=Item)
        self._structure = Structure(objects, self._names)  # the one that it is compiled for
        self._layout: Layout | None = None
        self._wide: frozenset[int] = frozenset()  # counts that the step may add more to than 32 bits hold
        self._traces = 0
        self._steps = 0
        self._results: list[Any] = []  # how what the function returns is built, of each kind that there was
        self._programs: Programs | None = None
        self._holding: Holding | None = None
        functools.update_wrapper(self, function, updated=())

    # --- running ----------------------------------------------------------------------------------------------------

    def __call__(self, *batch: Any, **options: Any) -> Any:
        """Runs one step on the bound objects and returns what the function returns.

        Args:
            *batch: what the function takes after the objects. A new shape or dtype compiles once more.
            **options: likewise, by name.

        Raises:
            StructureError: the objects have changed, or the step changes them: an attribute, a layer, a new Variable.
            HeldError: another step holds them, or a value was written past this one, which holds it.
            TraceError: called inside another compiled function.
        """
        holding = self._holding or self._hold(batch, options)
        result = self._run(holding, holding.programs.once, batch, options)
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
        holding = self._holding or self._hold(batches, options)
        result = self._run(holding, holding.programs.many, batches, options)
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

        Raises:
            HeldError: a value was written past the step while it held it: what was written stays, and everything else
                is put back. Or a step failed on the device after it had taken the memory of the state before it.
        """
        holding = self._holding
        if holding is None:
            return
        state = holding.checked_state()
        layout = holding.layout
        counts = layout.packing.unpack(np.asarray(state.items.packed)) if layout.counters else []
        values, strays = state.values, holding.strays()
        for place, held in zip(layout.places, holding.held, strict=True):
            if place.name in strays:
                continue
            if place.number is None:
                variable = place.structure.unflatten([values[k] for k in place.arrays])
                place.variable.set_raw_value(variable.get_raw_value())
            else:
                limbs: Any = _limbs.from_uint64(counts[place.number])
                sharding = held.sharding
                place.variable.set_raw_value(limbs if sharding is None else placed(limbs, sharding))
        self._holding = None
        if strays:
            raise written_past(", ".join(strays))

    def collect(self) -> Reading:
        """Starts to bring the values of all items to the host, in one copy, and returns at once.

        Returns:
            What the items are after the last step that was started, whenever it is looked at. The names are those that
            `tallax.collect` gives; where two objects have items of one name, the later object's own is put in front.

        Raises:
            HeldError: a step failed on the device after it had taken the memory of the state before it.
            ReplicasError: an item is kept as a share for each replica.
        """
        holding = self._holding
        if holding is None:
            return collect(*self._objects)
        return holding.reading(self._objects, self._names)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sync()

    def __repr__(self) -> str:
        name = getattr(self._function, "__name__", repr(self._function))
        return f"<compiled step {name} of {', '.join(self._names)}>"

    def _repr_html_(self) -> str:
        try:
            items = self.collect()._repr_html_()
        except TallaxError as error:  # what can't be read is shown without
            items = f"<pre>{escape(str(error))}</pre>"
        return f"<div><code>{escape(repr(self))}</code>, traced {self._traces} times</div>{items}"

    # --- inside -----------------------------------------------------------------------------------------------------

    def _run(self, holding: Holding, program: Any, batch: tuple[Any, ...], options: dict[str, Any]) -> Any:
        holding.look(_LOOK_AT)
        if holding.failed:
            holding.checked_state()
        before = holding.latest[0]
        items, rest, _ = before
        # Python raises KeyboardInterrupt between two of its own instructions. The program consumes the old state, so it
        # is called by `extend`, which has put the new one in its place before the next instruction. For the same reason
        # it returns lists and tuples only, which JAX makes without running any code of Python's.
        holding.failed = True
        holding.latest.extend(map(program, (items,), (rest,), (holding.constants,), (batch,), (options,)))
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
        return jax.tree.unflatten(self._results[structure], result)

    def _hold(self, batch: tuple[Any, ...], options: dict[str, Any]) -> Holding:
        """Takes the state over from the objects."""
        layout = Layout(self._objects, self._names, graph=self._graph)
        refuse_shared(self._objects, self._names, items_only=self._graph, kind=Item)
        if self._layout is not None and layout.graphdef != self._layout.graphdef:
            raise changed(self._structure.change())
        self._layout = layout
        counts, values = layout.values()
        everything = [*values, *(place.variable.get_raw_value() for place in layout.counters)]
        home = home_of(everything) or home_of(jax.tree.leaves((batch, options)))
        mine = [owned(value, home, copy=self._donate) for value in values]
        packed = owned(layout.packing.pack(counts), home, copy=True) if layout.counters else None
        if is_traced(packed, *mine):
            raise in_a_trace()
        state = State(Items(packed, mine[: layout.lasting]), mine[layout.lasting :])
        shardings = jax.tree.map(lambda array: array.sharding if is_committed(array) else None, state)
        if self._programs is None or self._programs.shardings != shardings:
            self._programs = self._compiled(shardings)
        structure = Structure(self._objects, self._names)
        self._holding = Holding(self._programs, layout, structure, state, copies=self._donate)
        return self._holding

    def _compiled(self, shardings: State) -> Programs:
        options: dict[str, Any] = {"donate_argnums": 1} if self._donate else {}
        if any(sharding is not None for sharding in jax.tree.leaves(shardings)):
            options["out_shardings"] = (*shardings.plain(), None)
        return Programs(jax.jit(self._once, **options), jax.jit(self._many, **options), shardings)

    def _once(self, items: Any, rest: Any, constants: list[Any], batch: Any, options: Any) -> tuple[Any, ...]:
        """Traces the program of a call: what it returns is `Holding.latest`."""
        refuse_objects((batch, options))
        state, result = self._step(State(Items(*items), rest), constants, batch, options)
        return (*state.plain(), self._flat(result))

    def _many(self, items: Any, rest: Any, constants: list[Any], batches: Any, options: Any) -> tuple[Any, ...]:
        """Traces the program of a scan, likewise."""
        refuse_objects((batches, options))

        def body(state: State, each: Any) -> tuple[State, Any]:
            return self._step(state, constants, *each)

        state, result = jax.lax.scan(body, State(Items(*items), rest), (batches, options))
        return (*state.plain(), self._flat(result))

    def _flat(self, result: Any) -> Any:
        """Returns a list of the leaves of a result, within as many tuples as tell the number of its structure."""
        leaves, structure = jax.tree.flatten(result)
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
        while True:
            apart = [number for number in numbers if number not in self._wide]
            zeros: list[Any] = [np.zeros((*packing.shapes[number], 2), np.uint32) for number in apart]
            added = [np.zeros(packing.shapes[number], np.uint32) for number in apart]
            whole = [packing.part(items.packed, number) for number in numbers if number in self._wide]
            inputs = [zeros, added, whole, items.values + rest, constants, batch, options]
            pure = functools.partial(self._pure, layout, apart)
            program, shape = jax.make_jaxpr(pure, return_shape=True)(*inputs)
            found = uses(program, len(apart))
            if not found.wide:
                break
            self._wide |= {apart[k] for k in found.wide}
        for k in found.read:
            zeros[k] = packing.part(items.packed, apart[k])
        program = with_sources(program, len(apart), kept=found.written)
        outputs = jaxpr_as_fun(program)(*jax.tree.leaves(inputs))
        bases, words, limbs, values, result = jax.tree.unflatten(jax.tree.structure(shape), outputs)
        packed = items.packed
        if numbers:
            replaced = dict(zip((number for number in numbers if number in self._wide), limbs, strict=True))
            replaced |= {apart[k]: Pending(bases[k], words[k]).limbs for k in found.written}
            packed = packing.plus(packed, dict(zip(apart, words, strict=True)), replaced)
        return State(Items(packed, values[: layout.lasting]), values[layout.lasting :]), result

    def _pure(
        self, layout: Layout, apart: list[int], bases: Any, added: Any, whole: Any, values: Any, constants: Any,
        batch: Any, options: Any,
    ) -> tuple[Any, ...]:  # fmt: skip
        """The step as a function of arrays: counts in two parts, whole ones, other values, and what it is given."""
        counts: dict[int, Any] = {number: Pending(*parts) for number, *parts in zip(apart, bases, added, strict=True)}
        rest = [number for number in range(len(layout.counters)) if number not in counts]
        counts.update(zip(rest, whole, strict=True))
        objects = layout.merge(counts, values, constants)
        before = Structure(objects, self._names)
        with self._tracing():
            result = self._function(*objects, *batch, **options)
        after = layout.split(objects, constants)
        if after is None:
            raise changed(
                before.change(),
                fix="change it outside of the step, or keep it in a Variable; nnx.pop takes out what was sown",
            )
        counts, values = after
        parts = [_in_two(counts[number], word) for number, word in zip(apart, added, strict=True)]
        limbs = [counts[number] for number in rest]
        return [base for base, _ in parts], [word for _, word in parts], limbs, values, result

    @contextlib.contextmanager
    def _tracing(self) -> Iterator[None]:
        """While the function is traced, the bound objects are not its arguments: to read them would be a constant."""
        holding = self._holding
        assert holding is not None
        holding.is_tracing = True
        try:
            yield
        finally:
            holding.is_tracing = False


def _in_two(count: Any, word: Any) -> tuple[Any, Any]:
    """Returns a count's base and what was added; it is whole where Flax, or the user, has put one in its place."""
    pending = count if isinstance(count, Pending) else Pending(None, word).at(count)
    return pending.base, pending.added
