# SPDX-License-Identifier: Apache-2.0
"""`value_and_grad` and `grad`: gradients of parameters only, with all other state updated, in every mode.

`nnx.value_and_grad` does so in graph mode. In the other modes it treats every leaf of a module as a parameter: integers
raise, floats are differentiated, and an optimizer sees both. Here the mode does not matter, because the arguments are
split and merged by the public context managers on which Flax's graph mode is built: `nnx.split_context` and
`nnx.merge_context`, within an `nnx.update_context`. They map each inner object to the caller's object, so that all
changes of a forward pass (values, new Variables, attributes, replaced layers) are applied to the caller's objects, and
to shared objects once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx

from tallax._backward_observers import BackwardObserver, observers_of
from tallax._differentiation_checks import (
    check_any,
    check_floats,
    check_threadable,
    checked_argnums,
    checked_loss,
    checked_positions,
    is_node,
    refuse_bound,
)

_TAG = "tallax.value_and_grad"  # Flax keeps a stack of contexts for each tag, so calls may nest


def value_and_grad(
    f: Callable[..., Any], *, wrt: Any = nnx.Param, argnums: int | Sequence[int] = 0, has_aux: bool = False
) -> Callable[..., Any]:
    """Returns a function that evaluates `f` and its gradient, and updates all state as one call of `f` does.

    The forward pass runs once. State that `wrt` does not match is never differentiated and has no leaf in the
    gradients. All writes of `f` to modules among its arguments, differentiated or not, reach the caller's modules:
    counters, batch statistics, random streams, sown values, Python attributes, and also parameters, which for example
    `nnx.SpectralNorm` writes. If `f` raises, nothing is written.

    Args:
        f: A function; `f(*args, **kwargs)` returns a real scalar loss, or `(loss, aux)`. Every model that it changes
            must be among its arguments, because a model that it closes over belongs to another trace.
        wrt: The state to differentiate with respect to, as an `nnx` filter. Paths start at the argument, as in
            `nnx.state(argument, wrt)`. Arrays outside of modules need no filter: they are always differentiated.
        argnums: The position or positions of the arguments to differentiate. Each argument may be a module, an
            `nnx.State`, an array of floats, or a pytree of these. A negative position counts from the end.
        has_aux: Whether `f` returns a pair `(loss, aux)`.

    Returns:
        A function of the same arguments that returns `(loss, gradients)`, or `((loss, aux), gradients)`. The gradients
        of a module are an `nnx.State`, which you pass to `optimizer.update(model, gradients)`. The gradient of an array
        is an array. If there are several `argnums`, the gradients are a tuple. A Variable that has two paths has one
        gradient, the total, at the first path.

    Raises:
        InvalidTypeError: `f` is a module or a method of a module, `argnums` contains anything but integers, `wrt`
            matches state that is not floating-point, an argument contains a Variable with `ref=True`, the loss is not a
            real scalar, or `has_aux=True` and `f` does not return a pair.
        InvalidValueError: `wrt` matches nothing in an argument, or `argnums` names a missing argument, or the same
            argument twice.
        TraceError: An argument contains Variables of another trace.

    Example:
        >>> import jax.numpy as jnp, tallax
        >>> from flax import nnx
        >>> model = nnx.Dict(w=nnx.Param(jnp.float32(3.0)), calls=tallax.Counter())
        >>> def loss(model, x):
        ...     model.calls += 1
        ...     return model.w[...] * x
        >>> value, grads = tallax.value_and_grad(loss)(model, 2.0)
        >>> float(value), float(grads["w"][...]), list(grads), int(model.calls)
        (6.0, 2.0, ['w'], 1)
    """
    wanted = checked_argnums(argnums, wrt)
    refuse_bound(f)

    @functools.wraps(f)
    def evaluate(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        positions = checked_positions(wanted, len(args))
        with nnx.update_context(_TAG):
            call = _Call(f, args, kwargs, positions, nnx.Any(wrt), has_aux=has_aux)
            differentiate = jax.value_and_grad(call, argnums=(0, 1), has_aux=True)
            (loss, (after, seen)), (gradients, cotangents) = differentiate(call.differentiated, call.tokens)
            aux = call.write_back(after)
        call.observe(cotangents, seen)
        by_position = call.tree.unflatten(gradients)
        found = tuple(by_position[position] for position in positions)
        return (loss, aux) if has_aux else loss, found[0] if isinstance(argnums, int) else found

    return evaluate


def grad(
    f: Callable[..., Any], *, wrt: Any = nnx.Param, argnums: int | Sequence[int] = 0, has_aux: bool = False
) -> Callable[..., Any]:
    """Like `value_and_grad`, but the returned function returns only the gradients, or `(gradients, aux)`.

    Args:
        f: A function; `f(*args, **kwargs)` returns a real scalar loss, or `(loss, aux)`. Every model that it changes
            must be among its arguments, because a model that it closes over belongs to another trace.
        wrt: The state to differentiate with respect to, as an `nnx` filter. Paths start at the argument, as in
            `nnx.state(argument, wrt)`. Arrays outside of modules need no filter: they are always differentiated.
        argnums: The position or positions of the arguments to differentiate. Each argument may be a module, an
            `nnx.State`, an array of floats, or a pytree of these. A negative position counts from the end.
        has_aux: Whether `f` returns a pair `(loss, aux)`.

    Raises:
        InvalidTypeError: `f` is a module or a method of a module, `argnums` contains anything but integers, `wrt`
            matches state that is not floating-point, an argument contains a Variable with `ref=True`, the loss is not a
            real scalar, or `has_aux=True` and `f` does not return a pair.
        InvalidValueError: `wrt` matches nothing in an argument, or `argnums` names a missing argument, or the same
            argument twice.
        TraceError: An argument contains Variables of another trace.

    Example:
        >>> import tallax
        >>> float(tallax.grad(lambda x: x**2)(3.0))
        6.0
    """
    with_value = value_and_grad(f, wrt=wrt, argnums=argnums, has_aux=has_aux)

    @functools.wraps(f)
    def evaluate(*args: Any, **kwargs: Any) -> Any:
        value, gradients = with_value(*args, **kwargs)
        return (gradients, value[1]) if has_aux else gradients

    return evaluate


class _Call:
    """One call: its split arguments, the pure loss, and the writes back to the caller's objects.

    It exists within one update context, which pairs the caller's objects with the objects that `f` gets.
    """

    def __init__(
        self,
        f: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        positions: Sequence[int],
        matches: Callable[[Any, Any], bool],
        *,
        has_aux: bool,
    ):
        self.f, self.has_aux = f, has_aux
        # A dict, because JAX orders its keys: a shared Variable has its gradient at the first position, for any order
        # of argnums.
        chosen = {position: args[position] for position in positions}
        others = {position: arg for position, arg in enumerate(args) if position not in chosen}
        leaves, self.tree = jax.tree.flatten_with_path(chosen, is_leaf=lambda x: isinstance(x, nnx.State) or is_node(x))
        with nnx.split_context(_TAG) as context:
            # First, so that a Variable that another argument contains too is differentiated.
            split = [_split(context, leaf, _under(path, matches)) for path, leaf in leaves]
            self.others = _take_apart(context, (others, kwargs))
        self.graphdefs, self.differentiated, self.rest = zip(*split, strict=True) if split else ((), (), ())
        self.observers = _observers_with_tokens(args, kwargs)
        self.tokens = [token for _, token in self.observers]
        check_threadable((self.differentiated, self.rest, self.others))
        for (path, _), part in zip(leaves, self.differentiated, strict=True):
            check_floats(path, part)
        for position, argument in chosen.items():
            found = (
                part for (path, _), part in zip(leaves, self.differentiated, strict=True) if path[0].key == position
            )
            if not any(jax.tree.leaves(part) for part in found):
                check_any(position, argument, matches)

    def __call__(self, differentiated: Sequence[Any], tokens: Sequence[jax.Array]) -> tuple[Any, Any]:
        """Returns the loss of what is differentiated, and beside it all that the caller's objects are to become."""
        with nnx.merge_context(_TAG, True) as context:
            parts = zip(self.graphdefs, differentiated, self.rest, strict=True)
            leaves = [
                part if graphdef is None else context.merge(graphdef, part, rest) for graphdef, part, rest in parts
            ]
            others, kwargs = _put_together(context, self.others)
        arguments = self.tree.unflatten(leaves) | others
        inner = [arguments[position] for position in range(len(arguments))]
        # The objects here are copies, of the same structure. A token is a Variable, so that the transformations within
        # `f` thread it as they thread all state; it is removed before the copies are taken apart.
        attached = [observer for observer, _ in _observers_with_tokens(inner, kwargs)]
        for kind, parts in _by_class(attached, tokens).items():
            kind.attach(*parts)
        out = self.f(*inner, **kwargs)
        seen = [observer.detach() for observer in attached]
        loss, aux = checked_loss(self.f, out, has_aux=self.has_aux)
        nodes = [x for x in jax.tree.leaves((leaves, others, kwargs), is_leaf=is_node) if is_node(x)]
        with nnx.split_context(_TAG) as context:
            return loss, (_take_apart(context, (nodes, aux)), seen)

    def write_back(self, after: tuple[Any, Any]) -> Any:
        """Applies the changes of the inner objects to the caller's objects, and returns aux."""
        with nnx.merge_context(_TAG, False) as context:
            _, aux = _put_together(context, after)
        return aux

    def observe(self, cotangents: Sequence[jax.Array], seen: Sequence[Any]) -> None:
        """Gives each observer among the caller's objects the cotangent of its token, and what it saw."""
        for kind, parts in _by_class([observer for observer, _ in self.observers], cotangents, seen).items():
            kind.absorb(*parts)


