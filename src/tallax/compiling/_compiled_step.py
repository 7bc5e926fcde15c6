# SPDX-License-Identifier: Apache-2.0
"""`CompiledStep`: its calls, reads and the moments at which it takes the state over and gives it back."""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import weakref
from collections.abc import Callable
from html import escape
from typing import Any, Generic, ParamSpec, Self, TypeVar

import jax

from tallax._arrays import is_committed, is_traced
from tallax._errors import StateOwnedByStepError, TallaxError
from tallax.compiling._arguments import Arguments
from tallax.compiling._bound_objects import BoundObjects
from tallax.compiling._holding import Holding, put_back
from tallax.compiling._owners import in_a_trace, written_past
from tallax.compiling._read_program import Programs, ReadProgram, programs_of
from tallax.compiling._step_program import Program
from tallax.reading import Reading, entries_of, reading_of

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class CompiledStep(Generic[P, R]):
    """A step that owns the state of its objects between calls; made by `compile_step`."""

    def __init__(self, arguments: Arguments, objects: tuple[Any, ...], *, donate: bool, graph: bool):
        self._arguments, self._names, self._objects = arguments, arguments.names, objects
        self._donate, self._graph = donate, graph
        self._steps = 0
        self._program: Program | None = None  # the program that fits the current objects
        self._programs: list[Program] = []  # and all earlier programs
        self._holding: Holding | None = None
        self._reads: Programs = collections.OrderedDict()  # the programs of `read`
        self._bound: BoundObjects | None = None  # at the last take-over
        self._end = weakref.finalize(self, _retire, None)
        functools.update_wrapper(self, arguments.function, updated=())

    # --- running ----------------------------------------------------------------------------------------------------

    def __call__(self, *batch: P.args, **options: P.kwargs) -> R:
        """Runs one step on the bound objects and returns what the function returns.

        Args:
            *batch: The arguments of the function after the objects. A new shape or dtype compiles once more. If the
                step was made with `bound=`, they may be or contain bound objects.
            **options: Named arguments of the function.

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
        result = self._run(holding, program, program.once, batch, options)
        self._steps += 1
        return result

    def scan(self, *batches: P.args, **options: P.kwargs) -> R:
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
        result = self._run(holding, program, program.many, batches, options)
        self._steps += next(leaf.shape[0] for leaf in jax.tree.leaves((batches, options)) if getattr(leaf, "ndim", 0))
        return result

    def read(self, function: Callable[..., T], *args: Any, **options: Any) -> T:
        """Runs a function of the bound objects on the current state, without giving the state back.

        Use it between two calls: for gradient norms, `nnx.Metric.compute`, a copy of the model, an evaluation. The
        function is compiled once, for the arrays that it uses. A lambda that is written in a loop is compiled once too,
        if the variables that it closes over stay the same objects.

        Args:
            function: Takes the bound objects, as the step's function does, and then the arguments of the call.
            *args: Arrays and pytrees of arrays. If the step was made with `bound=`, also bound objects.
            **options: Named arrays and pytrees of arrays.

        Returns:
            The result of the function. Modules and Variables in it are copies, with the values of now.

        Raises:
            InvalidTypeError: If the function writes to a bound object, because the change would be lost.
            StructureChangedError: If the function changes the structure of a bound object.
            StateOwnedByStepError: If a value was written past the step, or a step failed on the device.
            TraceError: Called inside another compiled function.

        Example:
            >>> import jax.numpy as jnp, tallax
            >>> from flax import nnx
            >>> model = nnx.Dict(weight=nnx.Param(jnp.array([3.0, 4.0])))
            >>> def double(model):
            ...     model.weight[...] *= 2
            >>> step = tallax.compile_step(double, model)
            >>> step()
            >>> float(step.read(lambda model: jnp.linalg.norm(model.weight[...])))
            10.0
            >>> step.read(nnx.clone).weight[...].tolist()
            [6.0, 8.0]
        """
        programs, holding = programs_of(function, self._reads), self._holding
        if holding is not None and holding.is_ready and holding.is_current:
            # A read changes nothing, so it may start before the objects are compared with those at the last call. The
            # comparison takes as long as the dispatch of a small program, and is made while the device computes.
            for program in programs:
                if program.fits(holding.layout):
                    try:
                        result = self._run_read(program, holding, args, options)
                    except Exception:  # also if the program did not expect the objects as they are now
                        if not holding.is_restructured():
                            raise
                    else:
                        if not holding.is_restructured():
                            return result
        holding = self._holding_to_read(args, options)
        program = next((program for program in programs if program.fits(holding.layout)), None)
        if program is None:
            leading = self._arguments.count
            program = ReadProgram(function, holding.layout, self._names[:], leading, holding.state, holding.constants)
            programs.append(program)
        return self._run_read(program, holding, args, options)

    def lower(self, *batch: Any, **options: Any) -> jax.stages.Lowered:
        """Returns the program of a call, lowered and not run, as `jax.jit(...).lower` does.

        `step.lower(x).compile()` compiles it, so that the first call does not, and has `cost_analysis()`,
        `memory_analysis()` and `as_text()`. From then on, the step owns the state of the objects, as from a call.

        Args:
            *batch: The arguments of a call, or `jax.ShapeDtypeStruct`s in their place.
            **options: Named arguments of a call.

        Raises:
            TallaxError: Every error that a call can raise.
        """
        holding, program = self._prepared(batch, options)
        if not holding.is_current:
            holding.catch_up()
        batch, options = self._marked(holding, batch, options)
        try:
            return program.once.lower(*holding.state, holding.constants, *batch, **options)
        except (TypeError, StateOwnedByStepError) as error:
            self._arguments.explain(error, batch, options, holding.references)
            raise

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
            raise written_past(strays)

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
        if holding.is_restructured(look=False):  # a Counter that was just added has its value itself
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
        if holding is None or not holding.is_ready or holding.is_restructured():
            holding = self._take_over(batch, options)
        assert self._program is not None
        return holding, self._program

    def _holding_to_read(self, args: tuple[Any, ...], options: dict[str, Any]) -> Holding:
        """Returns the current state; if no step owns any of it, a copy, so that the objects keep their values."""
        holding = self._holding
        if holding is not None and holding.is_ready and not holding.is_restructured():
            if not holding.is_current:
                holding.catch_up()
            return holding
        bound = self._bind()
        if any(owner.holders for owner in bound.owners):
            return self._take_over(args, options)
        return Holding(bound, self._objects, (args, options))

    def _run_read(self, program: ReadProgram, holding: Holding, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Returns the result of a read, for the objects as they were when the step took them over."""
        if self._arguments.has_bound:
            args, options = self._marked(holding, args, options)
        if holding.failed:
            holding.checked_state()
        result = program(holding.latest[0], holding.constants, args, options)
        if is_traced(*([result] if isinstance(result, jax.Array) else jax.tree.leaves((result, args, options)))):
            raise in_a_trace()
        return result

    def _run(
        self, holding: Holding, program: Program, run: Any, batch: tuple[Any, ...], options: dict[str, Any]
    ) -> Any:
        if not holding.is_current:
            holding.catch_up()
        if holding.failed:
            holding.checked_state()
        batch, options = self._marked(holding, batch, options)
        call = functools.partial(run, **options) if options else run
        before = holding.latest[0]
        # Ctrl-C must not lose a step. CPython delivers signals between bytecodes, so the old state, which the program
        # has donated, and the new one must be swapped within one C call: `extend(starmap(...))` on a deque of one
        # entry. The program returns only lists and tuples, because building a NamedTuple would run Python code, and
        # with it signal handlers, inside that call.
        holding.failed = True
        try:
            holding.latest.extend(itertools.starmap(call, ((*before[:3], holding.constants, *batch),)))
        except (TypeError, StateOwnedByStepError) as error:
            self._arguments.explain(error, batch, options, holding.references)
            raise
        holding.failed = False
        packed, small, rest, result = holding.latest[0]
        if is_traced(packed) or (packed is None and is_traced(*jax.tree.leaves((small, rest, result)))):
            holding.latest.append(before)
            raise in_a_trace()
        holding.latest.append((packed, small, rest, None))
        return program.result_of(result, lambda: holding.nodes)

    def _marked(self, holding: Holding, batch: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, Any]:
        """Returns the arguments of a call with static ones, and bound objects, as pytrees without arrays."""
        if self._arguments.has_static:
            batch, options = self._arguments.with_static(batch, options)
        if self._arguments.has_bound:
            known = holding.references
            batch, options = jax.tree.map(
                lambda leaf: known.get(id(leaf), leaf), (batch, options), is_leaf=lambda leaf: id(leaf) in known
            )
        return batch, options

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
        holding = Holding(self._bind(), self._objects, (batch, options))
        layout = holding.layout
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

    def _bind(self) -> BoundObjects:
        """Returns the objects as they are now."""
        bound = None if self._bound is None else self._bound.renewed()
        if bound is None:
            bound = BoundObjects(self._objects, self._names, graph=self._graph)
        self._bound = bound
        return bound


def _retire(holding: Holding | None) -> None:
    # Inside a trace, or if a step failed on the device, the values stay with the holding, which the objects keep alive.
    with contextlib.suppress(Exception):
        if holding is not None:
            holding.retire()
