# SPDX-License-Identifier: Apache-2.0
"""Evaluates a jaxpr operation by operation: in NumPy if `_numpy_operations` has it, loops and branches in Python.

The runs of a check repeat each other: the call of a `scan` is that of a `jit`, with the same values. So results are
stored by structure and content. The structure of a jaxpr is its operations with their parameters, whatever its
variables are called, and the content of a small array is its bytes. About two thirds of the operations of a check are
found, which takes a tenth of the time of evaluating them.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from tallax.checking._numpy_operations import LeftToXla, in_numpy

Results: TypeAlias = "dict[Hashable, list[Any]]"

# A loop of more iterations is compiled: in Python, an operation of an iteration takes some 30 microseconds.
_ITERATIONS = 16
# The content of larger arrays is not compared: they are the same only if they are the same object.
_SMALL = 1024
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


def evaluated(closed: ClosedJaxpr, arguments: Sequence[Any], results: Results | None = None) -> list[Any]:
    """Returns the results of a jaxpr without effects; equal parts of earlier jaxprs are looked up in `results`."""
    return _Evaluation({} if results is None else results).of(closed.jaxpr, closed.consts, arguments)


# --- structure and content --------------------------------------------------------------------------------------------


class _Same:
    """Stands for an object that equals only itself. It refers to the object, whose `id` is not used again."""

    def __init__(self, value: Any):
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value


class _Key:
    """A tuple whose hash is computed once."""

    def __init__(self, *parts: Hashable):
        self._parts, self._hash = parts, hash(parts)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, _Key) and self._hash == other._hash and self._parts == other._parts


@dataclass(frozen=True)
class _Plan:
    """The equations on which the results of a jaxpr depend, each with a key of its operation, and a key of the jaxpr.

    The initializers of a model are not among the equations.
    """

    equations: list[tuple[Any, Hashable]]
    key: Hashable


@functools.lru_cache(512)
def _plan(jaxpr: Jaxpr) -> _Plan:
    needed = {atom for atom in jaxpr.outvars if not isinstance(atom, Literal)}
    equations = []
    for eqn in reversed(jaxpr.eqns):
        if needed.intersection(eqn.outvars):
            equations.append((eqn, _operation(eqn)))
            needed.update(atom for atom in eqn.invars if not isinstance(atom, Literal))
    equations.reverse()
    numbers: dict[Any, int] = {}

    def number(atom: Any) -> Hashable:
        if isinstance(atom, Literal):
            return _kind(atom), np.asarray(atom.val).tobytes()  # bytes, as 0.0 == -0.0
        return numbers.setdefault(atom, len(numbers))

    kinds = [(_kind(var), number(var)) for var in (*jaxpr.constvars, *jaxpr.invars)]
    lines = [(key, *map(number, eqn.invars), None, *map(number, eqn.outvars)) for eqn, key in equations]
    return _Plan(equations, _Key(*kinds, *lines, *map(number, jaxpr.outvars)))


def _kind(atom: Any) -> Hashable:
    return getattr(atom.aval, "dtype", None), getattr(atom.aval, "shape", None)  # a token has neither


def _operation(eqn: Any) -> Hashable:
    """Returns a key of an operation: equal keys mean equal results for equal arguments."""
    name, params = eqn.primitive.name, eqn.params
    if name in _CALLS:
        return _Key("call", _parameter(params[_CALLS[name]]))
    return _Key(name, *((key, _parameter(value)) for key, value in params.items()))


def _parameter(value: Any) -> Hashable:
    if isinstance(value, ClosedJaxpr):
        return _plan(value.jaxpr).key, *map(_content, value.consts)
    if isinstance(value, Jaxpr):
        return _plan(value).key
    if isinstance(value, tuple | list):
        return tuple(map(_parameter, value))
    try:
        hash(value)
    except TypeError:
        return _Same(value)
    return type(value), value  # 1 == 1.0 == True


def _content(x: Any) -> Hashable:
    if isinstance(x, jax.Array):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) or x.nbytes > _SMALL or len(x.devices()) > 1:
            return _Same(x)
    elif not isinstance(x, np.ndarray | np.generic) or x.nbytes > _SMALL:
        return _Same(x)
    array = np.asarray(x)
    return array.dtype, array.shape, array.tobytes()


# --- evaluation -------------------------------------------------------------------------------------------------------


class _Evaluation:
    def __init__(self, results: Results):
        self._results = results

    def of(self, jaxpr: Jaxpr, consts: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
        plan = _plan(jaxpr)
        key = plan.key, *map(_content, consts), *map(_content, arguments)
        if (known := self._results.get(key)) is not None:
            return known
        values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *arguments), strict=True))

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, Literal) else values[atom]

        for eqn, operation in plan.equations:
            results = self._applied(eqn, operation, [read(atom) for atom in eqn.invars])
            values.update(zip(eqn.outvars, results, strict=True))
        self._results[key] = results = [read(atom) for atom in jaxpr.outvars]
        return results

    def _applied(self, eqn: Any, operation: Hashable, arguments: list[Any]) -> list[Any]:
        name, params = eqn.primitive.name, eqn.params
        if name in _CALLS:
            return self._called(params[_CALLS[name]], arguments)
        if name == "cond":
            return self._called(params["branches"][int(arguments[0])], arguments[1:])
        if name == "scan" and params["length"] <= _ITERATIONS:
            return self._scanned(eqn, arguments)
        if name == "while":
            constants = params["cond_nconsts"] + params["body_nconsts"]
            carry = self._looped(params, arguments[:constants], arguments[constants:])
            if carry is not None:
                return carry
        with contextlib.suppress(LeftToXla):
            return [in_numpy(eqn, arguments)]
        key = operation, *map(_content, arguments)
        if (known := self._results.get(key)) is None:
            known = self._results[key] = _in_xla(eqn, arguments)
        return known

    def _called(self, inner: Any, arguments: list[Any]) -> list[Any]:
        if isinstance(inner, ClosedJaxpr):
            return self.of(inner.jaxpr, inner.consts, arguments)
        return self.of(inner, (), arguments)

    def _scanned(self, eqn: Any, arguments: list[Any]) -> list[Any]:
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
            results = self._called(inner, [*consts, *carry, *(column[k] for column in sequences)])
            carry, rows[k] = results[:carried], results[carried:]
        kinds = inner.out_avals[carried:]
        return [*carry, *(_stacked([row[k] for row in rows], kind) for k, kind in enumerate(kinds))]

    def _looped(self, params: dict[str, Any], constants: list[Any], carry: list[Any]) -> list[Any] | None:
        """Returns the values after a `while_loop`, or None if it takes too many iterations."""
        count = params["cond_nconsts"]
        for iteration in itertools.count():
            if not bool(self._called(params["cond_jaxpr"], [*constants[:count], *carry])[0]):
                return carry
            if iteration == _ITERATIONS:
                return None
            carry = self._called(params["body_jaxpr"], [*constants[count:], *carry])
        return None


def _in_xla(eqn: Any, arguments: list[Any]) -> list[Any]:
    given = eqn.primitive.get_bind_params(eqn.params)
    functions, given = given if isinstance(given, tuple) else ((), given)  # a tuple in older versions of JAX
    result = eqn.primitive.bind(*functions, *arguments, **given)
    return result if eqn.primitive.multiple_results else [result]


def _rows(x: Any, length: int) -> Iterator[Any]:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return (x[k] for k in range(length))
    return iter(np.asarray(x))  # in NumPy, which compiles nothing


def _stacked(rows: list[Any], kind: Any) -> Any:
    if jnp.issubdtype(kind.dtype, jax.dtypes.prng_key):
        return jnp.stack(rows)
    return np.stack(rows).astype(kind.dtype) if rows else np.zeros((0, *kind.shape), kind.dtype)  # may be literals