def _by_class(observers: Sequence[BackwardObserver], *others: Sequence[Any]) -> dict[type[Any], list[Any]]:
    """Returns the observers of each class, and the entries of other lists that belong to them."""
    found: dict[type[Any], list[tuple[Any, ...]]] = {}
    for parts in zip(observers, *others, strict=True):
        found.setdefault(type(parts[0]), []).append(parts)
    return {kind: list(zip(*parts, strict=True)) for kind, parts in found.items()}


def _observers_with_tokens(args: Sequence[Any], kwargs: Any) -> list[tuple[BackwardObserver, jax.Array]]:
    """Returns the observers that have something to observe, and their tokens."""
    nodes = [x for x in jax.tree.leaves((list(args), kwargs), is_leaf=is_node) if is_node(x)]
    found = [(observer, observer.token()) for observer in observers_of(nodes)]
    return [(observer, token) for observer, token in found if token is not None]


def _split(context: nnx.SplitContext, leaf: Any, matches: Callable[[Any, Any], bool]) -> tuple[Any, ...]:
    """Returns the graphdef, the differentiated state and the rest of a module, Variable or State; or only an array."""
    if isinstance(leaf, nnx.State):  # these arrays are outside of modules, so they need not match
        return context.split(leaf, nnx.Any(lambda _, x: not isinstance(x, nnx.Variable), matches), ...)
    return context.split(leaf, matches, ...) if is_node(leaf) else (None, leaf, None)


def _take_apart(context: nnx.SplitContext, tree: Any) -> Any:
    def split(x: Any) -> Any:
        return nnx.NodeStates.from_split(*context.split(x)) if is_node(x) else x

    return jax.tree.map(split, tree, is_leaf=is_node)


def _put_together(context: nnx.MergeContext, tree: Any) -> Any:
    def merge(x: Any) -> Any:
        return context.merge(x.graphdef, *x.states) if isinstance(x, nnx.NodeStates) else x

    return jax.tree.map(merge, tree, is_leaf=lambda x: isinstance(x, nnx.NodeStates))


def _under(jax_path: Sequence[Any], matches: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    """Returns the filter for one leaf of an argument. Paths within the leaf continue the path in the argument."""
    names = ("key", "idx", "name")  # the keys of the children of a dict, a sequence and an object
    start = tuple(next((getattr(key, n) for n in names if hasattr(key, n)), str(key)) for key in jax_path[1:])
    return lambda path, x: matches((*start, *path), x)
