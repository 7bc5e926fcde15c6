# SPDX-License-Identifier: Apache-2.0
"""Runs a program under a trace, and evaluates the trace operation by operation.

Most of the time of a check went into XLA: each of some sixty runs is another program, which takes 0.1 to 1 s to compile
and runs three times. The programs consist of the same operations, and JAX keeps a compiled program for each operation.
So the whole run is traced inside `jax.make_jaxpr`. Its `nnx.jit`, `scan` or `remat` is traced as usual, so host reads,
leaked tracers, retraces and lost updates occur as usual, but nothing is compiled. Then the operations are evaluated one
by one by `_evaluation`. A small module of the corpus compiles 40 programs, instead of 113 if each run is compiled.

If a run raises an error, the caller compiles the run and reports its error, which is the one that users see. Some runs
always raise: the factory reads values on the host, a tracer leaks into the model, or the program has effects, a
`jax.Ref`, or arrays on several devices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
from flax import nnx
from jax.extend.core import ClosedJaxpr

from tallax._arrays import is_traced
from tallax.checking._evaluation import evaluated
from tallax.checking._program import Batch, Outputs, Program
from tallax.checking._snapshot import variables_of

TracedRun: TypeAlias = "Callable[[list[Any], Sequence[Batch]], Outputs | None]"


class DoesNotFit(Exception):  # noqa: N818 - the caller compiles the run
    """The run has to be compiled."""


class UncompiledRuns:
    """Runs a program without compiling it.

    The models of each run are made within the trace, by the factory if the program has no template. Their Variables
    start with the arrays of one model that was made outside of it, so that no run evaluates the initializers again.
    """

    def __init__(self, program: Program):
        self._program = program
        self._of_factory: list[Any] = []
        if program.template is None:
            self._of_factory = [self._leaves_of(variable) for variable in variables_of(program.make()).values()]
        arrays = jax.tree.leaves((self._start(), program.batches))
        self._fits = not any(isinstance(x, jax.Ref) or len(x.devices()) > 1 for x in arrays)

    def _start(self) -> list[Any]:
        if self._program.template is None:
            return self._of_factory
        return [leaf for leaf in self._program.template.leaves if isinstance(leaf, jax.Array)]

    @staticmethod
    def _leaves_of(variable: nnx.Variable[Any]) -> list[Any]:
        return [leaf for leaf in jax.tree.leaves(variable.get_raw_value()) if isinstance(leaf, jax.Array | jax.Ref)]

    def run_or_compile(self, run: TracedRun, batches: Sequence[Batch], count: int = 1) -> list[Any]:
        """Returns the models of `run(...)`. If it raises, the run is compiled, and its errors are raised."""
        try:
            return self.run(run, batches, count)[0]
        except Exception:
            models = [self._program.new_model() for _ in range(count)]
            run(models, batches)
            return models

    def run(self, run: TracedRun, batches: Sequence[Batch], count: int = 1) -> tuple[list[Any], Outputs | None]:
        """Returns `count` new models as `run(models, batches)` leaves them, and its outputs.

        Raises:
            Exception: The run raises, or does not fit.
        """
        closed, leaves, tree, graphdefs = self.trace(run, batches, count)
        if closed.effects:
            raise DoesNotFit
        arguments = jax.tree.leaves((self._start(), batches))
        with jax.disable_jit(not self._program.needs_jit):  # as plain calls do, which share their operations
            results = evaluated(closed, arguments, self._program.results)
        values = iter(jax.device_put(results))  # some are of NumPy; leaves that were not traced stay as they are
        outputs, states = jax.tree.unflatten(tree, [next(values) if is_traced(leaf) else leaf for leaf in leaves])
        return [nnx.merge(*parts) for parts in zip(graphdefs, states, strict=True)], outputs

    def trace(
        self, run: TracedRun, batches: Sequence[Batch], count: int = 1
    ) -> tuple[ClosedJaxpr, list[Any], Any, tuple[Any, ...]]:
        """Returns the program of a run, and the leaves, their tree and the graphs of its results."""
        if not self._fits:
            raise DoesNotFit
        results: Any = None

        def whole(start: Any, batches: Any) -> list[jax.Array]:
            nonlocal results
            models = [self._made(start) for _ in range(count)]
            outputs = run(models, batches)
            graphdefs, states = zip(*(nnx.split(model, graph=True) for model in models), strict=True)
            leaves, tree = jax.tree.flatten((outputs, states))
            results = leaves, tree, graphdefs
            return [leaf for leaf in leaves if is_traced(leaf)]

        return jax.make_jaxpr(whole)(self._start(), batches), *results

    def _made(self, start: list[Any]) -> Any:
        if (template := self._program.template) is not None:
            given = iter(start)
            return template.copy([next(given) if isinstance(leaf, jax.Array) else leaf for leaf in template.leaves])
        model = self._program.make()
        for variable, arrays in zip(variables_of(model).values(), start, strict=True):
            given = iter(arrays)
            leaves, tree = jax.tree.flatten(variable.get_raw_value())
            new = [next(given) if isinstance(leaf, jax.Array) else leaf for leaf in leaves]
            variable.set_raw_value(jax.tree.unflatten(tree, new))
        return model
