# SPDX-License-Identifier: Apache-2.0
"""Runs a program under a trace, and evaluates the trace operation by operation.

Most of the time of a check went into XLA: each of some sixty runs is another program, which takes 0.1 to 1 s to compile
and runs three times. The programs consist of the same operations, and JAX keeps a compiled program for each operation.
So the whole run is traced inside `jax.make_jaxpr`. Its `nnx.jit`, `scan` or `remat` is traced as usual, so host reads,
leaked tracers, retraces and lost updates occur as usual, but nothing is compiled. Then the operations are evaluated one
by one, in NumPy if `_numpy_operations` has them, and loops and branches in Python. A small module of the corpus
compiles 40 programs, instead of 65 without NumPy and 113 if each run is compiled.

If a run raises an error, the caller compiles the run and reports its error, which is the one that users see. Some runs
always raise: the factory reads values on the host, a tracer leaks into the model, or the program has effects, a
`jax.Ref`, or arrays on several devices.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import eval_jaxpr
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from tallax._arrays import is_traced
from tallax.checking._numpy_operations import NAMES, LeftToXla, in_numpy
from tallax.checking._program import Batch, Outputs, Program
from tallax.checking._snapshot import variables_of

TracedRun: TypeAlias = "Callable[[list[Any], Sequence[Batch]], Outputs | None]"

# XLA's optimizations do not pay for a program that runs once.
QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
# A loop of more iterations is compiled: in Python, an operation of an iteration takes some 30 microseconds.
_ITERATIONS = 16
# As many programs of one operation take as long to compile as one program of a run.
_PROGRAMS = 10
# The names of the primitives that only call a jaxpr, and of the parameter that has it.
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}


class DoesNotFit(Exception):  # noqa: N818 - the caller compiles the run
    """The run has to be compiled."""


class UncompiledRuns:
    """Runs a program without compiling it.

    The models of each run are made within the trace, by the factory if the program has no template. Their Variables
    start with the arrays of one model that was made outside of it, so that no run evaluates the initializers again.
    """

    def __init__(self, program: Program):
        self._program = program
        self._programs: dict[str, Callable[..., list[Any]]] = {}
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

    def run_or_compile(
        self, run: TracedRun, batches: Sequence[Batch], count: int = 1, *, together: bool = False
    ) -> list[Any]:
        """Returns the models of `run(...)`. If it raises, the run is compiled, and its errors are raised."""
        try:
            return self.run(run, batches, count, together=together)[0]
        except Exception:
            models = [self._program.new_model() for _ in range(count)]
            run(models, batches)
            return models

    def run(
        self, run: TracedRun, batches: Sequence[Batch], count: int = 1, *, together: bool = False
    ) -> tuple[list[Any], Outputs | None]:
        """Returns `count` new models as `run(models, batches)` leaves them, and its outputs.

        If `together`, all operations are compiled as one program, if there are many that NumPy does not evaluate.

        Raises:
            Exception: the run raises, or does not fit.
        """
        closed, leaves, tree, graphdefs = self.trace(run, batches, count)
        if closed.effects:
            raise DoesNotFit
        arguments = jax.tree.leaves((self._start(), batches))
        if together and len(set(_for_xla(closed.jaxpr))) > _PROGRAMS:
            results = self._compiled(closed)(closed.consts, arguments)
        else:
            with jax.disable_jit(not self._program.needs_jit):  # as plain calls do, which share their operations
                results = evaluated(closed, arguments)
        values = iter(jax.device_put(results))  # some are of NumPy; leaves that were not traced stay as they are
        outputs, states = jax.tree.unflatten(tree, [next(values) if is_traced(leaf) else leaf for leaf in leaves])
        return [nnx.merge(*parts) for parts in zip(graphdefs, states, strict=True)], outputs

    def _compiled(self, closed: ClosedJaxpr) -> Callable[..., list[Any]]:
        text = str(closed.jaxpr)
        if text not in self._programs:
            jaxpr = closed.jaxpr
            self._programs[text] = jax.jit(
                lambda consts, arguments: eval_jaxpr(jaxpr, consts, *arguments), compiler_options=QUICKLY
            )
        return self._programs[text]

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


def evaluated(closed: ClosedJaxpr, arguments: Sequence[Any]) -> list[Any]:
    """Returns the results of a jaxpr without effects, evaluated operation by operation."""
    return _evaluated(closed.jaxpr, closed.consts, arguments)


def _evaluated(jaxpr: Jaxpr, consts: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *arguments), strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for eqn in _needed(jaxpr):
        results = _applied(eqn, [read(atom) for atom in eqn.invars])
        values.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _for_xla(jaxpr: Jaxpr) -> Iterator[str]:
    """Yields the operations that XLA compiles, each with its parameters and types."""
    for eqn in _needed(jaxpr):
        inner = [x for x in jax.tree.leaves(eqn.params, is_leaf=_is_jaxpr) if _is_jaxpr(x)]
        for each in inner:
            yield from _for_xla(each.jaxpr if isinstance(each, ClosedJaxpr) else each)
        if not inner and eqn.primitive.name not in NAMES:
            yield f"{eqn.primitive.name} {eqn.params} {[var.aval for var in eqn.invars]}"


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, Jaxpr | ClosedJaxpr)


@functools.lru_cache(256)
def _needed(jaxpr: Jaxpr) -> list[Any]:
    """Returns the equations on which the results depend. The initializers of a model are not among them."""
    needed = {atom for atom in jaxpr.outvars if not isinstance(atom, Literal)}
    equations = []
    for eqn in reversed(jaxpr.eqns):
        if needed.intersection(eqn.outvars):
            equations.append(eqn)
            needed.update(atom for atom in eqn.invars if not isinstance(atom, Literal))
    return equations[::-1]


def _applied(eqn: Any, arguments: list[Any]) -> list[Any]:
    name, params = eqn.primitive.name, eqn.params
    if name in _CALLS:
        return _called(params[_CALLS[name]], arguments)
    if name == "cond":
        return _called(params["branches"][int(arguments[0])], arguments[1:])
    if name == "scan" and params["length"] <= _ITERATIONS:
        return _scanned(eqn, arguments)
    if name == "while":
        constants = params["cond_nconsts"] + params["body_nconsts"]
        carry = _looped(params, arguments[:constants], arguments[constants:])
        if carry is not None:
            return carry
    with contextlib.suppress(LeftToXla):
        return [in_numpy(eqn, arguments)]
    given = eqn.primitive.get_bind_params(params)
    functions, given = given if isinstance(given, tuple) else ((), given)  # a tuple in older versions of JAX
    result = eqn.primitive.bind(*functions, *arguments, **given)
    return result if eqn.primitive.multiple_results else [result]


def _called(inner: Any, arguments: list[Any]) -> list[Any]:
    if isinstance(inner, ClosedJaxpr):
        return _evaluated(inner.jaxpr, inner.consts, arguments)
    return _evaluated(inner, (), arguments)


def _scanned(eqn: Any, arguments: list[Any]) -> list[Any]:
    params = eqn.params
    inner, length = params["jaxpr"], params["length"]
    # Versions of JAX name the numbers of constants and carried values differently. Columns have one axis more.
    carried = sum(var.aval.ndim == kind.ndim for var, kind in zip(eqn.outvars, inner.out_avals, strict=True))
    columns = sum(np.ndim(x) != kind.ndim for x, kind in zip(arguments, inner.in_avals, strict=True))
    constants = len(arguments) - carried - columns
    consts, carry = arguments[:constants], arguments[constants : constants + carried]
    sequences = [list(_rows(x, length)) for x in arguments[constants + carried :]]
    rows: list[list[Any]] = [[]] * length
    for k in reversed(range(length)) if params["reverse"] else range(length):
        results = _called(inner, [*consts, *carry, *(column[k] for column in sequences)])
        carry, rows[k] = results[:carried], results[carried:]
    kinds = inner.out_avals[carried:]
    return [*carry, *(_stacked([row[k] for row in rows], kind) for k, kind in enumerate(kinds))]


def _rows(x: Any, length: int) -> Iterator[Any]:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return (x[k] for k in range(length))
    return iter(np.asarray(x))  # in NumPy, which compiles nothing


def _stacked(rows: list[Any], kind: Any) -> Any:
    if jnp.issubdtype(kind.dtype, jax.dtypes.prng_key):
        return jnp.stack(rows)
    return np.stack(rows).astype(kind.dtype) if rows else np.zeros((0, *kind.shape), kind.dtype)  # may be literals


def _looped(params: dict[str, Any], constants: list[Any], carry: list[Any]) -> list[Any] | None:
    """Returns the values after a `while_loop`, or None if it takes too many iterations."""
    count = params["cond_nconsts"]
    for iteration in itertools.count():
        if not bool(_called(params["cond_jaxpr"], [*constants[:count], *carry])[0]):
            return carry
        if iteration == _ITERATIONS:
            return None
        carry = _called(params["body_jaxpr"], [*constants[count:], *carry])
    return None
