# SPDX-License-Identifier: Apache-2.0
"""The argument `sites=`: which modules of a model are watched."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from flax import nnx

from tallax._errors import InvalidTypeError, InvalidValueError, describe
from tallax._module import EvalAware
from tallax._walk import WATCHED, path_name


class Found(NamedTuple):
    """A module of a model, and its path."""

    path: tuple[Any, ...]
    module: Any

    @property
    def name(self) -> str:
        """The path as text; an empty string for the model itself."""
        return path_name(self.path)


def modules_of(model: Any) -> list[Found]:
    """Returns the modules that can be sites, each once: not containers, random streams, optimizers or tallax's own."""
    found = []
    for path, node in nnx.iter_graph(model):
        if isinstance(node, nnx.Module) and not isinstance(node, EvalAware | nnx.List | nnx.Dict | nnx.Rngs):
            if WATCHED not in path:
                found.append(Found(path, node))
    return sorted(found, key=lambda each: _order(each.path))


def _order(path: Sequence[Any]) -> tuple[Any, ...]:
    return tuple((0, key, "") if isinstance(key, int) else (1, 0, str(key)) for key in path)


def matching(pattern: str) -> Callable[[str], bool]:
    """Returns whether names match a glob: `*` stands for one part of a path, `**` for any number of them."""
    text = re.escape(pattern).replace(r"\*\*/", "(?:.*/)?").replace(r"\*\*", ".*").replace(r"\*", "[^/]*")
    compiled = re.compile(text)
    return lambda name: compiled.fullmatch(name) is not None


def chosen_modules(model: Any, sites: Any) -> list[Found]:
    """Returns the modules that `sites` selects.

    Raises:
        InvalidTypeError: `sites` is not a glob, a class, a predicate, or a list of these.
        InvalidValueError: A part of it selects nothing.
    """
    modules = modules_of(model)
    parts = list(sites) if isinstance(sites, list | tuple) else [sites]
    chosen: dict[int, Found] = {}
    for part in parts:
        test = _test(part)
        found = [each for each in modules if test(each)]
        if not found and not _functions(modules, part):
            raise _nothing(part, modules)
        chosen.update((id(each.module), each) for each in found)
    if not parts:
        raise _nothing([], modules)
    return [each for each in modules if id(each.module) in chosen]


def _test(part: Any) -> Callable[[Found], bool]:
    if isinstance(part, str):
        matches = matching(part)
        return lambda each: matches(each.name)
    if isinstance(part, type):
        return lambda each: isinstance(each.module, part)
    if callable(part) and not isinstance(part, nnx.Pytree):
        return lambda each: _asked(part, each)
    raise InvalidTypeError(
        "sites",
        "takes a glob of paths, a module class, a predicate, or a list of these.",
        got=describe(part),
        fix='sites="layers/*/attention", sites=nnx.Linear, or sites=lambda path, module: ...',
    )


def _asked(predicate: Callable[..., Any], each: Found) -> bool:
    try:
        return bool(predicate(each.name, each.module))
    except Exception as error:
        raise InvalidValueError(
            "sites",
            "takes a predicate (path, module) -> bool, and this one raised.",
            got=f"{type(error).__name__}: {error}, for {each.name or 'the model'}",
            fix="sites=lambda path, module: isinstance(module, nnx.Linear)",
        ) from error


def names_in(argument: str, value: Any, example: str) -> tuple[str, ...]:
    """Returns the names in an argument, which is a string or several of them.

    Raises:
        InvalidTypeError: It is neither.
    """
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
        raise InvalidTypeError(argument, "takes a string, or several in a tuple.", got=describe(value), fix=example)
    return tuple(names)


def check_methods(methods: Sequence[str], modules: Sequence[Found]) -> None:
    """Checks that each method is one of some module, if there are modules.

    Raises:
        InvalidValueError: No module has it.
    """
    kinds = {type(each.module) for each in modules}
    for method in methods:
        if kinds and not any(callable(getattr(kind, method, None)) for kind in kinds):
            there = sorted({name for kind in kinds for name, x in vars(kind).items() if inspect.isfunction(x)})
            named = [name for name in there if name == "__call__" or not name.startswith("_")]
            raise InvalidValueError(
                "method",
                "no chosen module has this method.",
                got=repr(method),
                expected=", ".join(named[:12]) or "the methods of the chosen modules",
                fix=f'method="{(difflib.get_close_matches(method, named, n=1) or named or ["__call__"])[0]}"',
            )


def _nothing(part: Any, modules: Sequence[Found]) -> InvalidValueError:
    if isinstance(part, type):
        kinds = sorted({type(each.module).__name__ for each in modules})
        rule = f"the model has no module of the class {part.__name__}."
        expected, fix = ", ".join(kinds[:12]), f"sites={kinds[-1]}" if kinds else 'sites="**"'
    else:
        names = [each.name for each in modules]
        close = difflib.get_close_matches(part, names, n=3) if isinstance(part, str) else []
        rule, expected = "selects no module of the model.", ", ".join(close or names[1:9])
        fix = f'sites="{close[0]}"' if close else 'sites="**", which selects all modules'
        owner, _, attribute = part.rpartition("/") if isinstance(part, str) else ("", "", "")
        if any(isinstance(vars(each.module).get(attribute), nnx.Param) for each in modules if each.name == owner):
            rule, fix = "takes modules, and this is a Param.", f'sites="{owner}", gradients=True'
    got = part.__name__ if isinstance(part, type) else describe(part)
    return InvalidValueError("sites", rule, got=got, expected=expected or "a model with modules", fix=fix)


def functions_asked_for(model: Any, sites: Any) -> list[str]:
    """Returns the paths of functions that `sites` names: they have no state, so they cannot be watched."""
    modules = modules_of(model)
    parts = list(sites) if isinstance(sites, list | tuple) else [sites]
    return sorted({name for part in parts for name in _functions(modules, part)})


def _functions(modules: Sequence[Found], part: Any) -> Iterator[str] | list[str]:
    # `**` and `layers/*` mean the modules; each layer of Flax has several functions, such as its initialisers.
    if not isinstance(part, str) or "*" in part.rpartition("/")[2]:
        return []
    matches = matching(part)
    return [
        name
        for each in modules
        for attribute, value in vars(each.module).items()
        if callable(value)
        and not isinstance(value, nnx.Pytree | nnx.Variable)
        and matches(name := path_name((*each.path, attribute)))
    ]
