# SPDX-License-Identifier: Apache-2.0
"""`compile_step`, and the `CompiledStep` that it returns."""

from __future__ import annotations

import contextlib
import functools
import itertools
import weakref
from collections.abc import Callable, Iterable
from html import escape
from typing import Any, Self

import jax
from flax import nnx

from tallax._arrays import is_committed, is_traced
from tallax._errors import InvalidTypeError, TallaxError, compose
from tallax.compiling._arguments import Arguments
from tallax.compiling._layout import Layout
from tallax.compiling._ownership import Holding, put_back
from tallax.compiling._refusals import in_a_trace, written_past
from tallax.compiling._results import Shape
from tallax.compiling._structure import Structure, refuse_shared
from tallax.compiling._traced_step import Program
from tallax.reading import Reading, entries_of, reading_of
from tallax.variables import StateVariable

_LOOK_AT = 16  # Variables that each call checks for writes past the step: about a microsecond


def compile_step(
    train_step: Callable[..., Any],
    *objects: Any,
    donate: bool = True,
    graph: bool | None = None,
    static_argnums: int | Iterable[int] | None = None,
    static_argnames: str | Iterable[str] | None = None,
) -> CompiledStep:
    """Compiles a training step for the objects that it changes: a model, its optimizer, metrics.

    `train_step(*objects, *batch)` is ordinary NNX code. The objects change as they would under `nnx.jit`, to the bit.
    But they are flattened once instead of at every call, and their values stay on the device, in the step, until you
    call `sync()`. A `Counter`, or a statistic that counts, adds nothing to the time of a step.

    From its first call, the step owns the state of the bound objects. You can still read and write tallax variables and
    statistics, such as `model.step`. Reading anything else, such as `model.layer.kernel`, raises
    `StateOwnedByStepError`. Call `step.sync()` to put everything back; the next call takes it over again. Leaving a
    `with compile_step(...) as step:` block also puts everything back, after an exception too.

    Several steps may bind the same objects, or parts of them, and be called in any order. The values move between the
    steps on the device.

    If the function returns a bound object or a part of one, the caller gets the bound object itself, as from `nnx.jit`.

    Args:
        train_step: takes the objects, and then the arguments of a call: arrays, pytrees of arrays, static values.
        *objects: modules and optimizers, with any mixture of Flax's and tallax's state. No tallax variable may be
            reached by two paths.
        donate: whether a step may overwrite the memory of the state before it. The values that the objects have at the
            first call are copied, so other references to them stay valid.
        graph: whether to flatten the objects in Flax's graph mode. If omitted, the mode that is set.
        static_argnums: positions of static parameters, as `jax.jit` counts them: over all parameters of `train_step`,
            the objects included. In `train_step(model, x, mode)`, `mode` is at 2.
        static_argnames: names of static parameters. Their values are hashable, stay Python values inside the step, and
            each is traced once. A parameter in either list is static by position and by name.

    Returns:
        A `CompiledStep`, to be called with a batch.

    Raises:
        StructureChangedError: if a tallax variable is reached by two paths.
        InvalidTypeError: if there is nothing to bind, or `train_step` is not callable.
        InvalidValueError: if `train_step` has no such static parameter, or the parameter is a bound object.

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
                    "takes a function that runs one step.",
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
        self._steps = 0
        self._program: Program | None = None  # the program that fits the current objects
        self._programs: list[Program] = []  # and all earlier programs
        self._holding: Holding | None = None
        self._end = weakref.finalize(self, _retire, None)
        functools.update_wrapper(self, function, updated=())

    # --- running ----------------------------------------------------------------------------------------------------

    def __call__(self, *batch: Any, **options: Any) -> Any:
        """Runs one step on the bound objects and returns what the function returns.

        Args:
            *batch: the arguments of the function after the objects. A new shape or dtype compiles once more.
            **options: named arguments of the function.

        If the objects have changed since the last call, by `model.eval()` or a replaced layer, the function is traced
        once more. A structure that the objects had before is not traced again.

        Raises:
            StructureChangedError: If the function changes the structure of the objects: an attribute, a layer, a new
                Variable.
            StateOwnedByStepError: If a value was written past the step, or a step that shares Variables failed on the
                device.
            TraceError: Called inside another compiled function.
        """
        holding, program = self._prepared(batch, options)
        result = self._run(holding, program.once, program.results, batch, options)
        self._steps += 1
        return result

    def scan(self, *batches: Any, **options: Any) -> Any:
        """Runs as many steps as the batches have entries on their first axis, in one program, by `jax.lax.scan`.

        Args:
            *batches: The arguments of the function after the objects, each array with one more leading axis.
            **options: Named arguments of the function, each array with one more leading axis.

        Returns:
            The results of all steps, each array with one more leading axis.

        Raises:
            InvalidTypeError: If the function returns a bound object.
            TallaxError: Every error that a call can raise.
        """
        holding, program = self._prepared(batches, options)
        result = self._run(holding, program.many, program.results, batches, options)
        self._steps += next(leaf.shape[0] for leaf in jax.tree.leaves((batches, options)) if getattr(leaf, "ndim", 0))
        return result

    @property
    def steps(self) -> int:
        """The number of steps that calls and scans have started. The host knows it without waiting for the device."""
        return self._steps

    @property
    def traces(self) -> int:
        """The number of traces: one for each combination of shapes, dtypes, static values and object structures."""
        return sum(program.traces for program in self._programs)

    # --- the state --------------------------------------------------------------------------------------------------

    @property
    def objects(self) -> tuple[Any, ...]:
        """The bound objects."""
        return self._objects

    def sync(self) -> None:
        """Puts everything back on the objects, as the last completed step left it; waits for that step.

        Other steps that bind some of the objects take these over again at their next calls.

        Raises:
            StateOwnedByStepError: If a value was written past the step while the step owned it. The written value stays
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
        """Starts one copy of all tallax variables and statistics to the host, and returns at once.

        Returns:
            The values after the last step that was started, also if further steps run before the copy is read. The
            names are those of `tallax.collect`. If two objects have state of the same name, the name of the later
            object stands in front.

        Raises:
            StateOwnedByStepError: If a step failed on the device after it had donated the state before it, or a value
                was written past the step.
            ReplicasError: If a value is kept per replica and not combined.
        """
        holding = self._holding
        if holding is None or not holding.is_ready:
            return reading_of(entries_of(self._objects, self._names))
        if holding.is_restructured(0):  # a Counter that was just added has its value itself
            holding = self._take_over((), {})
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
        except TallaxError as error:  # if the state cannot be read, show the reason in its place
            items = f"<pre>{escape(str(error))}</pre>"
        return f"<div><code>{escape(repr(self))}</code>, traced {self.traces} times</div>{items}"

    # --- inside -----------------------------------------------------------------------------------------------------

    def _prepared(self, batch: tuple[Any, ...], options: dict[str, Any]) -> tuple[Holding, Program]:
        """Returns the state and the program for the current objects."""
        holding = self._holding
        if holding is None or not holding.is_ready or holding.is_restructured(_LOOK_AT):
            holding = self._take_over(batch, options)
        assert self._program is not None
        return holding, self._program

    def _run(
        self, holding: Holding, run: Any, results: list[Shape], batch: tuple[Any, ...], options: dict[str, Any]
    ) -> Any:
        if not holding.is_current:
            holding.catch_up()
        if holding.failed:
            holding.checked_state()
        if self._arguments.has_static:
            batch, options = self._arguments.with_static(batch, options)
        call = functools.partial(run, **options) if options else run
        before = holding.latest[0]
        items, rest, _ = before
        # Ctrl-C must not lose a step. CPython delivers signals between bytecodes, so the old state, which the program
        # has donated, and the new one must be swapped within one C call: `extend(starmap(...))` on a deque of one
        # entry. The program returns only lists and tuples, because building a NamedTuple would run Python code, and
        # with it signal handlers, inside that call.
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
        structure = 0  # the depth of the tuples around the result is its number: see `Program._flat`
        while isinstance(result, tuple):
            (result,) = result
            structure += 1
        shape = results[structure]
        if shape.references:
            return shape.build(result, holding.nodes)
        return jax.tree.unflatten(shape.structure, result)

    def _hold(self, holding: Holding | None) -> None:
        """Keeps the state, or drops it. If the step is deleted, its values go back on the objects."""
        self._holding = holding
        self._end.detach()
        if holding is not None:
            self._end = weakref.finalize(self, _retire, holding)
            self._end.atexit = False

    def _take_over(self, batch: tuple[Any, ...], options: dict[str, Any]) -> Holding:
        """Takes over the state from the objects, from other steps, and from this step if the objects have changed.

        Values of Variables that are still bound move from one `Holding` to the next on the device. If a Variable was
        removed from the objects, its value goes back on it.
        """
        before = self._holding
        layout = Layout(self._objects, self._names, graph=self._graph)
        refuse_shared(self._objects, self._names, items_only=self._graph, kind=StateVariable)
        structure = Structure(self._objects, self._names)
        holding = Holding(layout, self._objects, structure, (batch, options))
        try:
            self._hold(holding)
            holding.install()
        finally:
            if holding.time < 0:
                self._hold(before)
        shardings = jax.tree.map(lambda array: array.sharding if is_committed(array) else None, holding.state)
        self._program = next((program for program in self._programs if program.fits(layout, shardings)), None)
        if self._program is None:
            self._program = Program(self._arguments, layout, shardings, donate=self._donate)
            self._programs.append(self._program)
        holding.is_ready = True
        if before is not None:
            before.retire()
        return holding


def _retire(holding: Holding | None) -> None:
    # Inside a trace, or if a step failed on the device, the values stay with the holding, which the objects keep alive.
    with contextlib.suppress(Exception):
        if holding is not None:
            holding.retire()
