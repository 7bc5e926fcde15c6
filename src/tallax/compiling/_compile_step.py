# SPDX-License-Identifier: Apache-2.0
"""`compile_step`: the objects that a step binds, and where they are among its arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Concatenate, ParamSpec, TypedDict, TypeVar, Unpack, overload

import jax
from flax import nnx

from tallax._errors import InvalidTypeError, describe
from tallax._walk import path_name
from tallax.compiling._arguments import Arguments
from tallax.compiling._bound_objects import refuse_shared
from tallax.compiling._compiled_step import CompiledStep
from tallax.compiling._results import is_object

P = ParamSpec("P")
R = TypeVar("R")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")


class _Options(TypedDict, total=False):
    donate: bool
    graph: bool | None
    static_argnums: int | Iterable[int] | None
    static_argnames: str | Iterable[str] | None


class _BoundOptions(_Options, total=False):
    bound: Any


# The overloads keep the types of the parameters that are left, so that a wrong call is an error in a type checker.
@overload
def compile_step(train_step: Callable[P, R], *, bound: Any, **options: Unpack[_Options]) -> CompiledStep[P, R]: ...
@overload
def compile_step(
    train_step: Callable[Concatenate[A, P], R], _a: A, /, **options: Unpack[_BoundOptions]
) -> CompiledStep[P, R]: ...
@overload
def compile_step(
    train_step: Callable[Concatenate[A, B, P], R], _a: A, _b: B, /, **options: Unpack[_BoundOptions]
) -> CompiledStep[P, R]: ...
@overload
def compile_step(
    train_step: Callable[Concatenate[A, B, C, P], R], _a: A, _b: B, _c: C, /, **options: Unpack[_BoundOptions]
) -> CompiledStep[P, R]: ...
@overload
def compile_step(
    train_step: Callable[Concatenate[A, B, C, D, P], R], _a: A, _b: B, _c: C, _d: D, /, **options: Unpack[_BoundOptions]
) -> CompiledStep[P, R]: ...
@overload
def compile_step(
    train_step: Callable[..., R], _a: Any, _b: Any, _c: Any, _d: Any, _e: Any, /, *objects: Any,
    **options: Unpack[_BoundOptions],
) -> CompiledStep[..., R]: ...  # fmt: skip
def compile_step(
    train_step: Callable[..., Any],
    *objects: Any,
    bound: Any = None,
    donate: bool = True,
    graph: bool | None = None,
    static_argnums: int | Iterable[int] | None = None,
    static_argnames: str | Iterable[str] | None = None,
) -> CompiledStep[..., Any]:
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

    If the objects are not the first parameters, or if they are parts of a `TrainState` with arrays of its own, pass
    them as `bound=`. The step is then called as the function is, with the objects in any position and container.

    Args:
        train_step: Takes the objects, and then the arguments of a call: arrays, pytrees of arrays, static values.
        *objects: Modules and optimizers, with any mixture of Flax's and tallax's state; or tuples, lists, dicts and
            dataclasses of these. No tallax variable may be reached by two paths.
        bound: Further objects, or a pytree that contains them. They are not passed to `train_step` by the step, but
            found by their identity among the arguments of each call. Arrays in the pytree are ordinary arguments.
        donate: Whether a step may overwrite the memory of the state before it. The values that the objects have at the
            first call are copied, so other references to them stay valid.
        graph: Whether to flatten the objects in Flax's graph mode. If omitted, the mode that is set.
        static_argnums: Positions of static parameters, as `jax.jit` counts them: over all parameters of `train_step`,
            the objects included. In `train_step(model, x, mode)`, `mode` is at 2.
        static_argnames: Names of static parameters. Their values are hashable, stay Python values inside the step, and
            each is traced once. A parameter in either list is static by position and by name.

    Returns:
        A `CompiledStep`, to be called with a batch.

    Raises:
        StructureChangedError: If a tallax variable is reached by two paths.
        InvalidTypeError: If there is nothing to bind, an object contains arrays outside of modules and Variables, or
            `train_step` is not callable.
        InvalidValueError: If `train_step` has no such static parameter, or the parameter is a bound object.

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
    if not callable(train_step):
        raise InvalidTypeError(
            "compile_step",
            "requires a function that runs one step.",
            got=f"a {type(train_step).__name__}",
            fix="compile_step(train_step, model, optimizer)",
        )
    others, other_names = _objects_in(bound)
    if not (objects or others) or not all(map(_contains_objects, objects)):
        raise InvalidTypeError(
            "compile_step",
            "requires the modules and optimizers whose state the step changes.",
            got=", ".join(type(thing).__name__ for thing in objects) or "none",
            fix="compile_step(train_step, model, optimizer), and step(x, y) with the batch",
        )
    arguments = Arguments(train_step, objects, static_argnums, static_argnames, other_names=other_names)
    for name, thing in zip(arguments.names, objects, strict=False):
        _refuse_arrays(name, thing)
    graph = bool(nnx.set_graph_mode.current_value() if graph is None else graph)
    everything = (*objects, *others)
    refuse_shared(everything, arguments.names, items_only=graph)
    return CompiledStep(arguments, everything, donate=donate, graph=graph)


def _objects_in(bound: Any) -> tuple[list[Any], list[str]]:
    """Returns the modules and Variables of a pytree, each once, and their names."""
    found: dict[int, tuple[Any, str]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(bound, is_leaf=is_object):
        if is_object(leaf):
            is_named = path and not isinstance(path[-1], jax.tree_util.SequenceKey | jax.tree_util.FlattenedIndexKey)
            found.setdefault(id(leaf), (leaf, path_name(path) if is_named else type(leaf).__name__.lower()))
    return [thing for thing, _ in found.values()], [name for _, name in found.values()]


def _contains_objects(thing: Any) -> bool:
    return any(map(is_object, jax.tree.leaves(thing, is_leaf=is_object)))


def _refuse_arrays(name: str, thing: Any) -> None:
    """Raises if a container that is bound has arrays of its own: the step would see their first values in each call."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(thing, is_leaf=is_object):
        if not is_object(leaf):
            raise InvalidTypeError(
                path_name(path, name),
                "is an array in no Variable, so the step would use its first value in every call.",
                got=describe(leaf),
                fix=f"compile_step(train_step, bound={name}), and pass {name} in each call",
            )
