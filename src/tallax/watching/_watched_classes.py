# SPDX-License-Identifier: Apache-2.0
"""The class that a watched module gets: a subclass of its own class, made once for each class.

A subclass on the instance works where a patched method does not: Flax's graph remembers the class of each node, so
copies that transformations make are watched too, and modules of the same class that are not watched stay as they are.
The subclass has the name of its base, so that errors, `repr` and logs read as before, and it is pickled as "the watched
subclass of that base", because pickle looks a class up by name and would find the base.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from tallax._walk import WATCHED
from tallax.watching import _params
from tallax.watching._site import INPUT, OUTPUT, Site, arrays_in

_BASE = "_tallax_watched_base"


@functools.cache
def watched_class(base: type, methods: tuple[str, ...], functions: tuple[str, ...] = ()) -> type:
    """Returns the subclass of a module's class whose methods are watched, and attention functions in its attributes."""
    watched: dict[str, Any] = {name: _watched_method(base, name) for name in methods}
    watched.update((name, _watched_function(name)) for name in functions)
    return _subclass(base, (methods, functions), watched)


def _watched_function(name: str) -> property:
    """Returns a property that stands before an attribute with a function; the attribute itself stays as it is.

    So the graph of the module does not change, and `self` is always the copy that a transformation works with.
    """

    def get(self: Any) -> Any:
        if name not in vars(self):
            raise AttributeError(name)
        function, site = vars(self)[name], vars(self).get(WATCHED)
        return functools.partial(site.attend, function) if isinstance(site, Site) else function

    def put(self: Any, value: Any) -> None:
        vars(self)[name] = value

    def remove(self: Any) -> None:
        del vars(self)[name]

    return property(get, put, remove)


def _subclass(base: type, key: Any, methods: dict[str, Any]) -> type:
    """Returns a subclass that differs from its base in some methods, and in how it is pickled."""

    def reduce(self: Any, protocol: Any) -> Any:
        reduced = super(made, self).__reduce_ex__(protocol)
        return (_empty, (base, key), *reduced[2:])

    namespace = {
        **methods,
        "__reduce_ex__": reduce,
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        _BASE: base,
    }
    options = {"pytree": is_pytree(object.__new__(base))} if issubclass(base, nnx.Pytree) else {}
    metaclass: Any = type(base)
    made: Any = metaclass(base.__name__, (base,), namespace, **options)
    return made


def _empty(base: type, key: Any) -> Any:
    """Used by pickle: returns an object without attributes."""
    made = watched_optimizer_class(base) if key == _OPTIMIZER else watched_class(base, *key)
    return object.__new__(made)


def is_pytree(thing: Any) -> bool:
    """Returns whether JAX flattens an object. The registry is asked for its class; its attributes are not read."""
    return not jax.tree_util.all_leaves([thing])


def base_of(thing: Any) -> type | None:
    """Returns the class that a watched object had before; None if it is not watched."""
    return vars(type(thing)).get(_BASE)


def _watched_method(base: type, name: str) -> Callable[..., Any]:
    original = getattr(base, name)

    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        site = vars(self).get(WATCHED)
        if not isinstance(site, Site):
            return original(self, *args, **kwargs)
        site.observe(INPUT, (args, kwargs))
        out = original(self, *args, **kwargs)
        # The site is looked up again: the method may be transformed, and Flax may have put another object in its place.
        site = vars(self)[WATCHED]
        site.observe(OUTPUT, out)
        site.observe_presets(OUTPUT, arrays_in(out))
        return site.with_tap(out)

    return method


_OPTIMIZER = "optimizer"


@functools.cache
def watched_optimizer_class(base: type) -> type:
    """Returns the subclass of an optimizer's class whose `update` shows the sites what it gets and does."""
    from_update = _watched_update(base)
    return _subclass(base, _OPTIMIZER, {"update": from_update})


def _watched_update(base: Any) -> Callable[..., Any]:
    original = base.update

    @functools.wraps(original)
    def update(self: Any, first: Any, *rest: Any, **kwargs: Any) -> Any:
        # `nnx.ModelAndOptimizer.update` takes the gradients alone.
        model, gradients = (first, rest[0]) if rest else (self.model, first)
        seen = _params.before(model)
        out = original(self, first, *rest, **kwargs)
        _params.after(seen, gradients)
        return out

    return update
